"""Models that score at several layers: the chosen layer is read, what lies above it is not even loaded."""

from collections.abc import Callable, Sequence
from pathlib import Path
from shutil import copytree

import numpy as np
import pytest

from rerankd.domain import FloatArray
from rerankd.engines import check_files, load_engine
from rerankd.engines.base import EngineSpec
from rerankd.engines.fingerprint import engine_fingerprint
from rerankd.errors import ConfigError
from rerankd.scorers import load_scorer
from rerankd.scorers.base import ScorerSpec
from tests.tiny_layer_wise import LAYERS, build_gemma, build_minicpm
from tests.tiny_models import CORPUS
from tests.tokenizer_folders import SHIPPED_TEMPLATES
from tests.transcriptions import compressed_logits, lightweight_logits, minicpm_logits

pytestmark = pytest.mark.slow

QUERY = "Where is the capital of Austria?"
DOCUMENTS = ["y", *CORPUS[:3], " ".join(CORPUS[:4])]
TEMPLATES = {"minicpm": "bge-reranker-layerwise", "gemma": "bge-reranker-lightweight"}
ORACLES: dict[str, Callable[..., FloatArray]] = {"minicpm": minicpm_logits, "gemma": lightweight_logits}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("layer-wise")
    return {"minicpm": build_minicpm(root / "minicpm"), "gemma": build_gemma(root / "gemma")}


def spec_of(folder: Path, kind: str, *, cutoff_layer: int | None, **options: object) -> tuple[EngineSpec, list[object]]:
    """What an engine is loaded from, and the pairs as it reads them."""
    scorer = load_scorer(
        "yes-no", ScorerSpec(folder=folder, templates=[SHIPPED_TEMPLATES], options={"template": TEMPLATES[kind]})
    )
    encodings = scorer.encode(QUERY, DOCUMENTS, max_document_tokens=None).encodings
    chosen = {"device": "cpu", "cutoff_layer": cutoff_layer, **options}
    return EngineSpec(folder=folder, pad_id=scorer.pad_id, task=scorer.task, options=chosen), list(encodings)


def scores(folder: Path, kind: str, *, cutoff_layer: int | None, **options: object) -> Sequence[FloatArray]:
    """All pairs in one pass, and each alone."""
    spec, encodings = spec_of(folder, kind, cutoff_layer=cutoff_layer, **options)
    engine = load_engine("torch-causal", spec)
    together: FloatArray = engine.run(encodings)[:, 0]
    alone: FloatArray = np.concatenate([engine.run([encoding])[:, 0] for encoding in encodings])
    return together, alone


@pytest.mark.parametrize(
    ("kind", "layer"), [("minicpm", 2), ("minicpm", 3), ("minicpm", LAYERS), ("gemma", 1), ("gemma", 3)]
)
@pytest.mark.usefixtures("_torch_on_one_thread")
def test_the_chosen_layer_is_read(folders: dict[str, Path], kind: str, layer: int) -> None:
    expected = ORACLES[kind](folders[kind], QUERY, DOCUMENTS, layer=layer)
    for ours in scores(folders[kind], kind, cutoff_layer=layer):
        np.testing.assert_allclose(ours, expected, atol=5e-6)
    assert np.ptp(expected) > 0.01


@pytest.mark.parametrize(("layer", "ratio", "before"), [(5, 2, [2]), (5, 4, [1, 3]), (3, 2, [1, 4]), (5, 8, [4])])
@pytest.mark.usefixtures("_torch_on_one_thread")
def test_passages_are_compressed_as_by_the_authors(
    folders: dict[str, Path], layer: int, ratio: int, before: list[int]
) -> None:
    expected = compressed_logits(folders["gemma"], QUERY, DOCUMENTS, layer=layer, ratio=ratio, before=before)
    compress = {"compress_ratio": ratio, "compress_layers": before}
    for ours in scores(folders["gemma"], "gemma", cutoff_layer=layer, **compress):
        np.testing.assert_allclose(ours, expected, atol=5e-6)
    assert np.abs(expected - lightweight_logits(folders["gemma"], QUERY, DOCUMENTS, layer=layer)).max() > 0.01


