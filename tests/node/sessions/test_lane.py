"""The signed lane from both ends: what an honest client gets, and what a hostile one does not."""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from eth_utils.address import to_checksum_address

from openlora.contracts import Domain, SessionState, Voucher, eip712
from openlora.node import documents
from openlora.node.config import SessionsConfig
from openlora.node.errors import NetworkError, PeerRefused, RequestError
from openlora.node.sessions.conversation import Answered
from openlora.node.sessions.ledger import Order as LedgerOrder
from openlora.node.sessions.ledger import OrderState
from openlora.node.sessions.messages import Order, Pay, Receipted, Thanks, packed, unpacked
from openlora.typed_data import sign_digest, signer_of
from tests.node.facts import OPERATOR, RIVAL, open_journal
from tests.node.fake_engine import POISON
from tests.node.sessions.scene import (
    CLIENT,
    DEPOSIT,
    DOMAIN,
    HOT_KEY,
    OFFER,
    SESSION,
    STRANGER,
    Scene,
    answer,
    new_scene,
    opened,
    paid_order,
    prompt,
    signed,
)

HALF_ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
FEE = (5 * 1_000 + 11 * 3_000) // 1_000  # "Hello" in, "Ahoy there" and its end out


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    async with new_scene(tmp_path) as made:
        made.now_s = time.time()
        yield made


async def test_an_order_is_streamed_receipted_and_paid(scene: Scene):
    conversation = scene.conversation()
    assert await conversation.start(scene.now_s) == []
    spec, order = signed(conversation, scene.now_s)
    texts, answered = await answer(conversation, order)
    assert texts[-1] == answered.output.text == "Ahoy there"
    assert len([text for text in texts if text]) > 1, "streamed as it comes"
    receipt, digest = answered.receipt, eip712.spec_digest(DOMAIN, spec)
    assert receipt.work_id == receipt.spec_hash == digest
    assert receipt.seed == int.from_bytes(digest[:8], "big")
    assert (receipt.node, receipt.fee) == (OPERATOR, FEE)
    assert signer_of(answered.digest, answered.signature) == HOT_KEY.address.lower()

    voucher = await conversation.pay([answered], scene.now_s)
    assert voucher.cumulative_fee == FEE
    payment = scene.ledger.payment(SESSION)
    assert payment is not None
    assert (payment.voucher, payment.settled) == (voucher, False)
    assert scene.ledger.order(digest).state is OrderState.PAID


async def test_vouchers_add_up_over_orders_and_recipes(scene: Scene):
    conversation = scene.conversation()
    await conversation.start(scene.now_s)
    for number in range(1, 6):
        await paid_order(conversation, scene.now_s, recipe=1 + number % 2)
    payment = scene.ledger.payment(SESSION)
    assert payment is not None
    assert payment.voucher.cumulative_fee == 5 * FEE
    lines = payment.account.lines()
    assert [(line.recipe_id, line.cumulative_fee) for line in lines] == [(1, 2 * FEE), (2, 3 * FEE)]
    assert payment.voucher == eip712.voucher_for(SESSION, lines, payment.voucher.deadline)


async def test_a_client_that_kept_nothing_goes_on_where_it_was(scene: Scene):
    first = scene.conversation()
    await first.start(scene.now_s)
    await paid_order(first, scene.now_s)
    _, order = signed(first, scene.now_s, "Again")
    await answer(first, order)  # and the client is gone before it pays
    second = scene.conversation()
    (earlier,) = await second.start(scene.now_s)
    assert earlier.receipt.work_id == eip712.spec_digest(DOMAIN, earlier.spec)
    assert second.account.fee == FEE + earlier.receipt.fee
    assert second.last_number == 2
    await paid_order(second, scene.now_s)


async def test_asking_again_shows_the_same_receipt_and_runs_nothing(scene: Scene):
    conversation = scene.conversation()
    await conversation.start(scene.now_s)
    _, order = signed(conversation, scene.now_s)
    _, once = await answer(conversation, order)
    generated = scene.engine.generated
    _, again = await answer(conversation, order)
    assert again == once
    assert scene.engine.generated == generated


async def test_one_that_stops_listening_can_come_back(scene: Scene):
    conversation = scene.conversation()
    await conversation.start(scene.now_s)
    _, order = signed(conversation, scene.now_s)
    replies = conversation.ask(order)
    await anext(replies)
    await replies.aclose()
    _, answered = await answer(conversation, order)
    assert answered.output.text == "Ahoy there"


