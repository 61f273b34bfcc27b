import pytest
from hypothesis import given
from hypothesis import strategies as st

from openlora.node.engine.blocks import BlockAllocator


def test_pages_for_rounds_up() -> None:
    blocks = BlockAllocator(8, 16)
    assert [blocks.pages_for(tokens) for tokens in (0, 1, 16, 17, 32)] == [0, 1, 1, 2, 2]


def test_a_shared_page_is_free_once_its_last_holder_leaves() -> None:
    blocks = BlockAllocator(4, 16)
    pages = blocks.allocate(3)
    blocks.retain(pages[:1])
    blocks.release(pages)
    assert blocks.free == 3
    blocks.check_integrity([pages[:1]])
    blocks.release(pages[:1])
    assert blocks.free == 4


def test_misuse_is_noticed() -> None:
    blocks = BlockAllocator(2, 16)
    (page,) = blocks.allocate(1)
    with pytest.raises(AssertionError):
        blocks.allocate(2)
    blocks.release([page])
    with pytest.raises(AssertionError):
        blocks.release([page])
    with pytest.raises(AssertionError):
        blocks.retain([page])
    with pytest.raises(AssertionError):
        blocks.check_integrity([[page]])


@given(st.lists(st.tuples(st.sampled_from(["allocate", "share", "release"]), st.integers(0, 6)), max_size=60))
def test_holders_and_free_pages_always_agree(actions: list[tuple[str, int]]) -> None:
    blocks = BlockAllocator(16, 4)
    held: list[list[int]] = []
    for action, n in actions:
        if action == "allocate" and n <= blocks.free:
            held.append(blocks.allocate(n))
        elif action == "share" and held:
            pages = held[n % len(held)][:]
            blocks.retain(pages)
            held.append(pages)
        elif action == "release" and held:
            blocks.release(held.pop(n % len(held)))
        blocks.check_integrity(held)
        assert blocks.free == 16 - len({page for pages in held for page in pages})
