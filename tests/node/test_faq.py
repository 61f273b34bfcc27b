"""The FAQ is keyed by what the code says: no warning without an entry, and no entry without its words."""

import ast
import re
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path

import pytest

from openlora.node.job import JobState, SkipCode
from openlora.node.telemetry.snapshot import AlertCode

LEVELS = ("warning", "error", "exception", "critical", "log")
CHILDREN = ("engine", "network")  # what a supervisor's name is
IN_TESTS_ALONE = "p2p/openlora/p2p/memory.py"  # a network within a process


def keys(message: str) -> Iterator[str]:
    """What is searched for: `event=…`, or the words before the first that varies."""
    if message.startswith("event="):
        event = message.split()[0]
        yield from (event.replace("%s", child) for child in CHILDREN) if "%" in event else (event,)
    else:
        yield message.split("%")[0].rstrip(" :")


def logged(sources: Path) -> Iterator[tuple[str, str]]:
    for package in ("node", "p2p", "kernels", "contracts"):
        for path in (sources / package / "openlora").rglob("*.py"):
            where = str(path.relative_to(sources))
            if where == IN_TESTS_ALONE:
                continue
            for node in ast.walk(ast.parse(path.read_text())):
                match node:
                    case ast.Call(func=ast.Attribute(value=ast.Name(id="log" | "_log"), attr=level), args=args):
                        if level in LEVELS:
                            message = args[level == "log"]
                            assert isinstance(message, ast.Constant), f"{where}:{node.lineno}: {ast.unparse(node)}"
                            yield from ((key, f"{where}:{node.lineno}") for key in keys(str(message.value)))


def section(text: str, *titles: str) -> set[str]:
    """The keys below these titles."""
    parts = re.split(r"^## (.*)\n", text, flags=re.MULTILINE)
    chosen = (body for title, body in zip(parts[1::2], parts[2::2], strict=True) if title in titles)
    return {key for body in chosen for key in re.findall(r"^#### `(.+)`$", body, flags=re.MULTILINE)}


def test_every_warning_has_an_entry_and_every_entry_its_warning(repository: Path):
    faq = (repository / "configs/guides/faq.md").read_text()
    entries = section(faq, "Processes", "Jobs", "Sessions", "Chain", "Network", "Telemetry and configuration")
    places = dict(logged(repository))
    assert {key: place for key, place in places.items() if key not in entries} == {}, "configs/guides/faq.md lacks them"
    assert entries - places.keys() == set(), "nothing says so any more"


def test_every_alert_and_every_skip_code_has_an_entry(repository: Path):
    faq = (repository / "configs/guides/faq.md").read_text()
    alerts, skipped = section(faq, "Alerts"), section(faq, "Why a job was passed over", "Alerts")
    assert {str(code) for code in AlertCode} - alerts == set()
    assert {str(code) for code in SkipCode} - skipped == set()


def test_no_key_is_there_twice(repository: Path):
    found = re.findall(r"^#### `(.+)`$", (repository / "configs/guides/faq.md").read_text(), flags=re.MULTILINE)
    assert len(found) == len(set(found))


@pytest.mark.parametrize(("constant", "codes"), [("STATES", JobState), ("SKIPS", SkipCode)])
def test_the_page_has_a_word_for_every_state_and_skip_code(repository: Path, constant: str, codes: type[StrEnum]):
    words = (repository / "node/openlora/node/api/page/words.js").read_text()
    listed = words.partition(f"export const {constant}")[2].partition("};")[0]
    assert set(re.findall(r"^  (\w+):", listed, re.MULTILINE)) == {str(code) for code in codes}
