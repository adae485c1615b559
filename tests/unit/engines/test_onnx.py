"""The engine `onnx` on graphs as they are found in the wild: other layouts and types, and what is no reranker."""

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from shutil import copyfile
from statistics import median
from time import process_time

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime import InferenceSession, SessionOptions

from rerankd.engines import load_engine
from rerankd.engines.base import EngineSpec, LogitsEngine
from rerankd.engines.cpu import int8_sums_overflow
from rerankd.errors import ConfigError
from rerankd.tasks.encoding import Encoding
from rerankd.tools.quantizing import quantize_per_token

EIGHT = Encoding(np.array([2, 5, 3, 7, 3, 11, 2, 3]), 5)
TWO = [Encoding(np.array([2, 5, 3, 7, 3]), 3), Encoding(np.array([2, 3, 3]), 2)]

Shape = Sequence[int | str | None]


def load(folder: Path, **options: object) -> LogitsEngine:
    return load_engine("onnx", EngineSpec(folder=folder, pad_id=0, options=options))


def sum_of_ids(
    file: Path,
    *,
    inputs: Sequence[str] = ("input_ids", "attention_mask"),
    shape: Shape = ("batch", "sequence"),
    kind: int = TensorProto.INT64,
    outputs: Sequence[str] = ("logits",),
    keep_length: bool = False,
    factor: float = 1.0,
) -> None:
    """A graph whose logit is the sum of a sequence's unmasked ids times `factor`."""
    nodes = [
        helper.make_node("Mul", list(inputs[:2]), ["masked"]),
        helper.make_node("Cast", ["masked"], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["numbers", "factor"], ["scaled"]),
    ]
    rank: Shape = ("batch", "sequence", 1) if keep_length else ("batch", 1)
    axes = "last" if keep_length else "columns"
    for output in outputs:
        if keep_length:
            nodes.append(helper.make_node("Unsqueeze", ["scaled", axes], [output]))
        else:
            nodes.append(helper.make_node("ReduceSum", ["scaled", axes], [output], keepdims=1))
    constants = [
        helper.make_tensor("factor", TensorProto.FLOAT, [], [factor]),
        helper.make_tensor("columns", TensorProto.INT64, [1], [1]),
        helper.make_tensor("last", TensorProto.INT64, [1], [-1]),
    ]
    graph = helper.make_graph(
        nodes,
        "sum",
        [helper.make_tensor_value_info(name, kind, shape) for name in inputs],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, rank) for name in outputs],
        constants,
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), file)


@pytest.mark.parametrize(
    ("there", "chosen"),
    [
        (["model.onnx"], "model.onnx"),
        (["onnx/model.onnx"], "onnx/model.onnx"),
        (["model.onnx", "onnx/model.onnx"], "model.onnx"),
        (["model.int8.onnx", "model.onnx", "onnx/model.onnx"], "model.int8.onnx"),
        (["model.float16.onnx", "onnx/model.onnx"], "onnx/model.onnx"),
    ],
)
def test_the_best_graph_for_a_cpu_is_found(tmp_path: Path, there: list[str], chosen: str) -> None:
    for number, name in enumerate(there, start=1):
        sum_of_ids(tmp_path / name, factor=float(number))
    engine = load(tmp_path)
    assert engine.name == f"onnx/cpu/{chosen}"
    assert engine.run(TWO)[0, 0] == pytest.approx(20 * (there.index(chosen) + 1))


def test_the_graph_of_a_hub_repository_layout_serves(tmp_path: Path, tiny_model: Path) -> None:
    (tmp_path / "onnx").mkdir()
    copyfile(tiny_model / "model.onnx", tmp_path / "onnx" / "model.onnx")
    np.testing.assert_array_equal(load(tmp_path).run(TWO), load(tiny_model).run(TWO))


def test_a_graph_may_be_named(tmp_path: Path) -> None:
    sum_of_ids(tmp_path / "model.onnx")
    sum_of_ids(tmp_path / "onnx" / "model_O3.onnx", factor=2.0)
    assert load(tmp_path, file="onnx/model_O3.onnx").run(TWO)[:, 0].tolist() == [40.0, 16.0]


