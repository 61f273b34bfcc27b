"""The order in which nodes claim: the same for everyone who computes it."""

from collections import Counter
from dataclasses import replace

from openlora.contracts import Gate, JobFlag, Recipe
from openlora.node.job import Job, JobId, JobState
from openlora.node.live_claims import LiveClaims
from openlora.node.turns import Contender, Turns
from tests.node.facts import OPERATOR, RIVAL, claimed, committed, lapsed, released, spec, spec_hash

PIRATE, HAIKU = b"\x02" * 32, b"\x03" * 32
SEEN = Job(JobId(1), spec(), spec_hash(1), None, None, changed_at=1_000.0)
FOUR = [Contender(f"0x{number:040x}", (), crowded=False) for number in range(4)]


def contender(name: str, *adapters: bytes, crowded: bool = False) -> Contender:
    return Contender(name, adapters, crowded)


def waits(me: Contender, *rivals: Contender, adapters: tuple[bytes, ...] = (PIRATE,), job: Job = SEEN) -> float:
    turns = Turns(lambda: 2.0, lambda: me, lambda job, recipe: rivals)
    return turns.wait_s(job, Recipe(b"", adapters, (), (), 0, Gate.OPEN), now_s=1_000.0)


def first_of(nodes: list[Contender], adapters: tuple[bytes, ...], job: Job) -> str:
    """Who claims first; everybody's turn is another."""
    turns = [
        waits(node, *(other for other in nodes if other is not node), adapters=adapters, job=job) for node in nodes
    ]
    assert sorted(turns) == [2.0 * place for place in range(len(nodes))]
    return nodes[turns.index(0.0)].operator


def test_whoever_must_fetch_least_goes_first():
    both, one, none = contender("a", PIRATE, HAIKU), contender("b", HAIKU), contender("c")
    order = [waits(me, *{both, one, none} - {me}, adapters=(PIRATE, HAIKU)) for me in (both, one, none)]
    assert order == [0.0, 2.0, 4.0]


def test_a_crowded_node_comes_after_those_that_must_fetch():
    crowded, far = contender("a", PIRATE, crowded=True), contender("b")
    assert [waits(far, crowded), waits(crowded, far)] == [0.0, 2.0]


def test_jobs_of_the_base_alone_are_spread_evenly():
    first = Counter(first_of(FOUR, (), replace(SEEN, id=JobId(number))) for number in range(400))
    assert all(70 < first[node.operator] < 130 for node in FOUR)


def test_jobs_of_the_same_adapters_meet_and_different_adapters_are_spread():
    assert len({first_of(FOUR, (PIRATE, HAIKU), replace(SEEN, id=JobId(number))) for number in range(20)}) == 1
    first = Counter(first_of(FOUR, (bytes(31) + bytes((number,)),), SEEN) for number in range(200))
    assert all(30 < first[node.operator] < 70 for node in FOUR)


def test_a_clock_that_was_set_back_makes_no_job_wait_until_the_old_time():
    seen_later = replace(SEEN, changed_at=9_000.0)
    assert waits(contender("a"), contender("b", PIRATE), job=seen_later) == 0


def test_a_private_job_waits_for_nobody():
    private = replace(SEEN, spec=spec(flags=JobFlag.PRIVATE))
    assert (
        waits(contender("a"), contender("b", PIRATE)) > waits(contender("a"), contender("b", PIRATE), job=private) == 0
    )


def test_the_spelling_of_an_address_does_not_matter():
    assert contender("0xAB").place(1, ()) == contender("0xab").place(1, ())


def test_a_job_that_came_back_or_has_waited_long_enough_waits_for_nobody():
    near, far = contender("a", PIRATE), contender("b")
    assert waits(far, near, job=replace(SEEN, state=JobState.LOST)) == 0.0
    assert waits(far, near, job=replace(SEEN, changed_at=990.0)) < 0


def test_live_claims_are_counted_until_they_end_in_whatever_way():
    claims = LiveClaims(clock=lambda: 1_000.0)
    for number in range(1, 6):
        claims.apply(claimed(number))
    claims.apply(claimed(6, RIVAL))
    assert (claims.of(OPERATOR), claims.of(RIVAL)) == (5, 1)
    claims.apply(committed(1))
    claims.apply(released(2))
    claims.apply(lapsed(3))
    claims.apply(claimed(3, RIVAL))
    assert (claims.of(OPERATOR.lower()), claims.of(RIVAL)) == (2, 2)
    claims.clock = lambda: 2_000_000_001.0  # the leases are over
    assert (claims.of(OPERATOR), claims.of(RIVAL)) == (0, 0)
