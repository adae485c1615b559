"""What every engine promises, over every engine and every family of models."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rerankd.domain import FloatArray
from rerankd.engines import load_engine
from rerankd.engines.base import EngineSpec, LogitsEngine
from rerankd.errors import ConfigError
from rerankd.scorers import load_scorer
from rerankd.scorers.base import ScorerSpec
from rerankd.tasks.encoding import Encoding
from tests.tiny_models import CORPUS, FAMILIES, MAX_LENGTH, build_xlmr

pytestmark = pytest.mark.timeout(300)

Folder = Callable[[str], Path]


@dataclass(frozen=True)
class Kind:
    """An engine with options, and how far its logits may be from torch float32, and alone from in a batch; and which
    families it is for.
    """

    engine: str
    options: dict[str, Any]
    from_torch: float
    from_alone: float
    families: Sequence[str] = tuple(FAMILIES)


_FLOAT32 = {"file": "model.onnx"}
KINDS = {
    "onnx": Kind("onnx", _FLOAT32, 1e-4, 1e-5),
    "onnx-io-binding": Kind("onnx", {**_FLOAT32, "io_binding": True}, 1e-4, 1e-5),
    "onnx-unoptimised": Kind("onnx", {**_FLOAT32, "graph_optimization": "none", "threads": 2}, 1e-4, 1e-5),
    "onnx-float16": Kind("onnx", {"file": "model.float16.onnx"}, 0.03, 0.01),
    "onnx-int8": Kind("onnx", {"file": "model.int8.onnx"}, 0.4, 1e-5),
    "openvino": Kind("openvino", {**_FLOAT32, "precision": "float32"}, 1e-4, 1e-5),
    "openvino-bfloat16": Kind("openvino", {**_FLOAT32, "precision": "bfloat16"}, 0.3, 0.1),
    "openvino-int8": Kind("openvino", {"file": "model.int8.onnx", "precision": "float32"}, 0.4, 0.05),
    "openvino-int8-bfloat16": Kind("openvino", {"file": "model.int8.onnx", "precision": "bfloat16"}, 0.4, 0.15),
    "torch-float32": Kind("torch-encoder", {"device": "cpu"}, 1e-4, 1e-5),
    "torch-eager": Kind("torch-encoder", {"device": "cpu", "attention": "eager"}, 1e-4, 1e-5),
    "torch-packed": Kind(
        "torch-encoder", {"device": "cpu", "packed": True}, 1e-4, 1e-5, ("bert", "xlmr", "modernbert")
    ),
    "torch-bfloat16": Kind("torch-encoder", {"device": "cpu", "precision": "bfloat16"}, 0.3, 0.1),
}

QUERIES = ("what is the capital of france", "who wrote Hamlet?", "größte Stadt", "x")


@pytest.fixture(params=list(FAMILIES))
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=list(KINDS))
def kind(request: pytest.FixtureRequest) -> Kind:
    kind = KINDS[request.param]
    if kind.engine == "openvino" and kind.options["precision"] == "bfloat16" and not has_bfloat16():
        pytest.skip("this CPU does not compute in bfloat16")
    return kind


@cache
def has_bfloat16() -> bool:
    import openvino  # noqa: PLC0415 - tests of other engines need none

    return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


@pytest.fixture
def folder_of(kind: Kind, family: str, torch_folder: Folder, onnx_folder: Folder) -> Callable[[Kind, str], Path]:
    if family not in kind.families:
        pytest.skip("the engine is not for this family")
    return lambda kind, family: (torch_folder if kind.engine == "torch-encoder" else onnx_folder)(family)


@pytest.fixture
def encodings(family: str, torch_folder: Folder) -> Sequence[Encoding]:
    return pairs(torch_folder(family))


@cache
def pairs(folder: Path) -> list[Encoding]:
    """Pairs of every length from a few tokens to more than the model reads."""
    scorer = load_scorer("cross-encoder", ScorerSpec(folder=folder))
    documents = [*CORPUS, "y", " ".join(CORPUS)]
    return [
        encoding
        for query in QUERIES
        for encoding in scorer.encode(query, documents, max_document_tokens=None).encodings
    ]


def load(kind: Kind, folder: Path) -> LogitsEngine:
    pad_id = load_scorer("cross-encoder", ScorerSpec(folder=folder)).pad_id
    return load_engine(kind.engine, EngineSpec(folder=folder, pad_id=pad_id, options=kind.options))


def alone(engine: LogitsEngine, encodings: Sequence[Encoding]) -> FloatArray:
    return np.concatenate([engine.run([encoding]) for encoding in encodings])


@cache
def reference(folder: Path) -> FloatArray:
    """The same weights in transformers, called as its documentation says, with the tokenizer's own segments."""
    import torch  # noqa: PLC0415 - only slow tests have torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer  # noqa: PLC0415 - as above

    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    names = AutoTokenizer.from_pretrained(folder).model_input_names
    rows = []
    for encoding in pairs(folder):
        inputs = {"input_ids": torch.tensor([encoding.ids.tolist()])}
        if "token_type_ids" in names:
            inputs["token_type_ids"] = torch.tensor([[int(at >= encoding.boundary) for at in range(len(encoding.ids))]])
        with torch.inference_mode():
            rows.append(model(**inputs).logits.numpy())
    return np.concatenate(rows).astype(np.float32)


