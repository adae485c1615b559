"""`rerankd export`: every family in every precision, and what it makes of models that it cannot export."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from shutil import copytree
from typing import Any

import httpx
import numpy as np
import onnx
import pytest

from rerankd.engines import load_engine
from rerankd.engines.base import EngineSpec
from rerankd.errors import ConfigError
from rerankd.scorers import load_scorer
from rerankd.scorers.base import ScorerSpec
from rerankd.tasks.classify import Classify
from tests.registry_files import write_registry
from tests.servers import Server, rerankd_server, wait_until_ready
from tests.tiny_models import FAMILIES, build_bert

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

Folder = Callable[[str], Path]
Built = Callable[[str, Callable[[Path], object]], Path]

# The tiny models have random weights over few dimensions, which makes quantization look worse than it is.
BOUNDS = {"float32": 1e-5, "float16": 0.02, "int8": 0.25, "int8-weights": 0.1}
FILES = {
    "float32": "model.onnx",
    "float16": "model.float16.onnx",
    "int8": "model.int8.onnx",
    "int8-weights": "model.int8-weights.onnx",
}

FAMILY = pytest.mark.parametrize("family", list(FAMILIES))
PRECISION = pytest.mark.parametrize("precision", list(FILES))


def report(folder: Path) -> dict[str, dict[str, Any]]:
    return {entry["precision"]: entry for entry in json.loads((folder / "parity.json").read_text())}


def golden(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "golden.json").read_text())
    return content


def export(source: Path, target: Path, **options: Any) -> None:
    from rerankd.tools.exporting import export_classifier  # noqa: PLC0415 - imports torch

    export_classifier(source, target, **{"precisions": ["float32"], **options})


@FAMILY
@PRECISION
def test_the_report_says_how_close_each_precision_is(onnx_folder: Folder, family: str, precision: str) -> None:
    entry = report(onnx_folder(family))[precision]
    assert entry["file"] == FILES[precision]
    assert (onnx_folder(family) / entry["file"]).is_file()
    assert 0 < entry["mean_difference"] <= entry["largest_difference"] < BOUNDS[precision]


@FAMILY
@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_the_report_says_that_scores_do_not_depend_on_the_batch(
    onnx_folder: Folder, family: str, precision: str
) -> None:
    assert report(onnx_folder(family))[precision]["largest_batch_effect"] < 1e-5


@FAMILY
def test_int8_weights_alone_are_nearer_to_torch_than_int8_matmuls(onnx_folder: Folder, family: str) -> None:
    mean_of = {name: entry["mean_difference"] for name, entry in report(onnx_folder(family)).items()}
    assert mean_of["int8-weights"] < mean_of["int8"]


@FAMILY
def test_golden_pairs_are_the_float32_logits(onnx_folder: Folder, family: str) -> None:
    folder = onnx_folder(family)
    scorer = load_scorer("cross-encoder", ScorerSpec(folder=folder))
    engine = load_engine("onnx", EngineSpec(folder=folder, pad_id=scorer.pad_id, options={"file": "model.onnx"}))
    pairs = golden(folder)["pairs"]
    assert len({round(pair["logit"], 3) for pair in pairs}) > len(pairs) / 2
    for pair in pairs:
        encodings = scorer.encode(pair["query"], [pair["document"]], max_document_tokens=None).encodings
        assert engine.run(encodings)[0, 0] == pytest.approx(pair["logit"], abs=1e-4)


@FAMILY
def test_the_tolerance_holds_the_widest_precision_and_little_more(onnx_folder: Folder, family: str) -> None:
    widest = max(entry["largest_difference"] for entry in report(onnx_folder(family)).values())
    assert widest < golden(onnx_folder(family))["tolerance"] <= 3 * widest


@FAMILY
def test_the_folder_holds_what_the_scorer_reads(onnx_folder: Folder, torch_folder: Folder, family: str) -> None:
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        assert (onnx_folder(family) / name).read_bytes() == (torch_folder(family) / name).read_bytes()


@FAMILY
@PRECISION
def test_a_graph_takes_any_number_of_sequences_of_any_length(onnx_folder: Folder, family: str, precision: str) -> None:
    graph = onnx.load(onnx_folder(family) / FILES[precision], load_external_data=False).graph
    shapes = {node.name: [size.dim_param for size in node.type.tensor_type.shape.dim] for node in graph.input}
    expected = {"input_ids", "attention_mask"} | ({"token_type_ids"} if family == "bert" else set())
    assert set(shapes) == expected
    assert all(shape == ["batch", "sequence"] for shape in shapes.values())


@FAMILY
def test_the_last_layer_computes_one_row(onnx_folder: Folder, family: str) -> None:
    graph = onnx.load(onnx_folder(family) / "model.onnx").graph
    noted = {info.name: info.type.tensor_type.shape.dim for info in graph.value_info}
    [states] = [node.input[0] for node in graph.node if node.op_type == "Gather" and node.output[0] == "select"]
    assert noted[states][1].dim_value == 1


# DeBERTa's is no sum; ModernBERT's other layer is the last one here, which computes one query.
@pytest.mark.parametrize("family", ["bert", "xlmr", "modernbert"])
def test_the_mask_that_hides_padding_is_the_same_for_every_query(onnx_folder: Folder, family: str) -> None:
    graph = onnx.load(onnx_folder(family) / "model.onnx").graph
    noted = {info.name: info.type.tensor_type.shape.dim for info in graph.value_info}
    scores = [node.input[0] for node in graph.node if node.op_type == "Softmax"]
    added = [node.input[1] for node in graph.node if node.op_type == "Add" and node.output[0] in scores]
    masks = {tuple(size.dim_param or size.dim_value for size in noted[name]) for name in added}
    assert masks == {("batch", 1, 1, "sequence")}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, onnx_folder: Folder) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("exported")
    models = [
        {"name": f"{family}-{precision}", "path": onnx_folder(family), "engine_options": {"file": file}}
        for family in FAMILIES
        for precision, file in FILES.items()
    ]
    with rerankd_server(folder, write_registry(folder, models)) as running:
        yield running


def test_a_service_of_every_export_becomes_ready_by_its_golden_pairs(server: Server) -> None:
    wait_until_ready(server)


@FAMILY
@PRECISION
def test_every_export_answers(server: Server, family: str, precision: str) -> None:
    wait_until_ready(server)
    body = {"model": f"{family}-{precision}", "query": "capital of france", "documents": ["Paris", "Berlin", "vaccine"]}
    results = httpx.post(f"{server.url}/v2/rerank", json=body, timeout=30).json()["results"]
    assert sorted(result["index"] for result in results) == [0, 1, 2]


@pytest.fixture(scope="module")
def split(built: Built, tiny_bert: Path) -> Path:
    """An export in every precision whose weights do not fit one file."""
    return built("bert-split", lambda folder: export(tiny_bert, folder, precisions=list(FILES), largest_file=10_000))


def test_weights_that_do_not_fit_one_file_lie_beside_the_graph(onnx_folder: Folder, split: Path) -> None:
    whole = onnx_folder("bert")
    for file in FILES.values():
        assert (split / f"{file}_data").stat().st_size > 10_000
        assert not (whole / f"{file}_data").exists()
    differences = [{name: entry["largest_difference"] for name, entry in report(at).items()} for at in (whole, split)]
    assert differences[0] == differences[1]
    sizes = {name: (split / f"{file}_data").stat().st_size for name, file in FILES.items()}
    assert sizes["float16"] < 0.55 * sizes["float32"]
    assert sizes["int8"] < 0.35 * sizes["float32"]
    assert sizes["int8-weights"] < 0.35 * sizes["float32"]


@pytest.mark.parametrize("largest_file", [10_000, 10_000_000])
def test_only_the_precisions_that_are_wanted_stay(tiny_bert: Path, tmp_path: Path, largest_file: int) -> None:
    export(tiny_bert, tmp_path, precisions=["int8"], largest_file=largest_file)
    graphs = {path.name.removesuffix("_data") for path in tmp_path.iterdir() if ".onnx" in path.name}
    assert graphs == {"model.int8.onnx"}
    assert list(report(tmp_path)) == ["int8"]


def test_an_export_over_an_older_one_leaves_no_weights_of_it(tiny_bert: Path, split: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    copytree(split, folder)
    export(tiny_bert, folder)
    assert not (folder / "model.onnx_data").exists()


def test_a_model_may_be_exported_into_its_own_folder(tiny_bert: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    copytree(tiny_bert, folder)
    export(folder, folder)
    assert (folder / "model.onnx").is_file()
    assert (folder / "model.safetensors").is_file()


def test_a_head_of_several_outputs_is_exported_whole(tmp_path: Path) -> None:
    source = build_bert(tmp_path / "source", num_labels=3)
    target = tmp_path / "target"
    export(source, target, precisions=["float32", "int8"])
    scorer = load_scorer("cross-encoder", ScorerSpec(folder=target, options={"label": 2}))
    engine = load_engine("onnx", EngineSpec(folder=target, pad_id=scorer.pad_id))
    logits = engine.run(scorer.encode("query", ["a", "b"], max_document_tokens=None).encodings)
    assert logits.shape == (2, 3)
    assert np.isfinite(scorer.interpret(logits)).all()
    assert not (target / "golden.json").exists()


def test_what_sentence_transformers_wrote_into_the_config_is_kept(tiny_bert: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    copytree(tiny_bert, source)
    config = json.loads((source / "config.json").read_text())
    config["sentence_transformers"] = {"activation_fn": "torch.nn.modules.linear.Identity", "version": "5.0.0"}
    (source / "config.json").write_text(json.dumps(config))
    export(source, tmp_path / "target")
    scorer = load_scorer("cross-encoder", ScorerSpec(folder=tmp_path / "target"))
    assert scorer.activation(np.array([7], dtype=np.float32)).tolist() == [7]


def test_a_model_without_a_head_is_refused(tiny_bert: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification  # noqa: PLC0415 - only slow tests have torch

    source = tmp_path / "source"
    copytree(tiny_bert, source)
    AutoModelForSequenceClassification.from_pretrained(tiny_bert).bert.save_pretrained(source)
    with pytest.raises(ConfigError, match=r"config\.json says BertModel: this is a model without a head"):
        export(source, tmp_path / "target")


def test_pickled_weights_are_refused(tiny_bert: Path, tmp_path: Path) -> None:
    import torch  # noqa: PLC0415 - only slow tests have torch

    source = tmp_path / "source"
    copytree(tiny_bert, source)
    (source / "model.safetensors").unlink()
    torch.save({}, source / "pytorch_model.bin")
    with pytest.raises(ConfigError, match=r"pytorch_model\.bin is pickled weights.*safetensors"):
        export(source, tmp_path / "target")


@pytest.mark.parametrize(("difference", "refused"), [(1e-6, False), (0.0019, False), (0.1, True), (np.nan, True)])
def test_a_graph_that_computes_something_else_does_not_stay(
    tmp_path: Path, difference: float, *, refused: bool
) -> None:
    from rerankd.tools.parity import Parity, Reference, refuse_wrong_graph  # noqa: PLC0415 - imports onnxruntime

    graph = tmp_path / "model.onnx"
    graph.write_bytes(b"graph")
    parity = Parity(
        precision="float32",
        file=graph.name,
        megabytes=0.1,
        largest_difference=difference,
        mean_difference=difference,
        largest_batch_effect=0.0,
    )
    logits = np.array([[0.5], [-2.0]], dtype=np.float32)
    reference = Reference(logits=logits, encodings=[], pad_id=0, task=Classify(outputs=1))
    if refused:
        with pytest.raises(ConfigError, match="does not compute what torch computes"):
            refuse_wrong_graph(parity, reference, graph)
    else:
        refuse_wrong_graph(parity, reference, graph)
    assert graph.exists() is not refused


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"cannot read {tmp_path}/config\.json.*model folder"):
        export(tmp_path, tmp_path / "target")


def test_the_command_prints_its_report_and_nothing_else(tiny_xlmr: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "rerankd", "export", str(tiny_xlmr), str(tmp_path), "--precision", "int8"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "model.int8.onnx" in done.stdout
    assert "float32" not in done.stdout
    assert "torchvision" not in done.stdout + done.stderr
    assert done.stderr == ""


def test_the_command_names_an_unknown_precision(tiny_bert: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "rerankd", "export", str(tiny_bert), str(tmp_path), "--precision", "int4"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "unknown precision int4; known: float32, float16, int8, int8-weights" in done.stderr
