"""A node keeps what the chain names, and nothing else."""

from dataclasses import dataclass, field
from typing import Any

from eth_utils.address import to_checksum_address

from openlora.contracts import Access, Adapter
from openlora.node.content import adapter_cid, document_cid
from openlora.node.job import JobId, JobState
from openlora.node.journal import Journal
from openlora.node.network.wanted import Wanted
from tests.node.facts import block, open_journal, spec, spec_hash

BASE, OTHER = b"\x01" * 32, b"\x09" * 32
PIRATE, OLD, FOREIGN, STRANGE, BANNED = (bytes((number,)) * 32 for number in (2, 3, 4, 5, 7))
INPUT = b"\x06" * 32
OWNER = to_checksum_address("0x" + "0a" * 20)


def adapter(base_id: bytes, deprecated: bool = False, taken_down: bool = False) -> Adapter:
    return Adapter(
        base_id=base_id,
        owner=OWNER,
        registered_at=1,
        deprecated=deprecated,
        taken_down=taken_down,
        access=Access.PUBLIC,
        version=1,
        use_fee=0,
        predecessor=bytes(32),
        successor=bytes(32),
        licence=bytes(32),
        datanets=(),
    )


NOBODYS = adapter(bytes(32))  # what the registry says of a digest that it does not know


@dataclass
class Facts:
    """The adapters that are registered."""

    adapters: dict[bytes, Adapter] = field(
        default_factory=lambda: {
            PIRATE: adapter(BASE),
            OLD: adapter(BASE, deprecated=True),
            FOREIGN: adapter(OTHER),
            BANNED: adapter(BASE, taken_down=True),
        }
    )

    async def adapter(self, digest: bytes) -> Adapter:
        return self.adapters.get(digest, NOBODYS)


def wanted(journal: Journal) -> Wanted:
    facts: Any = Facts()
    return Wanted(facts, journal, BASE)


async def test_adapters_registered_for_the_base_that_is_served(tmp_path):
    with open_journal(tmp_path) as journal:
        answers = [await wanted(journal)(adapter_cid(digest)) for digest in (PIRATE, OLD, FOREIGN, STRANGE, BANNED)]
    assert answers == ["a registered adapter", None, None, None, None]


async def test_inputs_of_jobs_that_wait_for_an_answer(tmp_path):
    with open_journal(tmp_path) as journal:
        want = wanted(journal)
        assert await want(document_cid(INPUT)) is None
        journal.see(JobId(7), spec(input_digest=INPUT), spec_hash(7), None, block(1))
        assert await want(document_cid(INPUT)) == "the input of job 7"
        journal.move(JobId(7), JobState.CLAIMING)
        journal.move(JobId(7), JobState.CLAIMED, block=block(2))
        assert await want(document_cid(INPUT)) is None
        journal.see(JobId(8), spec(input_digest=INPUT, deadline=1), spec_hash(8), None, block(3))
        assert await want(document_cid(INPUT)) is None


async def test_what_is_no_cid_is_not_wanted(tmp_path):
    with open_journal(tmp_path) as journal:
        assert await wanted(journal)("../../etc/passwd") is None
