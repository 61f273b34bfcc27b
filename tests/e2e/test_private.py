"""A private job as people have one: from the command line to the answer, and nothing of it anywhere in the clear."""

import json
import subprocess
import sys

import pytest

from openlora.node import agent_client
from openlora.node.devnet import Devnet
from openlora.node.errors import AgentUnreachable, OpenLoraError
from tests.e2e.agents import PATIENCE_S, agent, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("engine")]

BEFORE_CLAIM = ("unknown", "seen", "skipped", "claiming")
PROMPT = "Repeat after me: Xanthippe-4711 lives in Ouagadougou."


def test_a_private_job_outlives_its_node_and_nothing_of_it_is_kept_in_the_clear(openlora, net: Devnet):
    node, operator = net.nodes[0], net.people["operator 1"].address
    client = ("--client", net.client_config)
    submit = ["job", "submit", PROMPT, "--private", "--node", operator, "--max-tokens", "16", *map(str, client)]

    def state() -> str:
        try:
            return str(agent_client.get(node.socket, "/v1/jobs/1")["state"])
        except (AgentUnreachable, OpenLoraError):
            return "unknown"

    with subprocess.Popen(
        [sys.executable, "-m", "openlora.node", *submit], stdout=subprocess.PIPE, text=True
    ) as asking:
        with agent(node.folder) as first_life:
            wait_until(lambda: state() not in BEFORE_CLAIM, "the claim")
            first_life.kill()
        with agent(node.folder):
            said, _ = asking.communicate(timeout=PATIENCE_S)
            assert said.splitlines()[-1] == "job 1 is committed"
            with pytest.raises(OpenLoraError, match="its client alone"):
                next(agent_client.watch(node.socket, 1))
            done = openlora("job", "result", 1, "--json", *client)
            assert done.returncode == 0, done.stderr
            pages = [str(agent_client.get(node.socket, path)) for path in ("/v1/jobs/1", "/v1/jobs", "/v1/state")]
    answer = json.loads(done.stdout)["text"]
    assert said.endswith(f"{answer}\njob 1 is committed\n")
    places = {page: page.encode() for page in pages}
    places |= {str(path): path.read_bytes() for path in net.folder.rglob("*") if path.is_file()}
    assert any(place.endswith("node.log") for place in places)
    assert any(place.endswith("journal.sqlite") for place in places)
    secrets = ["Xanthippe", "Ouagadougou", max(answer.splitlines(), key=len)]
    assert min(map(len, secrets)) > 8
    assert [(secret, place) for secret in secrets for place in places if secret.encode() in places[place]] == []
