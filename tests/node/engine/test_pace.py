"""How flat answers flow beside a prompt on machines of several speeds, in their own simulated time."""

from collections.abc import Callable
from statistics import median

import pytest

from openlora.node.engine.limits import EngineLimits
from openlora.node.engine.pace import BLOCK, DRAFTS_LOOK_EVERY, FORGET, LEAST_ROWS, LOOK_EVERY, MOST_ADDED, Pace
from openlora.node.engine.sequence import Chunk
from tests.node.engine.passes import Passes, request

LIMITS = EngineLimits(max_running=64)
DECODING, PROMPT = 31, 2_000


def machine(fixed_ms: float, decode_ms: float, prompt_ms: float, thousand_keys_ms: float) -> Callable[..., float]:
    """A pass's seconds: reading the weights, a row of each kind, and a row's attention to a thousand tokens."""

    def seconds(chunks: list[Chunk]) -> float:
        decoding = sum(1 + len(chunk.draft) for chunk in chunks if chunk.length == 1)
        prompts = [chunk for chunk in chunks if chunk.length > 1]
        attention = sum(chunk.length * chunk.end / 1000 * thousand_keys_ms for chunk in prompts)
        rows = decoding * decode_ms + sum(chunk.length for chunk in prompts) * prompt_ms
        return (fixed_ms + rows + attention) / 1000

    return seconds


MACHINES = {
    "matrix unit": machine(5.5, 0.33, 0.2, 0.15),
    "vector unit": machine(5.5, 0.6, 0.6, 0.2),
    "a model of a billion on the vector unit": machine(80, 2.0, 3.0, 1.0),
    "an accelerator": machine(3.0, 0.02, 0.01, 0.001),
}


def until(passes: Passes, name: str, seconds: Callable[..., float]) -> list[float]:
    """Each pass's seconds until the request is answered."""
    took = []
    while name not in passes.finished:
        took.append(seconds(passes.step()))
    return took


@pytest.mark.parametrize("seconds", MACHINES.values(), ids=MACHINES)
def test_answers_slow_down_to_the_half_and_the_prompt_to_a_third_at_most(seconds: Callable[..., float]) -> None:
    passes = Passes(LIMITS, check=False, seconds=seconds, timed=False)
    passes.add(request("alone", PROMPT, 1))
    alone_s = sum(until(passes, "alone", seconds))
    passes.add(*(request(f"d{i}", 64, 400) for i in range(DECODING)))
    while len(chunks := passes.step()) < DECODING or any(chunk.length > 1 for chunk in chunks):
        pass
    calm_s = median(seconds(passes.step()) for _ in range(30))
    for repeat in range(2):
        passes.add(request(f"beside{repeat}", PROMPT, 1))
        beside_s = until(passes, f"beside{repeat}", seconds)
        assert max(beside_s) <= 2 * calm_s
        assert sum(beside_s) <= 3 * alone_s


def run(pace: Pace, decoding: int, rows: int, seconds: float, drafts: int = 0) -> None:
    answering = request("r", 5, 9)
    chunks = [Chunk(answering, 5, 1)] * (decoding - 1) + [Chunk(answering, 5, 1, (0,) * drafts)] * (decoding > 0)
    pace.learn(chunks + ([Chunk(answering, 0, rows)] if rows else []), seconds)


def learnt(calm_s: float = 0.02, row_s: float = 0.0005) -> Pace:
    pace = Pace()
    run(pace, 31, 0, calm_s)
    for _ in range(30):
        run(pace, 31, 40, calm_s + 40 * row_s)
        run(pace, 31, 0, calm_s)
    assert pace.prompt_rows(31, 1) == 33  # 0.9 of 20 ms at half a millisecond each are 36, and 64 rows are full blocks
    return pace


