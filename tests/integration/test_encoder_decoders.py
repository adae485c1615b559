"""Encoder-decoders in a service: one model chooses the documents that another compares."""

import json
from pathlib import Path

import numpy as np
import pytest

from rerankd.config.settings import Settings
from rerankd.domain import RerankRequest
from rerankd.engines import load_engine
from rerankd.engines.base import EngineSpec
from rerankd.errors import ConfigError
from rerankd.serving.assembly import running_service
from rerankd.tasks.encoding import Encoding
from rerankd.tasks.read_tokens import ReadTokens
from rerankd.telemetry.observer import Silent
from tests.registry_files import write_registry
from tests.tiny_models import CORPUS
from tests.tiny_seq2seq import build_t5, build_untied_t5

pytestmark = pytest.mark.slow

QUERY = "Where is the capital of Austria?"


@pytest.mark.usefixtures("_torch_on_one_thread")
async def test_duot5_reorders_the_best_of_monot5(tmp_path: Path) -> None:
    engine = {"engine": "torch-seq2seq", "engine_options": {"device": "cpu"}}
    mono, duo = build_t5(tmp_path / "mono"), build_t5(tmp_path / "duo", initializer_factor=2.0)
    registry = write_registry(
        tmp_path,
        [
            {"name": "mono", "path": mono, "scorer": "yes-no", "options": {"template": "monot5"}, **engine},
            {"name": "duo", "path": duo, "scorer": "pairwise", "options": {"template": "duot5", "depth": 4}, **engine},
            {"name": "mono-duo", "stages": ["mono", "duo:4"]},
        ],
    )
    async with running_service(Settings(registry=registry), Silent()) as service:
        for name in ("mono", "duo", "mono-duo"):
            await service.model_named(name).settled()

        async def order(model: str, documents: list[str]) -> list[str]:
            result = await service.rerank(RerankRequest(model=model, query=QUERY, documents=documents))
            return [documents[one.index] for one in result.results]

        chosen = await order("mono", list(CORPUS))
        expected = [*await order("duo", chosen[:4]), *chosen[4:]]
        assert await order("mono-duo", list(CORPUS)) == expected != chosen


def test_a_head_that_is_not_there_is_not_replaced_by_the_embeddings(tmp_path: Path) -> None:
    config = json.loads((build_t5(tmp_path) / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
    with pytest.raises(ConfigError, match=r"lack lm_head\.weight, and config\.json says tie_word_embeddings = false"):
        load_engine("torch-seq2seq", EngineSpec(folder=tmp_path, pad_id=0, task=ReadTokens((1, 2))))


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
@pytest.mark.usefixtures("_torch_on_one_thread")
def test_the_first_step_is_that_of_the_whole_decoder(tmp_path: Path, precision: str) -> None:
    import torch  # noqa: PLC0415 - only slow tests have torch
    from transformers import T5ForConditionalGeneration  # noqa: PLC0415 - as above

    folder, tokens = build_untied_t5(tmp_path), (5, 9, 40)
    options = {"device": "cpu", "precision": precision}
    engine = load_engine("torch-seq2seq", EngineSpec(folder=folder, pad_id=0, task=ReadTokens(tokens), options=options))
    generator = np.random.default_rng(0)
    encodings = [Encoding(generator.integers(3, 200, length), 0) for length in (3, 40, 90, 17)]
    model = T5ForConditionalGeneration.from_pretrained(folder, dtype=getattr(torch, precision)).eval()
    start = torch.zeros((1, 1), dtype=torch.long)
    with torch.inference_mode():
        expected = [
            model(input_ids=torch.from_numpy(one.ids)[None], decoder_input_ids=start).logits[0, 0, list(tokens)]
            for one in encodings
        ]
    wanted = torch.stack(expected).float().numpy()
    tolerance = {"float32": 1e-5, "bfloat16": 0.03, "float16": 0.01}[precision] * float(np.abs(wanted).max())
    np.testing.assert_allclose(engine.run(encodings), wanted, atol=tolerance)
