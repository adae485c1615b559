"""The table of all methods: what it serves is servable, and what it counts is what a request asks."""

from pathlib import Path

import pytest

from loadtest.methods import Row, line, measured, registry, rows
from rerankd.config.named_models import served_registry
from rerankd.config.settings import Settings
from rerankd.errors import ConfigError
from rerankd.serving.assembly import check_parts, running_service
from rerankd.telemetry.observer import Silent
from rerankd.tools.evaluation.datasets import DataSet, Question
from tests.tokenizer_folders import tokenizer_folder

_TEXTS = {"a": "Bees make honey.", "b": "The sea is deep.", "c": "Honey is sweet."}
_DATA = DataSet(
    name="own",
    questions=[Question("q", "who makes honey?", ["b", "c", "a"], {"a": 1, "b": 0, "c": 0}, (3.0, 2.0, 1.0))],
    texts=_TEXTS,
    candidates="own",
    judgements="own",
    unjudged=0,
)


def test_every_entry_suits_a_chat_model(tmp_path: Path) -> None:
    folder = tokenizer_folder(tmp_path / "model", "qwen3", max_length=4096)
    (tmp_path / "registry").mkdir()
    settings = Settings(registry=registry(tmp_path / "registry", folder))
    entries = [spec for spec in served_registry(settings).model if spec.name != "shipped"]
    assert len(entries) == 12
    for spec in entries:
        with pytest.raises(ConfigError, match="safetensors"):
            check_parts(spec, folder, settings)


@pytest.mark.slow
async def test_a_row_counts_what_a_request_asks(tmp_path: Path) -> None:
    settings = Settings(registry=registry(tmp_path, None), cache_url="none://")
    async with running_service(settings, Silent(), only=["shipped"]) as service:
        await service.model_named("shipped").settled()
        row = await measured(service, _DATA, "shipped", "ours")
    assert (row.method, row.ndcg, row.calls, row.rounds) == ("ours", 1.0, 3, 1)
    assert row.tokens > 3 * 8
    first, ours, fused = await rows(_DATA, settings, [])
    assert (first.ndcg, first.calls) == (0.5, 0)
    assert (ours.ndcg, fused.calls) == (1.0, 3)
    assert line(Row("m", 0.5, 10, 12345.4, 1, 0.123)) == "| m | 0.500 | 10 | 12,345 | 1.0 | 0.12 |"
