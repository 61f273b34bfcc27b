"""The page in a real Chromium, over a node that we made up: figures, keyboard, colours, widths, strangers' names."""

import time
from contextlib import AsyncExitStack
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.async_api import expect

from openlora.contracts import Paid, Role
from openlora.node.api import page
from openlora.node.job import JobId, JobState, SkipCode
from tests.node.dashboard.browser import Visit, chromium, visit
from tests.node.dashboard.world import CANARY, World, at_work, busy, served, world
from tests.node.facts import OPERATOR

pytestmark = pytest.mark.slow

KEY = "a-key-of-some-length"
SHOTS = Path("var/dashboard")


async def test_the_page_says_what_the_node_says(tmp_path: Path):
    async with world(tmp_path) as shown, chromium() as browser:
        busy(shown)
        await at_work(shown, time.time())
        state = await shown.observe()
        async with served(shown) as server, visit(browser, server.url) as seen:
            await seen.live()
            assert state.stake is not None
            assert await seen.wei("#paid") == int(state.earnings.paid_wei)
            assert await seen.wei("#stake") == int(state.stake.stake_wei)
            assert await seen.texts("#finalized") == [str(state.jobs_by_state["finalized"])]
            for role, wei in state.earnings.paid_by_role_wei.items():
                await seen.page.wait_for_selector(f"[data-role={role}]")
                assert await seen.wei(f"[data-role={role}]") == int(wei)
            assert await seen.texts("#skips li b") == ["6", "2", "2", "1", "1"]
            assert (await seen.texts("#jobs-table tbody th button"))[:3] == ["#60", "#59", "#58"]
            assert await seen.page.locator("#nodes tbody tr").count() == 6
            assert await seen.page.locator("#graphs figure").count() == 8

            await seen.page.click("tr[data-job='52']")
            await seen.page.wait_for_selector(".tree")
            receipt = await shown.board.receipt(JobId(52))
            parts = {f"{part.role} {part.payee}": int(part.amount_wei) for part in receipt.parts}
            found = {name: await seen.wei(f"[data-part='{name}']") for name in parts}
            assert found == parts
            assert sum(found.values()) == int(receipt.fee_wei) + int(receipt.use_fee_wei)
            await seen.page.keyboard.press("Escape")

            before = int(state.earnings.paid_wei)
            took_s = [await _shown_after_s(seen, shown, before + number) for number in range(1, 4)]
            shown.submit(61)
            await seen.page.wait_for_selector("tr[data-job='61'] .state.seen")
            shown.scene.journal.move(JobId(61), JobState.SKIPPED, skip=SkipCode.LOW_DISK)
            await seen.page.wait_for_selector("#skips [data-skip=low_disk]")
            shown.scene.reorganise(4)
            await seen.page.wait_for_selector(f"#paid[data-wei='{before}']")

            assert min(took_s) < 1, "the machine may have been busy at some, but not at all"
            assert await seen.first_paint_s() < 1
            assert seen.problems == []
            assert {urlsplit(url).netloc for url in seen.asked} == {urlsplit(server.url).netloc}


async def _shown_after_s(seen: Visit, shown: World, paid_wei: int) -> float:
    """Seconds from a payment of one wei until the page shows it."""
    begun_s = time.monotonic()
    shown.apply(Paid(OPERATOR, Role.BASE, 1, 1))
    await seen.page.wait_for_selector(f"#paid[data-wei='{paid_wei}']")
    return time.monotonic() - begun_s


async def test_strangers_names_are_words(tmp_path: Path):
    async with world(tmp_path) as shown, chromium() as browser:
        busy(shown)
        async with served(shown) as server, visit(browser, server.url) as seen:
            await seen.live()
            await seen.page.click("tr[data-job='54']")
            await seen.page.wait_for_selector(".tree")
            for place in ("#jobs-table", "#tiers", "#nodes", "#job"):
                assert CANARY in " ".join(await seen.texts(place))
            assert await seen.page.locator("img[src=x]").count() == 0
            assert "owned" not in await seen.page.title()
            assert seen.problems == []


@pytest.mark.parametrize("theme", ["light", "dark"])
async def test_axe_finds_nothing_serious(tmp_path: Path, theme: str):
    async with world(tmp_path) as shown, chromium() as browser:
        busy(shown)
        await at_work(shown, time.time())
        SHOTS.mkdir(parents=True, exist_ok=True)
        async with served(shown) as server:
            for size in ("desktop", "phone"):
                async with visit(browser, server.url, size, theme) as seen:  # type: ignore[arg-type]
                    await seen.live()
                    await seen.page.wait_for_selector(".earnings")
                    assert await seen.grave_findings() == []
                    assert await seen.overflow_px() <= 0
                    await seen.page.screenshot(path=SHOTS / f"{size}-{theme}.png", full_page=True)
                    await seen.page.click("tr[data-job='52']")
                    await seen.page.wait_for_selector(".tree")
                    assert await seen.grave_findings() == []
                    await seen.page.screenshot(path=SHOTS / f"{size}-{theme}-job.png")


