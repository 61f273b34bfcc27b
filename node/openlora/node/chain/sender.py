"""The hot key's transactions: the one owner of its nonce.

Signed bytes are in the journal before they leave. What happened to them is read from the chain, never guessed from what
a server answered: "failed" sends have landed, and "sent" ones have vanished.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

from eth_account.signers.local import LocalAccount

from openlora.contracts import Call
from openlora.node.chain.client import ChainClient
from openlora.node.chain.outbox import Attempt, Intent, Outbox
from openlora.node.chain.strangers import PATIENCE_TICKS, Strangers
from openlora.node.chain.transaction import MAX_GAS, FeePolicy, Fees, SignedTransaction, gas_limit_of, sign
from openlora.node.chain.types import Block, TxReceipt, to_hex
from openlora.node.errors import ChainError, GasTooDear, JournalError, JournalUnwritable, Reverted, RpcBehind, RpcError
from openlora.node.job import Wei
from openlora.node.journal import FIRST_NONCE, Journal

log = logging.getLogger(__name__)

TRANSFER_GAS = 21_000
RECEIPTS_AT_ONCE = 8  # asked of an RPC: fewer than it has connections, which others need too
OUT_OF_GAS = 0.95  # of the limit: a plain revert uses no more than two thirds of it
GAP = "gap:"  # keys of the transfers that fill holes in the nonces


@dataclass(frozen=True, slots=True)
class SenderOptions:
    """`confirmations` is the default depth at which `send` returns: 1 is inclusion. A mined transaction is watched
    until it is `final_depth` blocks deep. One that is not mined is sent again every `resend_after_s`, and replaced by a
    dearer one when blocks have come without it for `bump_after_s`, or `outbid_after_s` where it does not pay their base
    fee."""

    confirmations: int = 1
    final_depth: int = 64
    max_in_flight: int = 16
    poll_s: float = 0.5
    resend_after_s: float = 15.0
    bump_after_s: float = 30.0
    outbid_after_s: float = 3.0
    fees: FeePolicy = field(default_factory=FeePolicy)


@dataclass(frozen=True, slots=True)
class Receipts:
    """What an RPC answered, by transaction hash. One that it failed to show holds up no intent before its own."""

    answers: Mapping[bytes, TxReceipt | BaseException | None]

    def of(self, tx_hash: bytes) -> TxReceipt | None:
        """Raises what asking for it raised."""
        answer = self.answers[tx_hash]
        if isinstance(answer, BaseException):
            raise answer
        return answer


class Sender:
    """Turns intents into transactions, each effect exactly once.

    After a crash at any point: an intent that was journalled is sent again as the same bytes and is recognised if it
    had landed; one that was not has no signature anywhere. `start` comes first, then `run` in one task; `send` from
    any.

    A JournalError means that the journal and the chain contradict each other, most likely because a second agent uses
    the hot key. From then on nothing is signed, and every `send`, waiting ones included, raises it.
    """

    def __init__(
        self,
        client: ChainClient,
        journal: Journal,
        account: LocalAccount,
        contracts: Mapping[str, str],
        options: SenderOptions = SenderOptions(),
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`contracts`: those that nobody but this agent may call with the hot key, name → address."""
        self._client = client
        self._journal = journal
        self._account = account
        self._address = str(account.address).lower()
        self._options = options
        self._clock = clock
        self._outbox = Outbox(journal)
        self._strangers = Strangers(client, self._outbox, self._address, contracts)
        self._head: Block | None = None  # as of the last tick
        self._highest = 0  # number of the newest block that any tick saw
        self._used = 0  # nonces that the chain has seen used, as of the last tick
        self._started = False
        self._sent_at: dict[str, float] = {}  # when an intent's newest bytes were last handed to a server, by key
        self._waiting_since: dict[str, tuple[float, int]] = {}  # time and block: it waits at these fees since, by key
        self._stopped: JournalError | None = None
        self._ticked = asyncio.Event()  # set and replaced after every tick
        self._work = asyncio.Event()  # something was sent: look at the chain soon

    @property
    def address(self) -> str:
        return self._address

    @property
    def in_flight(self) -> int:
        """Transactions signed and not known to be mined."""
        return len(self._outbox.pending())

    # ---- what callers do --------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Compares the journal with the chain and sends again, as the same bytes, what is not mined.

        Raises JournalError when the hot key has sent transactions that the journal does not know and that are not
        plainly harmless, and for a fresh journal with a used hot key.
        """
        for looks_left in range(PATIENCE_TICKS, 0, -1):  # a server that lags does not know yet what another does
            try:
                await self._meet_the_chain()
                break
            except (RpcBehind, RpcError) as error:
                if looks_left == 1:
                    raise
                log.warning("event=sender_waits reason=%r", str(error))
                await asyncio.sleep(self._options.poll_s)
        self._started = True

    async def _meet_the_chain(self) -> None:
        if self._journal.meta(FIRST_NONCE) is None:
            used = max(await self._client.nonce(self._address), await self._client.nonce(self._address, "pending"))
            if used:
                raise JournalError(
                    f"the hot key {self._address} has sent {used} transactions and this journal knows none of"
                    " them: restore the journal, or use a fresh hot key"
                )
            self._journal.set_meta(FIRST_NONCE, "0")
        await self.tick()

    async def run(self) -> NoReturn:
        """Looks at the chain every `poll_s` seconds, and at once after a send. Trouble with the RPC or a full disk is
        waited out, and told of once; raises JournalError when signing has stopped."""
        failed, told = 0, ""  # ticks in a row, and of which trouble
        while True:
            doubts = self._client.doubts
            try:
                await self.tick()
                failed, told = 0, ""
            except (ChainError, JournalUnwritable) as error:
                if told != str(error):
                    told = str(error)
                    log.warning("event=sender_waits reason=%r", told)
                failed += 1
                if isinstance(error, RpcBehind | RpcError) and failed % PATIENCE_TICKS == 0:
                    self._client.doubt(doubts)
            await _wait(self._work, self._options.poll_s)
            self._work.clear()

    async def send(self, key: str, call: Call[Any], *, confirmations: int | None = None) -> TxReceipt:
        """Has `call` executed once, however often this is called with the same key and in however many lives of the
        agent, and returns its receipt when it is `confirmations` blocks deep.

        `key` names the effect ("claim:17:1f3a"). Raises Reverted: before anything is signed when the call would revert
        now, or after it was mined and did. Raises ChainError when the balance or the fee cap forbids it (nothing is
        signed then), RpcDown, JournalUnwritable when the intent could not be recorded, and JournalError when `key` was
        used for another call or signing has stopped.
        """
        assert self._started, "start() comes first"
        intent = self._outbox.find(key) or await self._begin(key, call)
        if (intent.to, intent.data) != (call.to.lower(), call.data):
            raise JournalError(f"the intent {key} was journalled for another call; name this one differently")
        receipt = await self._mined(key, confirmations or self._options.confirmations)
        if not receipt.succeeded:
            raise await self._revert_reason(call, receipt)
        return receipt

    # ---- sending ----------------------------------------------------------------------------------------------------

    async def _begin(self, key: str, call: Call[Any]) -> Intent:
        while True:
            self._check_trusted()
            gas, fees, balance = await self._prepare(call)
            # From here to the journal's commit nothing awaits: no other task can take the nonce or begin this intent.
            self._check_trusted()
            begun = self._outbox.find(key)
            if begun is not None:
                return begun
            pending, nonce = self._outbox.pending(), self._outbox.next_nonce()
            if len(pending) < self._options.max_in_flight and nonce >= self._used:
                break
            await self._ticked.wait()
        reserved = sum(intent.gas_limit * self._newest(intent).signed.fees.max_fee_wei for intent in pending)
        needed = reserved + gas * fees.max_fee_wei
        if balance < needed:
            raise ChainError(f"the hot key {self._address} holds {balance} wei and needs {needed} for gas; top it up")
        signed = self._sign(call.to, call.data, gas, fees, nonce)
        intent = self._outbox.begin(key, call.to.lower(), call.data, gas, signed)
        log.info("event=tx_signed intent=%s nonce=%d tx=%s", key, signed.nonce, to_hex(signed.hash))
        await self._broadcast(key, signed)
        self._work.set()
        return intent

    async def _prepare(self, call: Call[Any]) -> tuple[int, Fees, Wei]:
        """Gas limit, fees and balance, asked for at once: a claim is a race. Raises Reverted if `call` would revert,
        RpcBehind if it would only at an older block than the newest that any server has shown."""
        try:
            _, estimate, fees, balance = await _all(
                self._client.call(call, sender=self._address),
                self._client.estimate_gas(call.to, call.data, self._address, name=call.name),
                self._options.fees.quote(self._client),
                self._client.balance(self._address),
            )
        except Reverted as refusal:
            followed = self._journal.cursor
            newest = max(self._highest, followed.number if followed else 0)
            await self._client.call(call, block=newest, sender=self._address)
            raise RpcBehind(f"{refusal}, but not at block {newest}: an RPC lags") from None
        gas = gas_limit_of(estimate)
        if gas > MAX_GAS:
            raise ChainError(f"{call.name} would take {gas:,} gas, and a transaction may have {MAX_GAS:,}")
        return gas, fees, balance

    async def _mined(self, key: str, confirmations: int) -> TxReceipt:
        while True:
            self._check_trusted()
            intent = self._outbox.find(key)
            assert intent is not None, "intents are never deleted"
            if intent.receipt is not None and self._depth(intent.receipt) >= confirmations:
                return intent.receipt
            await self._ticked.wait()

    async def _revert_reason(self, call: Call[Any], receipt: TxReceipt) -> Reverted:
        """The contract's reason, by running the call again on the state in which it was mined."""
        try:
            await self._client.call(call, block=receipt.block.number, sender=self._address)
        except Reverted as error:
            return error
        except ChainError:
            pass  # the server forgot that state; the revert itself is certain
        return Reverted("", f"{call.name} reverted on chain in transaction {to_hex(receipt.tx_hash)}")

    def _sign(self, to: str, data: bytes, gas_limit: int, fees: Fees, nonce: int) -> SignedTransaction:
        return sign(self._account, self._client.chain_id, to=to, data=data, nonce=nonce, gas_limit=gas_limit, fees=fees)

    async def _broadcast(self, key: str, signed: SignedTransaction) -> None:
        """Hands bytes to a server. Whatever it answers, the chain will tell; `tick` looks."""
        self._sent_at[key] = self._clock()
        try:
            await self._client.send_raw(signed.raw)
        except RpcError as error:
            log.info("event=tx_answered intent=%s nonce=%d answer=%r", key, signed.nonce, str(error))
        except ChainError as error:
            log.warning("event=tx_unsent intent=%s nonce=%d reason=%r", key, signed.nonce, str(error))

    # ---- looking at the chain ---------------------------------------------------------------------------------------

    async def tick(self) -> None:
        """One look at the chain: recognises what was mined or dropped, sends again or replaces what was not, and finds
        transactions that are not ours. Raises JournalError for good, ChainError and JournalUnwritable for now."""
        self._check_trusted()
        doubts = self._client.doubts
        try:
            await self._look()
        except JournalUnwritable:
            raise
        except JournalError as error:
            if self._client.doubt(doubts):
                self._head = None
                self._strangers.look_anew()
                raise RpcBehind(f"{error} (so one RPC says; another is asked)") from error
            self._stopped = error
            log.error("event=signing_stopped reason=%r", str(error))
            raise
        finally:
            ticked, self._ticked = self._ticked, asyncio.Event()
            ticked.set()

    async def _look(self) -> None:
        head = await self._client.block("latest")
        if head == self._head and not self._outbox.pending():
            return  # as at the last look, and nothing is under way
        used = await self._client.nonce(self._address, head.number)
        shrunk = self._highest - head.number > self._options.final_depth  # or a server lied about its head
        self._used, self._highest = used, head.number if shrunk else max(self._highest, head.number)
        reorganised = self._head is None or self._head.hash not in (head.hash, head.parent_hash)
        unsettled = self._outbox.unsettled()
        unsure = [intent for intent in unsettled if self._is_unsure(intent, used, head, reorganised=reorganised)]
        receipts = await self._receipts(unsure)
        for intent in unsettled:
            if intent.receipt is not None:
                if intent in unsure:
                    self._watch(intent, intent.receipt, head, receipts)
            elif intent.nonce < used:
                await self._find(intent, head, receipts)
            else:
                await self._push(intent, used, head)
        await self._strangers.find(used, head.number)
        await self._fill_gap(used)
        self._head = head

    def _is_unsure(self, intent: Intent, used: int, head: Block, *, reorganised: bool) -> bool:
        """Whether a receipt decides about it now: a mined transaction may be moved or dropped by a reorganisation until
        it is final."""
        if intent.receipt is None:
            return intent.nonce < used
        return reorganised or self._is_final(intent.receipt, head)

    async def _receipts(self, unsure: list[Intent]) -> Receipts:
        """Asked for at once, for a server may be slow; what comes of them is decided one after another."""
        mined = [intent.receipt.tx_hash for intent in unsure if intent.receipt is not None]
        sent = [intent.key for intent in unsure if intent.receipt is None]
        hashes = mined + [attempt.signed.hash for key in sent for attempt in self._outbox.attempts(key)]
        room = asyncio.Semaphore(RECEIPTS_AT_ONCE)

        async def ask(digest: bytes) -> TxReceipt | None:
            async with room:
                return await self._client.receipt(digest)

        answers = await asyncio.gather(*map(ask, hashes), return_exceptions=True)
        return Receipts(dict(zip(hashes, answers, strict=True)))

    def _watch(self, intent: Intent, mined: TxReceipt, head: Block, receipts: Receipts) -> None:
        receipt = receipts.of(mined.tx_hash)
        if receipt is None:
            log.warning("event=tx_dropped intent=%s nonce=%d tx=%s", intent.key, intent.nonce, to_hex(mined.tx_hash))
            self._outbox.set_dropped(intent.key)
            self._work.set()
        elif receipt.block != mined.block or self._is_final(receipt, head):
            self._outbox.set_mined(intent.key, receipt, final=self._is_final(receipt, head))

    async def _find(self, intent: Intent, head: Block, receipts: Receipts) -> None:
        """The intent's nonce is used: by one of its attempts, or by somebody else."""
        attempts = self._outbox.attempts(intent.key)
        for attempt in attempts:
            receipt = receipts.of(attempt.signed.hash)
            if receipt is not None and _ran_out(receipt, intent) and await self._would_pass(intent):
                if head.number - receipt.block.number + 1 >= self._options.confirmations:
                    log.warning("event=out_of_gas intent=%s nonce=%d", intent.key, intent.nonce)
                    await self._sign_anew(intent, attempt, 2 * intent.gas_limit)
                return
            if receipt is not None:
                self._outbox.set_mined(intent.key, receipt, final=self._is_final(receipt, head))
                self._sent_at.pop(intent.key, None)
                self._waiting_since.pop(intent.key, None)
                log.info(
                    "event=tx_mined intent=%s nonce=%d tx=%s block=%d succeeded=%s gas=%d",
                    *(intent.key, intent.nonce, to_hex(receipt.tx_hash)),
                    *(receipt.block.number, receipt.succeeded, receipt.gas_used),
                )
                return
        taken = await self._client.transaction_with(self._address, intent.nonce, head.number)
        if taken is None or any(taken.hash == attempt.signed.hash for attempt in attempts):
            self._await_receipt(intent, head)
            return
        self._strangers.judge(taken)
        if intent.key.startswith(GAP):
            self._outbox.discard(intent.key)
        elif head.number - taken.block.number + 1 >= self._options.confirmations:
            log.warning("event=nonce_taken intent=%s nonce=%d", intent.key, intent.nonce)
            await self._sign_anew(intent, attempts[0], intent.gas_limit)

    def _await_receipt(self, intent: Intent, head: Block) -> None:
        """Servers disagree for the moment, or one keeps the receipt back: then another is asked, if there is one."""
        now = self._clock()
        since, _ = self._waiting_since.setdefault(intent.key, (now, head.number))
        if now - since >= self._options.bump_after_s:
            self._waiting_since[intent.key] = now, head.number
            self._client.doubt(self._client.doubts)
            raise RpcBehind(
                f"nonce {intent.nonce} of the hot key is used, and for {now - since:.0f} s the RPC has shown no receipt"
                f" of {intent.key}"
            )

    async def _would_pass(self, intent: Intent) -> bool:
        """Whether it would do something now: not if its effect is there, whatever a server said of its receipt."""
        try:
            await self._client.estimate_gas(intent.to, intent.data, self._address, name=intent.key)
        except Reverted:
            return False
        return True

    async def _sign_anew(self, intent: Intent, newest: Attempt, gas_limit: int) -> None:
        """Under another nonce, the old one having been used: by somebody else's transaction that is as deep as we ask
        of our own, or by one of ours that had too little gas."""
        fresh = await self._options.fees.quote(self._client)
        fees = self._options.fees.bump(newest.signed.fees, fresh) or fresh
        signed = self._sign(intent.to, intent.data, gas_limit, fees, self._outbox.next_nonce())
        self._outbox.add_attempt(intent.key, signed, gas_limit)
        log.info("event=tx_signed intent=%s nonce=%d tx=%s", intent.key, signed.nonce, to_hex(signed.hash))
        await self._broadcast(intent.key, signed)

    async def _push(self, intent: Intent, used: int, head: Block) -> None:
        """Not mined: sends the same bytes again now and then, and dearer ones when it is next in line and blocks have
        passed it over for long. While no block comes no fee helps, and the bids would soon reach the cap."""
        newest, now = self._newest(intent), self._clock()
        since, at_block = self._waiting_since.setdefault(intent.key, (now, head.number))
        outbid = newest.signed.fees.max_fee_wei < head.base_fee_wei
        patience_s = self._options.outbid_after_s if outbid else self._options.bump_after_s
        passed_over = outbid or head.number != at_block
        if intent.nonce == used and passed_over and now - since >= patience_s:
            await self._bump(intent, newest, head)
        elif now - self._sent_at.get(intent.key, -float("inf")) >= self._options.resend_after_s:
            await self._broadcast(intent.key, newest.signed)

    async def _bump(self, intent: Intent, newest: Attempt, head: Block) -> None:
        self._waiting_since[intent.key] = self._clock(), head.number
        try:
            fees = self._options.fees.bump(newest.signed.fees, await self._options.fees.quote(self._client))
        except GasTooDear:
            fees = None
        if fees is None:
            self._waiting_since[intent.key] = self._clock() + self._options.bump_after_s, head.number
            log.warning("event=fee_cap_reached intent=%s nonce=%d", intent.key, intent.nonce)
            return
        signed = self._sign(intent.to, intent.data, intent.gas_limit, fees, intent.nonce)
        self._outbox.add_attempt(intent.key, signed, intent.gas_limit)
        log.info("event=tx_bumped intent=%s nonce=%d max_fee_wei=%d", intent.key, intent.nonce, fees.max_fee_wei)
        await self._broadcast(intent.key, signed)

    async def _fill_gap(self, used: int) -> None:
        """A reorganisation may drop somebody else's transaction that sat below ours, which then wait for ever: put an
        empty transfer to ourselves in its place."""
        pending = self._outbox.pending()
        if not pending or pending[0].nonce <= used or not self._outbox.is_foreign(used):
            return
        now = self._clock()
        since, _ = self._waiting_since.get(pending[0].key, (now, 0))
        if now - since >= self._options.bump_after_s:
            fees = await self._options.fees.quote(self._client)
            signed = self._sign(self._address, b"", TRANSFER_GAS, fees, used)
            log.warning("event=nonce_gap_filled nonce=%d tx=%s", used, to_hex(signed.hash))
            self._outbox.begin(f"{GAP}{used}", self._address, b"", TRANSFER_GAS, signed)
            await self._broadcast(f"{GAP}{used}", signed)

    # ---- small things -----------------------------------------------------------------------------------------------

    def _newest(self, intent: Intent) -> Attempt:
        return self._outbox.attempts(intent.key)[0]

    def _depth(self, receipt: TxReceipt) -> int:
        return 0 if self._head is None else self._head.number - receipt.block.number + 1

    def _is_final(self, receipt: TxReceipt, head: Block) -> bool:
        return head.number - receipt.block.number + 1 >= self._options.final_depth

    def _check_trusted(self) -> None:
        if self._stopped is not None:
            raise JournalError(str(self._stopped)) from self._stopped


def _ran_out(receipt: TxReceipt, intent: Intent) -> bool:
    """Of gas, and may have more: the estimate was wrong, or another's transaction came between. A call within the call
    gets 63/64 of what is left, so that a little may remain."""
    spent = receipt.gas_used >= OUT_OF_GAS * intent.gas_limit
    return not receipt.succeeded and spent and 2 * intent.gas_limit <= MAX_GAS


async def _all(*asked: Coroutine[Any, Any, Any]) -> list[Any]:
    """All results, or the first error in the order given, once everything has ended."""
    results = await asyncio.gather(*asked, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results


async def _wait(event: asyncio.Event, timeout_s: float) -> None:
    try:
        async with asyncio.timeout(timeout_s):
            await event.wait()
    except TimeoutError:
        pass
