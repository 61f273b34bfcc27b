"""The page of topics with their JSON schemas, from the structs themselves: `python -m` this module writes it."""

import json
from pathlib import Path
from typing import Any, Final

import msgspec

from openlora.node.telemetry import topics
from openlora.node.telemetry.snapshot import SCHEMA_VERSION, Snapshot
from openlora.node.telemetry.topics import TOPICS
from openlora.typed_data import TELEMETRY_BIRTH_TYPE

PAGE: Final = Path(__file__).resolve().parents[4] / "configs" / "telemetry.md"
REFERENCES: Final = "#/$defs/{name}"

TEXT: Final = """\
# What a node says of itself

One snapshot feeds `/v1/state`, `/metrics` and the MQTT topics, so they never contradict each other. Every number has
its unit in its name; amounts are decimal text in wei; times are unix seconds. No prompt, answer or secret is in it.

`/v1/state` answers on `agent.sock`, and on `telemetry.listen` where that is set: [http.md](http.md) has all routes, and
[dashboards.md](dashboards.md) shows how to use them. Its document is `Snapshot` below, schema version {version}: a key
that goes or changes its meaning raises the version; new keys may come without.

## Topics

`{prefix}/<chain id>/<operator, in lower case>/…`, JSON, QoS 1. All but the jobs are retained. The state is the last
will too: `online` is then false and `state` null. A `session` begins with its `birth`, which the hot key signed
(EIP-712, `{birth}`
in the domain of `registry`), and numbers its messages from 1: a gap is a message that was lost on the way. The last
will has the number 0.

| Topic | Message |
|---|---|
{rows}

`configs/mosquitto.conf` and `configs/mosquitto.acl` make a broker where a node writes its own topics alone and a
dashboard reads them all.

## Schemas

```json
{schemas}
```
"""


def schemas() -> dict[str, Any]:
    """JSON Schema (2020-12) of each message, of the snapshot, and of their parts, by name."""
    _, parts = msgspec.json.schema_components([Snapshot, *TOPICS.values()], ref_template=REFERENCES)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "$defs": dict(sorted(parts.items()))}


def page() -> str:
    """The page, as configs/telemetry.md has it."""
    rows = "\n".join(f"| `{topic}` | `{kind.__name__}` |" for topic, kind in TOPICS.items())
    return TEXT.format(
        version=SCHEMA_VERSION,
        prefix=topics.PREFIX,
        birth=TELEMETRY_BIRTH_TYPE,
        rows=rows,
        schemas=json.dumps(schemas(), indent=1, ensure_ascii=False),
    )


if __name__ == "__main__":
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page())
