"""The dashboard over a live three-node network: what it says is what the chain and the journals say."""

import asyncio
import shutil
import sqlite3
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from openlora.contracts import JobFinalized, Role
from openlora.node import agent_client
from openlora.node.books import Books
from openlora.node.chain.history import events
from openlora.node.devnet import ASK_IN_WEI_PER_K, ASK_OUT_WEI_PER_K, Devnet, DevNode
from openlora.node.documents import ChatMessage, InputDocument
from openlora.node.market import Offer, Term, open_market
from openlora.p2p.presence.record import plain_text
from tests.e2e.agents import agent, wait_until
from tests.node.dashboard.browser import Visit, chromium, visit

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("engine")]

CANARY = "<img src=x onerror=alert(1)>"
SHOTS = Path("var/dashboard")


async def submit(net: Devnet) -> Sequence[int]:
    """Four jobs that are answered, one that pays too little, and one whose adapter, the canary, nobody has."""
    pirate, haiku, *_ = net.adapters.values()
    unknown = bytes.fromhex("ca" * 32)
    async with open_market(net.client_config) as client:
        await client.transact(client.registry.register_adapter(unknown, net.base_id, [], CANARY))
        ids = []
        for terms, price in (
            ([], 1.0),
            ([Term(pirate)], 1.0),
            ([Term(pirate, 0.7), Term(haiku, 0.3)], 1.0),
            ([Term(pirate, 0.7), Term(haiku, 0.3)], 1.0),
            ([], 0.1),
            ([Term(unknown)], 1.0),
        ):
            document = InputDocument(v=1, messages=(ChatMessage("user", "What is the sea?"),))
            offer = Offer(128, 24, int(price * ASK_IN_WEI_PER_K), int(price * ASK_OUT_WEI_PER_K))
            ids.append((await client.submit(await client.recipe(net.base_id, terms), document, offer)).job_id)
        return ids


async def books(net: Devnet) -> tuple[Books, dict[int, JobFinalized]]:
    async with open_market(net.client_config) as client:
        found = await events(client.chain, net.deployment.job_queue, net.deployment.block)
    return Books.of(found), {event.job_id: event for event in found if isinstance(event, JobFinalized)}


def journal_paid_wei(node: DevNode) -> int:
    with sqlite3.connect(f"file:{node.folder}/journal.sqlite?mode=ro", uri=True) as db:
        return sum(high * 10**12 + low for high, low in db.execute("SELECT high, low FROM payments"))


def with_strange_model_name(node: DevNode, model: Path) -> None:
    """The name that a node tells of its model is its folder's."""
    strange = node.folder / CANARY
    shutil.copytree(model, strange, copy_function=lambda source, copy: Path(copy).symlink_to(source))
    config = node.config.read_text()
    node.config.write_text(config.replace(f'"{model.resolve()}"', f'"{strange}"'))


def jobs_of(node: DevNode) -> dict[int, str]:
    return {job["job_id"]: job["state"] for job in agent_client.get(node.socket, "/v1/jobs")["jobs"]}


def test_the_page_says_what_chain_and_journals_say(net: Devnet, model_dir: Path):
    with_strange_model_name(net.nodes[2], model_dir)
    with ExitStack() as stack, ThreadPoolExecutor() as starters:
        list(starters.map(lambda node: stack.enter_context(agent(node.folder)), net.nodes))
        first = net.nodes[0]
        ids = asyncio.run(submit(net))
        wait_until(lambda: all("finalized" in _states(net, job_id) for job_id in ids[:4]), "the payment of four jobs")
        wait_until(lambda: len(agent_client.get(first.socket, "/v1/network")["nodes"]) == 3, "the nodes' meeting")
        asyncio.run(_compare(net, ids))


def _states(net: Devnet, job_id: int) -> list[str]:
    return [jobs_of(node).get(job_id, "") for node in net.nodes]


async def _compare(net: Devnet, ids: Sequence[int]) -> None:
    ledger, finalized = await books(net)
    received: Counter[tuple[str, str]] = Counter()
    SHOTS.mkdir(parents=True, exist_ok=True)
    async with chromium() as browser:
        for node in net.nodes:
            async with visit(browser, f"http://{node.dashboard}", theme="dark") as seen:
                await seen.live()
                await _compare_money(net, node, seen, ledger)
                received.update(await _parts(seen, node, finalized))
                await _compare_strangers(seen, ids)
                assert await seen.grave_findings() == []
                assert await seen.first_paint_s() < 1
                await seen.page.screenshot(path=SHOTS / f"{node.name}.png", full_page=True)
                assert seen.problems == []
                assert {urlsplit(url).netloc for url in seen.asked} == {node.dashboard}
    assert received == {(role.name.lower(), payee): wei for (role, payee), wei in ledger.earned.items()}


async def _compare_money(net: Devnet, node: DevNode, seen: Visit, ledger: Books) -> None:
    operator = net.people[node.name.replace("node-", "operator ")].address
    earned_wei = ledger.earned.get((Role.NODE, operator), 0)
    assert await seen.wei("#paid") == earned_wei == journal_paid_wei(node)
    await seen.page.wait_for_selector(f"#withdrawable[data-wei='{earned_wei}']", timeout=15_000)  # asked every 10 s
    async with open_market(net.client_config) as client:
        registered = await client.chain.call(client.nodes.node(operator))
    assert await seen.wei("#stake") == registered.stake


async def _parts(seen: Visit, node: DevNode, finalized: dict[int, JobFinalized]) -> Counter[tuple[str, str]]:
    """Who got what of the fees of this node's jobs, as the page shows each."""
    found: Counter[tuple[str, str]] = Counter()
    own = [job_id for job_id, state in jobs_of(node).items() if state == "finalized"]
    assert await seen.texts("#finalized") == [str(len(own))]
    for job_id in own:
        await seen.page.click(f"tr[data-job='{job_id}']")
        await seen.page.wait_for_selector("#job .tree")
        parts = {}
        for part in await seen.page.locator("[data-part]").all():
            role, payee = str(await part.get_attribute("data-part")).split()
            parts[role, payee] = int(str(await part.get_attribute("data-wei")))
        assert sum(parts.values()) == finalized[job_id].fee
        found.update(parts)
        await seen.page.keyboard.press("Escape")
    return found


async def _compare_strangers(seen: Visit, ids: Sequence[int]) -> None:
    """The canary is in a recipe and in a node's record, and text in both; codes say why jobs were passed over."""
    *_, too_cheap, no_bytes = ids
    await seen.page.wait_for_selector(f"tr[data-job='{no_bytes}'] :text('{CANARY}'):visible")
    await seen.page.wait_for_selector(f"#nodes :text('{plain_text(CANARY)}'):visible")
    assert await seen.page.locator("img[src=x]").count() == 0
    assert "Pays too little" in await seen.page.inner_text(f"tr[data-job='{too_cheap}']")
    assert await seen.page.locator("#nodes tbody tr").count() == 3
