"""Models whose scores depend on what else is in the batch: they serve, marked, and nothing of theirs is used again."""

import asyncio
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rerankd.config.settings import Settings
from rerankd.domain import RerankRequest
from rerankd.engines import load_engine
from rerankd.engines.base import EngineSpec
from rerankd.errors import ConfigError
from rerankd.scorers import load_scorer
from rerankd.scorers.base import ScorerSpec
from rerankd.serving.assembly import running_service
from rerankd.serving.service import RerankService
from rerankd.telemetry.observer import Silent
from tests.fakes import RecordingObserver
from tests.registry_files import write_registry
from tests.tiny_models import CORPUS, MAX_LENGTH, _save_model, _save_tokenizer, wordpiece_tokenizer

Built = Callable[..., Path]

_SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "intermediate_size": 64,
    "initializer_range": 0.3,
    "max_position_embeddings": MAX_LENGTH,
    "pad_token_id": 0,
    "num_labels": 1,
}


def _build(kind: str, **sizes: Any) -> Callable[[Path], None]:
    def build(folder: Path) -> None:
        import transformers  # noqa: PLC0415 - only slow tests have torch

        tokenizer = wordpiece_tokenizer()
        _save_tokenizer(tokenizer, folder, pad="[PAD]", inputs=("input_ids", "token_type_ids", "attention_mask"))
        config = getattr(transformers, f"{kind}Config")(vocab_size=tokenizer.get_vocab_size(), **{**_SIZES, **sizes})
        _save_model(getattr(transformers, f"{kind}ForSequenceClassification"), config, folder)

    return build


FAMILIES = {
    "fnet": _build("FNet"),
    "nystromformer": _build("Nystromformer", num_attention_heads=2, num_landmarks=64, segment_means_seq_len=64),
    "convbert": _build("ConvBert", num_attention_heads=4, embedding_size=32),
}


@pytest.fixture(scope="module")
def shared_scale(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A graph that ONNX Runtime's own tool quantized: one scale for all activations of a batch."""
    import onnx  # noqa: PLC0415 - only here
    from onnxruntime.quantization import QuantType, quantize_dynamic  # noqa: PLC0415

    folder = Path(shutil.copytree(tiny_model, tmp_path_factory.mktemp("dynamic") / "model"))
    graph = onnx.load(folder / "model.onnx")
    del graph.graph.value_info[:]  # the tool infers shapes again, and minds old ones
    onnx.save(graph, folder / "plain.onnx")
    quantize_dynamic(folder / "plain.onnx", folder / "model.int8.onnx", weight_type=QuantType.QInt8)
    (folder / "golden.json").unlink()
    return folder


async def test_a_graph_with_one_scale_for_a_batch_is_marked_and_never_cached(
    shared_scale: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    observer = RecordingObserver()
    registry = write_registry(tmp_path, [{"name": "m", "path": shared_scale}])
    with caplog.at_level(logging.WARNING):
        async with running_service(Settings(registry=registry), observer) as service:
            await _check_marked(service)
            await _check_company_is_not_shared(service, observer)
    [warning] = [record for record in caplog.records if "depend on what else" in record.message]
    assert warning.__dict__["largest_difference"] > 5 * warning.__dict__["tolerance"] > 0


@pytest.mark.parametrize("family", list(FAMILIES))
async def test_families_that_read_padding_are_marked(
    family: str, built: Built, torch_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    torch_folder("bert")  # torch on one thread
    folder = built(f"{family}-torch", FAMILIES[family])
    registry = write_registry(tmp_path, [{"name": "m", "path": folder, "engine": "torch-encoder"}])
    async with running_service(Settings(registry=registry), Silent()) as service:
        await _check_marked(service)


async def test_a_models_scores_that_are_its_own_are_cached_and_said_to_be_so(tiny_model: Path, tmp_path: Path) -> None:
    registry = write_registry(tmp_path, [{"name": "m", "path": tiny_model}])
    async with running_service(Settings(registry=registry), Silent()) as service:
        loaded = await service.model_named("m").settled()
        assert loaded.details["batch_independent"] is True
        request = RerankRequest(query="capital of France", documents=list(CORPUS[:4]))
        await service.rerank(request)
        assert (await service.rerank(request)).cached == 4


def _build_phi3(folder: Path) -> None:
    """Beyond 40 tokens the positions of a whole batch are turned otherwise."""
    rotation = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [3.0] * 4}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "bos_token_id": None, "eos_token_id": None}
    _build("Phi3", original_max_position_embeddings=40, rope_scaling=rotation, **heads)(folder)


async def test_a_long_text_does_not_turn_the_positions_of_short_ones(
    built: Built, torch_folder: Callable[[str], Path]
) -> None:
    torch_folder("bert")  # torch on one thread
    folder = built("phi3-classifier-torch", _build_phi3)
    scorer = load_scorer("cross-encoder", ScorerSpec(folder=folder, options={"pairs": "plain"}))
    engine = load_engine("torch-encoder", EngineSpec(folder=folder, pad_id=scorer.pad_id))
    texts = ["Wien", " ".join(CORPUS), "Paris is a city", " ".join(CORPUS[:4])]
    encodings = list(scorer.encode("x", texts, max_document_tokens=None).encodings)
    lengths = [len(encoding.ids) for encoding in encodings]
    assert min(lengths) < 40 < max(lengths)
    alone = np.concatenate([engine.run([encoding]) for encoding in encodings])
    np.testing.assert_allclose(engine.run(encodings), alone, atol=1e-5)
    assert np.ptp(alone) > 0.1


@pytest.mark.parametrize(
    ("kind", "sizes", "reason"),
    [
        ("BigBird", {"num_attention_heads": 2, "attention_type": "block_sparse"}, "original_full"),
        ("Llama", {"num_attention_heads": 2, "rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "dynamic"),
    ],
)
def test_models_whose_scores_depend_on_what_was_read_before_are_refused(
    kind: str, sizes: dict[str, Any], reason: str, tmp_path: Path, torch_folder: Callable[[str], Path]
) -> None:
    torch_folder("bert")  # torch on one thread
    _build(kind, **sizes)(tmp_path)
    with pytest.raises(ConfigError, match=reason):
        load_engine("torch-encoder", EngineSpec(folder=tmp_path, pad_id=0))


async def _check_marked(service: RerankService) -> None:
    loaded = await service.model_named("m").settled()
    assert loaded.details["batch_independent"] is False
    request = RerankRequest(query="capital of France", documents=list(CORPUS[:4]))
    for _ in range(2):
        result = await service.rerank(request)
        assert result.cached == 0
        assert np.isfinite([one.value for one in result.results]).all()


async def _check_company_is_not_shared(service: RerankService, observer: RecordingObserver) -> None:
    """Equal pairs at the same time are scored by themselves."""
    before = observer.total("batch_scored", of="pairs")
    request = RerankRequest(query="a query", documents=["a document"] * 3)
    await asyncio.gather(*(service.rerank(request) for _ in range(4)))
    assert observer.total("batch_scored", of="pairs") - before == 12
    assert not observer.named("pairs_coalesced")
