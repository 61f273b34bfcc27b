"""The page of topics is what the structs say, and what the node publishes fits it."""

from pathlib import Path
from typing import Any

import msgspec

from openlora.node.telemetry.reference import PAGE, page, schemas
from openlora.node.telemetry.topics import TOPICS
from tests.node.facts import claimed, submitted
from tests.node.telemetry.scene import observed


def test_the_page_is_what_the_structs_say():
    assert PAGE.read_text() == page(), "run python -m openlora.node.telemetry.reference"


def test_every_topic_has_its_schema_and_every_reference_a_target():
    definitions = schemas()["$defs"]
    assert {kind.__name__ for kind in TOPICS.values()} <= definitions.keys()
    targets = set(references(definitions))
    assert {"#/$defs/Snapshot", "#/$defs/Gpu"} <= targets <= {f"#/$defs/{name}" for name in definitions}


async def test_a_snapshot_has_the_keys_of_its_schema_and_no_other(tmp_path: Path):
    async with observed(tmp_path) as scene:
        scene.apply(submitted(1))
        scene.apply(claimed(1))
        state = msgspec.json.decode(msgspec.json.encode(await scene.observer.snapshot()))
    assert misfits(state, {"$ref": "#/$defs/Snapshot"}, schemas()["$defs"]) == []
    state["engine"]["surprise"] = 1
    del state["queue"]["live"][0]["job_id"]
    assert misfits(state, {"$ref": "#/$defs/Snapshot"}, schemas()["$defs"]) == ["engine", "queue.live.0"]


def references(schema: Any) -> list[str]:
    if isinstance(schema, dict):
        own = [schema["$ref"]] if "$ref" in schema else []
        return own + [found for part in schema.values() for found in references(part)]
    return [found for part in schema for found in references(part)] if isinstance(schema, list) else []


def misfits(value: Any, schema: dict[str, Any], definitions: dict[str, Any], path: str = "") -> list[str]:
    """Where the keys of objects are not those that a schema demands; only what our structs use of JSON Schema."""
    if value is not None and "anyOf" in schema:
        schema = next(option for option in schema["anyOf"] if option.get("type") != "null")
    if "$ref" in schema:
        schema = definitions[schema["$ref"].rpartition("/")[2]]
    found: list[str] = []
    if isinstance(value, dict) and "properties" in schema:
        assert schema["additionalProperties"] is False
        if not set(schema["required"]) <= value.keys() <= schema["properties"].keys():
            return [path]
        for key, part in value.items():
            found += misfits(part, schema["properties"][key], definitions, f"{path}.{key}".lstrip("."))
    elif isinstance(value, list):
        for index, part in enumerate(value):
            found += misfits(part, schema["items"], definitions, f"{path}.{index}")
    return found
