"""Which layers of a graph our kernels compute, and that only the speed changes."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from shutil import copytree
from time import process_time
from typing import Final, cast

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from rerankd.domain import FloatArray
from rerankd.engines import load_engine
from rerankd.engines.base import EngineSpec, LogitsEngine, RemarkingEngine
from rerankd.engines.onnx.encoder_names import (
    NAMES,
    EncoderNames,
    LayerNames,
    PaddingBias,
    Positions,
    RotaryLayerNames,
    read_names,
)
from rerankd.engines.onnx.encoder_patterns import find_encoder
from rerankd.errors import ConfigError
from rerankd.scorers import load_scorer
from rerankd.scorers.base import ScorerSpec
from rerankd.tasks.encoding import Encoding
from rerankd.tools.exporting import export_classifier
from tests.requirements import missing
from tests.tiny_models import CORPUS, MAX_LENGTH, WIDE, build_bert, build_modernbert, build_xlmr

_SHIPPED = Path(__file__).parents[3] / "models" / "minilm-qa"
_INT8 = "model.int8.onnx"

Change = Callable[[onnx.GraphProto], None]


def load(folder: Path, *, file: str = _INT8, **options: object) -> LogitsEngine:
    pad_id = load_scorer("cross-encoder", ScorerSpec(folder=folder)).pad_id
    return load_engine("onnx", EngineSpec(folder=folder, pad_id=pad_id, options={"file": file, **options}))


def fused(folder: Path) -> LogitsEngine:
    """The engine with our kernels. Skips the test on a CPU that cannot run them."""
    try:
        from rerankd.engines.onnx import kernels  # noqa: PLC0415 - what is asked is whether it can be imported
    except ImportError:
        missing("the kernels were not compiled; is there a C++ compiler? run: make .venv/.development")
    if not kernels.instruction_sets():
        pytest.skip("this CPU has no instruction set of the kernels")
    return load(folder, fused=True)


QUERIES = ("what is the capital of france", "who wrote Hamlet?")


def pairs(folder: Path, queries: Sequence[str] = QUERIES) -> Sequence[Encoding]:
    scorer = load_scorer("cross-encoder", ScorerSpec(folder=folder))
    documents = [*CORPUS, " ".join(CORPUS), "x", ""]
    return [
        encoding
        for query in queries
        for encoding in scorer.encode(query, documents, max_document_tokens=None).encodings
    ]


_BUILD: Final = {"bert": build_bert, "xlmr": build_xlmr, "modernbert": build_modernbert}


@pytest.fixture(scope="module", params=_BUILD)
def wide_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported model whose layers suit the kernels."""
    build = _BUILD[request.param]
    torch_folder = build(tmp_path_factory.mktemp("torch"), sizes=WIDE)
    folder = tmp_path_factory.mktemp("onnx")
    export_classifier(torch_folder, folder, precisions=["float32", "int8"])
    return folder


def graph_of(folder: Path) -> onnx.ModelProto:
    return onnx.load(folder / _INT8)


def find(graph: onnx.GraphProto) -> EncoderNames:
    names = find_encoder(graph)
    assert names is not None
    return names


def find_layers(graph: onnx.GraphProto) -> Sequence[LayerNames]:
    return cast("Sequence[LayerNames]", find(graph).layers)


def shapes_of(graph: onnx.GraphProto) -> dict[str, tuple[int, ...]]:
    return {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}


def output_of(graph: onnx.GraphProto, constant: str) -> str:
    """The tensor that the only reader of a constant makes."""
    return str(next(node.output[0] for node in graph.node if constant in node.input))


def test_all_layers_of_the_shipped_model_are_found() -> None:
    graph = graph_of(_SHIPPED).graph
    layers, shapes = find_layers(graph), shapes_of(graph)
    assert [shapes[layer.query.weights] for layer in layers] == [(384, 384)] * 6
    assert {layer.attention_bias for layer in layers} == {layers[0].attention_bias}
    assert [layer.source for layer in layers[1:]] == [layer.output for layer in layers[:-1]]
    assert {(layer.head_size, round(layer.score_scale**-2), layer.first_row) for layer in layers} == {(32, 32, False)}


