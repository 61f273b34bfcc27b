"""Debian's Chromium, headless, that may speak to the page's own host alone."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Browser, Page, async_playwright

CHROMIUM = "/usr/bin/chromium"
ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
SIZES = {"desktop": (1360, 900), "phone": (390, 844)}
GRAVE = ("serious", "critical")


@dataclass
class Visit:
    """A page that was opened, and what went on behind it."""

    page: Page
    problems: list[str] = field(default_factory=list)  # errors and warnings of the console, exceptions of scripts
    asked: list[str] = field(default_factory=list)  # every URL that the browser asked for

    async def live(self) -> None:
        await self.page.wait_for_selector("#link[data-state=live]")
        await self.page.wait_for_selector("#tiles .tile")

    async def wei(self, selector: str) -> int:
        """The exact amount behind a figure."""
        text = await self.page.locator(selector).first.get_attribute("data-wei")
        assert text is not None, f"{selector} carries no amount"
        return int(text)

    async def texts(self, selector: str) -> list[str]:
        return [text.strip() for text in await self.page.locator(selector).all_inner_texts()]

    async def first_paint_s(self) -> float:
        """The soonest of up to five: a machine that does other things may delay some."""
        found = []
        while not found or (min(found) >= 1 and len(found) < 5):
            await self.page.reload()
            await self.live()
            paint = "performance.getEntriesByName('first-contentful-paint')[0].startTime"
            found.append(float(await self.page.evaluate(paint)) / 1000)
        return min(found)

    async def grave_findings(self) -> list[str]:
        """What axe finds serious or critical now."""
        found: dict[str, Any] = (await Axe().run(self.page)).response
        return [
            f"{violation['id']}: {node['html'][:200]}"
            for violation in found["violations"]
            if violation["impact"] in GRAVE
            for node in violation["nodes"]
        ]

    async def overflow_px(self) -> int:
        """By how much the page is wider than the window."""
        return int(await self.page.evaluate("document.documentElement.scrollWidth - window.innerWidth"))


@asynccontextmanager
async def chromium() -> AsyncIterator[Browser]:
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        try:
            yield browser
        finally:
            await browser.close()


@asynccontextmanager
async def visit(
    browser: Browser, url: str, size: str = "desktop", theme: Literal["light", "dark"] = "light"
) -> AsyncIterator[Visit]:
    """A visitor without a past."""
    width, height = SIZES[size]
    context = await browser.new_context(
        viewport={"width": width, "height": height}, color_scheme=theme, reduced_motion="reduce"
    )
    page = await context.new_page()
    seen = Visit(page)
    page.on("console", lambda message: _note(seen.problems, message.type, message.text))
    page.on("pageerror", lambda error: seen.problems.append(str(error)))
    page.on("request", lambda request: seen.asked.append(request.url))
    page.on("websocket", lambda socket: seen.asked.append(socket.url))
    await page.goto(url)
    yield seen
    await context.close()


def _note(problems: list[str], kind: str, text: str) -> None:
    if kind in ("error", "warning"):
        problems.append(f"{kind}: {text}")
