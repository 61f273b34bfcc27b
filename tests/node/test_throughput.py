"""The figures of `openlora bench`, on an engine whose pace is known."""

import json

import pytest
import typer.testing

from openlora.node.cli.main import app
from openlora.node.engine.client import in_process_engine
from openlora.node.throughput import measure
from tests.node.engine.tiny import write_model
from tests.node.fake_engine import FakeEngine


async def test_figures_of_requests_that_run_together():
    async with in_process_engine(FakeEngine(script=b"x" * 64)) as engine:
        figure = await measure(engine, 4, 8, 16)
    assert figure.requests == 4
    assert figure.tokens_per_s > 0
    assert figure.first_token_s >= 0
    assert figure.token_s >= 0


@pytest.mark.slow
def test_the_command_measures_a_real_engine(tmp_path):
    model = write_model(tmp_path / "model")
    flags = ["--model", str(model), "--requests", "1", "--requests", "3", "--output-tokens", "4", "--json"]
    done = typer.testing.CliRunner().invoke(app, ["bench", *flags])
    figures = json.loads(done.output)["figures"]
    assert [figure["requests"] for figure in figures] == [1, 3]
    assert all(figure["tokens_per_s"] > 0 for figure in figures)