def test_where_rows_are_computed_one_by_one_no_block_is_filled() -> None:
    pace = Pace(row_block=1)
    for _ in range(30):
        run(pace, 31, 0, 0.02)
        run(pace, 31, 40, 0.04)
    assert pace.prompt_rows(31, 1) == 36


def test_what_was_never_timed_is_looked_at_first() -> None:
    pace = Pace()
    assert pace.prompt_rows(31, 1) == 0
    run(pace, 31, 0, 0.02)
    assert pace.prompt_rows(31, 1) == LEAST_ROWS
    assert pace.prompt_rows(32, 1) == 0


def test_one_odd_pass_changes_little() -> None:
    pace = learnt()
    run(pace, 31, 0, 1.0)
    run(pace, 31, 0, 0.02)
    assert pace.prompt_rows(31, 1) == 33
    run(pace, 31, 33, 1.0)
    assert pace.prompt_rows(31, 1) in (17, 33)
    for _ in range(4):
        run(pace, 31, rows := pace.prompt_rows(31, 1), 0.02 + rows * 0.0005)
    assert pace.prompt_rows(31, 1) == 33


def test_a_look_that_is_far_off_is_made_sure_of() -> None:
    pace = learnt()
    run(pace, 31, 0, 0.04)
    assert pace.prompt_rows(31, 1) == 0
    run(pace, 31, 0, 0.02)
    assert pace.prompt_rows(31, 1) > 0


def test_a_machine_that_slows_down_is_known_again_soon() -> None:
    pace = learnt()
    for _ in range(20):
        run(pace, 31, rows := pace.prompt_rows(31, 1), 0.02 + rows * 0.001)
    assert pace.prompt_rows(31, 1) == 17


def test_under_endless_prompts_a_pass_now_and_then_shows_what_decoding_takes() -> None:
    pace = learnt()
    rows = []
    for _ in range(3 * (LOOK_EVERY + 1)):
        rows.append(pace.prompt_rows(31, 1))
        run(pace, 31, rows[-1], 0.016 + rows[-1] * 0.0005)
    assert rows.count(0) == 3
    assert rows[-1] < rows[0]


def test_a_machine_that_goes_half_as_fast_from_now_on_takes_as_many_rows() -> None:
    pace = learnt()
    rows = []
    for _ in range(60):
        rows.append(pace.prompt_rows(31, 1))
        run(pace, 31, rows[-1], 0.04 + rows[-1] * 0.001)
    assert rows.count(0) <= 8
    assert max(rows[-3:]) == 33


def test_many_prompts_do_not_wait_for_a_few_readers() -> None:
    pace = learnt()
    run(pace, 1, 0, 0.005)
    assert pace.prompt_rows(1, 1) == 15
    assert pace.prompt_rows(1, 24) == 5_999
    assert pace.prompt_rows(24, 8) == 120
    assert pace.prompt_rows(28, 4) == 36  # as much time as one prompt has


# ---- drafts ---------------------------------------------------------------------------------------------------------


def drafting(
    pace: Pace, decoding: int, chances: list[float], seconds: Callable[[int], float], passes: int
) -> list[int]:
    """How many rows of drafts each pass has, that lasts as many `seconds` as its rows say."""
    found = []
    for _ in range(passes):
        found.append(pace.draft_rows(decoding, chances))
        run(pace, decoding, 0, seconds(decoding + found[-1]), found[-1])
    return found


def test_rows_that_cost_nothing_are_filled_with_what_is_halfway_likely() -> None:
    rows = drafting(Pace(), 1, [0.9, 0.7, 0.5, 0.3], lambda rows: 0.01 + 0.0001 * rows, 100)
    assert rows[0] == 0
    assert rows.count(4) == 100 - 1 - 99 // (DRAFTS_LOOK_EVERY + 1)


def test_one_answer_that_surely_repeats_itself_is_drafted_from_the_first_look_on() -> None:
    for most in range(1, BLOCK):
        assert drafting(Pace(), 1, [0.97] * most, lambda rows: 0.01 + 0.0001 * rows, 2) == [0, most]