def test_all_layers_of_an_exported_model_are_named_the_last_one_of_one_row(wide_folder: Path) -> None:
    names = read_names(graph_of(wide_folder))
    assert names is not None
    assert [layer.first_row for layer in names.layers] == [False] * (WIDE["num_hidden_layers"] - 1) + [True]


def test_embeddings_of_the_shipped_model_are_found() -> None:
    graph = graph_of(_SHIPPED).graph
    embeddings, shapes = find(graph).embeddings, shapes_of(graph)
    assert embeddings is not None
    assert [shapes[table.vectors] for table in embeddings.tables] == [(30522, 384), (512, 384), (2, 384)]


def test_masks_and_positions_of_an_exported_model_need_no_runtime(
    wide_folder: Path, request: pytest.FixtureRequest
) -> None:
    """Except for RoBERTa's positions, which count tokens that are not padding. ModernBERT turns queries and keys."""
    names = read_names(graph_of(wide_folder))
    assert names is not None
    assert names.embeddings is not None
    assert len(names.embeddings.tables) == (1 if "modernbert" in request.node.name else 3)
    assert {layer.attention_bias for layer in names.layers} == {names.layers[0].attention_bias}
    assert names.simple[names.layers[0].attention_bias] == PaddingBias(float(np.finfo(np.float32).min))
    positions = [made.constant for made in names.simple.values() if isinstance(made, Positions)]
    if "[bert]" not in request.node.name:
        assert not positions
    else:
        assert [shapes_of(graph_of(wide_folder).graph)[name] for name in positions] == [(1, MAX_LENGTH)]


def test_a_graph_without_names_gives_the_same_scores_to_the_bit(wide_folder: Path, tmp_path: Path) -> None:
    """As rerankd 0.1 exported it."""
    folder = copytree(wide_folder, tmp_path / "unnamed")
    model = graph_of(folder)
    del model.metadata_props[:]
    onnx.save(model, folder / _INT8)
    assert read_names(graph_of(folder)) is None
    encodings = pairs(folder)
    np.testing.assert_array_equal(fused(folder).run(encodings), fused(wide_folder).run(encodings))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda names: names.replace('"layers"', '"other"'), "cannot read the graph's metadata 'rerankd_encoder'"),
        (lambda names: names[:-1], "cannot read the graph's metadata 'rerankd_encoder'"),
        (lambda names: names.replace("_int8", "_int7"), "has no constant '.*_int7'"),
    ],
)
def test_names_that_do_not_fit_leave_the_graph_to_the_runtime(
    wide_folder: Path, tmp_path: Path, change: Callable[[str], str], message: str
) -> None:
    folder = copytree(wide_folder, tmp_path / "misnamed")
    fused(folder)
    model = graph_of(folder)
    entry = next(entry for entry in model.metadata_props if entry.key == NAMES)
    entry.value = change(entry.value)
    onnx.save(model, folder / _INT8)
    assert load(folder).name == f"onnx/cpu/{_INT8}"
    with pytest.raises(ConfigError, match=message):
        load(folder, fused=True)


def _other_mask(graph: onnx.GraphProto) -> None:
    """Of the token types instead."""
    next(node for node in graph.node if node.op_type == "Cast" and node.input[0] == "attention_mask").input[0] = (
        "token_type_ids"
    )


def _added_to_what_is_seen(graph: onnx.GraphProto) -> None:
    bias = find_layers(graph)[0].attention_bias
    graph.initializer.append(numpy_helper.from_array(np.array(1, dtype=np.float32), "one_more"))
    next(node for node in graph.node if bias in node.output).input[1] = "one_more"


def _positions_from_the_second_on(graph: onnx.GraphProto) -> None:
    graph.initializer.append(numpy_helper.from_array(np.array([1], dtype=np.int64), "second"))
    node = next(node for node in graph.node if node.op_type == "Slice" and "position_ids" in node.input[0])
    place = list(graph.node).index(node)
    graph.node.insert(place, helper.make_node("Add", [node.input[2], "second"], ["one_longer"]))
    node.input[1], node.input[2] = "second", "one_longer"


