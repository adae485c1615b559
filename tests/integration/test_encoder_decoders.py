"""Encoder-decoders in a service: one model chooses the documents that another compares."""

from pathlib import Path

import pytest

from rerankd.config.settings import Settings
from rerankd.domain import RerankRequest
from rerankd.serving.assembly import running_service
from rerankd.telemetry.observer import Silent
from tests.registry_files import write_registry
from tests.tiny_models import CORPUS
from tests.tiny_seq2seq import build_t5

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
