"""What a session's receipts come to, against the tree written out in full."""

from hypothesis import given
from hypothesis import strategies as st

from openlora.contracts import Account, Charge, ReceiptTree
from openlora.contracts.vouchers import leaf, proof, verified
from openlora.typed_data import keccak

DIGESTS = st.lists(st.binary(min_size=32, max_size=32), min_size=1, max_size=40)


def grown(digests: list[bytes]) -> ReceiptTree:
    tree = ReceiptTree()
    for digest in digests:
        tree = tree.append(digest)
    return tree


def pair(one: bytes, other: bytes) -> bytes:
    return keccak(min(one, other) + max(one, other))


def test_small_trees_by_hand():
    a, b, c = (bytes([number]) * 32 for number in (1, 2, 3))
    assert ReceiptTree().root == bytes(32)
    assert grown([a]).root == leaf(a) == keccak(keccak(a))
    assert grown([a, b]).root == pair(leaf(a), leaf(b))
    assert grown([a, b, c]).root == pair(pair(leaf(a), leaf(b)), leaf(c))


@given(DIGESTS, st.data())
def test_every_receipt_is_proven_and_no_other(digests: list[bytes], data: st.DataObject):
    root = grown(digests).root
    index = data.draw(st.integers(0, len(digests) - 1))
    path = proof(digests, index)
    assert verified(digests[index], path, root)
    other = data.draw(st.binary(min_size=32, max_size=32))
    assert verified(other, path, root) == (other == digests[index])


@given(DIGESTS)
def test_the_peaks_are_well_formed_and_nothing_else_is(digests: list[bytes]):
    tree = grown(digests)
    assert tree.is_well_formed()
    assert not ReceiptTree(tree.count, (*tree.peaks, bytes(32))).is_well_formed()
    assert not ReceiptTree(tree.count, (*tree.peaks[:-1], b"short")).is_well_formed()


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(0, 2**90)), max_size=20), st.integers(0, 20))
def test_an_account_is_the_same_however_its_receipts_came(receipts: list[tuple[int, int]], at: int):
    charges = [Charge(recipe, fee, keccak(bytes([number]))) for number, (recipe, fee) in enumerate(receipts)]
    whole = Account().charged(charges)
    assert Account().charged(charges[:at]).charged(charges[at:]) == whole
    lines = whole.lines()
    assert [line.recipe_id for line in lines] == sorted({recipe for recipe, _ in receipts})
    assert sum(line.cumulative_fee for line in lines) == whole.fee == sum(fee for _, fee in receipts)
