"""Scores over HTTP are those of sentence-transformers' CrossEncoder on the same float32 weights, whatever else is asked
at the same time.
"""

import asyncio
import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from shutil import copytree
from typing import Any

import httpx
import numpy as np
import pytest

from rerankd.domain import FloatArray
from tests.registry_files import write_registry
from tests.servers import Server, rerankd_server, wait_until_ready
from tests.tiny_models import CORPUS, FAMILIES

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

TOLERANCE = 1e-4
WORDS = " ".join(CORPUS).split()
QUERIES = (
    "what is the capital of france",
    "who wrote Hamlet?",
    "größte Stadt Österreichs",
    "how do vaccines work",
    "x",
)


@dataclass(frozen=True)
class Request:
    model: str
    query: str
    documents: Sequence[str]


@pytest.fixture(scope="module")
def logits_folder(tmp_path_factory: pytest.TempPathFactory, torch_folder: Callable[[str], Path]) -> Path:
    """A BERT whose config says that its scores are the logits themselves, as many rerankers of MS MARCO do."""
    folder = tmp_path_factory.mktemp("parity") / "logits"
    copytree(torch_folder("bert"), folder)
    config = json.loads((folder / "config.json").read_text())
    config["sentence_transformers"] = {"activation_fn": "torch.nn.modules.linear.Identity", "version": "4.0.1"}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory,
    torch_folder: Callable[[str], Path],
    onnx_folder: Callable[[str], Path],
    logits_folder: Path,
) -> Iterator[Server]:
    """A real service with every family on both engines, all of them batching at once, and no cache in between."""
    folder = tmp_path_factory.mktemp("parity")
    models: list[dict[str, Any]] = [{"name": "logits-torch", "path": logits_folder, "engine": "torch-encoder"}]
    for family in FAMILIES:
        models += [
            {"name": f"{family}-onnx", "path": onnx_folder(family), "engine_options": {"file": "model.onnx"}},
            {"name": f"{family}-torch", "path": torch_folder(family), "engine": "torch-encoder"},
        ]
    with rerankd_server(folder, write_registry(folder, models), RERANKD_CACHE_URL="none://") as running:
        wait_until_ready(running)
        yield running


@pytest.fixture(scope="module")
def predict(torch_folder: Callable[[str], Path], logits_folder: Path) -> Callable[[Request], FloatArray]:
    """sentence-transformers' own scores, its activation applied."""
    from sentence_transformers import CrossEncoder  # noqa: PLC0415 - imports torch

    folders = {family: torch_folder(family) for family in FAMILIES} | {"logits": logits_folder}
    encoders = {name: CrossEncoder(str(folder), device="cpu") for name, folder in folders.items()}

    def scores(request: Request) -> FloatArray:
        encoder = encoders[request.model.split("-")[0]]
        pairs = [(request.query, document) for document in request.documents]
        return np.asarray(encoder.predict(pairs, show_progress_bar=False), dtype=np.float32)

    return scores


def random_request(dice: random.Random, *, models: Sequence[str]) -> Request:
    """Documents from one word to far more than a model reads; some twice."""
    lengths = [min(400, int(dice.paretovariate(0.6))) for _ in range(dice.choice([1, 2, 5, 17, 40]))]
    documents = [" ".join(dice.choices(WORDS, k=length)) for length in lengths]
    documents += dice.choices(documents, k=len(documents) // 5)
    return Request(dice.choice(models), dice.choice(QUERIES), documents)


async def ask(client: httpx.AsyncClient, request: Request) -> FloatArray:
    """Relevance scores in the order of the documents."""
    body = {"model": request.model, "query": request.query, "documents": list(request.documents)}
    answer = await client.post("/v2/rerank", json=body)
    assert answer.status_code == 200, answer.text
    scores = np.full(len(request.documents), np.nan, dtype=np.float32)
    for result in answer.json()["results"]:
        scores[result["index"]] = result["relevance_score"]
    return scores


async def ask_all(server: Server, requests: Sequence[Request]) -> list[FloatArray]:
    async with httpx.AsyncClient(base_url=server.url, timeout=120, trust_env=False) as client:
        return await asyncio.gather(*(ask(client, request) for request in requests))


@pytest.mark.parametrize("engine", ["onnx", "torch"])
@pytest.mark.parametrize("family", list(FAMILIES))
async def test_each_family_on_each_engine_scores_as_sentence_transformers_does(
    server: Server, predict: Callable[[Request], FloatArray], family: str, engine: str
) -> None:
    request = Request(f"{family}-{engine}", QUERIES[0], [*CORPUS, " ".join(CORPUS), "y"])
    [scores] = await ask_all(server, [request])
    expected = predict(request)
    assert np.ptp(expected) > 0.05
    np.testing.assert_allclose(scores, expected, atol=TOLERANCE)


async def test_the_activation_that_the_model_names_is_applied(
    server: Server, predict: Callable[[Request], FloatArray]
) -> None:
    request = Request("logits-torch", QUERIES[0], list(CORPUS))
    [scores] = await ask_all(server, [request])
    assert scores.max() < 0
    np.testing.assert_allclose(scores, predict(request), atol=TOLERANCE)


@pytest.mark.parametrize("seed", range(4))
async def test_shuffled_concurrent_requests_score_as_sentence_transformers_does(
    server: Server, predict: Callable[[Request], FloatArray], seed: int
) -> None:
    dice = random.Random(seed)
    models = [f"{family}-{engine}" for family in FAMILIES for engine in ("onnx", "torch")]
    requests = [random_request(dice, models=models) for _ in range(40)]
    requests += dice.sample(requests, k=8)
    dice.shuffle(requests)
    for request, scores in zip(requests, await ask_all(server, requests), strict=True):
        np.testing.assert_allclose(scores, predict(request), atol=TOLERANCE, err_msg=request.model)


async def test_results_come_in_the_order_of_sentence_transformers_rank(
    server: Server, predict: Callable[[Request], FloatArray]
) -> None:
    request = Request("bert-onnx", QUERIES[1], list(CORPUS))
    expected = predict(request)
    async with httpx.AsyncClient(base_url=server.url, timeout=60, trust_env=False) as client:
        body = {"model": request.model, "query": request.query, "documents": list(request.documents)}
        results = (await client.post("/v2/rerank", json=body)).json()["results"]
    assert [result["index"] for result in results] == np.argsort(-expected, kind="stable").tolist()
