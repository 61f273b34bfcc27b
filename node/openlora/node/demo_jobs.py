"""The jobs of the demonstration, and what whoever watches is told of them."""

from dataclasses import dataclass
from typing import Final

from openlora.node.demo_data import DEMO_ADAPTERS, DEMO_PROMPTS
from openlora.node.devnet import ASK_IN_WEI_PER_K, ASK_OUT_WEI_PER_K, BARGAIN
from openlora.node.market import Offer, SubmittedJob

NOBODYS_PRICE: Final = 0.5
LEASE_S: Final = 90
MAX_OUT_TOKENS: Final = 48
LONG_LEASE_S: Final = 30  # of the job whose node is killed: soon over
LONG_OUT_TOKENS: Final = 64
ENDED: Final = frozenset({"paid", "cancelled"})


@dataclass(slots=True)
class DemoJob:
    """One job of the demonstration. `terms` is what people read: "pirate 0.7 + haiku 0.3"."""

    prompt: str
    terms: tuple[tuple[str, float], ...] = ()
    long: bool = False
    price: float = 1.0  # of what most nodes ask
    job: SubmittedJob | None = None
    text: str = ""
    state: str = "waiting"
    node: str = ""  # who holds it, or answered it

    @property
    def wanted(self) -> bool:
        """Whether any node takes it at its price."""
        return self.price > NOBODYS_PRICE

    @property
    def offer(self) -> Offer:
        return Offer(
            max_in_tokens=128,
            max_out_tokens=LONG_OUT_TOKENS if self.long else MAX_OUT_TOKENS,
            in_price_wei_per_k=int(self.price * ASK_IN_WEI_PER_K),
            out_price_wei_per_k=int(self.price * ASK_OUT_WEI_PER_K),
            lease_s=LONG_LEASE_S if self.long else LEASE_S,
        )

    @property
    def recipe(self) -> str:
        if not self.terms:
            return "base model"
        if len(self.terms) == 1:
            return self.terms[0][0]
        return " + ".join(f"{weight:g} {name}" for name, weight in self.terms)


def demo_jobs() -> list[DemoJob]:
    """Base model, single adapters and ensembles in turn: one long answer, four bids that only the cheapest node takes,
    and one that nobody does."""
    first, second, third = (adapter.name for adapter in DEMO_ADAPTERS)
    recipes: list[tuple[tuple[str, float], ...]] = [(), ((first, 1.0),), ((second, 1.0),), ((third, 1.0),)]
    recipes += [((first, 0.6), (second, 0.6)), ((first, 0.8), (second, 0.4), (third, 0.2))]
    jobs = [DemoJob(prompt, recipes[number % len(recipes)]) for number, prompt in enumerate(DEMO_PROMPTS)]
    jobs[4] = DemoJob("Tell me a long story about a lighthouse.", long=True)
    jobs[10].price = NOBODYS_PRICE
    for number in (13, 14, 15, 17):  # each adapter, and all together
        jobs[number].price = BARGAIN
    return jobs


class DemoView:
    """What the demonstration tells whoever watches; every method may be overridden."""

    def step(self, text: str) -> None:
        """Something was done."""

    def changed(self, job: DemoJob) -> None:
        """A job has a new state or more text."""
