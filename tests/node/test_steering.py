"""What a running node is told: nothing half-read takes effect, and what cannot change live is named."""

from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from openlora.node.api.app import create_bare_app
from openlora.node.api.limits import Limits
from openlora.node.api.steering import steering_router
from openlora.node.config import NodeConfig, load
from openlora.node.errors import ConfigError
from openlora.node.steering import Reloaded, Steering
from openlora.node.terms import Terms
from tests.node.test_config import write

CLIENT = "0x70997970C51812dc3A010C7d01b50e0d17dc79C8"


@pytest.fixture
def steering(tmp_path: Path) -> Steering:
    path = write(tmp_path)
    config = load(path, NodeConfig)
    return Steering(path, config, Terms(config.market, config.storage.min_free_bytes), lambda: None)


def put(steering: Steering, **values: str) -> None:
    text = steering.path.read_text()
    for key, value in values.items():
        line = next(line for line in text.splitlines() if line.startswith(f"{key} = "))
        text = text.replace(line, f"{key} = {value}")
    steering.path.write_text(text)


def test_prices_limits_and_lists_change_in_a_running_node(steering: Steering):
    put(steering, min_in_price_wei_per_k="7", max_live_jobs="3", min_free_bytes="5", clients=f'["{CLIENT}"]')
    changed = ("market.clients", "market.max_live_jobs", "market.min_in_price_wei_per_k", "storage.min_free_bytes")
    done = steering.reload()
    assert (tuple(sorted(done.changed)), done.needs_restart) == (changed, ())
    terms = steering.terms
    assert (terms.market.min_in_price_wei_per_k, terms.capacity_jobs, terms.min_free_bytes) == (7, 3, 5)
    assert terms.market.clients == (CLIENT,)
    assert steering.reload() == Reloaded(changed=(), needs_restart=())


def test_what_needs_a_restart_is_named_until_there_is_one(steering: Steering):
    put(steering, kv_tokens="1024", max_live_jobs="2", path='"elsewhere"', level='"debug"')
    done = steering.reload()
    assert done.changed == ("market.max_live_jobs",)
    assert set(done.needs_restart) == {"engine.kv_tokens", "model.path", "log.level"}
    assert set(steering.reload().needs_restart) == {"engine.kv_tokens", "model.path", "log.level"}


@pytest.mark.parametrize(
    ("key", "value", "complaint"),
    [
        ("turn_s", '"soon"', "market.turn_s"),
        ("clients", '["0x12"]', "0x12"),
        ("clients", f'["{CLIENT.lower()[:-1]}9"]', "checksum"),
        ("adapters", '["pirate"]', "pirate"),
        ("max_live_jobs", "-1", ">= 0"),
    ],
)
def test_a_file_with_any_fault_changes_nothing(steering: Steering, key: str, value: str, complaint: str):
    put(steering, min_in_price_wei_per_k="7", **{key: value})
    with pytest.raises(ConfigError, match=complaint):
        steering.reload()
    steering.reload_quietly()
    assert steering.terms.market.min_in_price_wei_per_k == 0


def test_the_routes(steering: Steering):
    app = create_bare_app(Limits(), keys=())
    app.include_router(steering_router(steering))
    http = TestClient(app, base_url="http://localhost")
    assert http.post("/v1/drain").json() == {"draining": True}
    assert steering.terms.capacity_jobs == 0
    assert http.delete("/v1/drain").json() == {"draining": False}
    assert steering.terms.capacity_jobs == 8
    put(steering, max_live_jobs="1")
    assert http.post("/v1/reload").json() == {"changed": ["market.max_live_jobs"], "needs_restart": []}
    steering.path.write_text("colour = 1")
    refused = http.post("/v1/reload")
    assert refused.status_code == 422
    assert "unknown key colour" in refused.json()["error"]["message"]