async def test_the_next_order_waits_for_the_voucher_of_the_last(scene: Scene):
    conversation = scene.conversation()
    await conversation.start(scene.now_s)
    _, order = signed(conversation, scene.now_s)
    _, answered = await answer(conversation, order)
    _, second = signed(conversation, scene.now_s, "More")
    with pytest.raises(PeerRefused, match="not paid"):
        await answer(conversation, second)
    await conversation.pay([answered], scene.now_s)
    await answer(conversation, second)


async def test_a_node_may_trust_a_client_with_more(tmp_path: Path):
    """One order is free of the bound; those after it may run unpaid within it."""
    async with new_scene(tmp_path, SessionsConfig(max_unpaid_wei=300)) as scene:
        conversation, now_s = scene.conversation(), time.time()
        await conversation.start(now_s)
        orders = [signed(conversation, now_s, text)[1] for text in ("one", "two", "three")]
        first = (await answer(conversation, orders[0]))[1]
        second = (await answer(conversation, orders[1]))[1]  # 36 owed + 250 at most
        with pytest.raises(PeerRefused, match="not paid"):
            await answer(conversation, orders[2])
        voucher = await conversation.pay([first, second], now_s)
        assert voucher.cumulative_fee == first.receipt.fee + second.receipt.fee


@pytest.mark.parametrize(
    ("changes", "refusal"),
    [
        ({"nonce": 7}, "nonce is not of this session"),
        ({"nonce": eip712.order_nonce(b"\x01" * 32, 1)}, "nonce is not of this session"),
        ({"nonce": eip712.order_nonce(SESSION, 0)}, "nonce is not of this session"),
        ({"nonce": eip712.order_nonce(SESSION, 2**64 - 1)}, "nonce is not of this session"),
        ({"flags": 1}, "flags are 0x1"),
        ({"in_price_per_k": 1}, "price_too_low"),
        ({"deadline": 1}, "deadline_too_near"),
        ({"lease_secs": 1}, "deadline_too_near"),
        ({"max_in_tokens": 2}, "over_context"),
        ({"recipe_id": 99}, "not registered"),
        ({"input_digest": b"\x01" * 32}, "not the one that the spec names"),
        ({"max_out_tokens": 10_000}, "left of the deposit"),
        ({"client": STRANGER.address}, "has not signed"),
    ],
)
async def test_orders_that_are_refused_cost_nothing(scene: Scene, changes: dict[str, Any], refusal: str):
    conversation = scene.conversation()
    await conversation.start(scene.now_s)
    _, order = signed(conversation, scene.now_s, **changes)
    with pytest.raises(PeerRefused, match=refusal):
        await answer(conversation, order)
    assert scene.ledger.outstanding(SESSION) == []
    assert scene.engine.generated == 0
    conversation.last_number = 0
    await paid_order(conversation, scene.now_s)


@pytest.mark.parametrize("ahead_s", [86_400, -86_400])  # this machine's clock, of the chain's
async def test_an_order_is_in_time_by_the_chains_clock(scene: Scene, ahead_s: int):
    chain_s = time.time() - ahead_s
    scene.lane.chain_s = lambda: chain_s
    conversation = scene.conversation()
    await conversation.start(scene.now_s)
    _, late = signed(conversation, chain_s, deadline=int(chain_s) + 1)
    with pytest.raises(PeerRefused, match="deadline_too_near"):
        await answer(conversation, late)
    _, order = signed(conversation, chain_s)
    _, answered = await answer(conversation, order)
    assert answered.output.text == "Ahoy there"


@pytest.mark.parametrize(
    ("changes", "refusal"),
    [
        ({"state": SessionState.CLOSING}, "closing on chain"),
        ({"state": SessionState.CLOSED}, "closed on chain"),
        ({"state": SessionState.NONE}, "none on chain"),
        ({"node": RIVAL}, f"is for {RIVAL}"),
        ({"client": STRANGER.address}, "another client's"),
        ({"deposit": 249}, "249 are left"),
    ],
)
async def test_a_session_that_is_not_this_clients_with_this_node_buys_nothing(
    scene: Scene, changes: dict[str, Any], refusal: str
):
    conversation = scene.conversation()
    await conversation.start(scene.now_s)
    scene.change(**changes)
    _, order = signed(conversation, scene.now_s)
    with pytest.raises(PeerRefused, match=refusal):
        await answer(conversation, order)
    assert scene.engine.generated == 0


@pytest.mark.parametrize("other", [Domain(1, DOMAIN.verifying_contract), Domain(31337, "0x" + "0d" * 20)])
async def test_an_order_signed_for_another_chain_or_lane_is_refused(scene: Scene, other: Domain):
    conversation = scene.conversation()
    await conversation.start(scene.now_s)
    spec, order = signed(conversation, scene.now_s)
    foreign = sign_digest(bytes(CLIENT.key), eip712.spec_digest(other, spec))
    with pytest.raises(PeerRefused, match="has not signed"):
        await answer(conversation, msgspec.structs.replace(order, signature=foreign))


