"""A job's input and output: canonical JSON documents, each one raw block of at most 1 MiB.

The digest on chain is the sha2-256 of the document's bytes, and its CID (v1, raw) follows from it. Canonical means:
keys sorted, no white space, UTF-8, shortest floats, defaults left out; `encode` writes it, and `decode` takes any bytes
that fit the schema, since the digest binds the bytes as they came.
"""

from hashlib import sha256
from typing import Annotated, Literal, TypeVar

import msgspec
from msgspec import Meta

from openlora.node.engine.admission import MAX_TEMPERATURE
from openlora.node.errors import RequestError
from openlora.node.malformed import MALFORMED

MAX_DOCUMENT_BYTES = 1 << 20
MAX_INLINE_BYTES = 4096  # an input that may travel in the submitting transaction
MAX_STOPS = 16
MAX_STOP_CHARS = 256
MAX_PUBLISHED_BYTES = 96 << 10  # an output that does: servers take transactions of at most 128 KiB
OUTPUT_BYTES_PER_TOKEN = 24  # generously: the token's id and its text as JSON

FinishReason = Literal["stop", "length"]
_Stop = Annotated[str, Meta(min_length=1, max_length=MAX_STOP_CHARS)]


class ChatMessage(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    role: Literal["system", "user", "assistant"]
    content: str


class JobSampling(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """As in the engine, less the seed (derived from the claim) and with `stop` as text. What the engine would refuse
    does not decode: a job that cannot be run is found out before it is claimed.

    `max_tokens` may lower, never raise, the spec's maxOutTokens.
    """

    temperature: Annotated[float, Meta(ge=0, le=MAX_TEMPERATURE)] = 0.0
    top_k: Annotated[int, Meta(ge=0, lt=1 << 31)] = 0
    top_p: Annotated[float, Meta(gt=0, le=1)] = 1.0
    stop: Annotated[tuple[_Stop, ...], Meta(max_length=MAX_STOPS)] = ()
    ignore_eos: bool = False
    max_tokens: Annotated[int, Meta(ge=1)] | None = None


class InputDocument(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Exactly one of `messages`, `prompt` and `prompt_ids`."""

    v: int
    messages: tuple[ChatMessage, ...] | None = None
    prompt: str | None = None
    prompt_ids: tuple[int, ...] | None = None
    sampling: JobSampling = JobSampling()


class Usage(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    prompt_tokens: int
    completion_tokens: int


class OutputDocument(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    v: int
    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    usage: Usage


Document = TypeVar("Document", InputDocument, OutputDocument)


def encode(document: InputDocument | OutputDocument) -> bytes:
    """The canonical bytes."""
    return msgspec.json.encode(document, order="sorted")


def digest(data: bytes) -> bytes:
    """sha2-256 of a document's bytes: its name on chain."""
    return sha256(data).digest()


def output_bytes(max_out_tokens: int) -> int:
    """What an output of so many tokens may come to."""
    return 256 + OUTPUT_BYTES_PER_TOKEN * max_out_tokens


def decode_input(data: bytes) -> InputDocument:
    """Raises RequestError("bad_input") naming the field that does not fit."""
    document = _decode(data, InputDocument)
    given = [name for name in ("messages", "prompt", "prompt_ids") if getattr(document, name) is not None]
    if len(given) != 1:
        found = ", ".join(given) or "none"
        raise RequestError("bad_input", f"the input document needs one of messages, prompt, prompt_ids (found {found})")
    return document


def decode_output(data: bytes) -> OutputDocument:
    """Raises RequestError("bad_input") naming the field that does not fit."""
    return _decode(data, OutputDocument)


def _decode(data: bytes, kind: type[Document]) -> Document:
    if len(data) > MAX_DOCUMENT_BYTES:
        raise RequestError("bad_input", f"the document has {len(data)} bytes, more than {MAX_DOCUMENT_BYTES}")
    try:
        document = msgspec.json.decode(data, type=kind)
    except MALFORMED as error:
        raise RequestError("bad_input", f"the document is malformed: {error}") from None
    if document.v != 1:
        raise RequestError("bad_input", f"the document's version is {document.v}; this node reads version 1")
    return document