def test_other_compression_has_another_fingerprint(folders: dict[str, Path]) -> None:
    seen = set()
    for before in ([1], [2], [1, 2]):
        spec, _ = spec_of(folders["gemma"], "gemma", cutoff_layer=3, compress_ratio=2, compress_layers=before)
        seen.add(engine_fingerprint("torch-causal", load_engine("torch-causal", spec), spec))
    assert len(seen) == 3


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("minicpm", {"compress_ratio": 2, "compress_layers": [3]}, "for models that compress passages"),
        ("gemma", {"compress_ratio": 2}, r"compress_layers = \[\]: give both"),
        ("gemma", {"compress_layers": [2]}, "compress_ratio = 1 with .*give both"),
        ("gemma", {"compress_ratio": 2, "compress_layers": [0, 2]}, "layers from 1 to 4"),
        ("gemma", {"compress_ratio": 2, "compress_layers": [2, 5]}, "layers from 1 to 4"),
        ("gemma", {"compress_ratio": 2, "compress_layers": [3]}, r"below the layer that is read \(3\)"),
    ],
)
def test_compression_that_does_nothing_is_refused(
    folders: dict[str, Path], kind: str, options: dict[str, object], message: str
) -> None:
    spec, _ = spec_of(folders[kind], kind, cutoff_layer=3, **options)
    with pytest.raises(ConfigError, match=message):
        check_files("torch-causal", spec)


@pytest.mark.usefixtures("_torch_on_one_thread")
def test_layers_above_are_not_loaded(folders: dict[str, Path], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file  # noqa: PLC0415 - only slow tests have torch

    cut = copytree(folders["minicpm"], tmp_path / "cut")
    tensors = load_file(cut / "model.safetensors")
    later = tuple(f"model.layers.{number}." for number in range(3, LAYERS))
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith(later)}
    save_file(kept, cut / "model.safetensors", metadata={"format": "pt"})
    for ours, whole in zip(
        scores(cut, "minicpm", cutoff_layer=3), scores(folders["minicpm"], "minicpm", cutoff_layer=3), strict=True
    ):
        np.testing.assert_array_equal(ours, whole)
    with pytest.raises(ConfigError, match=r"lack layers\.3\..*not a complete"):
        scores(cut, "minicpm", cutoff_layer=4)


@pytest.mark.parametrize(
    ("kind", "layer", "message"),
    [
        ("minicpm", 1, "scores at the layers 2 to 5; set engine_options"),
        ("minicpm", 6, "scores at the layers 2 to 5"),
        ("gemma", 2, "scores at the layers 1 to 5, every 2"),
    ],
)
def test_a_layer_without_a_head_is_refused_before_weights_are_read(
    folders: dict[str, Path], kind: str, layer: int, message: str
) -> None:
    spec, _ = spec_of(folders[kind], kind, cutoff_layer=layer)
    with pytest.raises(ConfigError, match=message):
        check_files("torch-causal", spec)


@pytest.mark.parametrize(
    ("config", "message"),
    [({"head_type": "raw"}, "head_type is 'raw'"), ({"scale_emb": None}, "missing or unusable")],
)
def test_other_heads_are_refused(tmp_path: Path, config: dict[str, object], message: str) -> None:
    spec, _ = spec_of(build_minicpm(tmp_path, **config), "minicpm", cutoff_layer=None)
    with pytest.raises(ConfigError, match=message):
        check_files("torch-causal", spec)


def test_a_cutoff_is_refused_where_only_the_end_scores(causal_folder: Callable[[str], Path]) -> None:
    spec, _ = spec_of(causal_folder("mistral"), "minicpm", cutoff_layer=1)
    with pytest.raises(ConfigError, match="cutoff_layer is for models that score at several layers"):
        check_files("torch-causal", spec)