@pytest.mark.parametrize("change", [_other_mask, _added_to_what_is_seen, _positions_from_the_second_on])
def test_masks_and_positions_of_another_kind_are_computed_by_the_runtime(tmp_path: Path, change: Change) -> None:
    folder = copytree(_wide_bert(tmp_path), tmp_path / "changed")
    model = graph_of(folder)
    change(model.graph)
    onnx.save(model, folder / _INT8)
    encodings = pairs(folder)[:4]
    expected = load(folder, fused=False).run(encodings)
    np.testing.assert_allclose(fused(folder).run(encodings), expected, atol=0.15)


def _with_a_constant(graph: onnx.GraphProto) -> None:
    """Added to the sum of vectors."""
    normalised = find_layers(graph)[0].source
    norm = next(node for node in graph.node if normalised in node.output)
    place = list(graph.node).index(norm)
    graph.initializer.append(numpy_helper.from_array(np.linspace(-1, 1, 256, dtype=np.float32), "added"))
    graph.node.insert(place, helper.make_node("Add", [norm.input[0], "added"], ["sum_and_added"]))
    norm.input[0] = "sum_and_added"


def _scales_of_other_rows(graph: onnx.GraphProto) -> None:
    graph.node.insert(0, helper.make_node("Mul", ["token_type_ids", "token_type_ids"], ["others"]))
    scales = [node for node in graph.node if node.op_type == "Gather" and node.input[0].endswith("_scales")]
    next(node for node in scales if "token_type" in node.input[0]).input[1] = "others"


@pytest.mark.parametrize("change", [_with_a_constant, _scales_of_other_rows])
def test_embeddings_of_another_kind_stay_in_the_graph(tmp_path: Path, change: Change) -> None:
    folder = copytree(_wide_bert(tmp_path), tmp_path / "changed")
    model = graph_of(folder)
    change(model.graph)
    onnx.save(model, folder / _INT8)
    assert read_names(model) is None
    assert find(model.graph).embeddings is None
    encodings = pairs(folder)[:4]
    expected = load(folder, fused=False).run(encodings)
    np.testing.assert_allclose(fused(folder).run(encodings), expected, atol=0.15)


def test_a_token_beyond_the_vocabulary_is_an_error_as_in_the_graph(tmp_path: Path) -> None:
    folder = _wide_bert(tmp_path)
    for engine in (fused(folder), load(folder, fused=False)):
        with pytest.raises(Exception, match=r"row 99999 of a table of|idx=99999 must be within"):
            engine.run([Encoding(np.array([2, 99999, 3]), 2)])


def _wide_bert(folder: Path) -> Path:
    torch_folder = build_bert(folder / "torch", sizes=WIDE)
    export_classifier(torch_folder, folder / "onnx", precisions=["int8"])
    return folder / "onnx"


def _attribute(kind: str, name: str, value: object) -> Change:
    def change(graph: onnx.GraphProto) -> None:
        node = [node for node in graph.node if node.op_type == kind][2]
        kept = [attribute for attribute in node.attribute if attribute.name != name]
        del node.attribute[:]
        node.attribute.extend([*kept, helper.make_attribute(name, value)])

    return change


