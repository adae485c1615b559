"""Which engine a recognised model gets, by its files and by what this machine has."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from rerankd.errors import ConfigError
from rerankd.recognition.kinds import ModelFiles
from rerankd.recognition.recognised import TASK_ENGINES, Recognised
from rerankd.serving.choosing import AutoOptions, Machine, engine_for

ALL = frozenset({"onnxruntime", "torch", "transformers"})
WEIGHTS = "model.safetensors"
BFLOAT16 = {"precision": "bfloat16"}
INT8, PLAIN, HUB = "model.int8.onnx", "model.onnx", "onnx/model.onnx"


def files(*names: str) -> ModelFiles:
    return ModelFiles(
        folder=Path("/nowhere"),
        config={},
        tokenizer_config={},
        sentence_transformers={},
        modules=None,
        transformer={},
        names=frozenset(names),
    )


def model(scorer: str = "cross-encoder", *, engines: Sequence[str] | None = None) -> Recognised:
    found = Recognised(family="", scorer=scorer, head="", activation="", input="", max_length=None)
    return Recognised(
        family="",
        scorer=scorer,
        head="",
        activation="",
        input="",
        max_length=None,
        engines=TASK_ENGINES[found.task] if engines is None else engines,
    )


@pytest.mark.parametrize(
    ("scorer", "names", "gpu", "wanted", "engine", "options"),
    [
        ("cross-encoder", [WEIGHTS], False, {}, "torch-encoder", {}),
        ("cross-encoder", [WEIGHTS, HUB], False, {}, "onnx", {"file": HUB}),
        ("cross-encoder", [WEIGHTS, HUB], True, {}, "torch-encoder", {}),
        ("cross-encoder", [WEIGHTS, HUB], True, {"device": "cpu"}, "onnx", {"file": HUB, "device": "cpu"}),
        ("cross-encoder", [WEIGHTS, HUB], False, {"device": "cuda:1"}, "torch-encoder", {"device": "cuda:1"}),
        ("cross-encoder", [INT8, PLAIN], False, {}, "onnx", {"file": INT8}),
        ("cross-encoder", [INT8, PLAIN], False, {"precision": "float32"}, "onnx", {"file": PLAIN}),
        ("cross-encoder", [INT8, PLAIN, "model.float16.onnx"], True, {}, "onnx", {"file": "model.float16.onnx"}),
        ("cross-encoder", [WEIGHTS, PLAIN], False, BFLOAT16, "torch-encoder", BFLOAT16),
        ("yes-no", [WEIGHTS, HUB], False, {}, "torch-causal", {}),
        ("yes-no", [WEIGHTS, INT8, "parity.json"], False, {}, "onnx", {"file": INT8}),
        ("first", [WEIGHTS], True, {"precision": "float16"}, "torch-causal", {"precision": "float16"}),
        ("generative", [WEIGHTS, HUB], False, {}, "torch-generate", {}),
        ("yes-no", [WEIGHTS, INT8, "parity.json"], False, {"cutoff_layer": 8}, "torch-causal", {"cutoff_layer": 8}),
    ],
)  # fmt: skip
def test_the_engine_is_chosen_by_files_machine_and_wishes(
    scorer: str, names: list[str], *, gpu: bool, wanted: Mapping[str, Any], engine: str, options: Mapping[str, Any]
) -> None:
    choice = engine_for(model(scorer), files(*names), AutoOptions(**wanted), Machine(packages=ALL, gpu=gpu))
    assert (choice.engine, dict(choice.options)) == (engine, options)
    assert choice.because


@pytest.mark.parametrize(
    ("names", "packages", "wanted", "reason"),
    [
        ([WEIGHTS], {"onnxruntime"}, {}, r"needs torch, which is not installed.*rerankd export"),
        ([PLAIN], {"torch", "transformers"}, {}, "needs onnxruntime, which is not installed"),
        ([WEIGHTS], ALL, {"precision": "int8"}, "int8; make it with `rerankd export`"),
        (["onnx/model_quantized.onnx"], ALL, {}, r"model_quantized.*engine_options = \{ file"),
        (["pytorch_model.bin"], ALL, {}, "pickled"),
        ([], ALL, {}, "no weights in"),
    ],
)
def test_without_an_engine_the_reason_says_what_to_install_or_to_make(
    names: list[str], packages: set[str], wanted: Mapping[str, Any], reason: str
) -> None:
    machine = Machine(packages=frozenset(packages), gpu=False)
    with pytest.raises(ConfigError, match=reason):
        engine_for(model(), files(*names), AutoOptions(**wanted), machine)


def test_weights_of_an_authors_own_class_go_to_no_engine_of_torch() -> None:
    machine = Machine(packages=ALL, gpu=True)
    only_graphs = model(engines=("onnx", "openvino"))
    assert engine_for(only_graphs, files(WEIGHTS, HUB), AutoOptions(), machine).engine == "onnx"
    with pytest.raises(ConfigError, match="computed by none of onnx, openvino"):
        engine_for(only_graphs, files(WEIGHTS), AutoOptions(), machine)


def test_an_inner_layer_is_refused_where_no_engine_reads_one() -> None:
    with pytest.raises(ConfigError, match="cutoff_layer and compress_ratio: only engine 'torch-causal' reads inner"):
        engine_for(
            model(), files(WEIGHTS), AutoOptions(cutoff_layer=8, compress_ratio=2), Machine(packages=ALL, gpu=False)
        )
