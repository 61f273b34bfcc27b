import numpy as np
import pytest
import torch

from openlora.kernels.types import Difference, LoraFactors
from openlora.node.adapters.format import AdapterWeights, Factor
from openlora.node.adapters.safetensors import RawTensor
from openlora.node.engine import changes
from openlora.node.engine.adapter_pool import AdapterPool
from openlora.node.engine.checkpoint import Checkpoint
from openlora.node.engine.lora_tables import LoraTables
from openlora.node.errors import AdapterError

NBYTES = 4 * (2 * 3 + 5 * 2)  # one module, rank 2, float32


def weights(value: float, *modules: str, dtype: str = "F32") -> AdapterWeights:
    """Rank 2 on 3 → 5 layers, every number `value`."""

    def raw(shape: tuple[int, int]) -> RawTensor:
        tensor = torch.full(shape, value)
        match dtype:
            case "F16":
                array = tensor.half().numpy()
            case "BF16":
                array = tensor.bfloat16().view(torch.uint16).numpy()
            case _:
                array = tensor.numpy()
        return RawTensor(dtype, shape, memoryview(np.ascontiguousarray(array).tobytes()))

    factors = {module: Factor(raw((2, 3)), raw((5, 2)), 0.5) for module in modules or ("m",)}
    return AdapterWeights(rank=2, nbytes=1, factors=factors)


class Base(Checkpoint):
    """A base model of one 3 → 5 layer and one norm."""

    def __init__(self) -> None:
        rng = torch.Generator().manual_seed(0)
        self.weights = {"m": torch.randn(5, 3, generator=rng), "norm": torch.randn(5, generator=rng)}

    def weight(self, module: str) -> torch.Tensor:
        return self.weights[module]

    matrix = weight


class Pool(AdapterPool):
    """A pool over tables that can be looked into."""

    def __init__(self, max_bytes: int) -> None:
        self.tables, self.base = LoraTables(), Base()
        super().__init__(max_bytes, self.tables, self.base, torch.float32, torch.device("cpu"))


def pool(max_bytes: int = 10 * NBYTES) -> Pool:
    return Pool(max_bytes)


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_reads_every_stored_dtype(dtype: str) -> None:
    adapters = pool()
    loaded = adapters.load("k", weights(0.75, dtype=dtype))
    factors = adapters.tables["m"][loaded.slot]
    assert factors is not None
    assert torch.equal(factors.a, torch.full((2, 3), 0.75))
    assert torch.equal(factors.b, torch.full((5, 2), 0.75))
    assert (factors.scale, loaded.rank, loaded.nbytes) == (0.5, 2, NBYTES)


def test_a_reloaded_key_keeps_the_old_weights_for_those_who_hold_them() -> None:
    adapters = pool()
    adapters.load("k", weights(1.0))
    old = adapters.acquire("k")
    assert old is not None
    new = adapters.load("k", weights(2.0))
    assert adapters.acquire("k") is new
    table = adapters.tables["m"]
    assert table[old.slot].a[0, 0] == 1.0
    assert table[new.slot].a[0, 0] == 2.0
    adapters.check_integrity([old, new])
    adapters.release(old)
    assert table[old.slot] is None
    assert adapters.nbytes == NBYTES
    adapters.check_integrity([new])


def test_an_unloaded_adapter_leaves_with_its_last_user() -> None:
    adapters = pool()
    adapters.load("k", weights(1.0))
    held = adapters.acquire("k")
    assert held is not None
    adapters.unload("k")
    adapters.unload("k")
    assert adapters.acquire("k") is None
    assert (adapters.keys, adapters.nbytes) == ((), NBYTES)
    adapters.release(held)
    assert adapters.nbytes == 0
    assert not adapters.tables.holds(held.slot)
    adapters.check_integrity([])


def test_slots_are_used_again() -> None:
    adapters = pool()
    slots = {adapters.load(str(i % 3), weights(1.0, "m", f"m{i}")).slot for i in range(9)}
    assert len(slots) <= 4
    adapters.check_integrity([])


