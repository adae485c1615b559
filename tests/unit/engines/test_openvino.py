"""The engine `openvino`: what it makes of graphs, and which it refuses."""

import os
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any, Final

import numpy as np
import onnx
import pytest

from rerankd.engines import load_engine
from rerankd.engines.base import EngineSpec, LogitsEngine
from rerankd.errors import ConfigError
from rerankd.tasks.encoding import Encoding
from rerankd.tools.quantizing import quantize_per_token
from tests.unit.engines.test_onnx import EIGHT, TWO, Shape, save_large_products, sum_of_ids

ov = pytest.importorskip("openvino")

from rerankd.engines.openvino import (  # noqa: E402
    OpenVinoEngine,
    _group,
    _remove_quantization,
    rounded_length,
)

_SHIPPED = Path(__file__).parents[3] / "models" / "minilm-qa"


def load(folder: Path, **options: object) -> LogitsEngine:
    return load_engine("openvino", EngineSpec(folder=folder, pad_id=0, options=options))


@pytest.fixture
def int8_folder(tmp_path: Path, tiny_model: Path) -> Path:
    onnx.save(quantize_per_token(onnx.load(tiny_model / "model.onnx")), tmp_path / "model.int8.onnx")
    return tmp_path


@pytest.mark.parametrize(
    ("length", "expected"),
    [(1, 8), (8, 8), (9, 16), (128, 128), (129, 144), (256, 256), (257, 288), (512, 512), (8191, 8192)],
)
def test_lengths_are_rounded_up_to_few(length: int, expected: int) -> None:
    assert rounded_length(length) == expected


@pytest.mark.parametrize("width", [32, 64])
def test_int8_matmuls_are_exact_on_every_cpu(tmp_path: Path, width: int) -> None:
    """OpenVINO quantizes the vectors of wider matmuls itself; narrow ones come as the graph has them."""
    expected = save_large_products(tmp_path / "model.int8.onnx", width=width)
    np.testing.assert_allclose(load(tmp_path, precision="float32").run([EIGHT]), expected, rtol=1e-6)


def test_rounding_up_costs_little() -> None:
    extra = [rounded_length(length) - length for length in range(1, 8193)]
    assert min(extra) == 0
    assert all(more <= max(7, length / 8) for length, more in enumerate(extra, start=1))
    assert len({rounded_length(length) for length in range(1, 513)}) == 32