def test_rows_as_dear_as_passes_are_not_drafted() -> None:
    for chance in (0.5, 0.8, 0.99):
        rows = drafting(Pace(), 16, [chance] * 32, lambda rows: 0.001 * rows, 1_000)
        assert sum(rows) / sum(rows + [16] * 1_000) < 0.03


def test_rows_are_drafted_up_to_the_end_of_a_block_if_at_all() -> None:
    def seconds(rows: int) -> float:
        return 0.005 + 0.005 * -(-rows // BLOCK)

    likely, unlikely = [0.95] * 40, [0.4] * 40
    assert set(drafting(Pace(), 24, likely[:7], seconds, 50)) == {0, 7}  # in the block begun
    assert drafting(Pace(), 24, likely, seconds, 50)[-1] == 40
    assert drafting(Pace(), 24, likely[:4] + unlikely, seconds, 50)[-1] == 8


def test_a_look_at_decode_rows_alone_is_due_now_and_then() -> None:
    rows = drafting(Pace(), 1, [0.9] * 4, lambda rows: 0.01, 3 * (DRAFTS_LOOK_EVERY + 1) + 1)
    assert rows.count(0) == 1 + 3


def test_what_made_drafts_dear_is_forgotten() -> None:
    pace = Pace()
    drafting(pace, 8, [0.9] * 8, lambda rows: 0.01 if rows == 8 else 0.1, 20)
    assert pace.draft_rows(8, [0.9] * 8) == 0
    assert 8 in drafting(pace, 8, [0.9] * 8, lambda rows: 0.01, 3 * FORGET)


def test_prompts_may_add_what_drafts_did_in_their_place() -> None:
    pace = learnt()
    for _ in range(30):
        run(pace, 31, 0, 0.05, drafts=60)
    assert pace.prompt_rows(31, 1) == 49  # 1.5 times 20 ms at half a millisecond each, in full blocks
    for _ in range(30):
        run(pace, 31, 0, 0.02)
    assert pace.prompt_rows(31, 1) == 33


def test_drafts_do_not_slow_down_those_who_have_none_without_end() -> None:
    rows = drafting(Pace(), 8, [0.999] * 48, lambda rows: 0.001 if rows == 8 else 0.00008 * rows, 40)
    assert max(rows[10:]) == 8  # with 24 a pass takes 2.6 times as long, and they would save more than that


@pytest.mark.parametrize("seconds", MACHINES.values(), ids=MACHINES)
def test_not_even_the_first_drafts_make_a_pass_much_longer_than_they_may(seconds: Callable[..., float]) -> None:
    answering, pace = request("r", 5, 9), Pace()
    prompt = [Chunk(answering, 0, 100)]
    pace.learn(prompt, seconds(prompt))
    took = []
    for _ in range(3 * FORGET):
        rows = pace.draft_rows(DECODING, [0.99] * 6 * DECODING)
        chunks = [Chunk(answering, 5, 1)] * (DECODING - 1) + [Chunk(answering, 5, 1, (0,) * rows)]
        took.append(seconds(chunks))
        pace.learn(chunks, took[-1])
    assert max(took) <= 1.4 * (1 + MOST_ADDED) * took[0]  # a row of a draft may take half as long again as a prompt's


def test_a_machine_that_slows_down_is_taken_to_do_so_for_drafts() -> None:
    pace = Pace()
    run(pace, 0, 100, 0.05)
    for calm_s in (0.02, *[0.1] * 60):
        run(pace, 31, 0, calm_s)
    assert pace.draft_rows(31, [0.99] * 186) <= 60


def test_what_fewer_decode_rows_have_shown_holds_for_more() -> None:
    pace = Pace()
    drafting(pace, 33, [0.9] * 5, lambda rows: 0.01, 10)
    assert pace.draft_rows(48, [0.9] * 16) == 16
