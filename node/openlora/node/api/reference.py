"""The page of HTTP routes, from the applications themselves: `python -m` this module writes it."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import msgspec

from openlora.node.api.agent import create_agent_api, create_dashboard_api
from openlora.node.api.app import create_app
from openlora.node.api.events import TOO_MANY, TOO_SLOW
from openlora.node.api.limits import Limits
from openlora.node.api.openapi import REFERENCES, REFUSALS
from openlora.node.api.steering import steering_router
from openlora.node.telemetry.feed import EVENTS, LOOK_EVERY_S, MAX_LISTENERS, MAX_WAITING
from openlora.node.telemetry.reference import schemas as told_in_telemetry

PAGE: Final = Path(__file__).resolve().parents[4] / "configs" / "http.md"

TEXT: Final = """\
# HTTP

Three faces answer HTTP, and each has its `/openapi.json`:

- `openlora serve`: OpenAI's routes over an engine;
- the dashboard's port, where `telemetry.listen` names one: the page, what it reads, and `/metrics`;
- `agent.sock` in the state folder, for its owner alone: the same without the page, and what steers the node.

On loopback the first two are open, to local host names only. Elsewhere every route asks for a key,
`Authorization: Bearer <key>`, of the file that `--api-key-file` or `telemetry.key_file` names; browsers exchange it for
a cookie at `/v1/session`. There are no CORS headers: pages of other origins go through a server of their own.

Every refusal is an `Error`, in OpenAI's shape. Beside what each route names, there may come:

{refusals}

{faces}

## Events

`/v1/events`, on the dashboard's port and on `agent.sock`, is a WebSocket that only the server speaks on. Each message
is a JSON object with its `type` and a `sequence_number` that rises by one from 1. The first is `everything`; the node
looks every {look_s} s for what has changed since, and tells it. Whoever finds a gap, or was cut off, connects again and
has everything anew. A listener that is {waiting} messages behind is dropped with the close code {too_slow}; the one
after the {listeners}th is refused with {too_many}. A page of another origin may not listen.

{events}

## Schemas

Amounts are decimal text in wei, times unix seconds. `Snapshot` and its parts are in [telemetry.md](telemetry.md).

{schemas}
"""


def page() -> str:
    """The page, as configs/http.md has it."""
    stub: Any = SimpleNamespace(limits=Limits())  # routes are told of, not called
    agent = create_agent_api(stub, stub, stub, stub)
    agent.include_router(steering_router(stub))
    serve = create_app(stub).openapi()
    dashboard = create_dashboard_api(stub, stub, Limits()).openapi()
    socket = agent.openapi()
    own = {path: item for path, item in socket["paths"].items() if path not in dashboard["paths"]}
    events = _event_schemas()
    shown = {**serve["components"]["schemas"], **dashboard["components"]["schemas"], **events}
    elsewhere = told_in_telemetry()["$defs"]
    return TEXT.format(
        refusals=_table(("Status", "When"), REFUSALS.items()),
        faces="\n\n".join(
            (
                _face("`openlora serve`", serve["paths"]),
                _face("The dashboard's port", dashboard["paths"]),
                _face("`agent.sock`, beside the dashboard's routes but `/v1/session`", own),
            )
        ),
        look_s=LOOK_EVERY_S,
        waiting=MAX_WAITING,
        listeners=MAX_LISTENERS,
        too_slow=TOO_SLOW,
        too_many=TOO_MANY,
        events=_table(
            ("`type`", "Message"), [(f"`{kind.__struct_config__.tag}`", f"`{kind.__name__}`") for kind in EVENTS]
        ),
        schemas="\n\n".join(_schema(name, shown[name]) for name in sorted(shown) if name not in elsewhere),
    )


def _event_schemas() -> Mapping[str, Any]:
    _, found = msgspec.json.schema_components(EVENTS, ref_template=REFERENCES)
    return found


def _face(title: str, paths: Mapping[str, Any]) -> str:
    routes = [_route(path, method, operation) for path, item in paths.items() for method, operation in item.items()]
    return "\n\n".join((f"## {title}", *routes))


def _route(path: str, method: str, operation: Mapping[str, Any]) -> str:
    parts = [f"### {method.upper()} {path}", operation.get("description", "").strip()]
    if parameters := operation.get("parameters"):
        rows = [(f"`{found['name']}`", found["in"], _parameter(found)) for found in parameters]
        parts.append(_table(("Parameter", "In", "Meaning"), rows))
    if body := operation.get("requestBody"):
        parts.append("Body: " + ", ".join(_content(body["content"])))
    answers = [
        (
            status,
            _one_line(answer["description"]).replace("Successful Response", "Done."),
            ", ".join(_content(answer.get("content", {}))),
        )
        for status, answer in sorted(operation["responses"].items())
        if answer.get("description") != REFUSALS.get(status)
    ]
    parts.append(_table(("Status", "What", "Body"), answers))
    return "\n\n".join(part for part in parts if part)


def _parameter(found: Mapping[str, Any]) -> str:
    schema = found["schema"]
    default = f"; {schema['default']} unless given" if schema.get("default") is not None else ""
    told = found.get("description", "")
    return f"{_kind(schema)}{default}{'; ' + told if told else ''}"


def _content(content: Mapping[str, Any]) -> Iterator[str]:
    for media_type, body in content.items():
        kind = _kind(body.get("schema", {}))
        yield f"`{kind}`" if media_type == "application/json" and kind != "anything" else f"`{media_type}`"


def _schema(name: str, schema: Mapping[str, Any]) -> str:
    told = _one_line(schema.get("description", ""))
    if "properties" not in schema:
        return "\n\n".join(part for part in (f"### {name}", told, _kind(schema)) if part)
    required = set(schema.get("required", ()))
    rows = [
        (f"`{field}`", _kind(kind) + ("" if field in required else " (may be left out)"))
        for field, kind in schema["properties"].items()
    ]
    return "\n\n".join(part for part in (f"### {name}", told, _table(("Field", "Kind"), rows)) if part)


def _kind(schema: Mapping[str, Any]) -> str:
    """A JSON schema in words; what of it our types use."""
    match schema:
        case {"$ref": ref}:
            return str(ref).rpartition("/")[2]
        case {"anyOf": options}:
            return " or ".join(dict.fromkeys(map(_kind, options)))
        case {"const": value}:
            return f'"{value}"'
        case {"enum": values}:
            return " or ".join(f'"{value}"' if isinstance(value, str) else str(value) for value in values)
        case {"type": "array", "items": dict(items)}:
            return f"list of {_kind(items)}"
        case {"type": "array"}:
            return "list"
        case {"type": "object", "additionalProperties": dict(held)}:
            return f"object of {_kind(held)}"
        case {"type": kind}:
            return f"{kind}{_bounds(schema)}"
    return "anything"


def _bounds(schema: Mapping[str, Any]) -> str:
    low = schema.get("minimum", schema.get("minLength"))
    high = schema.get("maximum", schema.get("maxLength"))
    words = [f"from {low}" if low is not None else "", f"to {high}" if high is not None else ""]
    told = " ".join(word for word in words if word)
    return f" {told}" if told else ""


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _table(head: tuple[str, ...], rows: Any) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


if __name__ == "__main__":
    PAGE.write_text(page())
