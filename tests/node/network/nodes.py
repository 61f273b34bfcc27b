"""Whole nodes' networks on loopback: real processes, real libp2p, operators with keys of their own."""

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import msgspec
from eth_account import Account
from eth_account.signers.local import LocalAccount
from eth_typing import ChecksumAddress
from eth_utils.address import to_checksum_address

from openlora.contracts import Domain
from openlora.node.content import BlockContent
from openlora.node.network.binding import sign_binding
from openlora.node.network.client import NetworkClient
from openlora.node.network.content import NetworkContent
from openlora.node.network.messages import Announce
from openlora.node.network.options import NetworkOptions
from openlora.node.network.supervisor import supervised_network
from openlora.node.supervise import Patience
from openlora.p2p.presence.record import Adapters
from tests.node.network.fake_network import status

REGISTRY = to_checksum_address("0x" + "5f" * 20)
DOMAIN = Domain(31337, REGISTRY)
PATIENCE = Patience(
    start_timeout_s=30, stop_timeout_s=5, hang_timeout_s=30, restart_first_s=0.05, restart_max_s=1, restart_wait_s=20
)


def operator(number: int) -> ChecksumAddress:
    return to_checksum_address(f"0x{number + 1:040x}")


def hot_key(number: int) -> LocalAccount:
    key: LocalAccount = Account.from_key((number + 1).to_bytes(32, "big"))
    return key


def staked(count: int) -> dict[str, str]:
    return {hot_key(number).address.lower(): operator(number).lower() for number in range(count)}


@dataclass(frozen=True)
class Node:
    number: int
    folder: Path
    network: NetworkClient
    content: NetworkContent

    async def announce(self, queued: int = 0, adapters: int = 0) -> None:
        key = hot_key(self.number)
        digests = [sha256(b"%d %d" % (self.number, adapter)).digest() for adapter in range(adapters)]
        told = msgspec.structs.replace(status(queued), adapters=Adapters.of((), (), digests))
        await self.network.announce(
            Announce(
                operator=operator(self.number).lower(),
                hot_key=key.address.lower(),
                binding=sign_binding(key, DOMAIN, operator(self.number), self.network.peer_id),
                status=told,
            )
        )

    def seen(self) -> set[str]:
        return {record.operator for record in self.network.nodes()}


@asynccontextmanager
async def node(
    folder: Path, number: int, bootstrap: Sequence[str] = (), *, port: int = 0, **options: int
) -> AsyncIterator[Node]:
    here = folder / f"node{number}"
    network_options = NetworkOptions(
        chain_id=DOMAIN.chain_id,
        registry=REGISTRY,
        content_dir=str(here / "content"),
        listen=(f"/ip4/127.0.0.1/tcp/{port}",),
        bootstrap=tuple(bootstrap),
        mdns=False,
        nat=False,
        **options,
    )
    here.mkdir(exist_ok=True)
    async with supervised_network(network_options, here, patience=PATIENCE) as network:
        yield Node(number, here, network, NetworkContent(BlockContent(here / "content"), network))


@asynccontextmanager
async def nodes(folder: Path, count: int) -> AsyncIterator[list[Node]]:
    """All know the first; none is trusted or announced yet."""
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(node(folder, 0))
        rest = [
            await stack.enter_async_context(node(folder, number, first.network.addresses)) for number in range(1, count)
        ]
        yield [first, *rest]
