"""A backend on another device, for tests whose tensors lie in the processor's memory.

Arguments are moved with the whole memory that they are views of, so that offsets, strides and alignment stay what they
were; what an op writes in place comes back the same way.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, UntypedStorage

from openlora.kernels.ops import Backend

_OPS = [field.name for field in dataclasses.fields(Backend) if field.name not in ("name", "lora_table")]


def on_device(backend: Backend, device: torch.device) -> Backend:
    return dataclasses.replace(backend, **{name: _moving(getattr(backend, name), device, name) for name in _OPS})


def _moving(op: Callable[..., Any], device: torch.device, name: str) -> Callable[..., Any]:
    def call(*arguments: Any) -> Any:
        moved: dict[int, tuple[UntypedStorage, UntypedStorage]] = {}
        result = op(*[_moved(argument, device, moved) for argument in arguments])
        if name.endswith("_"):
            for here, there in moved.values():
                here.copy_(there)
        return result.cpu() if isinstance(result, Tensor) else result

    return call


def _moved(value: Any, device: torch.device, moved: dict[int, tuple[UntypedStorage, UntypedStorage]]) -> Any:
    match value:
        case Tensor():
            here = value.untyped_storage()
            if here.data_ptr() not in moved:
                there = torch.empty(here.nbytes(), dtype=torch.uint8, device=device).untyped_storage()
                moved[here.data_ptr()] = here, there.copy_(here)
            _, there = moved[here.data_ptr()]
            view = torch.empty(0, dtype=value.dtype, device=device)
            return view.set_(there, value.storage_offset(), value.shape, value.stride())
        case list():
            return [_moved(one, device, moved) for one in value]
    if dataclasses.is_dataclass(value) and not type(value).__module__.startswith("openlora.kernels.triton"):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return dataclasses.replace(value, **{name: _moved(one, device, moved) for name, one in fields.items()})  # type: ignore[type-var]
    return value
