import pytest

from openlora.contracts import (
    BondForfeited,
    ForfeitPaid,
    OutputPublished,
    QuestionAsked,
    QuestionKind,
    Slashed,
    Unanswered,
)
from openlora.node.audit import BURNT
from openlora.node.penalties import FORFEITS, Penalties, Penalty
from tests.node.facts import CLIENT, OPERATOR, RIVAL


def asked(job_id: int, bond: int) -> QuestionAsked:
    return QuestionAsked(job_id, OPERATOR, CLIENT, QuestionKind.OUTPUT, 0, 1_010, bond)


def test_a_dispute_that_is_answered_costs_the_asker_its_bond():
    penalties = Penalties.of([asked(1, 7), OutputPublished(1, bytes(32), b"", False)])
    assert penalties.moved == {Penalty("demand answered", CLIENT, OPERATOR): 7}
    assert (penalties.won_by(OPERATOR), penalties.won_by(CLIENT), penalties.waiting_wei) == (7, 0, 0)


def test_a_dispute_that_is_not_costs_the_node_its_bond():
    """The asker's own returns: it is nobody's loss."""
    unanswered = Unanswered(1, OPERATOR, CLIENT, QuestionKind.OUTPUT, 100)
    shares = [ForfeitPaid(CLIENT, 50), ForfeitPaid(CLIENT, 25), ForfeitPaid(BURNT, 25)]
    penalties = Penalties.of([BondForfeited(OPERATOR, 100), asked(1, 7), unanswered, *shares])
    assert penalties.moved == {
        Penalty("bond forfeited", OPERATOR, FORFEITS): 100,
        Penalty("paid out", FORFEITS, CLIENT): 75,
        Penalty("paid out", FORFEITS, BURNT): 25,
    }
    assert penalties.waiting_wei == 0


def test_what_is_lost_waits_until_it_is_known_who_gets_it():
    history = [Slashed(OPERATOR, 40), BondForfeited(RIVAL, 2), ForfeitPaid(CLIENT, 40)]
    assert Penalties.of(history).waiting_wei == 2
    assert Penalties.of([*history, ForfeitPaid(OPERATOR, 2)]).waiting_wei == 0


@pytest.mark.parametrize("publication", [asked(1, 0), object()])
def test_what_costs_nothing_is_no_penalty(publication: object):
    """As a publication that the spec asked for."""
    answered = [OutputPublished(1, bytes(32), b"", True)] if isinstance(publication, QuestionAsked) else []
    assert Penalties.of([publication, *answered]).moved == {}
