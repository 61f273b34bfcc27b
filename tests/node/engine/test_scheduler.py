"""The scheduler driven without a model."""

import pytest

from openlora.node.engine.limits import EngineLimits
from openlora.node.engine.pace import LEAST_ROWS
from openlora.node.errors import ConfigError, Overloaded
from tests.node.engine.passes import Passes, request

# ---- pace -----------------------------------------------------------------------------------------------------------


def test_a_long_prompt_goes_in_chunks_beside_decode_rows() -> None:
    passes = Passes(EngineLimits(kv_tokens=1024, max_batch_tokens=64, max_running=8))
    passes.add(request("short", 4, 90))
    for _ in range(3):
        passes.step()
    passes.add(request("long", 100, 2))
    left = 100
    while left:
        beside = min(passes.scheduler.pace.prompt_rows(1, 1), 63, left)
        assert LEAST_ROWS <= beside < 63 or beside == left
        assert passes.shapes() == [("short", 1), ("long", beside)]
        left -= beside
    assert passes.shapes() == [("short", 1), ("long", 1)]


def test_a_pass_without_decode_rows_takes_all_it_can() -> None:
    passes = Passes(EngineLimits(kv_tokens=1024, max_batch_tokens=64, max_running=8))
    passes.add(request("long", 100, 2))
    assert [passes.shapes() for _ in range(3)] == [[("long", 64)], [("long", 36)], [("long", 1)]]


# ---- order ----------------------------------------------------------------------------------------------------------


def test_a_line_is_first_come_first_served() -> None:
    passes = Passes(EngineLimits(kv_tokens=64, max_batch_tokens=64, max_running=8))
    passes.add(request("a", 16, 4), request("big", 48, 2), request("c", 4, 2))
    assert [c.sequence.request_id for c in passes.step()] == ["a"]  # c would fit, but not before big
    passes.run()
    assert passes.finished == ["a", "big", "c"]


def test_the_prompts_of_two_tenants_take_turns() -> None:
    passes = Passes(EngineLimits(kv_tokens=4096, max_batch_tokens=64, max_running=8))
    passes.add(request("a1", 256, 1, tenant="a"), request("a2", 256, 1, tenant="a"))
    passes.step()
    passes.add(request("b", 128, 1, tenant="b"))
    passes.run()
    assert passes.finished == ["b", "a1", "a2"]


def test_lines_of_one_tenant_take_turns() -> None:
    passes = Passes(EngineLimits(kv_tokens=4096, max_batch_tokens=64, max_running=2))
    passes.add(*(request(f"hot{i}", 32, 4, line=("hot",)) for i in range(20)))
    passes.step()
    passes.add(request("cold", 32, 4, line=("cold",)), request("base", 32, 4))
    passes.run()
    assert {"cold", "base"} <= set(passes.finished[:6])


def test_who_floods_gives_way_to_who_comes_later() -> None:
    """All places are taken by long answers of one tenant; another's request runs two passes after it came."""
    passes = Passes(EngineLimits(kv_tokens=4096, max_batch_tokens=64, max_running=4))
    passes.add(*(request(f"flood{i}", 8, 80, tenant="flood", shared=True) for i in range(12)))
    passes.step()
    passes.add(*(request(f"b{i}", 8, 20, tenant="b") for i in range(3)))
    passes.step()
    assert "b0" in dict(passes.shapes())
    passes.step()
    assert {"b0", "b1"} <= dict(passes.shapes()).keys()
    for _ in range(30):
        passes.step()
        assert sum(s.tenant == "flood" for s in passes.scheduler.running) >= 2  # it keeps its own part
    assert passes.scheduler.preemptions == 2
    assert {"b0", "b1"} <= set(passes.finished)
    passes.run()
    assert len(passes.finished) == 15


def test_who_hoards_pages_gives_way() -> None:
    passes = Passes(EngineLimits(kv_tokens=256, page_tokens=4, max_batch_tokens=64, max_running=16))
    passes.add(*(request(f"hoard{i}", 50, 10, tenant="hoard") for i in range(12)))
    for _ in range(6):
        passes.step()
    assert passes.blocks.available < 12
    passes.add(request("b", 60, 10, tenant="b"))
    passes.step()
    passes.step()
    assert "b" in {s.request_id for s in passes.scheduler.running}
    passes.run()
    assert len(passes.finished) == 13


# ---- memory ---------------------------------------------------------------------------------------------------------


