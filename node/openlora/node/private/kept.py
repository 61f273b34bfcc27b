"""The keys of a client's private jobs: one file each, beside the key that pays, by the digest of the sealed input."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from openlora.node.errors import RequestError
from openlora.node.private.sealing import KEY_BYTES
from openlora.p2p import durable


class KeptKey(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`node`: the operator who alone may be given the key, in lower case; None: any that could take the job."""

    v: Literal[1] = 1
    key: Annotated[bytes, msgspec.Meta(min_length=KEY_BYTES, max_length=KEY_BYTES)]
    node: str | None


@dataclass(frozen=True, slots=True)
class KeptKeys:
    """The keys in one folder, which is made when the first is kept. Whoever deletes one can never open that answer."""

    folder: Path

    def keep(self, input_digest: bytes, kept: KeptKey) -> None:
        """Survives a crash after its return. Raises RequestError where it cannot be written."""
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            durable.write(self._path(input_digest), msgspec.json.encode(kept), overwrite=False)
        except OSError as error:
            reason = f"the job's key cannot be kept in {self.folder}: {error.strerror}"
            raise RequestError("key_not_kept", reason) from None

    def of(self, input_digest: bytes) -> KeptKey:
        """Raises RequestError for a job whose key is not here."""
        path = self._path(input_digest)
        try:
            return msgspec.json.decode(path.read_bytes(), type=KeptKey)
        except FileNotFoundError:
            raise RequestError("no_key", f"the job is private, and its key is not here; it belongs at {path}") from None
        except (OSError, msgspec.MsgspecError):
            raise RequestError("no_key", f"the job's key at {path} cannot be read; put the file back") from None

    def _path(self, input_digest: bytes) -> Path:
        return self.folder / f"{input_digest.hex()}.json"