def test_a_graph_that_takes_int32_gets_int32(tmp_path: Path) -> None:
    sum_of_ids(tmp_path / "model.onnx", kind=TensorProto.INT32)
    assert load(tmp_path).run(TWO)[:, 0].tolist() == [20.0, 8.0]


@pytest.mark.parametrize("io_binding", [True, False])
def test_logits_are_taken_by_their_name_and_not_by_their_place(tmp_path: Path, *, io_binding: bool) -> None:
    sum_of_ids(tmp_path / "model.onnx", outputs=("pooled", "logits"))
    assert load(tmp_path, io_binding=io_binding).run(TWO).shape == (2, 1)


def test_an_only_output_may_have_any_name(tmp_path: Path) -> None:
    sum_of_ids(tmp_path / "model.onnx", outputs=("output_0",))
    assert load(tmp_path).run(TWO)[:, 0].tolist() == [20.0, 8.0]


def test_inputs_that_the_graph_does_not_take_are_not_given(tmp_path: Path, tiny_model: Path) -> None:
    sum_of_ids(tmp_path / "model.onnx")
    assert load(tmp_path).run(TWO).shape == load(tiny_model).run(TWO).shape


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (("input_ids", "decoder_input_ids"), "takes decoder_input_ids, input_ids; a cross-encoder takes input_ids"),
        (("pixels", "attention_mask"), "takes attention_mask, pixels"),
    ],
)
def test_a_graph_with_other_inputs_is_refused(tmp_path: Path, inputs: tuple[str, str], message: str) -> None:
    sum_of_ids(tmp_path / "model.onnx", inputs=inputs)
    with pytest.raises(ConfigError, match=message):
        load(tmp_path)


@pytest.mark.parametrize("shape", [(1, "sequence"), ("batch", 128), (1, 128)])
def test_a_graph_of_a_fixed_shape_is_refused(tmp_path: Path, shape: Shape) -> None:
    sum_of_ids(tmp_path / "model.onnx", shape=shape)
    with pytest.raises(ConfigError, match=r"fixed shape .*rerankd export"):
        load(tmp_path)


def test_the_graph_of_an_embedding_model_is_refused(tmp_path: Path) -> None:
    sum_of_ids(tmp_path / "model.onnx", outputs=("last_hidden_state",), keep_length=True)
    with pytest.raises(ConfigError, match=r"gives last_hidden_state of shape .*embedding model"):
        load(tmp_path)


def test_a_folder_without_a_graph_says_which_were_looked_for(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"tried: model.int8.onnx, model.onnx, onnx/model.onnx, model.int8-weights.onnx; there: none"
    ):
        load(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"model\.onnx is empty"),
        (b"this is no graph", r"ONNX Runtime cannot open .*model\.onnx"),
        (b"version https://git-lfs.github.com/spec/v1\n", r"model\.onnx is a Git LFS pointer .*git lfs pull"),
    ],
)
def test_a_broken_graph_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "model.onnx").write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        load(tmp_path)


