"""The adapter store: whole or absent, least recently used first out, pins kept."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from openlora.node.adapters.store import AdapterStore
from openlora.node.errors import ContentError

SIZE = 100


def digest(number: int) -> bytes:
    return bytes([number]) * 32


def add(store: AdapterStore, number: int, size: int = SIZE) -> Path:
    folder = store.scratch(digest(number))
    folder.mkdir()
    (folder / "adapter_config.json").write_bytes(b"x" * 10)
    (folder / "adapter_model.safetensors").write_bytes(b"x" * (size - 10))
    return store.install(digest(number), folder)


@pytest.fixture
def store(tmp_path: Path) -> AdapterStore:
    return AdapterStore(tmp_path / "adapters", 3 * SIZE)


def test_an_adapter_is_found_by_its_digest(store: AdapterStore, tmp_path: Path) -> None:
    assert store.get(digest(1)) is None
    assert add(store, 1) == store.get(digest(1)) == tmp_path / "adapters" / ("01" * 32)
    assert store.digests() == (digest(1),)
    assert store.used_bytes == SIZE


def test_the_least_recently_used_leaves_first(store: AdapterStore) -> None:
    paths = [add(store, number) for number in (1, 2, 3)]
    store.get(digest(1))
    add(store, 4)
    assert store.digests() == (digest(3), digest(1), digest(4))
    assert [path.exists() for path in paths] == [True, False, True]


def test_the_order_of_use_survives_a_restart(store: AdapterStore, tmp_path: Path) -> None:
    for number in (1, 2, 3):
        add(store, number)
    store.get(digest(1))
    again = AdapterStore(tmp_path / "adapters", 3 * SIZE)
    assert again.digests() == (digest(2), digest(3), digest(1))
    assert again.used_bytes == 3 * SIZE


def test_the_pinned_stay(store: AdapterStore) -> None:
    store.pin(digest(1))  # before it comes
    for number in (1, 2, 3, 4):
        add(store, number)
    assert store.digests() == (digest(1), digest(3), digest(4))
    store.pin(digest(1))
    store.unpin(digest(1))
    add(store, 5)
    assert digest(1) in store.digests()
    store.unpin(digest(1))
    add(store, 6)
    assert digest(1) not in store.digests()


def test_what_cannot_fit_evicts_nothing(store: AdapterStore) -> None:
    for number in (1, 2, 3):
        add(store, number)
    store.pin(digest(2))
    with pytest.raises(ContentError, match="full of adapters in use"):
        add(store, 4, 3 * SIZE)
    assert store.digests() == (digest(1), digest(2), digest(3))
    add(store, 5, 2 * SIZE)
    assert store.digests() == (digest(2), digest(5))


def test_unpinned_more_often_than_pinned(store: AdapterStore) -> None:
    with pytest.raises(AssertionError):
        store.unpin(digest(1))


def test_a_second_install_of_a_digest_keeps_the_first(store: AdapterStore) -> None:
    first = add(store, 1)
    inode = first.stat().st_ino
    assert add(store, 1) == first
    assert first.stat().st_ino == inode
    assert store.used_bytes == SIZE


def test_removed_files_stay_readable_to_who_has_them_open(store: AdapterStore) -> None:
    with (add(store, 1) / "adapter_config.json").open("rb") as file:
        store.remove(digest(1))
        store.remove(digest(1))
        assert file.read() == b"x" * 10
    assert store.get(digest(1)) is None


def test_an_adapter_that_somebody_deleted_is_not_offered(store: AdapterStore) -> None:
    folder = add(store, 1)
    folder.rename(folder.with_name("elsewhere"))
    assert store.get(digest(1)) is None
    assert store.used_bytes == 0
    add(store, 1)


def test_strays_and_the_unfinished_are_not_adapters(store: AdapterStore, tmp_path: Path) -> None:
    (store.scratch(digest(1)) / "half").mkdir(parents=True)
    for stray in ("lost+found", "0" * 63, "g" * 64, "A" * 64):
        (tmp_path / "adapters" / stray).mkdir()
    again = AdapterStore(tmp_path / "adapters", 3 * SIZE)
    assert again.digests() == ()
    assert list((tmp_path / "adapters" / ".unfinished").iterdir()) == []


CHURN = """
import sys
from pathlib import Path
from openlora.node.adapters.store import AdapterStore
from tests.node.adapters.test_store import add
store = AdapterStore(Path(sys.argv[1]), 300)
print("ready", flush=True)
for number in range(10**6):
    add(store, number % 256)
"""


@pytest.mark.slow
def test_whole_or_absent_after_a_kill_at_any_point(tmp_path: Path, repository: Path) -> None:
    root = tmp_path / "adapters"
    command = [sys.executable, "-c", CHURN, str(root)]
    for round_ in range(20):
        with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=repository) as churn:
            assert churn.stdout is not None
            assert churn.stdout.readline() == b"ready\n"
            time.sleep(0.02 + 0.003 * round_)  # anywhere inside an install or an eviction
            churn.send_signal(signal.SIGKILL)
        store = AdapterStore(root, 300)
        assert store.used_bytes <= 300
        for held in store.digests():
            folder = store.get(held)
            assert folder is not None
            assert sum(path.stat().st_size for path in folder.iterdir()) == SIZE
