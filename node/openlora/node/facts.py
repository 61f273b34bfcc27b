"""What the node reads from the contracts while it works: recipes, which never change, and what it can put up now."""

import asyncio
import time
from collections.abc import Callable
from typing import Final

from eth_typing import ChecksumAddress
from eth_utils.address import to_checksum_address

from openlora.contracts import Adapter, AdapterRegistry, JobQueue, JobState, NodeRegistry, Recipe
from openlora.node.admission import Funds
from openlora.node.chain.client import ChainClient
from openlora.node.chain.types import Block
from openlora.node.errors import Reverted

WEIGHT_UNIT: Final = 10_000  # a recipe's weights are whole numbers of 1/10,000
KEPT_RECIPES: Final = 4096
FUNDS_S: Final = 1.0
HISTORY: Final = to_checksum_address("0x0000F90827F1C53a10cb7A02335B175320002935")  # of block hashes: EIP-2935
HISTORY_BLOCKS: Final = 8_191
BLOCKHASH_BLOCKS: Final = 256
HELD: Final = float("inf")  # the end of a window whose clock stands still


class ChainFacts:
    """Reads for one operator. Every method raises ChainError when the chain cannot be asked."""

    def __init__(
        self,
        chain: ChainClient,
        queue: JobQueue,
        nodes: NodeRegistry,
        registry: AdapterRegistry,
        operator: ChecksumAddress,
        hot_key: ChecksumAddress,
        *,
        chain_now_s: Callable[[int], float] = float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`chain_now_s`: the chain's time where a block of this time is shown as the newest."""
        self._chain = chain
        self._queue = queue
        self._nodes = nodes
        self._registry = registry
        self._operator = operator
        self._hot_key = hot_key
        self._recipes: dict[int, Recipe] = {}
        self._chain_now_s = chain_now_s
        self._clock = clock
        self._reading = asyncio.Lock()
        self._funds_until = -float("inf")

    async def recipe(self, recipe_id: int) -> Recipe:
        """A registered recipe. Raises Reverted("UnknownRecipe")."""
        if recipe_id not in self._recipes:
            if len(self._recipes) >= KEPT_RECIPES:
                self._recipes.clear()
            self._recipes[recipe_id] = await self._chain.call(self._registry.recipe(recipe_id))
        return self._recipes[recipe_id]

    async def adapter(self, digest: bytes) -> Adapter:
        """A registered adapter; all zero for one that is not."""
        return await self._chain.call(self._registry.adapter(digest))

    async def datanet_payees(self, datanet_id: int) -> frozenset[str]:
        """Who is paid a share of a datanet's part. Raises Reverted("UnknownDatanet")."""
        shares = await self._chain.call(self._registry.datanet_shares(datanet_id))
        return frozenset(str(share.payee) for share in shares)

    async def may_use(self, recipe_id: int, client: ChecksumAddress) -> bool:
        """Whether the adapters' owners let this client have new jobs of the recipe done now."""
        try:
            await self._chain.call(self._registry.check_use(recipe_id, client))
        except Reverted:
            return False
        return True

    async def is_pay_per_use(self, recipe_id: int) -> bool:
        """Whether a job of the recipe costs more than its tokens: such recipes are for the queue alone."""
        use_fee_wei, _ = await self._chain.call(self._registry.terms(recipe_id))
        return use_fee_wei > 0

    async def is_open(self, job_id: int) -> bool:
        """Whether a job can be claimed now, an elapsed lease included."""
        return (await self._chain.call(self._queue.job(job_id))).state is JobState.OPEN

    async def lease_left_s(self, job_id: int) -> float | None:
        """Of this operator's lease, by the chain's clock, or of the time in which the queue can check its seed if that
        ends first; None where the chain does not show the lease as ours."""
        job, head = await asyncio.gather(self._chain.call(self._queue.job(job_id)), self._chain.block("latest"))
        if job.state is not JobState.CLAIMED or job.node != self._operator:
            return None
        return min(job.lease_deadline - self._chain_now_s(head.timestamp), await self._known_s(job.claim_block, head))

    async def _known_s(self, number: int, head: Block) -> float:
        """For how long contracts will know a block's hash, if blocks go on coming as they did."""
        known = HISTORY_BLOCKS if await self._chain.code(HISTORY) else BLOCKHASH_BLOCKS
        past = await self._chain.block(max(0, head.number - known))
        block_s = (head.timestamp - past.timestamp) / max(1, head.number - past.number)
        return (number + known - head.number) * block_s

    async def finalizable_at(self, job_id: int) -> float:
        """When a committed job's challenge window ends, in the chain's unix seconds; HELD while a question about the
        job has stopped its clock, and where the chain shows it in another state: over, or not yet committed."""
        job = await self._chain.call(self._queue.job(job_id))
        return job.finalizable_at if job.state is JobState.COMMITTED else HELD

    async def funds(self) -> Funds:
        """Gas, stake and bond, at most `FUNDS_S` old: jobs that come together share one reading."""
        async with self._reading:
            if self._clock() >= self._funds_until:
                self._funds = await self._read_funds()
                self._funds_until = self._clock() + FUNDS_S
            return self._funds

    async def _read_funds(self) -> Funds:
        version = await self._chain.call(self._queue.params_version())
        params, gas_wei, head, tip_wei, free_stake_wei = await asyncio.gather(
            self._chain.call(self._queue.params(version)),
            self._chain.balance(self._hot_key),
            self._chain.block("latest"),
            self._chain.suggested_tip(),
            self._chain.call(self._nodes.free_stake(self._operator)),
        )
        return Funds(gas_wei, head.base_fee_wei + tip_wei, free_stake_wei, params.bond, head.timestamp)

    async def now_s(self) -> int:
        """The chain's clock, unix seconds: the newest block's time."""
        return (await self._chain.block("latest")).timestamp
