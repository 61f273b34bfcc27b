"""Which engine `openlora init` writes for which machine."""

from pathlib import Path

import pytest

from openlora.node.config import Backend
from openlora.node.engine import choice
from openlora.node.engine.choice import CardCheck, choose_backend, kernels_digest, passed_checks, record_check
from openlora.node.hardware import Gpu, Hardware

H100, L4 = "NVIDIA H100 80GB HBM3", "NVIDIA L4"


def machine(*cards: str) -> Hardware:
    return Hardware("a processor", 8, 64 << 30, tuple(Gpu(i, name, 80 << 30, "1") for i, name in enumerate(cards)))


def passed(card: str, kernels: str = "these") -> CardCheck:
    return CardCheck(card=card, kernels=kernels, passed_at="2026-01-01T00:00:00+00:00", versions={"torch": "2"})


@pytest.mark.parametrize(
    ("cards", "checked", "backend", "said"),
    [
        ((), (), Backend.OPENLORA, "No NVIDIA GPU"),
        ((), (H100,), Backend.OPENLORA, "No NVIDIA GPU"),
        ((H100,), (), Backend.VLLM, f"have not passed their check on {H100}"),
        ((H100, H100), (H100,), Backend.OPENLORA, f"have passed their check on {H100}."),
        ((H100, L4), (H100,), Backend.VLLM, f"have not passed their check on {L4}:"),
        ((H100, L4), (H100, L4), Backend.OPENLORA, f"{H100}, {L4}"),
    ],
)
def test_the_own_engine_serves_where_it_is_trusted(
    cards: tuple[str, ...], checked: tuple[str, ...], backend: Backend, said: str
) -> None:
    found = choose_backend(machine(*cards), [passed(card) for card in checked])
    assert found.backend is backend
    assert said in found.reason


def test_a_record_holds_for_the_kernels_that_were_checked(tmp_path: Path) -> None:
    file = choice.checks_file(tmp_path / "cache")
    assert passed_checks(file, "these") == ()
    record_check(file, passed(H100, "others"))
    record_check(file, passed(L4))
    assert passed_checks(file, "these") == (passed(L4),)
    record_check(file, passed(H100))
    assert {check.card for check in passed_checks(file, "these")} == {H100, L4}
    assert passed_checks(file, "others") == ()


@pytest.mark.parametrize("content", [b"", b"[{}]", b"\xff", b'{"card": "x"}'])
def test_a_record_that_cannot_be_read_is_none(tmp_path: Path, content: bytes) -> None:
    file = choice.checks_file(tmp_path)
    file.write_bytes(content)
    assert passed_checks(file, "these") == ()
    record_check(file, passed(L4))
    assert passed_checks(file, "these") == (passed(L4),)


def test_the_digest_is_of_the_sources_and_of_the_compilers(monkeypatch: pytest.MonkeyPatch) -> None:
    before = kernels_digest()
    assert before == kernels_digest()
    monkeypatch.setattr(choice, "compiler_versions", lambda: {"triton": "0"})
    assert kernels_digest() != before
