"""An engine that takes a device's time: the graph's scores, and each pass waits besides, as for a GPU."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from rerankd.domain import FloatArray
from rerankd.engines import ENGINES, EngineKind
from rerankd.engines.base import BatchLimits, EngineSpec
from rerankd.engines.onnx.engine import OnnxEngine, OnnxOptions
from rerankd.engines.onnx.engine import check as check_graph
from rerankd.tasks.encoding import Encoding

NAME: Final = "device"
_HANGS: Final = "hangs"
_FAILS: Final = "fails"


class DeviceOptions(OnnxOptions):
    """`pass_s` is how long a pass waits, whatever is in it; `pass_pairs` how many pairs it holds. `state` is a file
    that says how the device is: seconds of a pass instead of `pass_s`, or `hangs`, or `fails`.
    """

    pass_s: float = 0.0
    pass_pairs: int = 32
    state: Path | None = None


_OURS: Final = DeviceOptions.model_fields.keys() - OnnxOptions.model_fields.keys()


def check(spec: EngineSpec) -> tuple[DeviceOptions, EngineSpec]:
    """The options, and what the graph's own engine is to be loaded from."""
    options = DeviceOptions.model_validate(spec.options)
    of_graph = {name: value for name, value in spec.options.items() if name not in _OURS}
    inner = EngineSpec(folder=spec.folder, pad_id=spec.pad_id, task=spec.task, workers=1, options=of_graph)
    check_graph(inner)
    return options, inner


class DeviceEngine:
    """One pass at a time, as on a device."""

    workers = 1

    def __init__(self, inner: OnnxEngine, options: DeviceOptions) -> None:
        self._inner = inner
        self._options = options
        self.name = f"device/{inner.name}"
        self.preferred_batch = BatchLimits(tokens=1 << 20, pairs=options.pass_pairs, padded=False)

    @classmethod
    def load(cls, spec: EngineSpec) -> "DeviceEngine":
        options, inner = check(spec)
        return cls(OnnxEngine.load(inner), options)

    def run(self, encodings: Sequence[Encoding]) -> FloatArray:
        started = time.perf_counter()
        scores = self._inner.run(encodings)
        while (state := self._state()) == _HANGS:
            time.sleep(0.05)
        if state == _FAILS:
            raise RuntimeError("the device has failed")
        time.sleep(max(0.0, float(state) - (time.perf_counter() - started)))
        return scores

    def _state(self) -> str:
        if self._options.state is None:
            return str(self._options.pass_s)
        return self._options.state.read_text(encoding="utf-8")


def install() -> None:
    """Let registries of this process name the engine."""
    kind = EngineKind(
        module=__name__, engine="DeviceEngine", options="DeviceOptions", tasks=("classify",), chooses_devices=False
    )
    ENGINES[NAME] = kind  # type: ignore[index] # a dict, which only this changes


def remove() -> None:
    """Make the process forget the engine."""
    del ENGINES[NAME]  # type: ignore[attr-defined] # as above
