"""Replicas of a model: which one a pass goes to, and which copies do not belong together."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event, Lock
from typing import Any

import numpy as np
import pytest

from rerankd.domain import FloatArray
from rerankd.engines.base import BatchLimits, EngineSpec, LogitsEngine
from rerankd.engines.replicas import load_replicas
from rerankd.errors import ConfigError
from rerankd.tasks.encoding import Encoding

ONE = [Encoding(np.array([2, 5, 3]), 2)]


class Copy:
    """An engine whose passes end when they may, and whose logits say on which device they were made."""

    preferred_batch = BatchLimits(tokens=512, pairs=64)

    def __init__(self, spec: EngineSpec, *, number: int, kind: str) -> None:
        self.name = f"test/{kind}"
        self.workers = spec.workers or 1
        self.entered, self.may_end = Event(), Event()
        self.may_end.set()
        self.passes = 0
        self._number = number
        self._counting = Lock()

    def run(self, encodings: Sequence[Encoding]) -> FloatArray:
        with self._counting:
            self.passes += 1
        self.entered.set()
        assert self.may_end.wait(10)
        return np.full((len(encodings), 1), self._number, dtype=np.float32)


class Machine:
    """Loads copies and keeps them in sight."""

    def __init__(self) -> None:
        self.copies: list[Copy] = []

    def load(self, spec: EngineSpec) -> LogitsEngine:
        assert not spec.devices
        copy = Copy(spec, number=len(self.copies), kind=str(spec.options["device"]).partition(":")[0])
        self.copies.append(copy)
        return copy


def spec_for(*devices: str, workers: int | None = None, options: Mapping[str, Any] | None = None) -> EngineSpec:
    return EngineSpec(folder=Path(), pad_id=0, workers=workers, devices=devices, options=options or {})


def test_every_device_has_a_copy_with_its_own_workers() -> None:
    machine = Machine()
    engine = load_replicas(machine.load, spec_for("cuda:0", "cuda:1", "cuda:2", workers=2))
    assert len(machine.copies) == 3
    assert engine.workers == 6
    assert engine.name == "test/cuda"
    assert engine.preferred_batch == Copy.preferred_batch


def test_copies_that_idle_take_turns() -> None:
    machine = Machine()
    engine = load_replicas(machine.load, spec_for("cuda:0", "cuda:1", "cuda:2"))
    assert [int(engine.run(ONE)[0, 0]) for _ in range(6)] == [0, 1, 2, 0, 1, 2]


def test_a_pass_goes_to_the_copy_with_the_fewest_under_way() -> None:
    machine = Machine()
    engine = load_replicas(machine.load, spec_for("cuda:0", "cuda:1", workers=2))
    busy, idle = machine.copies
    busy.may_end.clear()
    with ThreadPoolExecutor(1) as pool:
        hanging = pool.submit(engine.run, ONE)
        assert busy.entered.wait(10)
        assert [int(engine.run(ONE)[0, 0]) for _ in range(5)] == [1] * 5
        busy.may_end.set()
        assert hanging.result(10)[0, 0] == 0
    assert (busy.passes, idle.passes) == (1, 5)
    # the one that hung is behind by four passes, and catches up
    assert [int(engine.run(ONE)[0, 0]) for _ in range(4)] == [0] * 4


def test_a_pass_that_failed_is_no_longer_under_way() -> None:
    class Broken(Copy):
        def run(self, encodings: Sequence[Encoding]) -> FloatArray:
            super().run(encodings)
            raise RuntimeError("broken")

    broken = Broken(spec_for(), number=0, kind="cuda")
    whole = Copy(spec_for(), number=1, kind="cuda")
    engines: list[LogitsEngine] = [broken, whole]
    engine = load_replicas(lambda _spec: engines.pop(0), spec_for("cuda:0", "cuda:1"))
    for _ in range(3):
        with pytest.raises(RuntimeError, match="broken"):
            engine.run(ONE)
        assert engine.run(ONE)[0, 0] == 1
    assert (broken.passes, whole.passes) == (3, 3)


def test_replicas_that_would_score_differently_are_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"would not give the same scores \(test/cpu and test/cuda\); name devices of one"
    ):
        load_replicas(Machine().load, spec_for("cuda:0", "cpu"))


@pytest.mark.parametrize("option", ["device", "device_map"])
def test_another_option_that_chooses_a_device_is_refused(option: str) -> None:
    machine = Machine()
    with pytest.raises(ConfigError, match=f"`devices` and the option '{option}' both choose"):
        load_replicas(machine.load, spec_for("cuda:0", options={option: "auto"}))
    assert not machine.copies