async def test_the_high_s_twin_of_a_signature_is_refused(scene: Scene):
    conversation = scene.conversation()
    await conversation.start(scene.now_s)
    _, order = signed(conversation, scene.now_s)
    high_s = HALF_ORDER - int.from_bytes(order.signature[32:64], "big")
    twin = order.signature[:32] + high_s.to_bytes(32, "big") + bytes([55 - order.signature[64]])
    with pytest.raises(PeerRefused, match="low s"):
        await answer(conversation, msgspec.structs.replace(order, signature=twin))


async def test_an_old_number_is_refused(scene: Scene):
    conversation = scene.conversation()
    await conversation.start(scene.now_s)
    await paid_order(conversation, scene.now_s)
    conversation.last_number = 0
    _, replayed = signed(conversation, scene.now_s, "another order under number 1")
    with pytest.raises(PeerRefused, match="the next is 2"):
        await answer(conversation, replayed)


async def test_the_deposit_bounds_what_can_be_ordered(scene: Scene):
    conversation = scene.conversation()
    await conversation.start(scene.now_s)
    for _ in range((DEPOSIT - 250) // FEE + 1):
        await paid_order(conversation, scene.now_s)
    _, order = signed(conversation, scene.now_s)
    with pytest.raises(PeerRefused, match="left of the deposit"):
        await answer(conversation, order)
    scene.change(deposit=DEPOSIT + 1_000)
    await answer(conversation, order)


async def test_a_session_pays_for_12_recipes(scene: Scene):
    scene.change(deposit=10**6)
    conversation = scene.conversation()
    await conversation.start(scene.now_s)
    for recipe in range(1, 13):
        await paid_order(conversation, scene.now_s, recipe=recipe)
    _, order = signed(conversation, scene.now_s, recipe=13)
    with pytest.raises(PeerRefused, match="at most 12"):
        await answer(conversation, order)
    await scene.conversation().start(scene.now_s)  # the largest standing that there is fits a reply


async def test_recipes_that_are_not_for_this_client_or_lane_are_refused(scene: Scene):
    conversation = scene.conversation()
    await conversation.start(scene.now_s)
    scene.facts.guarded, scene.facts.paid_per_use = {1}, {2}
    for recipe, refusal in ((1, "ask the owner"), (2, "fee a use")):
        _, order = signed(conversation, scene.now_s, recipe=recipe)
        with pytest.raises(PeerRefused, match=refusal):
            await answer(conversation, order)


async def test_a_contract_signs_by_erc1271(scene: Scene):
    contract = to_checksum_address("0x" + "c0" * 20)
    scene.facts.contracts[contract] = lambda digest, signature: signature == b"ok"
    scene.change(client=contract)
    conversation = scene.conversation()
    spec, order = conversation.sign(1, prompt(), OFFER, int(scene.now_s))
    spec = replace(spec, client=contract)
    order = msgspec.structs.replace(order, spec=packed(spec), signature=b"ok")
    _, answered = await answer(conversation, order)
    assert answered.output.text == "Ahoy there"
    with pytest.raises(PeerRefused, match="has not signed"):
        await answer(conversation, msgspec.structs.replace(order, signature=b"no"))


async def test_nothing_is_signed_while_another_agent_runs_as_this_node(scene: Scene):
    """A client that sent both one order would hold two receipts for it."""
    conversation = scene.conversation()
    await conversation.start(scene.now_s)
    _, order = signed(conversation, scene.now_s)
    scene.lane.alone = lambda: False
    with pytest.raises(PeerRefused, match="another agent runs as this node"):
        await answer(conversation, order)
    assert scene.engine.generated == 0
    scene.lane.alone = lambda: True
    assert (await answer(conversation, order))[1].receipt.fee == FEE


async def test_an_order_that_fails_costs_nothing_and_may_be_asked_again(scene: Scene):
    conversation = scene.conversation()
    await conversation.start(scene.now_s)
    scene.engine.script = None
    _, order = signed(conversation, scene.now_s, chr(POISON))
    with pytest.raises(PeerRefused, match="NaN"):
        await answer(conversation, order)
    assert scene.ledger.outstanding(SESSION) == []
    with pytest.raises(PeerRefused, match="NaN"):
        await answer(conversation, order)  # run again
    await paid_order(conversation, scene.now_s)


async def test_the_lane_answers_a_bounded_number_at_once(tmp_path: Path):
    async with new_scene(tmp_path, SessionsConfig(max_orders=0)) as scene:
        conversation, now_s = scene.conversation(), time.time()
        await conversation.start(now_s)
        _, order = signed(conversation, now_s)
        with pytest.raises(PeerRefused, match="as many orders as it can"):
            await answer(conversation, order)


# ---- vouchers ----


async def owed(scene: Scene) -> tuple[Any, Answered, Pay]:
    """An answered order, and the voucher that would pay for it."""
    conversation = scene.conversation()
    await conversation.start(scene.now_s)
    _, order = signed(conversation, scene.now_s)
    _, answered = await answer(conversation, order)
    account = conversation.account.charged([answered.charge])
    voucher = eip712.voucher_for(SESSION, account.lines(), int(scene.now_s) + 30 * 86_400)
    return conversation, answered, pay(voucher, answered)


def pay(voucher: Any, answered: Answered, key: Any = CLIENT, domain: Domain = DOMAIN) -> Pay:
    signature = sign_digest(bytes(key.key), eip712.voucher_digest(domain, voucher))
    return Pay(voucher=packed(voucher), signature=signature, orders=(answered.receipt.work_id,))


async def refused(conversation: Any, request: Pay, why: str) -> None:
    with pytest.raises(PeerRefused, match=why):
        await conversation._one(request)


async def test_a_voucher_too_low_pays_nothing(scene: Scene):
    conversation, answered, good = await owed(scene)
    voucher = unpacked(Voucher, good.voucher)
    for changes, why in (
        ({"cumulative_fee": voucher.cumulative_fee - 1}, f"{FEE} are due"),
        ({"cumulative_fee": voucher.cumulative_fee + 1}, "does not add those receipts"),
        ({"receipts_root": b"\x01" * 32}, "does not add those receipts"),
        ({"deadline": int(scene.now_s) + 60}, "give it a month"),
        ({"deadline": 0}, "give it a month"),
        ({"session_id": b"\x01" * 32}, "not owed"),
    ):
        await refused(conversation, pay(replace(voucher, **changes), answered), why)
    await refused(conversation, pay(voucher, answered, key=STRANGER), "has not signed")
    await refused(conversation, pay(voucher, answered, domain=Domain(1, DOMAIN.verifying_contract)), "has not signed")
    assert scene.ledger.payment(SESSION) is None
    assert isinstance(await conversation._one(good), Thanks)
    await refused(conversation, good, "not owed")  # a voucher pays once


async def test_nothing_else_is_paid_by_naming_it(scene: Scene):
    conversation, answered, good = await owed(scene)
    for orders in ((b"\x01" * 32,), (answered.receipt.work_id, b"\x01" * 32)):
        await refused(conversation, msgspec.structs.replace(good, orders=orders), "not owed")
    twice = msgspec.structs.replace(good, orders=(answered.receipt.work_id,) * 2)
    assert isinstance(await conversation._one(twice), Thanks), "naming one twice pays it once"
    payment = scene.ledger.payment(SESSION)
    assert payment is not None
    assert payment.account.fee == FEE


async def test_only_the_client_is_told_how_a_session_stands(scene: Scene):
    await paid_order(scene.conversation(), scene.now_s)
    with pytest.raises(PeerRefused, match="has not signed"):
        await scene.conversation(key=STRANGER).start(scene.now_s)
    with pytest.raises(PeerRefused, match="no such session"):
        await scene.conversation(session=b"\x01" * 32).start(scene.now_s)


@pytest.mark.parametrize("body", [b"", b"\xff", msgspec.msgpack.encode({"type": "order"}), b"\x81" * 100])
async def test_noise_is_refused(scene: Scene, body: bytes):
    with pytest.raises(RequestError, match="no request"):
        await anext(scene.lane.answer("a peer", body))


@pytest.mark.parametrize("spec", [b"", bytes(351), bytes(353), b"\xff" * 352])
async def test_a_spec_that_is_none_is_refused(scene: Scene, spec: bytes):
    order = Order(session=SESSION, spec=spec, signature=bytes(65))
    with pytest.raises(RequestError, match=r"no JobSpec|has not signed"):
        await anext(scene.lane._order(order))


async def test_a_peer_that_asks_too_often_waits(scene: Scene):
    refusals = 0
    for _ in range(300):
        try:
            await anext(scene.lane.answer("a peer", b""))
        except RequestError as error:
            refusals += error.code == "rate_limited"
    assert refusals >= 50


# ---- a hostile node ----


@pytest.mark.parametrize(
    "lie",
    [
        {"fee": FEE + 1},
        {"in_tokens": 101},
        {"out_tokens": 12},
        {"seed": 1},
        {"output_digest": b"\x01" * 32},
        {"work_id": b"\x01" * 32},
        {"node": RIVAL},
        {"recipe_id": 2},
    ],
)
async def test_a_client_pays_for_no_receipt_but_its_orders(scene: Scene, lie: dict[str, Any]):
    conversation = scene.conversation()
    await conversation.start(scene.now_s)
    spec, order = signed(conversation, scene.now_s)
    _, honest = await answer(conversation, order)
    false = replace(honest.receipt, **lie)
    signature = sign_digest(bytes(HOT_KEY.key), eip712.receipt_digest(DOMAIN, false))
    output = documents.encode(honest.output)
    with pytest.raises(RequestError, match="not for what was ordered"):
        conversation._checked(spec, Receipted(receipt=packed(false), signature=signature), output)
    unsigned = Receipted(receipt=packed(honest.receipt), signature=sign_digest(bytes(STRANGER.key), honest.digest))
    with pytest.raises(RequestError, match="has not signed the receipt"):
        conversation._checked(spec, unsigned, output)


async def test_a_node_that_ends_without_a_receipt_is_not_paid(scene: Scene):
    async def silence(peer: str, body: bytes) -> AsyncIterator[bytes]:
        return
        yield b""

    scene.node.handle("/openlora/1/infer", silence)
    _, order = signed(scene.conversation(), scene.now_s)
    with pytest.raises(NetworkError, match="without a receipt"):
        await answer(scene.conversation(), order)


async def test_a_standing_that_the_client_never_signed_is_refused(scene: Scene):
    conversation = scene.conversation()
    await paid_order(conversation, scene.now_s)
    payment = scene.ledger.payment(SESSION)
    assert payment is not None
    other = replace(payment.voucher, cumulative_fee=1_000)
    scene.ledger.pay([], other, payment.signature, payment.account)
    with pytest.raises(RequestError, match="not one that this key has signed"):
        await scene.conversation().start(scene.now_s)


# ---- restarts ----


async def test_a_killed_node_answers_when_asked_again_and_signs_one_receipt(tmp_path: Path):
    """Killed at every point: before the engine, after the receipt was fixed, after it was signed."""
    now_s = time.time()
    with open_journal(tmp_path) as journal:
        async with opened(tmp_path, journal) as scene:
            spec, order = signed(scene.conversation(), now_s)
            row = LedgerOrder(eip712.spec_digest(DOMAIN, spec), SESSION, 1, spec, order.signature, order.document)
            scene.ledger.accept(row, DEPOSIT, 0)  # the kill comes before the engine has it
    digest = eip712.spec_digest(DOMAIN, spec)
    receipts = []
    for life in range(3):
        with open_journal(tmp_path) as journal:
            async with opened(tmp_path, journal) as scene:
                if life == 1:  # as if the kill had come between the record and the signature
                    with journal.transaction() as db:
                        db.execute("UPDATE orders SET receipt_signature = NULL")
                _, answered = await answer(scene.conversation(), order)
                receipts.append((answered.digest, answered.signature))
    assert len(set(receipts)) == 1
    with open_journal(tmp_path) as journal:
        async with opened(tmp_path, journal) as scene:
            (earlier,) = await scene.conversation().start(now_s)
            assert earlier.receipt.work_id == digest


async def test_what_a_killed_node_left_runs_once_though_two_ask_for_it(tmp_path: Path):
    with open_journal(tmp_path) as journal:
        async with opened(tmp_path, journal) as scene:
            spec, order = signed(scene.conversation(), time.time())
            row = LedgerOrder(eip712.spec_digest(DOMAIN, spec), SESSION, 1, spec, order.signature, order.document)
            scene.ledger.accept(row, DEPOSIT, 0)
            one, other = await asyncio.gather(*(answer(scene.conversation(), order) for _ in range(2)))
            assert one[1] == other[1]
            assert len(scene.engine.tenants) == 1, "one run"


async def test_what_a_former_hot_key_answered_is_paid_to_the_present_one(tmp_path: Path):
    """The receipt is the same, and has the signature that clients look for now."""
    with open_journal(tmp_path) as journal:
        async with opened(tmp_path, journal) as scene:
            _, order = signed(scene.conversation(), time.time())
            _, before = await answer(scene.conversation(), order)
        async with opened(tmp_path, journal, hot_key=STRANGER) as scene:
            (after,) = await scene.conversation().start(time.time())
            assert (after.digest, scene.engine.tenants) == (before.digest, [])
            assert after.signature != before.signature
            assert scene.ledger.outstanding(SESSION) == [], "and it is paid"
