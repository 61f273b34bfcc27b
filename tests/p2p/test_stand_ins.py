"""What the network process leaves out of py-libp2p's import."""

import subprocess
import sys

import pytest

from openlora.p2p.host._stand_ins import stand_ins

LEFT_OUT = ("aioquic", "httpx", "requests", "trio_websocket", "eth_abi", "eth_utils", "pydantic", "torch", "web3")


def test_the_network_process_loads_neither_quic_nor_http_nor_abis() -> None:
    show = "import sys, openlora.node.network.process; print(*sys.modules)"
    shown = subprocess.run([sys.executable, "-c", show], capture_output=True, text=True, timeout=30, check=True)
    assert "libp2p" in shown.stdout.split()
    assert not set(LEFT_OUT).intersection(shown.stdout.split())


def test_a_stand_in_answers_every_import_with_a_class_of_its_own() -> None:
    with stand_ins(["email.left_out_for_a_test"]):
        from email.left_out_for_a_test.parts import Refused, Stream  # type: ignore[import-not-found]
    assert issubclass(Refused, Exception)
    assert Refused is not Stream
    assert not isinstance(ValueError(), Refused)


def test_afterwards_what_is_missing_is_missing() -> None:
    with stand_ins(["email.left_out_too"]):
        pass
    with pytest.raises(ImportError):
        import email.left_out_too  # type: ignore[import-not-found]  # noqa: F401


def test_what_is_loaded_already_stays() -> None:
    with stand_ins(["subprocess"]):
        import subprocess as again
    assert again is subprocess
