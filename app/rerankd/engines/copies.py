"""A model on several devices: a whole copy on each. A pass goes to the copy with the fewest passes under way."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from threading import Lock
from typing import Any

from rerankd.domain import FloatArray
from rerankd.engines.base import BatchLimits, Engine, EngineSpec
from rerankd.errors import ConfigError
from rerankd.tasks.encoding import Encoding

# Options that say where a model is, too.
_OTHER_PLACES = ("device", "device_map")


class Copies:
    """Engines that are the same but for their device, behind the interface of one."""

    def __init__(self, engines: Sequence[Engine]) -> None:
        names = sorted({engine.name for engine in engines})
        if len(names) > 1:
            raise ConfigError(
                f"the copies on these devices would not score alike ({' and '.join(names)}); name devices of one kind"
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

    def run(self, encodings: Sequence[Encoding]) -> FloatArray:
        """Score sequences; the result has shape [sequences, outputs of the head].

        A pass that hangs stays under way, so that its copy gets others last. Raises what the copy raises.
        """
        with self._lock:
            chosen = min(range(len(self._engines)), key=lambda copy: (self._running[copy], self._passes[copy]))
            self._running[chosen] += 1
            self._passes[chosen] += 1
        try:
            return self._engines[chosen].run(encodings)
        finally:
            with self._lock:
                self._running[chosen] -= 1


def load_copies(load: Callable[[EngineSpec], Engine], spec: EngineSpec) -> Copies:
    """Load an engine once for each of `spec.devices`, one after another.

    Raises:
        ConfigError: as `on_each_device`; the devices compute differently; what the engine raises.
    """
    return Copies(
        [load(replace(spec, devices=(), options=options)) for options in on_each_device(spec.options, spec.devices)]
    )


def on_each_device(options: Mapping[str, Any], devices: Sequence[str]) -> list[Mapping[str, Any]]:
    """The options of each copy; without devices, those of the only one.

    Raises:
        ConfigError: an option says another place.
    """
    for option in _OTHER_PLACES if devices else ():
        if option in options:
            raise ConfigError(f"`devices` and the option {option!r} both say where the model is; leave one out")
    return [{**options, "device": device} for device in devices] or [options]