def _constant(kind: str, position: int, value: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> Change:
    """The third such node reads another constant."""

    def change(graph: onnx.GraphProto) -> None:
        node = [node for node in graph.node if node.op_type == kind][2 * 6 if "MatMul" in kind else 2]
        graph.initializer.append(numpy_helper.from_array(value, "another"))
        node.input[position] = "another"

    return change


def _other_node(kind: str, other: str) -> Change:
    def change(graph: onnx.GraphProto) -> None:
        node = [node for node in graph.node if node.op_type == kind][2]
        node.op_type = other
        del node.attribute[:]

    return change


def _without_residual(graph: onnx.GraphProto) -> None:
    third = find_layers(graph)[2]
    down = output_of(graph, str(third.down.bias))
    node = next(node for node in graph.node if down in node.input and node.op_type == "Add")
    node.input[1 - list(node.input).index(down)] = third.source


def _another_bias(graph: onnx.GraphProto) -> None:
    bias = find_layers(graph)[2].attention_bias
    softmax = [node for node in graph.node if node.op_type == "Softmax"][2]
    added = next(node for node in graph.node if softmax.input[0] in node.output)
    place = list(graph.node).index(added)
    graph.node.insert(place, helper.make_node("Add", [bias, bias], ["twice"]))
    added.input[list(added.input).index(bias)] = "twice"


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(_attribute("Gelu", "approximate", "tanh"), id="another activation"),
        pytest.param(_other_node("Gelu", "Relu"), id="no GELU"),
        pytest.param(_attribute("Softmax", "axis", 2), id="softmax over queries"),
        pytest.param(_constant("MatMulIntegerToFloat", 5, np.ones(384, dtype=np.int8)), id="weights with zero points"),
        pytest.param(_constant("MatMulIntegerToFloat", 2, np.array(2, dtype=np.float32)), id="a scale for all tokens"),
        pytest.param(_without_residual, id="another residual"),
        pytest.param(_another_bias, id="another bias"),
    ],
)
def test_layers_that_kernels_do_not_support_stay_in_the_graph(tmp_path: Path, change: Change) -> None:
    folder = copytree(_SHIPPED, tmp_path / "model")
    model = graph_of(folder)
    change(model.graph)
    onnx.save(model, folder / _INT8)
    assert len(find_layers(model.graph)) == 2
    encodings = pairs(folder)
    expected = load(folder, fused=False).run(encodings)
    np.testing.assert_allclose(fused(folder).run(encodings), expected, atol=0.15)


_TINY_ROTARY: Final = {**WIDE, "hidden_size": 64, "num_attention_heads": 1, "num_hidden_layers": 2}


