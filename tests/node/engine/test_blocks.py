from collections.abc import Callable

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
    assert blocks.available == 3
    blocks.check_integrity([pages[:1]])
    blocks.release(pages[:1])
    assert blocks.available == 4


def test_a_named_page_is_found_until_its_memory_is_needed() -> None:
    blocks = BlockAllocator(3, 16)
    first, second = blocks.allocate(2)
    blocks.name(first, b"first")
    blocks.name(second, b"second")
    blocks.release([first, second])
    assert (blocks.idle, blocks.available) == (2, 3)
    blocks.retain([first])
    assert (blocks.idle, blocks.available, blocks.find(b"first")) == (1, 2, first)
    blocks.release([first])
    blocks.allocate(2)  # the free one, and of the idle ones the one longest unused
    assert (blocks.find(b"first"), blocks.find(b"second")) == (first, None)


def test_of_pages_released_together_the_first_is_kept_longest() -> None:
    blocks = BlockAllocator(3, 16)
    pages = blocks.allocate(3)
    for page in pages:
        blocks.name(page, b"%d" % page)
    blocks.release(pages)
    blocks.allocate(2)
    assert [blocks.find(b"%d" % page) for page in pages] == [pages[0], None, None]


def test_of_two_equal_pages_the_first_named_is_found() -> None:
    blocks = BlockAllocator(2, 16)
    one, other = blocks.allocate(2)
    blocks.name(one, b"same")
    blocks.name(other, b"same")
    assert blocks.find(b"same") == one
    blocks.release([one, other])
    assert (blocks.idle, blocks.available) == (1, 2)
    blocks.check_integrity([])


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


ACTIONS = ("allocate", "share", "release", "name", "find", "forget")


@given(st.lists(st.tuples(st.sampled_from(ACTIONS), st.integers(0, 6)), max_size=60))
def test_holders_and_free_pages_always_agree(actions: list[tuple[str, int]]) -> None:
    blocks = BlockAllocator(16, 4)
    held: list[list[int]] = []
    for action, n in actions:
        if action == "allocate" and n <= blocks.available:
            held.append(blocks.allocate(n))
        elif action == "share" and held:
            pages = held[n % len(held)][:]
            blocks.retain(pages)
            held.append(pages)
        elif action == "release" and held:
            blocks.release(held.pop(n % len(held)))
        elif action == "name" and held and held[-1]:
            blocks.name(held[-1][0], b"%d" % n)
        elif action == "find" and (page := blocks.find(b"%d" % n)) is not None:
            blocks.retain([page])
            held.append([page])
        elif action == "forget":
            blocks.forget(range(n))
        blocks.check_integrity(held)
        assert blocks.available == 16 - len({page for pages in held for page in pages})


@pytest.mark.parametrize(
    ("harm", "complaint"),
    [
        (lambda blocks: blocks._holders.__setitem__(7, 2), "page 7 is counted as held by 2 sequences; 1 hold it"),
        (lambda blocks: blocks._free.remove(3), "page 3 is 0 times free, idle: False, held by 0"),
        (lambda blocks: blocks._free.append(3), "page 3 is 2 times free"),
        (lambda blocks: blocks._free.append(7), "page 7 is 1 times free, idle: False, held by 1"),
        (lambda blocks: blocks._names.pop(6), "page 6 is idle without a name"),
        (lambda blocks: blocks._names.__setitem__(3, b"x"), "page 3 is free and can be found"),
        (lambda blocks: blocks._by_name.__setitem__(b"idle", 7), "page 6 has a name that leads elsewhere"),
        (lambda blocks: blocks._by_name.__setitem__(b"x", 7), "a name leads to a page that has none"),
    ],
)
def test_what_is_wrong_is_said_of_its_page(harm: Callable[[BlockAllocator], object], complaint: str) -> None:
    blocks = BlockAllocator(8, 4)
    blocks._free.sort()
    held, idle = blocks.allocate(1), blocks.allocate(1)
    assert (held, idle) == ([7], [6])
    blocks.name(6, b"idle")
    blocks.release(idle)
    blocks.check_integrity([held])
    harm(blocks)
    with pytest.raises(AssertionError, match=complaint):
        blocks.check_integrity([held])
