"""In-context reranking reads the attention that whole passes with all weights would show."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rerankd.config.settings import Settings
from rerankd.domain import FloatArray, RerankRequest, ScoreOptions, Terms, WindowWishes
from rerankd.engines import load_engine
from rerankd.engines.base import Engine, EngineSpec
from rerankd.errors import ConfigError, DeadlineExceeded, InvalidRequest
from rerankd.scorers.attention import InContextAttention
from rerankd.scorers.base import ScorerSpec
from rerankd.serving.assembly import running_service
from rerankd.tasks.attend import Attend
from rerankd.telemetry.observer import Silent
from tests.registry_files import write_registry
from tests.tiny_causal import CAUSAL_FAMILIES, build_gemma2
from tests.tiny_models import CORPUS
from tests.tokenizer_folders import SHIPPED_TEMPLATES
from tests.transcriptions import attention_scores

pytestmark = pytest.mark.slow

QUERY = "Where is the capital of Austria, and how large is it?"
DOCUMENTS = ["y", *CORPUS[:5], CORPUS[8], " ".join(CORPUS[:4])]
CHATS = {
    "llama": (
        "icr-llama-3",
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>",
        "<|eot_id|><|start_header_id|>assistant<|end_header_id|>",
        " \n\n",
    ),
    "mistral": ("icr-mistral", "<s>[INST]", "[/INST]", "\n\n"),
    "qwen3": ("icr-chatml", "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n", "\n\n"),
}


def _loaded(folder: Path, template: str, **options: Any) -> tuple[InContextAttention, Engine[Any, Any]]:
    spec = ScorerSpec(folder=folder, templates=[SHIPPED_TEMPLATES], options={"template": template, **options})
    scorer = InContextAttention.load(spec)
    return scorer, load_engine("torch-attention", EngineSpec(folder=folder, pad_id=scorer.pad_id, task=scorer.task))


def _scores(scorer: InContextAttention, engine: Engine[Any, Any], windows: list[list[str]]) -> list[FloatArray]:
    payloads = [scorer.encode_window(QUERY, window, max_document_tokens=None).encoding for window in windows]
    results = engine.run(payloads)
    return [
        scorer.interpret_window(result, candidates=len(window)) for result, window in zip(results, windows, strict=True)
    ]


@pytest.mark.parametrize("family", CHATS)
@pytest.mark.usefixtures("_torch_on_one_thread")
def test_scores_are_those_of_two_whole_passes(family: str, tmp_path: Path) -> None:
    """Of Mistral every layer sees a window that is shorter than the prompts."""
    folder = CAUSAL_FAMILIES[family](tmp_path / "model")
    template, opening, closing, separator = CHATS[family]
    scorer, engine = _loaded(folder, template)
    windows = [DOCUMENTS, DOCUMENTS[:2], DOCUMENTS[5:]]
    for ours, window in zip(_scores(scorer, engine, windows), windows, strict=True):
        shown = {"opening": opening, "closing": closing, "separator": separator}
        expected = attention_scores(folder, QUERY, window[::-1], **shown)[::-1]
        assert np.abs(ours - expected).max() <= 1e-6
        assert np.ptp(expected) > 1e-3
    encoded = scorer.encode_window(QUERY, DOCUMENTS, max_document_tokens=None).encoding
    assert len(encoded.question) < len(encoded.ids) / 2, "documents are computed once"
    assert len(encoded.calibration) < len(encoded.question)
    # Longer than the model reads: all passages keep as many words.
    cut = scorer.encode_window(QUERY, [" ".join(CORPUS) * 9] * 9, max_document_tokens=None)
    assert len(cut.encoding.ids) + len(cut.encoding.question) <= scorer.max_length
    assert len(set(cut.dropped.tolist())) == 1
    assert cut.dropped[0] > 0


@pytest.mark.usefixtures("_torch_on_one_thread")
def test_attention_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    folder = build_gemma2(tmp_path / "model")
    with pytest.raises(ConfigError, match="is more than a softmax"):
        load_engine("torch-attention", EngineSpec(folder=folder, pad_id=0, task=Attend()))


@pytest.mark.usefixtures("_torch_on_one_thread")
async def test_windows_the_cache_and_deadlines_are_as_for_every_listwise_model(tmp_path: Path) -> None:
    folder = CAUSAL_FAMILIES["qwen3"](tmp_path / "model")
    model = {
        "name": "m",
        "path": folder,
        "scorer": "attention",
        "engine": "torch-attention",
        "options": {"template": "icr-chatml", "window": 4},
    }
    scorer, engine = _loaded(folder, "icr-chatml", window=4)
    (head,) = _scores(scorer, engine, [DOCUMENTS[:4]])
    settings = Settings(registry=write_registry(tmp_path, [model]), cache_url="memory://")
    async with running_service(settings, Silent()) as service:
        await service.model_named("m").settled()
        few = await service.rerank(RerankRequest(query=QUERY, documents=DOCUMENTS[:4]))
        assert [one.index for one in few.results] == np.argsort(-head, kind="stable").tolist()
        request = RerankRequest(query=QUERY, documents=DOCUMENTS)
        late = replace(request, options=ScoreOptions(terms=Terms(deadline=service.clock())))
        with pytest.raises(DeadlineExceeded):
            await service.rerank(late)
        cancelled = asyncio.create_task(service.rerank(request))
        await asyncio.sleep(0)
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        all_of_them = await service.rerank(request)
        again = await service.rerank(request)
        assert again.cached == len(DOCUMENTS)
        assert [one.index for one in again.results] == [one.index for one in all_of_them.results]
        # Windows of 4 that move by 2: the first four are read once, the others twice or more often.
        assert all_of_them.tokens > few.tokens * 2
        wide = replace(request, options=ScoreOptions(windows=WindowWishes(window=9)))
        with pytest.raises(InvalidRequest, match="window must be from 2 to 4"):
            await service.rerank(wide)
