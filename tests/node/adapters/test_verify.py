"""The child that checks adapters: what it answers, and what it cannot do."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from openlora.node.adapters.folder import WEIGHTS_FILE
from openlora.node.adapters.modules import LinearShape
from openlora.node.adapters.verify import Verified, verify_adapter
from openlora.node.errors import AdapterCheckFailed, AdapterError
from tests.node.adapters.adapter_files import LAYOUT, RANK, Q, arrays, config, container, header, write_adapter


async def test_a_good_adapter(tmp_path: Path) -> None:
    nbytes = sum(tensor.nbytes for tensor in arrays().values())
    assert await verify_adapter(write_adapter(tmp_path), LAYOUT) == Verified(RANK, nbytes)


async def test_a_refusal_carries_the_reason(tmp_path: Path) -> None:
    write_adapter(tmp_path, b'{"peft_type": "LORA", "tokenizer_kwargs": {"trust_remote_code": true}}')
    with pytest.raises(AdapterError, match="unknown key 'tokenizer_kwargs'") as refusal:
        await verify_adapter(tmp_path, LAYOUT)
    assert not isinstance(refusal.value, AdapterCheckFailed)


async def test_a_check_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    with pytest.raises(AdapterCheckFailed, match=r"within 0\.001 s"):
        await verify_adapter(write_adapter(tmp_path), LAYOUT, timeout_s=0.001)


async def test_a_child_that_dies_is_no_refusal(tmp_path: Path) -> None:
    """Killed for memory or broken by a fault of ours, it leaves no answer: here, for a layout that is no layout."""
    with pytest.raises(AdapterCheckFailed, match="died with status 1"):
        await verify_adapter(write_adapter(tmp_path), {**LAYOUT, Q: LinearShape("twelve", "eight")})


CONFINED = """
import json, os, resource, socket, sys
from pathlib import Path
from openlora.node.adapters.verify import confine

confine(Path(sys.argv[1]))
found = {"environment": sorted(os.environ), "torch": "torch" in sys.modules}
try:
    found["memory"] = len(bytearray(1 << 28))
except MemoryError:
    found["memory"] = "refused"
try:
    Path(sys.argv[1], "written").write_text("x" * 100)
    found["write"] = "done"
except OSError as error:
    found["write"] = "refused"
try:
    socket.create_connection(("127.0.0.1", int(sys.argv[2])), timeout=5).close()
    found["network"] = "reached"
except OSError:
    found["network"] = "refused"
print(json.dumps(found))
"""


@pytest.mark.slow
async def test_what_the_child_gives_up(tmp_path: Path) -> None:
    async with await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        command = [sys.executable, "-I", "-c", CONFINED, str(tmp_path), str(port)]
        done = await asyncio.to_thread(subprocess.run, command, env={}, capture_output=True, text=True, check=False)
    found = json.loads(done.stdout)
    assert found["memory"] == "refused"
    assert found["write"] == "refused"
    assert found["network"] == ("refused" if namespaces_allowed() else "reached")
    assert found["torch"] is False


def namespaces_allowed() -> bool:
    probe = "from openlora.node.adapters.verify import leave_network; print(leave_network())"
    return subprocess.run([sys.executable, "-c", probe], capture_output=True, check=True).stdout.strip() == b"True"


@pytest.mark.slow
async def test_weights_larger_than_the_private_memory_are_checked(tmp_path: Path) -> None:
    """They are mapped, not read: 300 MB pass through a child that may hold 192 MiB."""
    rank, size = 256, 146_500
    tensors = {
        "base_model.model.proj.lora_A.weight": np.broadcast_to(np.float32(0), (rank, size)),
        "base_model.model.proj.lora_B.weight": np.broadcast_to(np.float32(0), (size, rank)),
    }
    write_adapter(tmp_path, config(r=rank, target_modules=["proj"]), container(header(tensors), b""))
    with (tmp_path / WEIGHTS_FILE).open("r+b") as file:
        file.truncate(file.seek(0, 2) + 2 * rank * size * 4)
    assert (await verify_adapter(tmp_path, {"proj": LinearShape(size, size)})).rank == rank
