"""The page of routes is what the applications say, and the applications answer what their schemas say."""

from pathlib import Path

import msgspec
import pytest

from openlora.node.api.openai_answers import (
    ChatCompletion,
    ChatCompletionChunk,
    Completion,
    Health,
    ModelCard,
    ModelList,
)
from openlora.node.api.openapi import Error
from openlora.node.api.reference import PAGE, page
from openlora.node.telemetry.history import HistoryView
from openlora.node.telemetry.snapshot import Snapshot
from openlora.node.telemetry.views import EarningsOverTime, JobDetail, JobPage, NodesView, ReceiptView
from tests.node.api.harness import ADAPTERS, BASE, serving
from tests.node.dashboard.world import busy, served, world
from tests.node.fake_engine import FakeEngine


def test_the_page_is_what_the_applications_say():
    assert PAGE.read_text() == page(), "run python -m openlora.node.api.reference"


async def test_openai_s_routes_answer_what_their_schemas_say(tmp_path: Path):
    ask = {"model": BASE, "max_tokens": 3, "logprobs": 2}
    talk = {**ask, "messages": [{"role": "user", "content": "hello"}], "logprobs": True, "top_logprobs": 2}
    async with serving(tmp_path, FakeEngine()) as server:
        whole = {
            Completion: await server.post("/v1/completions", {**ask, "prompt": "hello"}),
            ChatCompletion: await server.post("/v1/chat/completions", talk),
            ModelList: await server.http.get("/v1/models"),
            ModelCard: await server.http.get(f"/v1/models/{ADAPTERS[0]}"),
            Health: await server.http.get("/health"),
            Error: await server.http.get("/v1/models/none"),
        }
        for kind, answer in whole.items():
            msgspec.json.decode(answer.content, type=kind)
        for stream_options in (None, {"include_usage": True}):
            options = {"stream_options": stream_options}
            for kind, path, body in (
                (Completion, "/v1/completions", {**ask, "prompt": "hello"}),
                (ChatCompletionChunk, "/v1/chat/completions", talk),
            ):
                *events, done = await server.events(path, {**body, **options})
                assert done == "[DONE]"
                assert [msgspec.convert(event, kind) for event in events]


async def test_the_dashboard_s_routes_answer_what_their_schemas_say(tmp_path: Path):
    async with world(tmp_path) as shown:
        busy(shown)
        async with served(shown) as server:
            for path, kind in (
                ("/v1/state", Snapshot),
                ("/v1/earnings", EarningsOverTime),
                ("/v1/history", HistoryView),
                ("/v1/network", NodesView),
                ("/v1/jobs?limit=5", JobPage),
                ("/v1/jobs/52", JobDetail),
                ("/v1/jobs/52/receipt", ReceiptView),
                ("/v1/jobs/99", Error),
                ("/v1/jobs/3/receipt", Error),
                ("/v1/jobs?state=nonsense", Error),
                ("/v1/jobs?limit=0", Error),
                ("/v1/jobs/99999999999999999999", Error),
                ("/v1/earnings?bucket_s=1", Error),
                ("/nowhere", Error),
            ):
                answer = await server.http.get(path)
                assert answer.is_error == (kind is Error), path
                msgspec.json.decode(answer.content, type=kind)
            document = (await server.http.get("/openapi.json")).json()
    assert document["paths"]["/v1/jobs"]["get"]["responses"]["200"]["content"] == {
        "application/json": {"schema": {"$ref": "#/components/schemas/JobPage"}}
    }
    assert document["security"] == [{"key": []}, {"session": []}, {}]
    references = set(_references(document))
    assert references <= {f"#/components/schemas/{name}" for name in document["components"]["schemas"]}
    assert not any("ValidationError" in name for name in document["components"]["schemas"])


def _references(part: object) -> list[str]:
    match part:
        case dict():
            own = [part["$ref"]] if isinstance(part.get("$ref"), str) else []
            return own + [found for value in part.values() for found in _references(value)]
        case list():
            return [found for value in part for found in _references(value)]
    return []


@pytest.mark.parametrize(
    "word", ["/v1/events", "GET /v1/jobs/{job_id}/receipt", "POST /v1/chat/completions", "### Everything"]
)
def test_nothing_is_left_out_of_the_page(word: str):
    assert word in page()
