"""Several engines behind one face, a device each: adapters where they are wanted, requests where there is room."""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field

import msgspec

from openlora.node.engine.client import EngineClient
from openlora.node.engine.connection import Tokens
from openlora.node.engine.messages import AdapterLoaded, AdapterUse, Sampling, Status
from openlora.node.errors import AdapterError

SPREAD_AT = 8  # more running requests than the least busy device has: then an adapter is worth a second copy


@dataclass(eq=False, slots=True)
class _Device:
    engine: EngineClient
    adapters: dict[str, int] = field(default_factory=dict)  # bytes by key
    running: int = 0


class EngineFleet:
    """An InferenceEngine of several, all of one model.

    An adapter is loaded on one device, the one with the least of them, and a request goes where its adapters are. There
    is a second copy of an adapter when one is needed: its device is much busier than another, is down, or a recipe's
    adapters lie on different devices. Requests wait for nobody on another device.
    """

    def __init__(self, engines: Sequence[EngineClient]) -> None:
        infos = [engine.info for engine in engines]
        self.info = msgspec.structs.replace(infos[0], kv_tokens=sum(info.kv_tokens for info in infos))
        self._devices = [_Device(engine) for engine in engines]
        self._paths: dict[str, str] = {}

    @property
    def alive(self) -> bool:
        return any(device.engine.alive for device in self._devices)

    async def generate(
        self, prompt: Sequence[int], sampling: Sampling, adapters: Sequence[AdapterUse] = (), tenant: str = ""
    ) -> AsyncGenerator[Tokens, None]:
        """As EngineClient.generate, on one of the devices."""
        device = await self._place({use.key for use in adapters})
        device.running += 1
        answer = device.engine.generate(prompt, sampling, adapters, tenant)
        try:
            async for tokens in answer:
                yield tokens
        finally:
            device.running -= 1
            await answer.aclose()

    async def load_adapter(self, key: str, path: str) -> AdapterLoaded:
        """Servable as `key` from now on. Raises AdapterError, and what was `key` before is then served on."""
        holders = [device for device in self._devices if key in device.adapters]
        if not holders:
            emptiest = min(self._up(), key=lambda device: sum(device.adapters.values()))
            loaded = [await self._load_first(emptiest, key, path)]
        else:
            loaded = [await self._load(device, key, path) for device in holders]
        self._paths[key] = path
        return loaded[0]

    async def unload_adapter(self, key: str) -> None:
        self._paths.pop(key, None)
        for device in self._devices:
            await self._drop(device, key)

    async def status(self) -> Status:
        """Of all devices together."""
        found = [await device.engine.status() for device in self._up()]
        counts = {
            name: sum(getattr(status, name) for status in found)
            for name in Status.__struct_fields__
            if name != "adapters"
        }
        return Status(adapters=tuple(dict.fromkeys(key for each in found for key in each.adapters)), **counts)

    async def _place(self, keys: set[str]) -> _Device:
        """The device for a request with these adapters, which it has then; to refuse an unknown key is its affair."""
        known = keys & self._paths.keys()
        by_room = sorted(self._up(), key=lambda device: (device.running, len(known - device.adapters.keys())))
        holder = next((device for device in by_room if known <= device.adapters.keys()), None)
        if holder is not None and holder.running < by_room[0].running + SPREAD_AT:
            return holder
        for device in by_room:
            try:
                for key in known:
                    await self._copy(device, key)
            except AdapterError as error:  # every one was taken before: it has no room for another
                refusal = error
            else:
                return device
        raise refusal

    async def _load_first(self, device: _Device, key: str, path: str) -> AdapterLoaded:
        """In the place of copies, if there is no other."""
        try:
            return await self._load(device, key, path)
        except AdapterError:
            copies = [held for held in device.adapters if sum(held in each.adapters for each in self._devices) > 1]
            if not copies:
                raise
            for copy in copies:
                await self._drop(device, copy)
            return await self._load(device, key, path)

    async def _copy(self, device: _Device, key: str) -> None:
        if key not in device.adapters and (path := self._paths.get(key)) is not None:
            await self._load(device, key, path)
            if key not in self._paths:  # it was unloaded meanwhile
                await self._drop(device, key)

    async def _drop(self, device: _Device, key: str) -> None:
        if device.adapters.pop(key, None) is not None:
            await device.engine.unload_adapter(key)

    async def _load(self, device: _Device, key: str, path: str) -> AdapterLoaded:
        loaded = await device.engine.load_adapter(key, path)
        device.adapters[key] = loaded.bytes
        return loaded

    def _up(self) -> list[_Device]:
        """The devices whose engines run; all where none does, to wait for."""
        return [device for device in self._devices if device.engine.alive] or self._devices
