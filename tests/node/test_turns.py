"""The order in which nodes claim: the same for everyone who computes it, near adapters first, then by lot."""

from collections import Counter
from dataclasses import replace

from openlora.contracts import Recipe
from openlora.node.job import Job, JobId, JobState
from openlora.node.turns import Contender, Turns
from tests.node.facts import spec, spec_hash

PIRATE, HAIKU = b"\x02" * 32, b"\x03" * 32
SEEN = Job(JobId(1), spec(), spec_hash(1), None, None, changed_at=1_000.0)


def contender(name: str, loaded: tuple[bytes, ...] = (), stored: tuple[bytes, ...] = ()) -> Contender:
    return Contender(name, loaded, stored)


def waits(me: Contender, *rivals: Contender, adapters: tuple[bytes, ...] = (PIRATE,), job: Job = SEEN) -> float:
    turns = Turns(2.0, lambda: me, lambda job, recipe: rivals)
    return turns.wait_s(job, Recipe(b"", adapters, (), ()), now_s=1_000.0)


def test_whoever_holds_the_adapters_goes_first():
    loaded, stored, far = contender("a", loaded=(PIRATE,)), contender("b", stored=(PIRATE,)), contender("c")
    assert [waits(loaded, stored, far), waits(stored, loaded, far), waits(far, loaded, stored)] == [0.0, 2.0, 4.0]


def test_of_an_ensemble_each_adapter_counts():
    one, both = contender("a", loaded=(PIRATE,)), contender("b", stored=(PIRATE, HAIKU))
    assert waits(one, both, adapters=(PIRATE, HAIKU)) == 2.0
    assert waits(both, one, adapters=(PIRATE, HAIKU)) == 0.0


def test_a_crowded_node_comes_after_those_that_must_fetch():
    crowded, far = replace(contender("a", loaded=(PIRATE,)), crowded=True), contender("b")
    assert [waits(far, crowded), waits(crowded, far)] == [0.0, 2.0]


def test_equals_are_put_in_an_order_that_all_agree_on_and_each_is_first_for_its_share():
    nodes = [contender(f"0x{number:040x}") for number in range(4)]
    first: Counter[str] = Counter()
    for number in range(400):
        job = replace(SEEN, id=JobId(number))
        turns = [waits(node, *(other for other in nodes if other is not node), job=job) for node in nodes]
        assert sorted(turns) == [0.0, 2.0, 4.0, 6.0]
        first[nodes[turns.index(0.0)].operator] += 1
    assert all(70 < count < 130 for count in first.values())


def test_the_spelling_of_an_address_does_not_matter():
    assert contender("0xAB").place(1, ()) == contender("0xab").place(1, ())


def test_a_job_that_came_back_or_has_waited_long_enough_waits_for_nobody():
    near, far = contender("a", loaded=(PIRATE,)), contender("b")
    assert waits(far, near, job=replace(SEEN, state=JobState.LOST)) == 0.0
    assert waits(far, near, job=replace(SEEN, changed_at=990.0)) < 0
