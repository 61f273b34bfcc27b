"""The demonstration, as `make demo` runs it."""

import json
import subprocess

import psutil
import pytest

from openlora.node.devnet import OLRA

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("engine")]


def test_everyone_is_paid_and_nothing_is_left_behind(openlora, model_dir, tmp_path):
    before = {process.pid for process in psutil.process_iter()}
    done: subprocess.CompletedProcess[str] = openlora(
        "demo", "--state", tmp_path / "demo", "--model", model_dir, "--json", timeout_s=400
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["ok"] is True
    assert (result["nodes"], result["jobs"], result["finalized"]) == (3, 25, 24), "one more is the cheat's"
    assert result["requeued"] >= 1
    assert result["travelled_bytes"] > 1_000_000
    paid, refunded, escrow, slashed = (int(result[f"{what}_wei"]) for what in ("paid", "refunded", "escrow", "slashed"))
    assert paid + refunded == escrow > paid > 0
    assert result["tokens"] > 23
    assert (result["session_receipts"], result["published"]) == (3, 2)
    assert slashed > 0
    assert result["refused_proofs"] == 1
    assert OLRA < int(result["lost_bond_wei"]) < 2 * OLRA, "of the visitor, to the node that it accused"
    assert result["first_paid_job_s"] <= result["seconds"]
    left = [process for process in psutil.process_iter(["cmdline", "ppid"]) if process.pid not in before]
    assert not [process for process in left if str(tmp_path) in " ".join(process.info["cmdline"] or [])]
    chains = [process for process in left if process.info["cmdline"] and "anvil" in process.info["cmdline"][0]]
    assert not [chain for chain in chains if chain.info["ppid"] == 1]  # others' tests may run chains beside this one
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]
