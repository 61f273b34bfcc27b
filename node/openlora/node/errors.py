"""Every error the node raises on purpose, as one tree.

    OpenLoraError                 a sentence for a person; exit code 2, or 75 for what may pass by itself (*)
    ├── ConfigError               configuration, flags, keystores
    ├── ModelError                a base model that cannot be found, read or served
    ├── AdapterError              an adapter refused: schema, shapes, numbers, wrong base
    │   └── AdapterCheckFailed    the check died or took too long; it may be tried again
    ├── RequestError              an inference request refused (HTTP 4xx); carries a code
    │   └── Overloaded            the queue is full; try again later (HTTP 429)
    ├── ChildDied *               a child process ended, or hangs, while it was needed
    │   └── EngineDied            the engine
    ├── NetworkError              the peer-to-peer network: no peer answered, or it went away in the middle
    │   ├── PeerRefused           the peer answered with a refusal, which is the message
    │   └── NetworkDown           our own network process (also a ChildDied)
    ├── LeaseTooShort             a claimed job that cannot be answered in time; it is given back
    ├── FrameError                bytes between processes that break the framing
    │   ├── FrameTooLarge         over the size limit; refused before it is decoded
    │   ├── FrameTruncated        the peer ended in the middle of a frame
    │   └── FrameMalformed        not the message that was agreed
    ├── ContentError              content by CID
    │   └── ContentNotFound       nobody has it
    ├── ChainError                RPC, receipts, nonces
    │   ├── RpcDown *             no configured RPC answers
    │   ├── RpcError *            an RPC answered with an error; carries its code and data
    │   ├── RpcBehind *           an RPC shows less than another did, or than it did itself
    │   ├── WrongChain            the RPC serves another chain id
    │   ├── GasTooDear *          gas costs more than the operator allows; may pass
    │   └── Reverted              a call or transaction reverted; carries the decoded contract error; exit code 3
    ├── JournalError              the journal contradicts the chain or another agent holds it
    │   └── JournalUnwritable *   the disk is full or failing; may pass
    ├── BackupError               a backup that cannot be made, read or restored
    └── AgentUnreachable          no agent listens on the socket

A message says what is wrong and what to do, in one sentence, with no secret, prompt or output in it.
"""

TEMPORARY = 75  # EX_TEMPFAIL in sysexits.h: a service manager may try again


class OpenLoraError(Exception):
    exit_code = 2


class ConfigError(OpenLoraError):
    """Configuration, flags or keystores; lists every bad key at once."""


class ModelError(OpenLoraError):
    """A base model cannot be found, read or served."""


class AdapterError(OpenLoraError):
    """An adapter is refused; the message names the file, key or tensor."""


class AdapterCheckFailed(AdapterError):
    """The child that checks adapters died or took too long; says nothing final about the adapter."""


class RequestError(OpenLoraError):
    """An inference request is refused; `code` is stable and machine-readable, `param` names the field at fault."""

    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.param = param


class Overloaded(RequestError):
    """The bounded queue is full."""


class ChildDied(OpenLoraError):
    """A child process ended or hangs; its supervisor restarts it."""

    exit_code = TEMPORARY


class EngineDied(ChildDied):
    """The engine child ended; the supervisor restarts it and the work may be submitted again."""


class NetworkError(OpenLoraError):
    """The peer-to-peer network: no peer answered, or it went away in the middle. It may be tried again, elsewhere."""


class PeerRefused(NetworkError):
    """A peer refused a request; the message is its own words, cut to a line."""


class NetworkDown(NetworkError, ChildDied):
    """Our own network process ended or restarts; it may be tried again."""


class LeaseTooShort(OpenLoraError):
    """A claimed job cannot be answered within its lease; the claim is given back before it costs the bond."""


class FrameError(OpenLoraError):
    """Bytes between two of our processes break the framing; the connection cannot be used any more."""


class FrameTooLarge(FrameError):
    """A frame over the size limit: refused by its header, before a byte of it is read or decoded."""


class FrameTruncated(FrameError):
    """The peer ended in the middle of a frame."""


class FrameMalformed(FrameError):
    """The payload is not a message of the agreed union."""


class ContentError(OpenLoraError):
    """Content that is missing, too large, or does not match its CID."""


class ContentNotFound(ContentError):
    """No reachable store has the block."""


class ChainError(OpenLoraError):
    """The chain or its RPC."""


class RpcDown(ChainError):
    """No configured RPC answers."""

    exit_code = TEMPORARY


class RpcError(ChainError):
    """An RPC answered, with an error; `data` may hold a contract's revert data."""

    exit_code = TEMPORARY

    def __init__(self, code: int, message: str, data: object) -> None:
        super().__init__(message)
        self.code = code
        self.data = data


class RpcBehind(ChainError):
    """What an RPC shows is older than what is known, or contradicts it: some server behind it lags."""

    exit_code = TEMPORARY


class WrongChain(ChainError):
    """The RPC serves another chain id than the configuration names."""


class GasTooDear(ChainError):
    """Gas costs more than the operator allows now."""

    exit_code = TEMPORARY


class Reverted(ChainError):
    """A call or transaction reverted; `name` is the contract error's name, empty when unknown."""

    exit_code = 3

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message)
        self.name = name


class JournalError(OpenLoraError):
    """The journal contradicts the chain, or another agent holds it: nothing is signed."""


class JournalUnwritable(JournalError):
    """The journal's disk is full or failing: nothing was recorded, so nothing is signed until it can be."""

    exit_code = TEMPORARY


class BackupError(OpenLoraError):
    """A backup cannot be made, read or restored; nothing was overwritten."""


class AgentUnreachable(OpenLoraError):
    """No agent listens on the socket."""
