"""What opens where, and that nothing else does."""

from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from openlora.node.errors import RequestError
from openlora.node.private.sealing import (
    SEALED_MORE_BYTES,
    WRAPPED_BYTES,
    Recipient,
    Sealed,
    encryption_key,
    new_key,
    public_key,
    seal,
    unseal,
    unwrap,
    wrap,
)

HOT_KEY, OTHER_HOT_KEY = b"\x07" * 32, b"\x08" * 32
NODE = encryption_key(HOT_KEY)
FOR_NODE = Recipient(31337, "0x" + "0d" * 20, 7, "0x" + "0A" * 20)


def test_what_is_sealed_opens_with_its_key():
    key = new_key()
    for document in (b"", b"Why is the sky blue?", bytes(1 << 20)):
        sealed = seal(key, document, Sealed.INPUT)
        assert len(sealed) == len(document) + SEALED_MORE_BYTES
        assert unseal(key, sealed, Sealed.INPUT) == document


def test_the_same_document_is_never_sealed_to_the_same_bytes():
    key = new_key()
    assert seal(key, b"Ahoy", Sealed.OUTPUT) != seal(key, b"Ahoy", Sealed.OUTPUT)


def test_an_input_does_not_pass_for_an_output():
    key = new_key()
    with pytest.raises(RequestError, match="does not open"):
        unseal(key, seal(key, b"Ahoy", Sealed.INPUT), Sealed.OUTPUT)


def test_no_byte_of_what_is_sealed_can_be_changed_or_cut():
    key = new_key()
    sealed = seal(key, b"Why is the sky blue?", Sealed.INPUT)
    changed = [sealed[:at] + bytes([sealed[at] ^ 1]) + sealed[at + 1 :] for at in range(len(sealed))]
    for other in (*changed, *(sealed[:length] for length in range(len(sealed))), sealed + b"\0"):
        with pytest.raises(RequestError, match="does not open"):
            unseal(key, other, Sealed.INPUT)


def test_one_ciphertext_does_not_open_under_a_second_key():
    """The AEAD's tag alone would not keep a client from having one node and one judge read two prompts. Here only the
    commitment does: the rest is honestly sealed under the second key."""
    first, second = new_key(), new_key()
    sealed = seal(first, b"Why is the sky blue?", Sealed.INPUT)
    nonce = sealed[32:44]
    other = sealed[:44] + ChaCha20Poly1305(second).encrypt(nonce, b"Say nothing.", Sealed.INPUT.value)
    with pytest.raises(RequestError, match="does not open"):
        unseal(second, other, Sealed.INPUT)


def test_a_wrapped_key_opens_at_its_node():
    key = new_key()
    wrapped = wrap(key, public_key(HOT_KEY), FOR_NODE)
    assert len(wrapped) == WRAPPED_BYTES
    assert unwrap(wrapped, NODE, replace(FOR_NODE, operator=FOR_NODE.operator.lower())) == key


@pytest.mark.parametrize(
    "changes",
    [{"chain_id": 1}, {"queue": "0x" + "0e" * 20}, {"job_id": 8}, {"operator": "0x" + "0b" * 20}],
    ids=lambda changes: next(iter(changes)),
)
def test_a_wrapped_key_is_of_no_use_for_another_job_queue_chain_or_operator(changes):
    wrapped = wrap(new_key(), public_key(HOT_KEY), FOR_NODE)
    with pytest.raises(RequestError, match="not wrapped for this node and this job"):
        unwrap(wrapped, NODE, replace(FOR_NODE, **changes))


def test_a_wrapped_key_is_of_no_use_to_another_node_nor_in_other_bytes():
    wrapped = wrap(new_key(), public_key(HOT_KEY), FOR_NODE)
    flipped = [wrapped[:at] + bytes([wrapped[at] ^ 1]) + wrapped[at + 1 :] for at in range(WRAPPED_BYTES)]
    for private, data in [
        (encryption_key(OTHER_HOT_KEY), wrapped),
        *((NODE, other) for other in (*flipped, b"", bytes(WRAPPED_BYTES), wrapped[:-1], wrapped + b"\0")),
    ]:
        with pytest.raises(RequestError, match="not wrapped for this node and this job"):
            unwrap(data, private, FOR_NODE)


def test_what_a_node_of_another_make_wrapped_must_have_a_keys_length():
    with pytest.raises(RequestError, match="not wrapped for this node and this job"):
        unwrap(wrap(b"short", public_key(HOT_KEY), FOR_NODE), NODE, FOR_NODE)


@pytest.mark.parametrize("public", [b"", bytes(32), b"\x01" + bytes(31), bytes(31)])
def test_nothing_is_wrapped_to_what_is_no_key(public: bytes):
    with pytest.raises(RequestError, match="has no encryption key"):
        wrap(new_key(), public, FOR_NODE)


def test_a_nodes_key_is_its_hot_keys_and_does_not_tell_it():
    assert public_key(HOT_KEY) == public_key(HOT_KEY) != public_key(OTHER_HOT_KEY)
    assert HOT_KEY not in NODE.private_bytes_raw()
