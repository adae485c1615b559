"""Bi-encoders beyond their torch weights: ONNX graphs of several exporters, and cascades."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import numpy as np
import pytest

from rerankd.config.named_models import served_registry
from rerankd.config.settings import Settings
from rerankd.domain import (
    NO_DIVERSITY,
    DiversityPlan,
    DiversityWishes,
    FloatArray,
    RerankRequest,
    RerankResult,
    ScoreOptions,
    Terms,
)
from rerankd.errors import ConfigError, DeadlineExceeded, InvalidRequest
from rerankd.serving.assembly import load_parts, running_service
from rerankd.telemetry.observer import Silent
from rerankd.tools.evaluation.in_process import InProcess
from tests.registry_files import write_registry
from tests.tiny_models import CORPUS, TINY_BERT
from tests.tiny_vectors import bi_encoder, bi_encoder_scores, bi_encoder_vectors

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("_torch_on_one_thread")]

_QUERY: Final = "Where is the capital of Austria?"
_DOCUMENTS: Final = ["y", *CORPUS[:3], CORPUS[7], " ".join(CORPUS[:4])]
_POOLINGS: Final = ["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    prompts = {"query": "what answers: ", "document": "a text: "}
    return bi_encoder(tmp_path_factory.mktemp("vectors"), pooling=_POOLINGS, include_prompt=False, prompts=prompts)


@pytest.fixture(scope="module")
def exported(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with a graph that gives the tokens' vectors."""
    target = tmp_path_factory.mktemp("exported") / "model"
    target.mkdir()
    for path in folder.rglob("*"):
        if path.is_file() and path.name != "model.safetensors":
            (target / path.relative_to(folder)).parent.mkdir(exist_ok=True)
            (target / path.relative_to(folder)).write_bytes(path.read_bytes())
    (target / "onnx").mkdir()
    _export(folder, target / "onnx" / "model.onnx")
    return target


