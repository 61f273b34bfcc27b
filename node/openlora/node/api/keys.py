"""API keys: read from a file, compared in constant time, and exchanged for a cookie by browsers."""

import hmac
import secrets
import time
from collections.abc import Callable, Collection
from hashlib import sha256
from pathlib import Path
from typing import Final

from openlora.node.config import small_text
from openlora.node.errors import ConfigError

MIN_KEY_CHARS: Final = 16
COOKIE: Final = "openlora_session"
SESSION_S: Final = 12 * 3600
MAX_SESSIONS: Final = 256


def read_keys(path: Path, option: str) -> tuple[str, ...]:
    """One key a line. Raises ConfigError, which names `option`, for a file without keys or with weak ones."""
    try:
        keys = tuple(line.strip() for line in small_text(path).splitlines() if line.strip())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{option} {path} cannot be read: {error}") from None
    if not keys or any(len(key) < MIN_KEY_CHARS or not key.isascii() or " " in key for key in keys):
        raise ConfigError(
            f"{option} {path} must hold a key of at least {MIN_KEY_CHARS} letters and digits on each line"
        )
    return keys


class KeyRing:
    """The keys of one server, by their digests. Empty, it asks nobody."""

    def __init__(self, keys: Collection[str]) -> None:
        self._digests = [sha256(key.encode()).digest() for key in keys]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def has(self, key: bytes) -> bool:
        """Every key is compared, so that time does not tell which one was nearly right."""
        digest = sha256(key).digest()
        found = [hmac.compare_digest(digest, known) for known in self._digests]
        return any(found)


class BrowserSessions:
    """What browsers hold in place of a key, which a page could not send along by itself: random, and over with the
    process. The oldest gives way when there are too many."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._ends_s: dict[bytes, float] = {}  # digest of the token → when it ends

    def begin(self) -> str:
        """A new session's token."""
        token = secrets.token_urlsafe(32)
        self._forget_old()
        self._ends_s[_digest(token)] = self._clock() + SESSION_S
        return token

    def has(self, token: str) -> bool:
        """The token is found by its digest, so the time that takes tells nothing of tokens that exist."""
        return self._ends_s.get(_digest(token), 0.0) > self._clock()

    def end(self, token: str) -> None:
        self._ends_s.pop(_digest(token), None)

    def _forget_old(self) -> None:
        self._ends_s = {digest: end_s for digest, end_s in self._ends_s.items() if end_s > self._clock()}
        while len(self._ends_s) >= MAX_SESSIONS:
            del self._ends_s[next(iter(self._ends_s))]


def _digest(token: str) -> bytes:
    return sha256(token.encode()).digest()
