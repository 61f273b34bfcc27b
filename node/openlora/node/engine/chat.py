"""Chat templates: messages to a prompt, as the model's authors wrote it down in Jinja.

A template comes with the base model that the operator chose, and still runs sandboxed. Messages come from strangers:
a control token that is spelled out in one ("<|im_end|>") is encoded as the plain text it is, so that nobody can end
his own turn and speak as the system.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from openlora.node.documents import ChatMessage
from openlora.node.errors import ModelError, RequestError

# Private-use characters around a control token in a message; dropped from messages that bring their own.
_OPEN, _CLOSE = "\U000f0000", "\U000f0001"


class ChatTemplate:
    """`control_tokens` are the texts that the tokenizer turns into control tokens, `names` what a template may call
    by name (`bos_token`, `eos_token`). Raises ModelError for a template that is not Jinja."""

    def __init__(self, source: str, control_tokens: Sequence[str], names: Mapping[str, str]) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation]
        )
        environment.filters["tojson"] = _to_json
        environment.globals.update(names)
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = lambda format_: datetime.now().astimezone().strftime(format_)
        try:
            self._template = environment.from_string(source)
        except Exception as error:  # the compiler of Python that is behind it has its own
            raise ModelError(f"the model's chat template cannot be read: {error}") from None
        longest_first = sorted(control_tokens, key=len, reverse=True)
        self._control = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        self._marked = re.compile(f"{_OPEN}({self._control.pattern}){_CLOSE}")

    def render(self, messages: Sequence[ChatMessage]) -> list[tuple[str, bool]]:
        """The prompt in pieces, each with whether its control tokens are meant as such, up to where the assistant
        speaks. Raises RequestError("bad_messages") with the template's complaint."""
        marked = [{"role": message.role, "content": self._mark(message.content)} for message in messages]
        try:
            prompt = self._template.render(messages=marked, add_generation_prompt=True, tools=None, documents=None)
        except Exception as error:  # a template may fail as any program may
            raise RequestError("bad_messages", f"the model's chat template refuses: {error}", "messages") from None
        return list(self._pieces(prompt))

    def _mark(self, content: str) -> str:
        content = content.replace(_OPEN, "").replace(_CLOSE, "")
        return self._control.sub(f"{_OPEN}\\g<0>{_CLOSE}", content)

    def _pieces(self, prompt: str) -> Iterator[tuple[str, bool]]:
        for index, piece in enumerate(self._marked.split(prompt)):
            if _OPEN in piece or _CLOSE in piece:
                raise RequestError("bad_messages", "the chat template tears a control token apart", "messages")
            if piece:
                yield piece, index % 2 == 0


class _Generation(Extension):
    """`{% generation %}…{% endgeneration %}` marks what the assistant said, for training; here it is just its body."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it so

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """transformers' filter, not Jinja's own, which escapes for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(message: str) -> None:
    raise TemplateError(message)
