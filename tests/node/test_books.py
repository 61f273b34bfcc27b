from hypothesis import given
from hypothesis import strategies as st

from openlora.contracts import (
    Access,
    AccessSet,
    JobAnnulled,
    JobSlashed,
    Paid,
    RecipeRegistered,
    Role,
    SessionClosed,
    SessionOpened,
    SessionSettled,
    SessionToppedUp,
    Voucher,
    eip712,
)
from openlora.node.books import Books
from tests.node.facts import CLIENT, OPERATOR, RIVAL, cancelled, expired, finalized, spec, submitted

ESCROW = eip712.escrow_wei(spec())


def paid(role: Role, payee: str, amount: int) -> Paid:
    return Paid(payee=payee, role=role, recipe_id=1, amount=amount)


def test_every_end_of_a_job_is_on_the_books():
    books = Books.of(
        [
            *(submitted(number) for number in range(1, 5)),
            paid(Role.NODE, OPERATOR, 1),
            paid(Role.BASE, RIVAL, 1),
            finalized(1, fee=2, refund=ESCROW - 2),
            cancelled(2, refund=ESCROW),
            expired(3, refund=ESCROW),
        ]
    )
    assert (books.escrow_wei, books.paid_wei, books.refunded_wei) == (4 * ESCROW, 2, 3 * ESCROW - 2)
    assert books.open_wei == ESCROW
    assert books.balanced
    assert (books.jobs, books.finalized) == (4, 1)
    assert books.earned == {(Role.NODE, OPERATOR): 1, (Role.BASE, RIVAL): 1}


def test_use_fees_are_beside_the_escrow_and_end_with_it():
    """As the recipe pinned them: what an adapter asks later is for later recipes."""
    cheap, dear = b"\x01" * 32, b"\x02" * 32
    history = [
        AccessSet(cheap, Access.PAY_PER_USE, 5),
        AccessSet(dear, Access.PAY_PER_USE, 70),
        RecipeRegistered(1, bytes(32), [cheap, dear], [5_000, 5_000]),
        AccessSet(cheap, Access.PUBLIC, 0),
        RecipeRegistered(2, bytes(32), [cheap], [10_000]),
        *(submitted(number) for number in range(1, 5)),
        submitted(5, recipe_id=2),
    ]
    opened = Books.of(history)
    assert opened.escrow_wei == opened.open_wei == 5 * ESCROW + 4 * 75
    ended = Books.of(
        [
            *history,
            paid(Role.NODE, OPERATOR, 2),
            paid(Role.USE, RIVAL, 75),
            finalized(1, fee=2, refund=ESCROW - 2),
            cancelled(2, refund=ESCROW),
            JobSlashed(3, OPERATOR, ESCROW, 1),
            JobAnnulled(4, OPERATOR, ESCROW),
            expired(5, refund=ESCROW),
        ]
    )
    assert ended.balanced
    assert (ended.paid_wei, ended.open_wei) == (77, 0)
    assert ended.earned[Role.USE, RIVAL] == 75


def test_a_sessions_deposit_is_on_the_books_until_it_is_closed():
    session, voucher = b"\x01" * 32, Voucher(b"\x01" * 32, 7, bytes(32), 0)
    history = [
        SessionOpened(session, CLIENT, OPERATOR, 20),
        SessionToppedUp(session, 5),
        paid(Role.NODE, OPERATOR, 7),
        SessionSettled(session, OPERATOR, 7, voucher, ()),
    ]
    books = Books.of(history)
    assert (books.escrow_wei, books.paid_wei, books.open_wei, books.balanced) == (25, 7, 18, True)
    closed = Books.of([*history, SessionClosed(session, 18)])
    assert (closed.refunded_wei, closed.open_wei, closed.balanced) == (18, 0, True)
    assert not Books.of([*history, SessionClosed(session, 18), paid(Role.BASE, RIVAL, 1)]).balanced


@given(st.integers(0, ESCROW), st.integers(-2, 2))
def test_a_single_wei_too_many_or_too_few_shows(fee, error):
    events = [submitted(1), paid(Role.NODE, OPERATOR, fee + 2), finalized(1, fee=fee, refund=ESCROW - fee - 2 + error)]
    assert Books.of(events).balanced is (error == 0)


def test_an_empty_chain_balances():
    assert Books.of([object(), CLIENT]).balanced
