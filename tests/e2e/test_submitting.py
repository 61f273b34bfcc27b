"""The guide's examples, as a reader runs them, against a chain and a node that answers."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from openlora.contracts import JobState, OutputPublished
from openlora.node.chain.history import events
from openlora.node.devnet import Devnet
from openlora.node.market import Term, open_market
from tests.e2e.agents import agent, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("engine")]


def recipe(net: Devnet) -> int:
    async def run() -> int:
        async with open_market(net.client_config) as person:
            return await person.recipe(net.base_id, [Term(net.adapters["pirate"])])

    return asyncio.run(run())


def publications(net: Devnet) -> dict[int, str]:
    """The texts that were published, by job."""

    async def run() -> dict[int, str]:
        async with open_market(net.client_config) as person:
            found = await events(person.chain, net.deployment.outputs, net.deployment.block)
        return {event.job_id: json.loads(event.output)["text"] for event in found if isinstance(event, OutputPublished)}

    return asyncio.run(run())


def read_back(net: Devnet, job_id: int) -> str:
    async def run() -> str:
        async with open_market(net.client_config) as person:
            output = await person.output(job_id)
        assert output is not None
        return output.text

    return asyncio.run(run())


def is_paid(net: Devnet, job_id: int) -> bool:
    async def run() -> bool:
        async with open_market(net.client_config) as person:
            return (await person.job(job_id)).state is JobState.FINALIZED

    return asyncio.run(run())


def run_example(net: Devnet, person: str, command: Sequence[object], key_file: Path, recipe_id: int) -> tuple[int, str]:
    """The job that an example submitted with a person's key, and the answer that it printed."""
    key_file.write_text(f"0x{bytes(net.people[person].key).hex()}\n")
    arguments = (
        *command,
        net.chain.rpc_url,
        net.folder / "deployment.json",
        key_file,
        recipe_id,
        "Why is the sky blue?",
    )
    done = subprocess.run(list(map(str, arguments)), capture_output=True, text=True, timeout=170, check=False)
    assert done.returncode == 0, done.stderr
    first, _, answer = done.stdout.partition("\n")
    return int(first.split()[1].rstrip(":")), answer.removesuffix("\n")


def test_the_examples_print_the_answers_that_they_paid_for(net: Devnet, repository: Path, tmp_path: Path):
    folder, recipe_id = repository / "contracts/examples", recipe(net)
    examples = {"operator 2": (sys.executable, folder / "submit.py"), "operator 3": ("node", folder / "submit.mjs")}
    with agent(net.nodes[0].folder), ThreadPoolExecutor() as threads:
        runs = [
            threads.submit(run_example, net, person, command, tmp_path / person, recipe_id)
            for person, command in examples.items()
        ]
        answers = dict(run.result() for run in runs)
        assert len(answers) == 2
        assert answers == publications(net)
        assert all(answers.values())
        wait_until(lambda: all(is_paid(net, job_id) for job_id in answers), "the jobs' payment")
    assert {job_id: read_back(net, job_id) for job_id in answers} == answers, "from the chain: the node is off"
