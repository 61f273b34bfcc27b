"""What the signed lane reads from the chain: sessions, and whether a contract stands by a signature."""

from dataclasses import dataclass
from typing import Final

from eth_typing import ChecksumAddress

from openlora.contracts import Call, InvalidSignature, Session, Sessions
from openlora.contracts.call import encode_call
from openlora.node.chain.client import ChainClient
from openlora.node.errors import Reverted
from openlora.typed_data import signer_of

ERC1271_MAGIC: Final = bytes.fromhex("1626ba7e")


@dataclass(frozen=True, slots=True)
class SessionFacts:
    """Every method raises ChainError when the chain cannot be asked."""

    chain: ChainClient
    sessions: Sessions
    confirmations: int  # blocks, a deposit's own included, before it counts

    async def session(self, session_id: bytes) -> Session:
        """As of the newest block; state NONE for one that never was."""
        return await self.chain.call(self.sessions.session(session_id))

    async def confirmed(self, session_id: bytes) -> Session:
        """As of the newest block that is deep enough for its deposit to count."""
        head = (await self.chain.block("latest")).number
        depth = max(0, head - self.confirmations + 1)
        return await self.chain.call(self.sessions.session(session_id), block=depth)

    async def has_signed(self, client: ChecksumAddress, digest: bytes, signature: bytes) -> bool:
        """As the contracts judge it: the key's own signature with a low s, else ERC-1271 where there is code."""
        try:
            if signer_of(digest, signature) == client.lower():
                return True
        except InvalidSignature:
            pass
        return bool(await self.chain.code(client)) and await self._stands_by(client, digest, signature)

    async def _stands_by(self, contract: ChecksumAddress, digest: bytes, signature: bytes) -> bool:
        data = encode_call(ERC1271_MAGIC, ["bytes32", "bytes"], [digest, signature])
        call = Call(contract, data, "isValidSignature", lambda output: output[:32] == ERC1271_MAGIC.ljust(32, b"\0"))
        try:
            return await self.chain.call(call)
        except Reverted:
            return False
