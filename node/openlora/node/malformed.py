"""What msgspec raises for bytes that do not fit; which of it, a stranger chooses."""

from typing import Final

import msgspec

MALFORMED: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
