"""Virtual token counters, and what they make of an overloaded engine."""

import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest

from openlora.node.engine.fairness import FairShare
from openlora.node.engine.limits import EngineLimits
from openlora.node.engine.sequence import Sequence
from openlora.node.errors import Overloaded
from tests.node.engine.passes import Passes, pass_s, request


def test_the_least_charged_is_next() -> None:
    share: FairShare[str] = FairShare()
    for name in ("a", "b", "c"):
        share.enter(name)
    assert share.least(["b", "a"]) == "b"  # of equals the first
    share.charge("a", 5)
    share.charge("b", 3)
    assert share.least(["a", "b"]) == "b"
    assert share.least(["a", "b", "c"]) == "c"
    assert share.least([]) is None


def test_being_away_earns_no_credit_and_clears_no_debt() -> None:
    share: FairShare[str] = FairShare()
    share.enter("a")
    share.charge("a", 100)
    share.enter("b")
    share.charge("b", 50)  # as far as 150
    share.charge("a", 10)
    share.leave("b")
    share.enter("b")
    assert share.least(["b", "a"]) == "a"
    share.enter("c")
    assert share.least(["b", "c", "a"]) == "c"


def test_nothing_is_remembered_of_an_idle_time() -> None:
    share: FairShare[str] = FairShare()
    for name in ("a", "b"):
        share.enter(name)
        share.charge(name, 10)
    share.leave("a")
    share.leave("b")
    share.enter("b")
    share.enter("a")
    share.check_integrity(["a", "b"])
    assert share.least(["b", "a"]) == "b"


# ---- overload -------------------------------------------------------------------------------------------------------

LIMITS = EngineLimits(kv_tokens=4096, max_batch_tokens=512, max_running=32, max_waiting=256)


@dataclass
class Client:
    """Sends requests of its kind at a rate, whatever becomes of them."""

    per_s: float
    prompt: int
    output: int
    lines: int = 1


@dataclass
class Served:
    """What came of an overload."""

    tokens: Counter[str] = field(default_factory=Counter)  # computed, by tenant
    answered: Counter[str] = field(default_factory=Counter)  # output tokens of whole answers
    waits_ms: dict[str, list[float]] = field(default_factory=dict)  # from arrival to first token
    pass_ms: list[float] = field(default_factory=list)


def overload(clients: Mapping[str, Client], seconds: float, limits: EngineLimits = LIMITS) -> Served:
    """Simulates the engine under these clients in virtual time."""
    rng = random.Random(1)
    passes, served = Passes(limits, check=False), Served()
    arrivals: dict[str, float] = dict.fromkeys(clients, 0.0)
    live: dict[str, tuple[float, Sequence]] = {}
    now_ms, number = 0.0, 0
    while now_ms < seconds * 1000:
        for tenant, client in clients.items():
            while arrivals[tenant] <= now_ms:
                number += 1
                prompt, output = (max(1, round(n * rng.uniform(0.5, 1.5))) for n in (client.prompt, client.output))
                line = (f"a{rng.randrange(client.lines)}",)
                sequence = request(
                    f"{tenant}{number}", [number] * prompt, output, tenant=tenant, line=line, shared=True
                )
                try:
                    passes.add(sequence)
                    live[sequence.request_id] = (arrivals[tenant], sequence)
                except Overloaded:
                    pass
                arrivals[tenant] += rng.expovariate(client.per_s / 1000)
        chunks = passes.step()
        took_ms = 1000 * pass_s(chunks) if chunks else 1.0
        now_ms += took_ms
        served.pass_ms.append(took_ms)
        for chunk in chunks:
            served.tokens[chunk.sequence.tenant] += chunk.length
            if chunk.sequence.generated == 1:  # its first token
                came_ms, _ = live[chunk.sequence.request_id]
                served.waits_ms.setdefault(chunk.sequence.tenant, []).append(now_ms - came_ms)
        for request_id in passes.finished:
            _, sequence = live.pop(request_id)
            served.answered[sequence.tenant] += sequence.generated
        passes.finished.clear()
    passes.scheduler.check_integrity()
    return served


def jain(shares: list[float]) -> float:
    return sum(shares) ** 2 / (len(shares) * sum(share**2 for share in shares))


EVEN = {f"t{i}": Client(per_s=25.0, prompt=48, output=48) for i in range(8)}
UNEVEN = {f"t{i}": Client(per_s=5.0 * 1.8**i, prompt=(200, 24)[i % 2], output=(24, 60)[i % 2]) for i in range(8)}


@pytest.mark.parametrize("clients", [EVEN, UNEVEN], ids=["even", "uneven"])
def test_eight_tenants_ten_times_too_many_are_served_evenly_and_no_less(clients: dict[str, Client]) -> None:
    capacity = 1000 / 0.9  # tokens/s of a pass with few rows to spare
    asked = sum(client.per_s * (client.prompt + client.output) for client in clients.values())
    assert asked > 10 * capacity
    served = overload(clients, seconds=40)
    fairness = jain([served.tokens[tenant] for tenant in clients])
    alone = overload({"t": Client(per_s=30.0, prompt=48, output=48)}, seconds=40)  # as much as the engine can do
    work = sum(served.tokens.values()) / sum(alone.tokens.values())
    answered = sum(served.answered[t] * (c.prompt + c.output) / c.output for t, c in clients.items())
    print(
        f"Jain {fairness:.4f}, work {work:.3f} of what it can do, answers {answered / sum(served.tokens.values()):.3f}"
    )
    assert fairness >= 0.95
    assert work >= 0.95
    assert answered >= 0.8  # little was begun in vain


def test_who_asks_little_waits_little_however_others_flood() -> None:
    flood = {f"flood{i}": Client(per_s=60.0, prompt=400, output=200) for i in range(3)}
    served = overload({**flood, "modest": Client(per_s=0.7, prompt=64, output=16)}, seconds=40)
    waits = sorted(served.waits_ms["modest"])
    print(f"{len(waits)} waits: median {waits[len(waits) // 2]:.0f} ms, longest {waits[-1]:.0f} ms")
    assert len(waits) >= 20
    slowest_pass = max(served.pass_ms[5:])
    assert waits[len(waits) // 2] <= 4 * slowest_pass
    assert waits[-1] <= 12 * slowest_pass


def test_a_rare_adapter_waits_little_behind_a_tenants_own_flood() -> None:
    passes = Passes(LIMITS, check=False)
    passes.add(*(request(f"hot{i}", [i] * 64, 64, line=("hot",)) for i in range(120)))
    for _ in range(50):
        passes.step()
    passes.add(request("rare", [1] * 64, 4, line=("rare",)))
    waited = 0
    while "rare" not in passes.finished:
        passes.step()
        waited += 1
    assert waited <= 64  # the first place that falls free
