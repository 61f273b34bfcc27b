"""Drafts in the scheduler, driven without a model."""

from openlora.node.engine.limits import EngineLimits
from openlora.node.engine.pace import BLOCK
from openlora.node.engine.speculation import MAX_DRAFT, Speculation
from tests.node.engine.drafts import Eager
from tests.node.engine.passes import Passes, request


def passes_of(**limits: int) -> Passes:
    passes = Passes(EngineLimits(**{"kv_tokens": 1024, "page_tokens": 4, "max_running": 8, **limits}))
    passes.scheduler.speculation = Speculation(passes.blocks, Eager())
    return passes


def drafts(passes: Passes) -> dict[str, int]:
    return {chunk.sequence.request_id: len(chunk.draft) for chunk in passes.step()}


def test_a_right_draft_is_as_many_passes_less() -> None:
    passes = passes_of()
    passes.add(request("right", 10, 1 + 4 * (MAX_DRAFT + 1), wrong=0.0), request("wrong", 10, 5, wrong=1.0))
    assert drafts(passes) == {"right": 0, "wrong": 0}
    assert [drafts(passes)["right"] for _ in range(4)] == [MAX_DRAFT] * 4
    assert passes.finished == ["right", "wrong"]
    speculation = passes.scheduler.speculation
    assert speculation.accepted == 4 * MAX_DRAFT
    assert speculation.drafted == 4 * MAX_DRAFT + 3 + 2 + 1  # no further than an answer goes


def test_an_answer_that_is_alone_has_drafts_that_fill_a_block() -> None:
    passes = passes_of()
    passes.add(request("right", 10, 1 + 3 * BLOCK, wrong=0.0))
    assert [drafts(passes)["right"] for _ in range(4)] == [0, BLOCK - 1, BLOCK - 1, BLOCK - 1]
    assert passes.finished == ["right"]


def test_an_answer_is_what_it_is_without_drafts() -> None:
    expected = request("x", 10, 50)
    alone = passes_of()
    alone.add(expected)
    alone.run()
    for wrong in (0.0, 0.2, 0.5, 1.0):
        found, passes = request("x", 10, 50, wrong=wrong), passes_of()
        passes.add(found)
        passes.run()
        assert found.tokens == expected.tokens


def test_there_are_no_drafts_beside_prompts() -> None:
    passes = passes_of(max_batch_tokens=20)
    passes.add(request("a", 4, 60, wrong=0.0), request("b", 4, 60, wrong=0.0))
    passes.step()
    assert any(drafts(passes).values())
    passes.add(request("prompt", 100, 1))
    while "prompt" not in passes.finished:
        assert not any(drafts(passes).values())
    assert any(drafts(passes).values())


def test_the_likeliest_drafts_take_the_rows_there_are() -> None:
    passes = passes_of(max_batch_tokens=8)
    passes.add(request("a", 4, 60, wrong=0.0), request("b", 4, 60, wrong=0.0))
    passes.step()
    passes.step()
    assert drafts(passes) == {"a": 3, "b": 3}


def test_a_guess_takes_no_page_that_anybody_might_want() -> None:
    """Of eight pages the answer's beginning has three, and five are kept for whoever has the same prompt again."""
    passes = passes_of(kv_tokens=32)
    passes.add(request("old", [5] * 20, 1, shared=True))
    passes.run()
    assert (passes.blocks.free, passes.blocks.idle) == (3, 5)
    passes.add(request("x", [6] * 10, 20, wrong=0.0))
    lengths = [drafts(passes)["x"] for _ in range(3)]
    assert lengths == [0, 1, 3]  # to the end of its third page, and of the next, which it took for a known token
    assert passes.blocks.idle == 4


def test_pages_of_what_was_wrong_are_free_again() -> None:
    passes = passes_of()
    x = request("x", 4, 30, wrong=1.0)
    passes.add(x)
    for _ in range(8):
        passes.step()
        assert len(x.pages) <= passes.blocks.pages_for(len(x.tokens))
    assert passes.scheduler.speculation.drafted > 0
    assert passes.scheduler.speculation.accepted == 0


def test_tenants_are_charged_for_what_they_get() -> None:
    for wrong in (None, 0.0, 0.5, 1.0):
        x, passes = request("x", 20, 31, tenant="x", wrong=wrong), passes_of()
        passes.add(x)
        passes.run()
        assert x.charged == 50


def test_found_pages_hold_only_what_was_right() -> None:
    passes = passes_of()
    passes.add(request("x", [3] * 9, 40, shared=True, wrong=0.4))
    passes.run()
    again = request("again", [3] * 9, 40, shared=True)
    passes.add(again)
    passes.run()  # checks that what is read was computed from the same tokens
    assert passes.scheduler.cache.hit_tokens == 8
    longer = request("longer", again.tokens, 1, shared=True)
    passes.add(longer)
    passes.run()
    assert passes.scheduler.cache.hit_tokens == 8 + 48


def test_what_is_computed_again_has_no_more_drafts() -> None:
    passes = passes_of()
    expected, x = request("x", 10, 30), request("x", 10, 30, shared=True, wrong=0.0)
    passes.add(x)
    passes.step()
    passes.step()
    passes.scheduler.recompute(x)
    passes.scheduler.check_integrity()
    assert passes.blocks.available == passes.blocks.free == passes.blocks.pages
    drafted = passes.scheduler.speculation.drafted
    passes.run()
    assert passes.scheduler.speculation.drafted == drafted
    alone = passes_of()
    alone.add(expected)
    alone.run()
    assert x.tokens == expected.tokens
