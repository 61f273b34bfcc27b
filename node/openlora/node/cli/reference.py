"""The page of commands, from the commands themselves: `python -m` this module writes it."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Final, get_args, get_origin

import typer
from typer.models import ArgumentInfo, OptionInfo

from openlora.node import errors
from openlora.node.cli.main import app
from openlora.node.doctor.finding import EXPLAINED
from openlora.node.errors import OpenLoraError

PAGE: Final = Path(__file__).resolve().parents[4] / "configs" / "cli.md"
PROGRAM: Final = "openlora"
OTHER_CODES: Final = {
    0: "done",
    1: "it worked, and the answer is no: `doctor`, `upgrade --check`, `drain --wait`",
    130: "ended by Ctrl-C",
}

TEXT: Final = """\
# Commands

Every command explains itself with `--help`; `openlora --install-completion` completes them in your shell. With `--json`
a command prints JSON and nothing else to stdout, one document a line. What is refused is one sentence on stderr that
says what is wrong and what to do.

## Exit codes

| Code | Means |
|---:|---|
{codes}

## Commands

{commands}

## What can be refused

| Error | Exit code | When |
|---|---:|---|
{errors}

## What `doctor` finds

| Code | Means |
|---|---|
{findings}
"""


def page() -> str:
    """The page, as configs/cli.md has it."""
    return TEXT.format(
        codes="\n".join(f"| {code} | {said} |" for code, said in sorted(exit_codes().items())),
        commands="\n\n".join(_section(*command) for command in commands()),
        errors="\n".join(
            f"| `{kind.__name__}` | {kind.exit_code} | {_first_sentence(kind)} |" for kind in error_tree()
        ),
        findings="\n".join(f"| `{code}` | {said} |" for code, said in EXPLAINED.items()),
    )


def commands() -> Iterator[tuple[str, Callable[..., object] | None, str]]:
    """Every command: its whole name, its function, and its text; a group has no function and comes before its own."""
    yield from _walk(PROGRAM, app)


def _walk(path: str, group: typer.Typer) -> Iterator[tuple[str, Callable[..., object] | None, str]]:
    for command in group.registered_commands:
        assert command.callback is not None, "every command has a function"
        name = command.name or command.callback.__name__.replace("_", "-")
        yield f"{path} {name}", command.callback, inspect.getdoc(command.callback) or ""
    for inner in group.registered_groups:
        assert inner.typer_instance is not None, "every group has its commands"
        info, name = inner.typer_instance.info, f"{path} {inner.name}"
        acts = info.callback and info.invoke_without_command
        said = inspect.getdoc(info.callback) if acts and info.callback else info.help
        yield name, info.callback if acts else None, said if isinstance(said, str) else ""
        yield from _walk(name, inner.typer_instance)


def _section(path: str, function: Callable[..., object] | None, said: str) -> str:
    if function is None:
        return f"### {path}\n\n{said}"
    values = list(_values(function))
    words = [path, *(value.name for value in values if not value.is_option)]
    if any(value.is_option for value in values):
        words.append("[OPTIONS]")
    lines = [f"### {path}", "", "```sh", " ".join(words), "```", "", said]
    if values:
        lines += ["", "| | Default | Meaning |", "|---|---|---|"]
        lines += [f"| {value.shown} | {value.default} | {value.help} |" for value in values]
    return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class Value:
    """What a command is given."""

    name: str
    is_option: bool
    shown: str
    default: str
    help: str


def _values(function: Callable[..., object]) -> Iterator[Value]:
    """Arguments first, as they are declared."""
    found = [_value(parameter) for parameter in inspect.signature(function, eval_str=True).parameters.values()]
    known = [value for value in found if value is not None]
    yield from sorted(known, key=lambda value: value.is_option)


def _value(parameter: inspect.Parameter) -> Value | None:
    """None for what Typer itself passes."""
    kind, *notes = get_args(parameter.annotation) if get_origin(parameter.annotation) is Annotated else (None,)
    info = next((note for note in notes if isinstance(note, OptionInfo | ArgumentInfo)), None)
    if info is None:
        return None
    is_option, default = isinstance(info, OptionInfo), parameter.default
    first = info.default if isinstance(info.default, str) else None  # within Annotated, Typer puts the first name there
    flags = tuple(filter(None, (first, *(info.param_decls or ())))) or (f"--{parameter.name.replace('_', '-')}",)
    name = info.metavar if info.metavar and not is_option else parameter.name.upper().replace("_", "-")
    shown = ", ".join(f"`{flag}`" for flag in flags) if is_option else f"`{name}`"
    if kind is not bool:
        shown += f" {info.metavar or _kind_name(kind)}" if is_option else ""
    said = " ".join((info.help or "").split())
    return Value(
        name=name if default is inspect.Parameter.empty else f"[{name}]",
        is_option=is_option,
        shown=shown.replace("|", "\\|"),
        default=_shown_default(default),
        help=said.replace("|", "\\|"),
    )


def _kind_name(kind: Any) -> str:
    names: dict[type, str] = {str: "TEXT", Path: "PATH", int: "N", float: "N"}
    inner = [part for part in get_args(kind) if part is not type(None)]
    if get_origin(kind) is list:
        return f"{_kind_name(inner[0])} …"
    if inner:
        return _kind_name(inner[0])
    if issubclass(kind, Enum):
        return "|".join(str(member.value) for member in kind)
    return names[kind]


def _shown_default(default: object) -> str:
    if default is inspect.Parameter.empty:
        return "required"
    if default is None or default is False or default == "":
        return ""
    return f"`{default.value if isinstance(default, Enum) else default}`"


def exit_codes() -> dict[int, str]:
    refusals = {
        OpenLoraError.exit_code: "refused, or mistyped: its operator must do something",
        errors.TEMPORARY: "refused for now: it may pass by itself, and a service manager may try again",
    }
    found = OTHER_CODES | refusals
    for kind in error_tree():
        said = _first_sentence(kind).split(";")[0]
        found.setdefault(kind.exit_code, said[0].lower() + said[1:])
    return found


def error_tree() -> Sequence[type[OpenLoraError]]:
    """Every error of the node's own, in the order of their file."""
    kinds = [kind for kind in vars(errors).values() if inspect.isclass(kind) and issubclass(kind, OpenLoraError)]
    return [kind for kind in kinds if kind is not OpenLoraError]


def _first_sentence(kind: type[OpenLoraError]) -> str:
    said = " ".join(inspect.cleandoc(kind.__doc__ or "").split())
    return said.split(". ")[0].rstrip(".")


if __name__ == "__main__":
    PAGE.write_text(page())
