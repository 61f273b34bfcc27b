"""The page of commands is what the commands are, and each of them speaks JSON."""

import inspect

import pytest
import typer.testing

from openlora.node.cli.main import app
from openlora.node.cli.reference import PAGE, PROGRAM, commands, error_tree, exit_codes, page
from openlora.node.doctor.finding import Code
from openlora.node.errors import ConfigError, OpenLoraError

SPEAK_FOR_THEMSELVES = {"openlora serve", "openlora run"}  # they log, until they are stopped


def test_the_page_is_what_the_commands_are():
    assert PAGE.read_text() == page(), "run python -m openlora.node.cli.reference"


def test_the_page_names_every_error_and_every_finding():
    text = page()
    assert all(f"| `{kind.__name__}` | {kind.exit_code} |" in text for kind in error_tree())
    assert all(f"| `{code}` |" in text for code in Code)
    assert {0, 1, 2, 130} <= exit_codes().keys()
    assert OpenLoraError.__subclasses__(), "the tree is not empty"
    assert ConfigError in error_tree()


def test_every_command_speaks_json():
    silent = [
        path
        for path, function, _ in commands()
        if function is not None and "json" not in inspect.signature(function).parameters
    ]
    assert set(silent) == SPEAK_FOR_THEMSELVES


@pytest.mark.parametrize(("path", "said"), [(path, said) for path, _, said in commands()])
def test_every_command_has_the_help_that_the_page_has(path: str, said: str):
    words = path.removeprefix(PROGRAM).split()
    done = typer.testing.CliRunner().invoke(app, [*words, "--help"], env={"COLUMNS": "200"})
    assert done.exit_code == 0
    assert said, "every command says what it does"
    first = " ".join(said.split("\n\n")[0].split())
    assert first in " ".join(done.output.replace("│", " ").split())


def test_shells_complete_commands():
    environment = {"_OPENLORA_COMPLETE": "complete_bash", "COMP_WORDS": "openlora st", "COMP_CWORD": "1"}
    done = typer.testing.CliRunner().invoke(app, [], env=environment, prog_name="openlora")
    assert set(done.output.split()) == {"stake", "status"}