def test_the_budget_refuses_and_changes_nothing() -> None:
    adapters = pool(2 * NBYTES)
    adapters.load("a", weights(1.0))
    adapters.load("b", weights(1.0))
    with pytest.raises(AdapterError, match="unload others first"):
        adapters.load("c", weights(1.0))
    assert adapters.keys == ("a", "b")
    adapters.load("a", weights(2.0))  # takes the place of the old one …
    held = adapters.acquire("a")
    assert held is not None
    with pytest.raises(AdapterError):
        adapters.load("a", weights(3.0))  # … unless a request holds it
    assert adapters.acquire("a") is held
    adapters.check_integrity([held, held])


def stored(tensor: torch.Tensor) -> RawTensor:
    return RawTensor("F32", tuple(tensor.shape), memoryview(np.ascontiguousarray(tensor.numpy()).tobytes()))


def dora(magnitude: torch.Tensor, value: float = 0.25) -> AdapterWeights:
    plain = weights(value).factors["m"]
    return AdapterWeights(rank=2, nbytes=1, factors={"m": Factor(plain.a, plain.b, plain.scale, stored(magnitude))})


def test_dora_is_a_stretch_and_rescaled_factors() -> None:
    adapters, base, magnitude = pool(), Base().weight("m"), torch.tensor([1.0, 2.0, 0.5, -1.0, 0.0])
    loaded = adapters.load("k", dora(magnitude))
    change = adapters.tables["m"][loaded.slot]
    assert isinstance(change, LoraFactors)
    assert change.stretch is not None
    direction = base + 0.5 * torch.full((5, 2), 0.25) @ torch.full((2, 3), 0.25)
    expected = (magnitude / direction.norm(dim=1)).unsqueeze(1) * direction
    found = base + change.scale * change.b @ change.a + change.stretch.unsqueeze(1) * base
    torch.testing.assert_close(found, expected)
    assert loaded.nbytes == change.nbytes == NBYTES + 4 * 5


def test_a_whole_weight_is_kept_as_what_it_differs_by() -> None:
    adapters, base = pool(), Base()
    whole = {"m": torch.ones(5, 3), "norm": torch.zeros(5)}
    replaced = {module: stored(weight) for module, weight in whole.items()}
    loaded = adapters.load("k", AdapterWeights(rank=1, nbytes=1, factors={}, replaced=replaced))
    for module, weight in whole.items():
        change = adapters.tables[module][loaded.slot]
        assert isinstance(change, Difference)
        torch.testing.assert_close(base.weight(module) + change.weight, weight)
    assert loaded.nbytes == 4 * (15 + 5)


@pytest.mark.parametrize("magnitude", [3e38, -3e38])
def test_a_magnitude_too_large_for_its_row_is_refused_and_the_old_adapter_stays(magnitude: float) -> None:
    adapters = pool()
    old = adapters.load("k", weights(1.0))
    with pytest.raises(AdapterError, match=r"magnitudes.*overflow"):
        adapters.load("k", dora(torch.full((5,), magnitude)))
    assert adapters.acquire("k") is old


def test_a_row_of_zero_norm_has_no_direction() -> None:
    adapters = pool()
    base = Base().weight("m")
    cancelled = Factor(stored(torch.eye(3)[:2]), stored(-base[:, :2]), 1.0, stored(torch.ones(5)))
    base[:, 2] = 0.0
    adapters.base.weights["m"] = base
    with pytest.raises(AdapterError, match=r"magnitudes.*overflow"):
        adapters.load("k", AdapterWeights(rank=2, nbytes=1, factors={"m": cancelled}))


def test_another_effect_has_another_digest() -> None:
    plain, ones = weights(0.25), torch.ones(5)
    whole = AdapterWeights(rank=1, nbytes=1, factors={}, replaced={"norm": stored(ones)})
    effects = [plain, dora(ones), dora(2 * ones), whole, AdapterWeights(1, 1, {}, {"m": stored(ones)})]
    copied = AdapterWeights(plain.rank, plain.nbytes, plain.factors, copies={"m": stored(ones)})
    assert len({weights.digest() for weights in effects}) == len(effects)
    assert copied.digest() == plain.digest()


def test_a_device_without_room_refuses_the_adapter_and_keeps_the_slot_free(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    adapters = pool()
    with monkeypatch.context() as patch:
        patch.setattr(changes, "_moved", full)
        with pytest.raises(AdapterError, match="does not fit into the device's memory"):
            adapters.load("k", weights(1.0))
    assert (adapters.keys, adapters.nbytes) == ((), 0)
    assert adapters.load("k", weights(1.0)).slot == 0
