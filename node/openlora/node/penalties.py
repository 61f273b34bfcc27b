"""What bonds and stake have cost whom, and who has it now: read from the events of registry and Outputs."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

from openlora.contracts import (
    BondForfeited,
    ChunkOpened,
    ForfeitPaid,
    OutputPublished,
    QuestionAsked,
    Slashed,
    Unanswered,
)

FORFEITS: Final = "forfeits"  # the registry's account of what was lost, until it is known who gets it


class Penalty(NamedTuple):
    """From whom to whom, and why; one of them may be FORFEITS."""

    reason: str
    loser: str
    winner: str


@dataclass(frozen=True, slots=True)
class Penalties:
    """Sums over a range of events, in token wei."""

    moved: Mapping[Penalty, int]

    @property
    def waiting_wei(self) -> int:
        """What was lost over jobs that have not ended."""
        lost = sum(wei for penalty, wei in self.moved.items() if penalty.winner == FORFEITS)
        return lost - sum(wei for penalty, wei in self.moved.items() if penalty.loser == FORFEITS)

    def won_by(self, account: str) -> int:
        return sum(wei for penalty, wei in self.moved.items() if penalty.winner == account)

    @classmethod
    def of(cls, events: Iterable[object]) -> "Penalties":
        """Reads the events since the deployment; passes over all others."""
        asked: dict[int, QuestionAsked] = {}  # job → its open question
        moved: Counter[Penalty] = Counter()
        for event in events:
            match event:
                case QuestionAsked():
                    asked[event.job_id] = event
                case Unanswered():  # the asker has its bond back
                    del asked[event.job_id]
                case OutputPublished() | ChunkOpened():
                    question = asked.pop(event.job_id)
                    moved[Penalty("demand answered", question.asker, question.node)] += question.bond
                case BondForfeited():
                    moved[Penalty("bond forfeited", event.operator, FORFEITS)] += event.amount
                case Slashed():
                    moved[Penalty("stake slashed", event.operator, FORFEITS)] += event.amount
                case ForfeitPaid():
                    moved[Penalty("paid out", FORFEITS, event.beneficiary)] += event.amount
        return cls({penalty: wei for penalty, wei in moved.items() if wei})