@pytest.fixture(scope="module")
def mean_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported ModernBERT whose head reads the mean of all tokens, with one head of 64."""
    torch_folder = build_modernbert(
        tmp_path_factory.mktemp("torch"), sizes={**_TINY_ROTARY, "classifier_pooling": "mean"}
    )
    folder = tmp_path_factory.mktemp("onnx")
    export_classifier(torch_folder, folder, precisions=["float32", "int8"])
    return folder


def test_layers_with_global_and_local_attention_are_named(mean_folder: Path) -> None:
    names = read_names(graph_of(mean_folder))
    assert names is not None
    layers = cast("Sequence[RotaryLayerNames]", names.layers)
    assert [layer.window for layer in layers] == [None, 8]
    assert len({layer.frequencies for layer in layers}) == 2
    assert [layer.first_row for layer in layers] == [False, False]
    assert all(layer.up.bias is None and layer.output_norm.bias is None for layer in layers)


def test_the_mean_of_tokens_with_local_attention_is_near_that_of_float32(mean_folder: Path) -> None:
    encodings = pairs(mean_folder)
    expected = load(mean_folder, file="model.onnx").run(encodings)
    by_runtime = load(mean_folder, fused=False).run(encodings)
    ours = fused(mean_folder).run(encodings)
    assert _distance(ours, expected) < 1.3 * _distance(by_runtime, expected)
    engine = fused(mean_folder)
    alone = np.concatenate([engine.run([encoding]) for encoding in encodings[:6]])
    # ONNX Runtime computes the mean and the head, in float32.
    np.testing.assert_allclose(ours[:6], alone, atol=1e-5)


def _first(kind: str, change: Change) -> Change:
    """Change the first node of a kind, given as a graph of its own."""

    def apply(graph: onnx.GraphProto) -> None:
        node = next(node for node in graph.node if node.op_type == kind)
        part = helper.make_graph([node], "one", [], [])
        change(part)
        node.CopyFrom(part.node[0])

    return apply


def _swapped(graph: onnx.GraphProto) -> None:
    inputs = list(graph.node[0].input)
    graph.node[0].input[:] = inputs[::-1]


def _less(graph: onnx.GraphProto) -> None:
    graph.node[0].op_type = "Less"


def _tanh(graph: onnx.GraphProto) -> None:
    graph.node[0].attribute[0].s = b"tanh"


def _gate_and_activations_change_places(graph: onnx.GraphProto) -> None:
    split = next(node for node in graph.node if node.op_type == "Split")
    split.output[:] = list(split.output)[::-1]


def _sine_of_the_double_angle(graph: onnx.GraphProto) -> None:
    place, sine = next((place, node) for place, node in enumerate(graph.node) if node.op_type == "Sin")
    graph.node.insert(place, helper.make_node("Add", [sine.input[0], sine.input[0]], ["doubled"]))
    graph.node[place + 1].input[0] = "doubled"


def _residual_of_the_normalized(graph: onnx.GraphProto) -> None:
    """In the second layer."""
    second = cast("Sequence[RotaryLayerNames]", find(graph).layers)[1]
    residual = next(node.input[0] for node in graph.node if second.source in node.output)
    added = [node for node in graph.node if residual in node.input and node.op_type == "Add"]
    added[-1].input[list(added[-1].input).index(residual)] = second.source


def _other_padding(graph: onnx.GraphProto) -> None:
    """Where there is a window, hidden keys have another bias."""
    graph.initializer.append(numpy_helper.from_array(np.array(-5, dtype=np.float32), "hardly_less"))
    [node for node in graph.node if node.op_type == "Where"][-1].input[2] = "hardly_less"


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(_first("LessOrEqual", _less), id="a smaller window"),
        pytest.param(_first("And", _swapped), id="a mask in another order"),
        pytest.param(_first("Gelu", _tanh), id="another activation"),
        pytest.param(_gate_and_activations_change_places, id="the other half is the gate"),
        pytest.param(_sine_of_the_double_angle, id="another angle"),
        pytest.param(_residual_of_the_normalized, id="another residual"),
        pytest.param(_other_padding, id="padding that shows through"),
    ],
)
def test_layers_with_rotary_positions_that_differ_are_left_to_the_runtime(
    mean_folder: Path, tmp_path: Path, change: Change
) -> None:
    """All of them: the kernels hand on two tensors between these layers."""
    fused(mean_folder)
    folder = copytree(mean_folder, tmp_path / "changed")
    model = graph_of(folder)
    change(model.graph)
    onnx.save(model, folder / _INT8)
    assert find_encoder(model.graph) is None
    engine = load(folder)
    assert engine.name == f"onnx/cpu/{_INT8}"
    assert np.isfinite(engine.run(pairs(folder)[:2])).all()


def _distance(logits: FloatArray, expected: FloatArray) -> float:
    return float(np.sqrt(np.mean((logits - expected) ** 2)))


def test_scores_are_as_near_to_float32_as_those_of_onnx_runtime(wide_folder: Path) -> None:
    encodings = pairs(wide_folder, [*QUERIES, *CORPUS])
    expected = load(wide_folder, file="model.onnx").run(encodings)
    by_runtime = load(wide_folder, fused=False).run(encodings)
    ours = fused(wide_folder).run(encodings)
    assert _distance(ours, expected) < 1.3 * _distance(by_runtime, expected)
    assert _distance(ours, by_runtime) < 1.3 * _distance(by_runtime, expected)
    assert expected.std() > 3 * _distance(ours, expected)


@pytest.mark.parametrize("folder", [_SHIPPED, "wide"], ids=["shipped", "wide"])
def test_batches_are_counted_without_padding(folder: Path | str, wide_folder: Path) -> None:
    where = wide_folder if folder == "wide" else _SHIPPED
    assert fused(where).preferred_batch.area([5, 40]) == 45
    assert load(where, fused=False).preferred_batch.area([5, 40]) == 80


def test_padding_that_a_graph_reads_counts(tmp_path: Path) -> None:
    folder = copytree(_wide_bert(tmp_path), tmp_path / "changed")
    model = graph_of(folder)
    bias = find_layers(model.graph)[0].attention_bias
    model.graph.initializer.append(numpy_helper.from_array(np.array(-2, dtype=np.float32), "hardly_less"))
    next(node for node in model.graph.node if bias in node.output).input[2] = "hardly_less"
    onnx.save(model, folder / _INT8)
    engine, encodings = fused(folder), pairs(folder)[:4]
    assert engine.preferred_batch.area([5, 40]) == 80
    expected = load(folder, fused=False).run(encodings)
    np.testing.assert_allclose(engine.run(encodings), expected, atol=0.15)


@pytest.mark.parametrize("folder", [_SHIPPED, "wide"], ids=["shipped", "wide"])
def test_a_score_does_not_depend_on_the_batch(folder: Path | str, wide_folder: Path) -> None:
    where = wide_folder if folder == "wide" else _SHIPPED
    engine, encodings = fused(where), pairs(where)
    alone = np.concatenate([engine.run([encoding]) for encoding in encodings])
    np.testing.assert_allclose(engine.run(encodings), alone, atol=1e-5)


def test_the_cache_distinguishes_scores_of_kernels_and_runtime() -> None:
    assert fused(_SHIPPED).name == f"onnx/cpu/{_INT8}/fused"
    assert load(_SHIPPED, fused=False).name == f"onnx/cpu/{_INT8}"
    assert load(_SHIPPED, threads=2).name == f"onnx/cpu/{_INT8}"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threads": 2}, "threads = 1"),
        ({"io_binding": True}, "no io_binding"),
        ({"file": "model.onnx"}, "the graph has no int8 encoder layer"),
    ],
)
def test_with_fused_true_the_error_says_why_the_kernels_cannot_be_used(
    wide_folder: Path, options: dict[str, object], message: str
) -> None:
    fused(wide_folder)
    with pytest.raises(ConfigError, match=f"fused = true, but .*{message}"):
        load(wide_folder, **{"file": _INT8, "fused": True, **options})  # type: ignore[arg-type]


def test_a_graph_that_reads_what_is_between_its_layers_is_left_whole(tmp_path: Path) -> None:
    folder = copytree(_SHIPPED, tmp_path / "model")
    fused(folder)
    model = graph_of(folder)
    inner = find_layers(model.graph)[3].output
    logits = next(node for node in model.graph.node if "logits" in node.output)
    logits.output[0] = "logits_without"
    model.graph.node.extend(
        [
            helper.make_node("ReduceMean", [inner, "rerankd_columns"], ["mean_of_inner"], keepdims=0),
            helper.make_node("Unsqueeze", ["mean_of_inner", "rerankd_last"], ["column_of_inner"]),
            helper.make_node("Add", ["logits_without", "column_of_inner"], ["logits"]),
        ]
    )
    for name, value in (("rerankd_columns", [1, 2]), ("rerankd_last", [1])):
        model.graph.initializer.append(numpy_helper.from_array(np.array(value, dtype=np.int64), name))
    onnx.save(model, folder / _INT8)
    assert load(folder).name == f"onnx/cpu/{_INT8}"
    with pytest.raises(ConfigError, match="reads values from inside its encoder layers"):
        load(folder, fused=True)


def test_without_compiled_kernels_the_model_is_served_without_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "rerankd.engines.onnx.kernels", None)
    monkeypatch.delitem(sys.modules, "rerankd.engines.onnx.fused", raising=False)
    engine = load(_SHIPPED)
    assert engine.name == f"onnx/cpu/{_INT8}"
    assert isinstance(engine, RemarkingEngine)
    assert engine.remark.startswith("without our own kernels: ")
    assert "rerankd.engines.onnx.kernels" in engine.remark


@pytest.mark.timed
def test_the_shipped_model_is_faster_with_our_kernels() -> None:
    ours, theirs = fused(_SHIPPED), load(_SHIPPED, fused=False)
    batch = [Encoding(np.arange(1000, 1128), 12)] * 4
    times: dict[LogitsEngine, list[float]] = {ours: [], theirs: []}
    for _ in range(8):
        for engine, taken in times.items():
            started = process_time()
            engine.run(batch)
            taken.append(process_time() - started)
    assert min(times[theirs]) > 1.15 * min(times[ours])
