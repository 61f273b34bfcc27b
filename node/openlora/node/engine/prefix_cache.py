"""Prompts that begin alike are computed once: full pages of the KV cache, found by what they were computed from."""

import struct
from collections.abc import Iterable
from collections.abc import Sequence as AbstractSequence
from hashlib import blake2b

from openlora.node.engine.blocks import BlockAllocator
from openlora.node.engine.sequence import Sequence

_DIGEST_BYTES = 32


def root_key(base: bytes, tenant: str, recipe: AbstractSequence[tuple[bytes, float]]) -> bytes:
    """What a page's content depends on besides its tokens: the base model, whose requests may share it, and the
    adapters by *content*, with their weights and in their order. A name is no part of it: what is published anew under
    an old name has other pages."""
    digest = blake2b(digest_size=_DIGEST_BYTES)
    salt = tenant.encode()
    digest.update(struct.pack("<III", len(base), len(salt), len(recipe)) + base + salt)
    for content, weight in recipe:
        digest.update(struct.pack("<Id", len(content), weight) + content)
    return digest.digest()


class PrefixCache:
    """Names pages by a chain of hashes: key[i] = H(key[i−1], tokens of page i), key[−1] the sequence's root.

    Equal keys mean equal tokens from the first on, under equal adapters, of one tenant: the page's keys and values are
    the same numbers, and are shared without a copy. A page is offered once it is full, and is never written again.
    """

    def __init__(self, blocks: BlockAllocator) -> None:
        self._blocks = blocks
        self.hit_tokens = 0  # that were not computed, since the start

    def take(self, sequence: Sequence) -> list[int]:
        """The longest run of pages at hand for the sequence's first tokens, each with one holder more. Its last token
        is never among them: computing it is what yields the next one."""
        found: list[int] = []
        if sequence.root is not None:
            for index in range((len(sequence.tokens) - 1) // self._blocks.page_tokens):
                if (page := self._blocks.find(self._key(sequence, index))) is None:
                    break
                found.append(page)
        self._blocks.retain(found)
        return found

    def offer(self, sequence: Sequence) -> None:
        """Let others find the pages that the sequence has filled."""
        if sequence.root is None:
            return
        full = sequence.computed // self._blocks.page_tokens
        for index in range(sequence.offered, full):
            self._blocks.name(sequence.pages[index], self._key(sequence, index))
        sequence.offered = max(sequence.offered, full)

    def check_integrity(self, sequences: Iterable[Sequence]) -> None:
        """Assert that whatever is found in place of a sequence's page was computed from the same tokens."""
        for sequence in sequences:
            assert sequence.root is not None or not sequence.offered, f"{sequence.request_id} shares pages unasked"
            for index, page in enumerate(sequence.pages[: sequence.offered]):
                name = self._blocks.name_of(page)
                assert name in (None, self._key(sequence, index)), f"page {page} has the name of other tokens"
            for page in sequence.pages[sequence.offered :]:
                assert self._blocks.name_of(page) is None, f"page {page} can be found before it is computed"

    def _key(self, sequence: Sequence, index: int) -> bytes:
        """The key of the sequence's page `index`; keys are kept, since tokens only ever follow."""
        assert sequence.root is not None
        keys, size = sequence.page_keys, self._blocks.page_tokens
        while len(keys) <= index:
            tokens = sequence.tokens[len(keys) * size : (len(keys) + 1) * size]
            assert len(tokens) == size, "a page that is not full has no key"
            before = keys[-1] if keys else sequence.root
            keys.append(blake2b(before + struct.pack(f"<{size}I", *tokens), digest_size=_DIGEST_BYTES).digest())
        return keys[index]
