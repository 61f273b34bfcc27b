import pytest

from openlora.contracts import AdapterDeprecated, AdapterRegistered, BaseRegistered, DatanetCreated
from openlora.node.catalogue import Catalogue, datanet_root
from openlora.node.errors import ChainError
from tests.node.facts import OPERATOR, RIVAL

BASE = BaseRegistered(base_id=b"\x01" * 32, payee=OPERATOR, name="llama")


def adapter(byte: int, name: str, owner: str = OPERATOR) -> AdapterRegistered:
    return AdapterRegistered(digest=bytes([byte]) * 32, base_id=BASE.base_id, owner=owner, name=name)


def test_names_ids_and_cids_find_what_they_name():
    catalogue = Catalogue.of([BASE, adapter(2, "pirate"), adapter(3, "haiku")])
    assert catalogue.base("llama") is catalogue.base("0x" + "01" * 32)
    pirate = catalogue.adapter("pirate")
    assert pirate.digest == b"\x02" * 32
    assert catalogue.adapter(pirate.cid) is pirate


def test_a_name_that_two_share_is_refused_and_the_cid_helps():
    catalogue = Catalogue.of([BASE, adapter(2, "pirate"), adapter(3, "pirate", RIVAL)])
    with pytest.raises(ChainError, match="2 adapters are named 'pirate'; give the CID"):
        catalogue.adapter("pirate")
    assert catalogue.adapter(catalogue.adapters[1].cid).owner == RIVAL


def test_a_deprecated_adapter_is_found_by_its_cid_alone():
    catalogue = Catalogue.of([adapter(2, "pirate"), AdapterDeprecated(digest=b"\x02" * 32)])
    assert catalogue.adapter(catalogue.adapters[0].cid).deprecated
    with pytest.raises(ChainError, match="no adapter 'pirate'"):
        catalogue.adapter("pirate")


def test_datanets_are_listed_by_number():
    made = DatanetCreated(datanet_id=1, owner=OPERATOR, root=datanet_root([b"\x07" * 32]), name="voices")
    (datanet,) = Catalogue.of([made]).datanets
    assert (datanet.datanet_id, datanet.name, datanet.root) == (1, "voices", made.root)
    assert datanet_root([b"1" * 32, b"2" * 32]) != datanet_root([b"2" * 32, b"1" * 32])


def test_an_unknown_base_names_the_known_ones():
    with pytest.raises(ChainError, match="registered are: llama"):
        Catalogue.of([BASE]).base("gpt")