async def test_everything_can_be_done_by_keyboard(tmp_path: Path):
    async with world(tmp_path) as shown, chromium() as browser:
        busy(shown)
        await at_work(shown, time.time())
        async with served(shown) as server, visit(browser, server.url) as seen:
            await seen.live()
            tab = seen.page
            await tab.wait_for_selector("[data-key='earnings-plot']")

            async def focused() -> str:
                return str(
                    await tab.evaluate(
                        "(e => e.dataset.key || e.id || e.getAttribute('href') || e.tagName)(document.activeElement)"
                    )
                )

            await tab.keyboard.press("Tab")
            await tab.keyboard.press("Enter")  # past the navigation
            assert await focused() == "main"
            passed = []
            while "job 60" not in passed:
                await tab.keyboard.press("Tab")
                passed.append(await focused())
                assert len(passed) < 40
                if passed[-1] == "7 days":
                    await tab.keyboard.press("Enter")
                    await tab.wait_for_selector("[data-key='7 days'][aria-pressed=true]")
                if passed[-1] == "earnings-plot":
                    await tab.keyboard.press("ArrowLeft")
                    await tab.wait_for_selector("[data-key='earnings-plot'] .readout:visible")
            assert {"earnings-plot", "graph KV cache", "jobs-filter", "Jobs, newest first"} <= set(passed)
            await tab.keyboard.press("Enter")
            await tab.wait_for_selector("#job[open] .history")
            assert await focused() == "close"
            await tab.keyboard.press("Escape")
            await tab.wait_for_selector("#job", state="hidden")
            shown.submit(62)  # painting anew must not lose the place
            await tab.wait_for_selector("tr[data-job='62']")
            assert await focused() == "job 60"
            await tab.focus("#theme")
            await tab.keyboard.press("Enter")
            await tab.keyboard.press("Enter")
            assert await tab.evaluate("document.documentElement.dataset.theme") == "dark"
            assert seen.problems == []


async def test_filters_and_pages_of_jobs(tmp_path: Path):
    async with world(tmp_path) as shown, chromium() as browser:
        busy(shown)
        async with served(shown) as server, visit(browser, server.url) as seen:
            await seen.live()
            await seen.page.click("text=Older")
            await seen.page.wait_for_selector("tr[data-job='45']")
            await seen.page.click("text=Newer")
            await seen.page.wait_for_selector("tr[data-job='60']")
            await seen.page.select_option("#jobs-filter", "skip_code=low_disk")
            await expect(seen.page.locator("tr[data-job]")).to_have_count(2)
            assert await seen.texts("#jobs-table tbody th button") == ["#53", "#13"]


async def test_no_width_cuts_anything_off(tmp_path: Path):
    async with world(tmp_path) as shown, chromium() as browser:
        busy(shown)
        async with served(shown) as server, visit(browser, server.url) as seen:
            await seen.live()
            for width in (320, 600, 768, 1000, 1920):
                await seen.page.set_viewport_size({"width": width, "height": 800})
                assert await seen.overflow_px() <= 0, f"{width} px"


async def test_a_new_node_has_words_where_there_are_no_figures(tmp_path: Path):
    async with world(tmp_path) as shown, served(shown) as server, chromium() as browser:
        shown.changes = {"stake": None}
        async with visit(browser, server.url) as seen:
            await seen.live()
            await seen.page.wait_for_selector("#earnings-body .empty")
            words = " ".join(await seen.texts("#board"))
            for said in ("Nothing has been paid yet", "No job has been seen yet", "None has been fetched yet"):
                assert said in words
            assert "The chain has not answered yet" in words
            assert await seen.grave_findings() == []
            assert seen.problems == []


async def test_a_node_that_goes_away_is_told_of_and_found_again(tmp_path: Path):
    async with world(tmp_path) as shown, chromium() as browser, AsyncExitStack() as stack:
        busy(shown)
        async with AsyncExitStack() as life:
            server = await life.enter_async_context(served(shown))
            seen = await stack.enter_async_context(visit(browser, server.url))
            await seen.live()
        await seen.page.wait_for_selector("#link[data-state=lost]")
        assert "Trying again in" in await seen.page.inner_text("#banner")
        assert "What you see is from" in await seen.page.inner_text("#banner")
        shown.submit(61)
        async with served(shown, port=urlsplit(server.url).port or 0):
            await seen.live()
            await seen.page.wait_for_selector("tr[data-job='61']")
            assert not await seen.page.is_visible("#banner")


async def test_a_key_opens_the_page_and_a_wrong_one_does_not(tmp_path: Path):
    async with world(tmp_path) as shown, chromium() as browser:
        busy(shown)
        async with served(shown, [KEY]) as server, visit(browser, server.url) as seen:
            tab = seen.page
            await tab.wait_for_selector("#login:visible")
            assert await seen.grave_findings() == []
            await tab.fill("#key", KEY + "x")
            await tab.keyboard.press("Enter")
            await tab.wait_for_selector("#login-problem:has-text('not one of this node')")
            await tab.fill("#key", KEY)
            await tab.keyboard.press("Enter")
            await seen.live()
            assert KEY not in await tab.content()
            await tab.reload()
            await seen.live()
            assert await tab.evaluate("document.cookie") == "", "no script reads the session"
            await tab.click("#logout")
            await tab.wait_for_selector("#login:visible")
            await tab.reload()
            await tab.wait_for_selector("#login:visible")


def test_the_page_is_light_and_names_no_host():
    files = sorted(Path(page.__file__).with_name("page").iterdir())
    assert sum(path.stat().st_size for path in files) < 100_000
    for path in files:
        text = path.read_text().replace("http://www.w3.org/2000/svg", "")
        assert "http:" not in text, path.name
        assert "https://" not in text, path.name
        for markup in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
            assert markup not in text, path.name