def _export(folder: Path, path: Path) -> None:
    import onnx  # noqa: PLC0415 - only slow tests have it
    import torch  # noqa: PLC0415
    from transformers import AutoModel  # noqa: PLC0415

    from rerankd.tools.torch_graphs import classifier_graph  # noqa: PLC0415

    class Tokens(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = AutoModel.from_pretrained(folder, attn_implementation="eager")
            self.config = self.model.config

        def forward(self, **inputs: torch.Tensor) -> SimpleNamespace:
            return SimpleNamespace(logits=self.model(**inputs).last_hidden_state)

    model: Any = Tokens()
    graph = classifier_graph(model)
    graph.graph.output[0].name = "last_hidden_state"
    for node in graph.graph.node:
        node.output[:] = ["last_hidden_state" if name == "logits" else name for name in node.output]
    onnx.save(graph, path)


async def _scores(model: Path, **entry: Any) -> FloatArray:
    registry = write_registry(model.parent, [{"name": "m", "path": model, "scorer": "auto", "engine": "auto", **entry}])
    async with running_service(Settings(registry=registry), Silent()) as service:
        await service.model_named("m").settled()
        result = await service.rerank(RerankRequest(query=_QUERY, documents=_DOCUMENTS))
        return np.array([one.value for one in sorted(result.results, key=lambda one: one.index)], dtype=np.float32)


async def test_a_graph_of_tokens_is_pooled_as_sentence_transformers_pools(folder: Path, exported: Path) -> None:
    expected = bi_encoder_scores(folder, _QUERY, _DOCUMENTS)
    scores = await _scores(exported)
    assert np.abs(scores - expected).max() < 1e-5
    assert np.ptp(expected) > 0.01


async def test_halves_keep_the_order_and_move_scores_a_little(folder: Path) -> None:
    expected = bi_encoder_scores(folder, _QUERY, _DOCUMENTS)
    scores = await _scores(folder, options={"stored": "float16"})
    assert 0 < np.abs(scores - expected).max() < 1e-3


def test_a_graph_without_the_layers_behind_its_pooling_is_refused(exported: Path) -> None:
    chain = json.loads((exported / "modules.json").read_text())
    dense = {"in_features": 192, "out_features": 8, "activation_function": "torch.nn.modules.linear.Identity"}
    (exported / "9_Dense").mkdir()
    (exported / "9_Dense" / "config.json").write_text(json.dumps(dense))
    (exported / "modules.json").write_text(json.dumps([*chain, {"type": "a.Dense", "path": "9_Dense"}]))
    settings = Settings(model=(str(exported),))
    with pytest.raises(ConfigError, match=r"layers behind its pooling.*torch-encoder"):
        load_parts(served_registry(settings).model[0], settings)


async def test_the_best_by_vectors_are_read_again_by_a_cross_encoder(folder: Path, tmp_path: Path) -> None:
    models: list[dict[str, Any]] = [
        {"name": "vectors", "path": folder, "scorer": "auto", "engine": "auto"},
        {"name": "pairs", "path": TINY_BERT, "engine": "onnx"},
        {"name": "both", "stages": ["vectors", "pairs:2"]},
    ]
    settings = Settings(registry=write_registry(tmp_path, models))
    async with running_service(settings, Silent()) as service:
        await service.model_named("both").settled()
        orders = {}
        for name in ("vectors", "pairs", "both"):
            result = await service.rerank(RerankRequest(query=_QUERY, documents=_DOCUMENTS, model=name))
            orders[name] = [(one.index, one.placed_by) for one in result.results]
    # `rerankd eval` measures the cascade, and none of its members.
    target = InProcess(settings, "both")
    assert target.name == "both"
    assert len((await target.identity())["content"]) == 3
    async with target.opened() as ask:
        answer = await ask(RerankRequest(query=_QUERY, documents=_DOCUMENTS))
    assert answer.order == [index for index, _ in orders["both"]]
    by_vectors, by_pairs = ([index for index, _ in orders[name]] for name in ("vectors", "pairs"))
    first_two = sorted(by_vectors[:2], key=by_pairs.index)
    assert orders["both"] == [(index, "pairs") for index in first_two] + [
        (index, "vectors") for index in by_vectors[2:]
    ]


async def test_orders_are_diverse_by_a_models_own_vectors_or_anothers(folder: Path, tmp_path: Path) -> None:
    diversity: dict[str, Any] = {"weight": 0.5, "depth": 4}
    entries: list[dict[str, Any]] = [
        {"name": "own", "path": folder, "scorer": "auto", "engine": "auto", "diversity": diversity},
        {"name": "pairs", "path": TINY_BERT, "diversity_model": "own"},
        {"name": "both", "stages": ["own", "pairs:4"], "diversity": diversity, "diversity_model": "own"},
        {"name": "wrong", "path": TINY_BERT, "diversity_model": "pairs"},
    ]
    plan = DiversityPlan(**diversity)
    settings = Settings(registry=write_registry(tmp_path, entries), cache_url="memory://")
    vectors = bi_encoder_vectors(folder, _DOCUMENTS)
    async with running_service(settings, Silent()) as service:
        for name in ("own", "pairs", "both", "wrong"):
            await service.model_named(name).settled()

        async def asked(name: str, **wishes: Any) -> RerankResult:
            options = ScoreOptions(**wishes)
            return await service.rerank(RerankRequest(query=_QUERY, documents=_DOCUMENTS, model=name, options=options))

        for name in ("own", "pairs", "both"):
            plain = await asked(name, diversity=NO_DIVERSITY)
            merits = plain.scores.values
            ranked = np.argsort(-merits, kind="stable")
            best = np.sort(ranked[:4])
            marginal = plan.marginal_relevance(merits[best], vectors[best])
            expected = [*best[np.argsort(-marginal, kind="stable")], *ranked[4:]]
            result = await asked(name, diversity=DiversityWishes(weight=0.5, depth=4))
            assert [one.index for one in result.results] == expected
            assert [one.value for one in result.results] == [merits[index] for index in expected]
            assert result.tokens > plain.tokens
        without = await asked("own")
        assert [one.index for one in without.results] == [
            one.index for one in (await asked("own", diversity=DiversityWishes(weight=0.5))).results
        ]
        with pytest.raises(InvalidRequest, match="the model 'pairs', which diversity_model names, gives documents no"):
            await asked("wrong", diversity=DiversityWishes())
        unknown = RerankRequest(query="another", documents=["a new text", "and one more"], model="pairs")
        late = ScoreOptions(diversity=DiversityWishes(), terms=Terms(deadline=0.0))
        with pytest.raises(DeadlineExceeded):
            await service.rerank(replace(unknown, options=late))


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"path": TINY_BERT, "diversity": {"weight": 0.3}}, "has no vectors of documents; set diversity_model"),
        ({"path": TINY_BERT, "diversity_model": "x"}, "diversity_model of 'm': no model has the name or alias 'x'"),
        ({"stages": ["m"], "diversity": {"weight": 0.3}}, "a cascade has no vectors of documents; set diversity_model"),
    ],
)
def test_diversity_without_vectors_is_refused_when_it_is_configured(
    entry: dict[str, Any], message: str, tmp_path: Path
) -> None:
    settings = Settings(registry=write_registry(tmp_path, [{"name": "m", **entry}]))
    with pytest.raises(ConfigError, match=message):
        load_parts(served_registry(settings).model[0], settings)
