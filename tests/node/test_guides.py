"""What the guides tell people to type exists: every verb, and every flag of it."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer.main

from openlora.contracts import JobFlag
from openlora.node.cli.main import app
from openlora.node.documents import decode_input, decode_output

COMMAND = re.compile(r"(?:^|[`/ ])openlora ((?:[a-z][a-z-]*)(?: [^`#\n|]*)?)", flags=re.MULTILINE)


def guides(repository: Path) -> Iterator[Path]:
    yield repository / "README.md"
    yield repository / "contracts/submitting.md"
    yield from sorted((repository / "configs/guides").glob("*.md"))


def typed(text: str) -> Iterator[str]:
    """Each command in a block or between backticks, its continued lines joined."""
    joined = text.replace("\\\n", " ")
    for code in (*re.findall(r"```sh\n(.*?)```", joined, flags=re.DOTALL), *re.findall(r"`([^`\n]+)`", joined)):
        for line in code.splitlines():
            if found := COMMAND.search(line):
                yield found.group(1)


def check(words: list[str]) -> None:
    command = typer.main.get_command(app)
    while hasattr(command, "commands") and words and not words[0].startswith("-"):
        assert words[0] in command.commands, f"openlora has no {words[0]}"
        command = command.commands[words.pop(0)]
    flags = {flag for parameter in command.params for flag in parameter.opts}
    unknown = {word.split("=")[0] for word in words if word.startswith("--")} - flags - {"--help"}
    assert not unknown, f"{command.name} has no {unknown}"


def test_what_the_guides_have_people_type_exists(repository: Path):
    commands = [(guide.name, command) for guide in guides(repository) for command in typed(guide.read_text())]
    assert len(commands) > 30
    for guide, command in commands:
        try:
            check(command.split())
        except AssertionError as error:
            pytest.fail(f"{guide}: openlora {command}: {error}")


@pytest.mark.parametrize("line", ["openlora runn", "openlora run --confg x"])
def test_a_slip_is_noticed(line: str):
    (command,) = typed(f"`{line}`")
    with pytest.raises(AssertionError):
        check(command.split())


def test_links_between_pages_lead_somewhere(repository: Path):
    for guide in guides(repository):
        for link in re.findall(r"\]\(([^)#]+)[^)]*\)", guide.read_text()):
            assert "://" in link or (guide.parent / link).exists(), f"{guide.name}: {link}"


def test_the_flags_and_documents_of_the_submitters_guide_are_the_codes(repository: Path):
    guide = (repository / "contracts/submitting.md").read_text()
    assert {name: int(bit) for name, bit in re.findall(r"^\| `([A-Z]+)` = (\d+) \|", guide, flags=re.MULTILINE)} == {
        str(flag.name): int(flag) for flag in JobFlag
    }
    given, answered = re.findall(r"```json\n(.*?)\n```", guide, flags=re.DOTALL)
    assert decode_input(given.encode()).messages
    assert decode_output(answered.encode()).text == "Ahoy"