def test_openvino_reports_to_nobody_that_it_is_used(tmp_path: Path) -> None:
    """Its own package for that would send an event on import, from a thread, and keep an identifier in the home."""
    program = (
        "import threading; from rerankd.config.settings import disable_telemetry; disable_telemetry(); "
        "import rerankd.engines.openvino; print([thread.name for thread in threading.enumerate()])"
    )
    environment = {name: value for name, value in os.environ.items() if name != "CI"} | {"HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, check=True, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.strip() == "['MainThread']"
    assert not list(tmp_path.iterdir())


class _HangingOnce:
    """A compiled model whose first inference does not end before `gate` is set."""

    def __init__(self, folder: Path, gate: Event) -> None:
        self._compiled = ov.Core().compile_model(folder / "model.onnx", "CPU")
        self.inputs, self.outputs = self._compiled.inputs, self._compiled.outputs
        self._gates = [gate]

    def create_infer_request(self) -> "_Request":
        return _Request(self._compiled.create_infer_request(), self._gates)


class _Request:
    def __init__(self, request: Any, gates: list[Event]) -> None:
        self._request = request
        self._gates = gates

    def infer(self, inputs: Any, *, share_inputs: bool) -> Any:
        if self._gates:
            self._gates.pop().wait(timeout=60)
        return self._request.infer(inputs, share_inputs=share_inputs)


def test_a_pass_that_hangs_does_not_keep_its_workers_successor_waiting(tiny_model: Path) -> None:
    gate = Event()
    engine = OpenVinoEngine(_HangingOnce(tiny_model, gate), name="hanging", pad_id=0, workers=1)
    pair = [Encoding(np.array([5, 6, 7]), 2)]
    with ThreadPoolExecutor(2) as threads:
        try:
            hanging = threads.submit(engine.run, pair)
            logits = threads.submit(engine.run, pair).result(timeout=30)
        finally:
            gate.set()
        assert np.array_equal(hanging.result(timeout=30), logits)


@pytest.mark.parametrize(("widths", "group"), [([], 0), ([384, 1536], 384), ([1024], 1024), ([32, 48], 16)])
def test_a_group_fits_into_every_vector_a_whole_number_of_times(widths: list[int], group: int) -> None:
    assert _group(widths) == group


_FIRST_PASSES: Final = """
import sys, threading
from pathlib import Path
import numpy as np
from rerankd.tasks.encoding import Encoding
from rerankd.engines.base import EngineSpec
from rerankd.engines.openvino import OpenVinoEngine

engine = OpenVinoEngine.load(EngineSpec(folder=Path(sys.argv[1]), pad_id=0, workers=8))
sys.setswitchinterval(1e-6)
together = threading.Barrier(8)

def first():
    together.wait()
    print(engine.run([Encoding(ids=np.arange(8), boundary=4)]).shape)

threads = [threading.Thread(target=first, daemon=True) for _ in range(8)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
"""


def test_workers_whose_first_passes_come_together_do_not_wait_for_each_other_for_ever(int8_folder: Path) -> None:
    # In new interpreters: what hangs is done once in each. Half of them did hang before.
    for _ in range(5):
        command = [sys.executable, "-c", _FIRST_PASSES, str(int8_folder)]
        done = subprocess.run(command, timeout=60, capture_output=True, text=True, check=True)
        assert done.stdout.count("(1, 1)") == 8


def test_a_graphs_own_quantization_is_taken_out_and_its_int8_weights_stay() -> None:
    model = ov.Core().read_model(_SHIPPED / "model.int8.onnx")
    before = kinds(model)
    widths = _remove_quantization(model)
    after = kinds(model)
    assert before["FakeQuantize"] > 0
    assert len(widths) >= 36, "six in each of six layers"
    assert after["FakeQuantize"] == 0
    assert after["MatMul"] == before["MatMul"]
    int8_matrices = [
        node
        for node in model.get_ops()
        if node.get_type_name() == "Constant" and node.get_element_type() == ov.Type.i8 and len(node.get_shape()) == 2
    ]
    assert len(int8_matrices) >= len(widths)


def test_narrow_products_are_computed_from_the_integers_of_the_graph(int8_folder: Path) -> None:
    model = ov.Core().read_model(int8_folder / "model.int8.onnx")
    matmuls = kinds(model)["MatMul"]
    assert _remove_quantization(model) == [64, 64]
    after = kinds(model)
    assert after["Round"] > 0
    assert after["FakeQuantize"] == 0
    assert after["MatMul"] == matmuls


def test_tokens_whose_scales_openvino_would_mistake_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "model.int8.onnx"
    save_large_products(file, width=64)
    model = onnx.load(file)
    for node in model.graph.node:
        if node.op_type == "Mul" and node.input[0].endswith("_unscaled"):
            node.input[1] = node.input[0]
    onnx.save(model, file)
    with pytest.raises(ConfigError, match='set engine = "onnx"'):
        load(tmp_path)


def kinds(model: Any) -> Counter[str]:
    return Counter(node.get_type_name() for node in model.get_ordered_ops())


def test_a_graph_that_quantizes_nothing_is_left_as_it_is(tiny_model: Path) -> None:
    model = ov.Core().read_model(tiny_model / "model.onnx")
    before = kinds(model)
    assert _remove_quantization(model) == []
    assert kinds(model) == before


def test_the_engine_is_told_by_its_precision_and_file(tiny_model: Path, int8_folder: Path) -> None:
    assert load(tiny_model, precision="float32").name == "openvino/cpu/float32/model.onnx"
    assert load(int8_folder, precision="float32").name == "openvino/cpu/float32/model.int8.onnx"


def test_the_default_precision_is_the_cpus(tiny_model: Path) -> None:
    native = "BF16" in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    assert load(tiny_model).name.split("/")[2] == ("bfloat16" if native else "float32")


def test_cores_are_divided_among_workers_by_their_threads(tiny_model: Path) -> None:
    assert load_engine("openvino", EngineSpec(folder=tiny_model, pad_id=0, workers=3)).workers == 3
    assert load(tiny_model, threads=1000).workers == 1


def test_logits_do_not_depend_on_how_many_kernels_are_kept(tiny_model: Path) -> None:
    few, many = (load(tiny_model, precision="float32", kept_kernels=kept) for kept in (1, 1000))
    for length in (3, 20, 60, 3, 60, 20):
        batch = [Encoding(np.full(length, 7), 2)] * 3
        np.testing.assert_array_equal(few.run(batch), many.run(batch))
    with pytest.raises(ConfigError, match="kept_kernels must be at least 1, not 0"):
        load(tiny_model, kept_kernels=0)


def test_logits_do_not_change_when_the_engine_goes_on(tiny_model: Path) -> None:
    engine = load(tiny_model, precision="float32")
    first = engine.run(TWO)
    kept = first.copy()
    engine.run([Encoding(np.array([2, 3, 3]), 2)] * 2)
    np.testing.assert_array_equal(first, kept)


def test_a_failed_forward_pass_does_not_cost_a_worker(tmp_path: Path) -> None:
    sum_of_ids(tmp_path / "model.onnx", outputs=("logits",))
    engine = load_engine("openvino", EngineSpec(folder=tmp_path, pad_id=0, workers=1))
    assert isinstance(engine, OpenVinoEngine)
    for _ in range(3):
        with pytest.raises(RuntimeError):
            engine._infer({"input_ids": np.zeros((1, 2, 3), dtype=np.int64)})
        assert engine.run([Encoding(np.array([2, 3, 3]), 2)])[0, 0] == pytest.approx(8, rel=0.01)


@pytest.mark.parametrize(
    ("outputs", "inputs", "shape", "keep_length", "message"),
    [
        (("logits",), ("pixels", "attention_mask"), ("batch", "sequence"), False, "takes attention_mask, pixels"),
        (("logits",), ("input_ids", "attention_mask"), (1, "sequence"), False, r"fixed shape \[1, None\]"),
        (("hidden",), ("input_ids", "attention_mask"), ("batch", "sequence"), True, r"gives hidden .*embedding model"),
    ],
)
def test_a_graph_of_something_else_is_refused(
    tmp_path: Path,
    outputs: tuple[str],
    inputs: tuple[str, str],
    shape: Shape,
    message: str,
    *,
    keep_length: bool,
) -> None:
    sum_of_ids(tmp_path / "model.onnx", outputs=outputs, inputs=inputs, shape=shape, keep_length=keep_length)
    with pytest.raises(ConfigError, match=message):
        load(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", r"model\.onnx is empty"), (b"this is no graph", r"OpenVINO cannot open .*model\.onnx")],
    ids=["empty", "text"],
)
def test_a_broken_graph_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "model.onnx").write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        load(tmp_path)


def test_a_graph_that_takes_int32_gets_int32(tmp_path: Path) -> None:
    sum_of_ids(tmp_path / "model.onnx", kind=onnx.TensorProto.INT32, outputs=("pooled", "logits"))
    assert load(tmp_path).run(TWO)[:, 0].tolist() == [20.0, 8.0]
