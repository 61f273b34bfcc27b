"""Which pages a request finds: its own tenant's, of its own adapters, and never its whole prompt."""

import pytest

from openlora.node.engine.limits import EngineLimits
from openlora.node.engine.prefix_cache import root_key
from tests.node.engine.passes import Passes, request

LIMITS = EngineLimits(kv_tokens=256, page_tokens=4, max_batch_tokens=64)


@pytest.mark.parametrize(
    ("earlier", "later", "hit"),
    [
        (list(range(20)), list(range(20)), 16),  # the last page would be the whole prompt
        (list(range(20)), list(range(21)), 20),
        (list(range(20)), list(range(30)), 20),
        (list(range(20)), [*range(10), 99, *range(11, 20)], 8),
        (list(range(20)), [99, *range(1, 20)], 0),
        (list(range(3)), list(range(20)), 0),
        (list(range(20)), list(range(4)), 0),
        (list(range(20)), list(range(5)), 4),
    ],
)
def test_full_pages_of_an_equal_beginning_are_found(earlier: list[int], later: list[int], hit: int) -> None:
    passes = Passes(LIMITS)
    passes.add(request("earlier", earlier, 1, shared=True))
    passes.run()
    passes.add(request("later", later, 2, shared=True))
    assert passes.shapes() == [("later", len(later) - hit)]
    assert passes.scheduler.cache.hit_tokens == hit
    passes.run()


def test_an_answer_is_found_by_the_turn_that_follows() -> None:
    passes = Passes(LIMITS)
    first = request("first", list(range(8)), 13, shared=True)
    passes.add(first)
    passes.run()
    passes.add(request("second", [*first.tokens, 5, 6], 2, shared=True))
    assert passes.shapes() == [("second", 3)]


def test_pages_are_shared_while_both_run() -> None:
    passes = Passes(LIMITS)
    passes.add(request("a", 40, 20, shared=True))
    passes.step()
    passes.add(request("b", 40, 20, shared=True))
    passes.step()
    a, b = passes.scheduler.running
    assert a.pages[:9] == b.pages[:9]
    assert not set(a.pages[9:]) & set(b.pages[9:])
    passes.scheduler.remove(a)
    passes.run()
    assert passes.finished == ["b"]


@pytest.mark.parametrize(("tenant", "line"), [("b", ("x",)), ("a", ()), ("a", ("y",)), ("a", ("x", "x"))])
def test_another_tenant_or_recipe_finds_nothing_and_takes_as_long_as_the_first(
    tenant: str, line: tuple[str, ...]
) -> None:
    passes = Passes(LIMITS)
    passes.add(request("mine", 40, 1, tenant="a", line=("x",), shared=True))
    alone = passes.shapes()
    passes.add(request("mine", 40, 1, tenant=tenant, line=line, shared=True))
    assert passes.shapes() == alone
    assert passes.scheduler.cache.hit_tokens == 0


def test_what_was_distrusted_is_not_found() -> None:
    passes = Passes(LIMITS)
    first = request("first", 40, 3, shared=True)
    passes.add(first)
    passes.step()
    passes.scheduler.distrust(first)
    passes.run()
    assert passes.blocks.idle == 0
    passes.add(request("again", 40, 1, shared=True))
    assert passes.shapes() == [("again", 40)]


def test_roots_differ_in_every_part() -> None:
    x, y = b"x" * 32, b"y" * 32
    roots = {
        root_key(base, tenant, recipe)
        for base in (b"base", b"other", b"")
        for tenant in ("", "t", "tt", "base")
        for recipe in (
            [],
            [(x, 1.0)],
            [(y, 1.0)],
            [(x, 0.5)],
            [(x, 1.0), (y, 1.0)],
            [(y, 1.0), (x, 1.0)],
            [(x + y, 1.0)],
        )
    }
    assert len(roots) == 3 * 4 * 7