def test_logits_are_those_of_transformers_on_the_same_weights(
    kind: Kind,
    family: str,
    folder_of: Callable[[Kind, str], Path],
    torch_folder: Folder,
    encodings: Sequence[Encoding],
) -> None:
    logits = alone(load(kind, folder_of(kind, family)), encodings)
    expected = reference(torch_folder(family))
    difference = float(np.abs(logits - expected).max())
    assert logits.shape == (len(encodings), 1)
    assert logits.dtype == np.float32
    assert difference < kind.from_torch


def test_a_score_does_not_depend_on_the_batch(
    kind: Kind,
    family: str,
    folder_of: Callable[[Kind, str], Path],
    encodings: Sequence[Encoding],
) -> None:
    engine = load(kind, folder_of(kind, family))
    expected = alone(engine, encodings)
    largest = 0.0
    for seed, size in enumerate((2, 3, 7, 16, len(encodings))):
        order = np.random.default_rng(seed).permutation(len(encodings))
        for start in range(0, len(order), size):
            batch = order[start : start + size]
            logits = engine.run([encodings[index] for index in batch])
            largest = max(largest, float(np.abs(logits - expected[batch]).max()))
    assert largest < kind.from_alone


@pytest.mark.parametrize("family", ["bert", "xlmr"])
def test_threads_that_share_an_engine_get_their_own_scores(
    kind: Kind, family: str, folder_of: Callable[[Kind, str], Path], encodings: Sequence[Encoding]
) -> None:
    engine = load(kind, folder_of(kind, family))
    batches = [list(encodings[start : start + 4]) for start in range(0, len(encodings), 4)]
    expected = [engine.run(batch) for batch in batches]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            for logits, wanted in zip(pool.map(engine.run, batches), expected, strict=True):
                np.testing.assert_allclose(logits, wanted, atol=1e-5)


@pytest.mark.parametrize("family", ["bert"])
def test_scores_of_different_pairs_differ_and_segments_matter(
    kind: Kind, family: str, folder_of: Callable[[Kind, str], Path], encodings: Sequence[Encoding]
) -> None:
    engine = load(kind, folder_of(kind, family))
    without_segments = [Encoding(encoding.ids, len(encoding.ids)) for encoding in encodings]
    logits = alone(engine, encodings)
    assert logits.std() > 0.1
    assert np.abs(alone(engine, without_segments) - logits).max() > 0.1


@pytest.mark.slow
@pytest.mark.parametrize("pad_id", [0, 1, 3])
def test_positions_counted_from_behind_any_padding_id_are_right(tmp_path: Path, pad_id: int) -> None:
    """RoBERTa counts positions from its padding id; up to the longest pair, whose last position is the table's last."""
    folder = build_xlmr(tmp_path, pad_id=pad_id)
    encodings = pairs(folder)
    assert max(len(encoding.ids) for encoding in encodings) == MAX_LENGTH
    engine = load(KINDS["torch-float32"], folder)
    np.testing.assert_allclose(alone(engine, encodings), reference(folder), atol=1e-5)
    np.testing.assert_allclose(engine.run(encodings), reference(folder), atol=1e-5)


@pytest.mark.parametrize(
    ("engine", "options", "message"),
    [
        ("onnx", {"fil": "model.onnx"}, r"engine 'onnx': unknown key 'fil' \(did you mean 'file'\?\)"),
        ("onnx", {"threads": 0}, "engine 'onnx': threads"),
        ("onnx", {"device": "tpu"}, "engine 'onnx': device"),
        ("onnx", {"device": "cuda"}, r"'cuda' needs CUDAExecutionProvider.*rerankd\[gpu\].*device = \"cpu\""),
        ("onnx", {"device": "tensorrt"}, "needs TensorrtExecutionProvider"),
        ("onnx", {"file": "nowhere.onnx"}, r"tried: nowhere.onnx; there: model.onnx\).*rerankd export"),
        ("openvino", {"threads": 0}, "engine 'openvino': threads"),
        (
            "openvino",
            {"device": "cpu"},
            r"engine 'openvino': unknown key 'device' \(.*known keys: file, threads, precision",
        ),
        ("openvino", {"file": "nowhere.onnx"}, r"tried: nowhere.onnx; there: model.onnx\).*rerankd export"),
        ("onyx", {}, "unknown engine 'onyx'; known: onnx, openvino, torch-encoder"),
    ],
)
def test_an_engine_that_cannot_be_loaded_says_what_to_change(
    tiny_model: Path, engine: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        load_engine(engine, EngineSpec(folder=tiny_model, pad_id=0, options=options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "cuda"}, "device 'cuda': .* no such GPU; set device = \"cpu\""),
        ({"device": "cuda:63"}, "device 'cuda:63': .* no such GPU"),
        ({"device": "abacus"}, "unknown device 'abacus'; use"),
        ({"device": "meta"}, "device 'meta' is not supported; use"),
        ({"precision": "int4"}, "engine 'torch-encoder': precision"),
        ({"packed": True, "attention": "eager"}, "packed = true uses its own attention"),
        ({"attention": "telepathy"}, "transformers cannot load .*telepathy"),
    ],
)
def test_a_torch_engine_that_cannot_be_loaded_says_what_to_change(
    tiny_bert: Path, options: dict[str, Any], message: str
) -> None:
    import torch  # noqa: PLC0415 - only slow tests have torch

    if options.get("device") == "cuda" and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(ConfigError, match=message):
        load_engine("torch-encoder", EngineSpec(folder=tiny_bert, pad_id=0, options=options))