def test_the_youngest_gives_way_and_still_finishes() -> None:
    passes = Passes(EngineLimits(kv_tokens=64, page_tokens=4, max_batch_tokens=64, max_running=4))
    passes.add(request("a", 20, 40), request("b", 20, 40))
    passes.run()
    assert passes.scheduler.preemptions >= 1
    assert passes.finished == ["a", "b"]
    assert passes.blocks.available == 16


def test_the_oldest_never_gives_way_however_much_it_holds() -> None:
    passes = Passes(EngineLimits(kv_tokens=64, page_tokens=4, max_batch_tokens=64, max_running=4))
    passes.add(request("oldest", 32, 30, tenant="a"), *(request(f"b{i}", 4, 12, tenant="b") for i in range(6)))
    while "oldest" not in passes.finished:
        assert "oldest" in dict(passes.shapes())
    assert passes.scheduler.preemptions >= 1
    passes.run()
    assert len(passes.finished) == 7


def test_a_preempted_sequence_finds_what_is_left_of_its_pages() -> None:
    passes = Passes(EngineLimits(kv_tokens=64, page_tokens=4, max_batch_tokens=64, max_running=4))
    passes.add(request("a", 20, 40, shared=True), request("b", [9] * 20, 40, shared=True))
    passes.run()
    assert passes.finished == ["a", "b"]
    assert passes.scheduler.preemptions >= 1
    assert passes.scheduler.cache.hit_tokens > 0


def test_cached_pages_go_before_running_sequences() -> None:
    passes = Passes(EngineLimits(kv_tokens=64, page_tokens=4, max_batch_tokens=64, max_running=4))
    passes.add(request("old", 40, 1, shared=True))
    passes.run()
    assert (passes.blocks.idle, passes.blocks.available) == (10, 16)
    passes.add(request("a", [5] * 16, 16, shared=True), request("b", [6] * 16, 14, shared=True))
    passes.run()
    assert passes.scheduler.preemptions == 0


def test_a_tenant_is_not_charged_for_being_computed_again() -> None:
    passes = Passes(EngineLimits(kv_tokens=64, page_tokens=4, max_batch_tokens=64, max_running=4))
    a, b = request("a", 20, 40, tenant="a"), request("b", 20, 40, tenant="b")
    passes.add(a, b)
    passes.run()
    assert passes.scheduler.preemptions >= 1
    assert (a.charged, b.charged) == (59, 59)


def test_removing_frees_pages_wherever_the_sequence_is() -> None:
    passes = Passes(EngineLimits(kv_tokens=64, max_running=1))
    running, waiting = request("a", 30, 9), request("b", 30, 9)
    passes.add(running, waiting)
    passes.step()
    passes.scheduler.remove(waiting)
    passes.scheduler.remove(running)
    passes.scheduler.check_integrity()
    assert passes.blocks.available == 4
    assert passes.step() == []


def test_a_page_that_is_found_under_another_prompts_name_is_said() -> None:
    passes = Passes(EngineLimits(kv_tokens=64, page_tokens=4, max_running=4))
    sequence = request("a", 14, 9, shared=True)
    passes.add(sequence)
    passes.step()
    passes.scheduler.check_integrity()
    passes.blocks.forget(sequence.pages[1:2])
    passes.blocks.name(sequence.pages[1], b"of something else")
    with pytest.raises(AssertionError, match=f"page {sequence.pages[1]} has the name of other tokens"):
        passes.scheduler.check_integrity()


# ---- limits ---------------------------------------------------------------------------------------------------------


def test_a_tenant_may_queue_what_remains_free() -> None:
    passes = Passes(EngineLimits(max_waiting=6, max_waiting_tokens=70))
    passes.add(request("a", 20, 1))
    with pytest.raises(Overloaded) as refused:
        passes.add(request("b", 31, 1))
    assert refused.value.code == "overloaded"
    passes.add(request("b", 1, 1), request("c", 1, 1))
    with pytest.raises(Overloaded):
        passes.add(request("d", 1, 1))
    passes.add(request("d", 1, 1, tenant="other"))
    with pytest.raises(Overloaded):
        passes.add(request("e", 1, 1))
    passes.step()  # all run now
    passes.add(request("e", 1, 1))


def test_limits_are_checked_together() -> None:
    with pytest.raises(ConfigError, match="kv_tokens, max_waiting"):
        EngineLimits(kv_tokens=0, max_waiting=-1)
    with pytest.raises(ConfigError, match="max_running"):
        EngineLimits(max_running=9, max_batch_tokens=8)
