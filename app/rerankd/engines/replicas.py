"""A model on several devices, with one replica on each. A pass goes to the replica with the fewest running passes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from threading import Lock
from typing import Any, Generic, TypeVar

from rerankd.engines.base import BatchLimits, Engine, EngineSpec
from rerankd.errors import ConfigError

T = TypeVar("T")
R = TypeVar("R")

# Options that also choose a device.
_DEVICE_OPTIONS = ("device", "device_map")


class Replicas(Generic[T, R]):
    """Engines that differ only in their device, behind the interface of one."""

    def __init__(self, engines: Sequence[Engine[T, R]]) -> None:
        names = sorted({engine.name for engine in engines})
        if len(names) > 1:
            raise ConfigError(
                f"the replicas on these devices would not give the same scores ({' and '.join(names)}); name devices "
                "of one kind"
            )
        self._engines = engines
        self._lock = Lock()
        self._running = [0] * len(engines)
        self._passes = [0] * len(engines)
        self.workers = sum(engine.workers for engine in engines)
        self.name = names[0]

    @property
    def preferred_batch(self) -> BatchLimits:
        return self._engines[0].preferred_batch

    def run(self, batch: Sequence[T], /) -> R:
        """Have a copy run the batch.

        A pass that hangs counts as running, so its replica is chosen last. Raises what the replica raises.
        """
        with self._lock:
            chosen = min(range(len(self._engines)), key=lambda replica: (self._running[replica], self._passes[replica]))
            self._running[chosen] += 1
            self._passes[chosen] += 1
        try:
            return self._engines[chosen].run(batch)
        finally:
            with self._lock:
                self._running[chosen] -= 1


def load_replicas(load: Callable[[EngineSpec], Engine[T, R]], spec: EngineSpec) -> Replicas[T, R]:
    """Load an engine once per device in `spec.devices`, one after another.

    Raises:
        ConfigError: as `on_each_device`, as the engine, or the devices compute differently.
    """
    return Replicas(
        [load(replace(spec, devices=(), options=options)) for options in on_each_device(spec.options, spec.devices)]
    )


def on_each_device(options: Mapping[str, Any], devices: Sequence[str]) -> list[Mapping[str, Any]]:
    """The options of each replica; one if no devices are named.

    Raises:
        ConfigError: an option names a device too.
    """
    for option in _DEVICE_OPTIONS if devices else ():
        if option in options:
            raise ConfigError(f"`devices` and the option {option!r} both choose the model's device; leave one out")
    return [{**options, "device": device} for device in devices] or [options]
