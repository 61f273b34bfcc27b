"""Stop strings in a stream of text."""

from collections.abc import Sequence


class StopScanner:
    """Passes text on up to the first stop string, and cuts exactly before it, however the text was cut into pieces.

    "First" is the stop string that is complete earliest; of several that are complete at once, the longest. Text that
    may still turn out to be the beginning of a stop string is held back. Each piece costs O(longest stop · stops).
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._longest = max((len(stop) for stop in self._stops), default=0)
        self._held = ""
        self.hit = False

    def push(self, text: str) -> str:
        """The text that is now certain to precede any stop string. Nothing follows a hit."""
        if self.hit:
            return ""
        if not self._stops:
            return text
        text = self._held + text
        matches = [(start + len(stop), start) for stop in self._stops if (start := text.find(stop)) >= 0]
        if matches:
            self.hit, self._held = True, ""
            return text[: min(matches)[1]]
        keep = self._beginning_of_a_stop(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def finish(self) -> str:
        """No more text comes: what was held back is no stop string."""
        held, self._held = self._held, ""
        return held

    def _beginning_of_a_stop(self, text: str) -> int:
        """Length of the longest end of `text` that begins a stop string."""
        for length in range(min(self._longest - 1, len(text)), 0, -1):
            end = text[-length:]
            if any(stop.startswith(end) for stop in self._stops):
                return length
        return 0