def test_a_graph_without_its_weights_file_is_named(tmp_path: Path, tiny_model: Path) -> None:
    model = onnx.load(tiny_model / "model.onnx")
    onnx.save(model, tmp_path / "model.onnx", save_as_external_data=True, location="model.onnx_data")
    assert load(tmp_path).run(TWO).shape == (2, 1)
    (tmp_path / "model.onnx_data").unlink()
    with pytest.raises(ConfigError, match=r"cannot open .*model\.onnx"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("engine", "module", "extra"),
    [
        ("onnx", "onnxruntime", "cpu"),
        ("openvino", "openvino", "openvino"),
        ("torch-encoder", "torch", "torch"),
        ("torch-encoder", "transformers", "torch"),
    ],
)
def test_an_engine_whose_runtime_is_not_installed_names_the_extra_to_install(
    tmp_path: Path, engine: str, module: str, extra: str
) -> None:
    """In a process of its own, where the module cannot be imported."""
    script = f"""
import sys
sys.modules[{module!r}] = None
from pathlib import Path
from rerankd.engines import load_engine
from rerankd.engines.base import EngineSpec
from rerankd.errors import ConfigError
try:
    load_engine({engine!r}, EngineSpec(folder=Path({str(tmp_path)!r}), pad_id=0))
except ConfigError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert f"needs {module}, which is not installed; run: pip install 'rerankd[{extra}]'" in done.stdout


def test_int8_matmuls_are_exact_on_every_cpu(tmp_path: Path) -> None:
    expected = save_large_products(tmp_path / "model.int8.onnx", width=64)
    np.testing.assert_array_equal(load(tmp_path).run([EIGHT]), expected)


@pytest.mark.timed
def test_exact_int8_costs_nothing_on_a_cpu_that_is_exact_anyway(tmp_path: Path) -> None:
    if int8_sums_overflow():
        pytest.skip("this CPU needs the slower, exact int8")
    file = tmp_path / "model.int8.onnx"
    save_large_products(file, width=1024, outputs=1024)
    plain, ours = InferenceSession(file, _one_thread()), load(tmp_path)
    sequence = Encoding(ids=np.zeros(512, dtype=np.int64), boundary=1)
    given = {"input_ids": sequence.ids[None]}
    ratios = [_cpu_time(lambda: ours.run([sequence])) / _cpu_time(lambda: plain.run(None, given)) for _ in range(20)]
    assert median(ratios) <= 1.5


def test_weights_that_several_products_share_are_served_with_a_warning_at_most(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """ONNX Runtime fails over such graphs on CPUs without VNNI."""
    file = tmp_path / "model.int8.onnx"
    expected = save_large_products(file, width=64)
    model = onnx.load(file)
    for node in model.graph.node:
        node.input[:] = [name.partition("#")[0] for name in node.input]
    onnx.save(model, file)
    engine = load(tmp_path)
    logits = engine.run([EIGHT])
    assert engine.name.endswith("/inexact") == bool(caplog.records)
    if caplog.records:
        assert [record.message[:40] for record in caplog.records] == ["scores may be far off on this CPU,"]
    else:
        np.testing.assert_array_equal(logits, expected)


def _one_thread() -> SessionOptions:
    options = SessionOptions()
    options.intra_op_num_threads = 1
    return options


def _cpu_time(work: Callable[[], object]) -> float:
    begun = process_time()
    work()
    return process_time() - begun


def save_large_products(file: Path, *, width: int, outputs: int = 8) -> np.ndarray:
    """Save a quantized graph of large vectors and large weights; return the logits of `EIGHT`, shape [1, outputs].
    Without VNNI, some sums of two terms saturate 16 bits. Two matmuls share their weights.
    """
    rng = np.random.default_rng(5)
    table = rng.integers(90, 128, (16, width)).astype(np.float32)
    weights = rng.integers(-127, 128, (width, outputs)).astype(np.float32)
    weights[:, 0] = 127
    # every scale is 1, so that rounding changes nothing
    table[:, 0] = weights[0] = 127
    onnx.save(quantize_per_token(_products_of_vectors(table, weights)), file)
    vectors = table[EIGHT.ids]
    logits: np.ndarray = ((vectors @ weights) + (vectors / 2 @ weights)).sum(axis=0)
    return logits[None]


def _products_of_vectors(table: np.ndarray, weights: np.ndarray) -> onnx.ModelProto:
    """A graph whose logits are the sum of a sequence's vectors times a matrix, and of their halves times the same."""
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["vectors"], axis=0),
        helper.make_node("MatMul", ["vectors", "weights"], ["matmuls"]),
        helper.make_node("Mul", ["vectors", "half"], ["halves"]),
        helper.make_node("MatMul", ["halves", "weights"], ["matmuls_of_halves"]),
        helper.make_node("Add", ["matmuls", "matmuls_of_halves"], ["sums"]),
        helper.make_node("ReduceSum", ["sums", "tokens"], ["logits"], keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "matmuls",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "sequence"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", weights.shape[1]])],
        [
            numpy_helper.from_array(table, "table"),
            numpy_helper.from_array(weights, "weights"),
            numpy_helper.from_array(np.array(0.5, dtype=np.float32), "half"),
            numpy_helper.from_array(np.array([1], dtype=np.int64), "tokens"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
