"""Every method behind the same service: what it asks for 100 documents, as docs/evaluation.md says, and what becomes of
a request that is repeated, late or cancelled in the middle of its work.

Tiny random models and a scripted endpoint. Each method's scores are compared with their oracle elsewhere.
"""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any, Final

import pytest

from loadtest.methods import Trips
from rerankd.batching.batcher import BatcherReservation
from rerankd.batching.ticket import Outcome, Ticket
from rerankd.batching.work import WorkItem
from rerankd.config.settings import Settings
from rerankd.domain import RerankRequest
from rerankd.errors import DeadlineExceeded
from rerankd.serving.assembly import running_service
from rerankd.serving.service import RerankService
from rerankd.telemetry.observer import Silent
from tests.endpoint_server import Script, serving_endpoint
from tests.integration.test_poisoned_folders import build_qwen3_classifier
from tests.registry_files import write_registry
from tests.tiny_causal import CAUSAL_FAMILIES, build_jina_v3, build_rank1
from tests.tiny_models import TINY_BERT, build_provence
from tests.tiny_seq2seq import build_t5
from tests.tiny_vectors import bi_encoder, multi_vector, sparse_encoder

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120), pytest.mark.usefixtures("_torch_on_one_thread")]

PAGE: Final = Path(__file__).resolve().parents[2] / "docs" / "evaluation.md"
QUERY: Final = "which number is the largest?"
HUNDRED: Final = [f"number {number * 37 % 101}" for number in range(1, 101)]
CPU: Final = {"engine_options": {"device": "cpu"}}


@dataclass(frozen=True)
class Method:
    """An entry of a registry. `build` makes its model's folder, and methods of one `model` share it; without one, the
    answers of the scripted endpoint are the model.
    """

    entry: Mapping[str, Any]
    model: str = ""
    build: Callable[[Path], object] | None = None
    depth: int = 100


def qwen3(scorer: str, engine: str = "torch-causal", **options: Any) -> Method:
    entry = {"scorer": scorer, "engine": engine, "options": options, **CPU}
    return Method(entry, "qwen3", CAUSAL_FAMILIES["qwen3"])


def vectors(model: str, build: Callable[[Path], object]) -> Method:
    return Method({"scorer": "auto", "engine": "auto", **CPU}, model, build)


def chat(scorer: str, template: str, **options: Any) -> Method:
    return Method({"path": ".", "scorer": scorer, "engine": "endpoint", "options": {"template": template, **options}})


def compared(schedule: str, depth: int, **options: Any) -> Method:
    """The model always names the larger number."""
    return replace(chat("generative", "setwise-chat", schedule=schedule, depth=depth, **options), depth=depth)


METHODS: Final[Mapping[str, Method]] = {
    "cross-encoder": Method({"scorer": "cross-encoder", "path": TINY_BERT}),
    "pruning": Method({"scorer": "auto", "engine": "auto", **CPU}, "provence", build_provence),
    "prompted-classifier": Method(
        {
            "scorer": "prompted-classifier",
            "engine": "torch-encoder",
            "options": {"template": "ours"},
            **CPU,
        },
        "classifier",
        build_qwen3_classifier,
    ),
    "yes-no": qwen3("yes-no", template="qwen3-reranker"),
    "yes-no, ratings": qwen3("yes-no", template="qwen3-reranker", ratings={"0": 0, "1": 1, "2": 2}),
    "reasoning": Method(
        {
            "scorer": "reasoning",
            "engine": "torch-generate",
            "options": {"template": "rank1", "answer_tokens": 2},
            "max_length": 512,
            **CPU,
        },
        "rank1",
        build_rank1,
    ),
    "graded, 1 sample": chat("graded", "retro-star-chat", samples=1),
    "graded, 4 samples": chat("graded", "retro-star-chat", samples=4),
    "groupwise": chat("groupwise", "group-rank-chat"),
    "bi-encoder": vectors("bi-encoder", bi_encoder),
    "late-interaction": vectors("late-interaction", multi_vector),
    "splade": vectors("splade", partial(sparse_encoder, pooling={})),
    "listwise-embedding": Method(
        {"scorer": "listwise-embedding", "engine": "torch-encoder", **CPU}, "qwen3", CAUSAL_FAMILIES["qwen3"]
    ),
    "last-but-not-late": vectors("jina-v3", build_jina_v3),
    "first, sliding": qwen3("first", template="first-qwen3", window=20, stride=10),
    "first, tournament": qwen3("first", template="first-qwen3", window=20, stride=10, schedule="tournament"),
    "attention": qwen3("attention", "torch-attention", template="icr-chatml", window=100),
    "generative, sliding": chat("generative", "rankgpt", window=20, stride=10),
    "pairwise (duoT5), 8 documents": Method(
        {
            "scorer": "pairwise",
            "engine": "torch-seq2seq",
            "options": {"template": "duot5", "depth": 8},
            **CPU,
        },
        "t5",
        build_t5,
        depth=8,
    ),
    "setwise, 20 in a prompt": compared("setwise", 100, window=20),
    "single-elimination, 8 documents": compared("single-elimination", 8),
    "swiss, 8 documents": compared("swiss", 8),
    "prp, 8 documents": compared("prp", 8),
    "prp-sorting, 8 documents": compared("prp-sorting", 8, settle=3),
    "prp-sliding, 8 documents": compared("prp-sliding", 8, settle=3),
    "tsp, 8 documents": compared("tsp", 8),
}


def numbers_in(prompt: str) -> list[tuple[str, int]]:
    """What a prompt shows: identifiers and numbers."""
    return [(name, int(number)) for name, number in re.findall(r"\[(\d+)\]:?\.? \"?number (\d+)", prompt)]


def answer(body: dict[str, Any]) -> dict[str, Any]:
    """As a model that is always right answers, whichever of the templates asks."""
    prompt = body["messages"][-1]["content"]
    shown = sorted(numbers_in(prompt), key=lambda one: -one[1])
    if "JSON" in "".join(message["content"] for message in body["messages"]):
        text = "<answer>" + json.dumps({f"[{name}]": number // 11 for name, number in shown}) + "</answer>"
    elif shown:
        text = " > ".join(f"[{name}]" for name, _ in shown)
        text = text if "rank" in prompt.lower() and len(shown) > 2 else f"<answer>[{shown[0][0]}]</answer>"
    else:
        number = int(re.findall(r"number (\d+)", prompt)[-1])
        text = f"<score>{number}</score> <answer>{number // 11}</answer>"
    choices = [{"message": {"content": text}}] * body.get("n", 1)
    return {"choices": choices, "usage": {"completion_tokens": 5}}


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with serving_endpoint(Script([], respond=answer)) as url:
        yield url


@asynccontextmanager
async def serving(
    method: Method, folder: Path, endpoint: str, built: Callable[..., Path]
) -> AsyncIterator[RerankService]:
    entry = {"name": "m", **method.entry}
    if method.build is not None:
        entry["path"] = built(f"method-{method.model}", method.build)
    if entry.get("engine") == "endpoint":
        entry |= {"engine_options": {"url": endpoint, "model": "chat"}, "workers": 8}
    (folder / "templates").mkdir()
    (folder / "templates" / "ours.toml").write_text(
        'method = "prompted-classifier"\nprompt = ["{query}", " {document}"]\n'
    )
    settings = Settings(registry=write_registry(folder, [entry]), cache_url="memory://")
    async with running_service(settings, Silent()) as service:
        await service.model_named("m").settled()
        yield service


def request(documents: list[str]) -> RerankRequest:
    return RerankRequest(query=QUERY, documents=documents)


def documented() -> dict[str, tuple[int, int]]:
    """Prompts and rounds of each method for 100 documents, as the page has them."""
    rows = re.findall(r"^\| ([^|]+) \| (\d+) \| (\d+) \| [a-z][^|]*\| [^|]*\|$", PAGE.read_text(), re.MULTILINE)
    return {name.replace("`", ""): (int(calls), int(rounds)) for name, calls, rounds in rows}


def test_the_page_has_every_method() -> None:
    assert list(documented()) == list(METHODS)


@pytest.mark.parametrize("name", METHODS)
async def test_a_hundred_documents_ask_what_the_page_says_and_again_nothing(
    name: str, tmp_path: Path, endpoint: str, built: Callable[..., Path]
) -> None:
    method, trips, again = METHODS[name], Trips(), Trips()
    async with serving(method, tmp_path, endpoint, built) as service:
        with trips.counted():
            first = await service.rerank(request(HUNDRED))
        with again.counted():
            second = await service.rerank(request(HUNDRED))
    assert sorted(one.index for one in first.results) == list(range(100))
    assert first.tokens == second.tokens > 0
    assert again.calls == 0
    assert second.results == first.results
    assert documented()[name] == (trips.calls, trips.rounds)


@contextmanager
def trips_until(
    at: int, then: Callable[[Ticket[Any, Any]], Awaitable[None]], monkeypatch: pytest.MonkeyPatch
) -> Iterator[list[int]]:
    """The trips of this task to the engine, by size; `then` comes before the one of the number `at`, from 1."""
    made: list[int] = []
    original = Ticket.run
    counting = ContextVar("counting", default=False)
    counting.set(True)

    async def run(ticket: Ticket[Any, Any], items: list[WorkItem[Any]]) -> Outcome[Any]:
        if not counting.get():
            return await original(ticket, items)
        made.append(len(items))
        if len(made) == at:
            await then(ticket)
        return await original(ticket, items)

    with monkeypatch.context() as patched:
        patched.setattr(Ticket, "run", run)
        yield made


async def come_due(ticket: Ticket[Any, Any]) -> None:
    reservation = ticket._reservation
    assert isinstance(reservation, BatcherReservation)
    reservation._terms = replace(reservation._terms, deadline=perf_counter())


@pytest.mark.parametrize("name", METHODS)
async def test_a_late_and_a_cancelled_request_ask_no_more_and_the_next_one_is_answered(
    name: str, tmp_path: Path, endpoint: str, built: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    method = METHODS[name]
    documents = HUNDRED[: min(30, method.depth)]
    reached = asyncio.Event()

    async def wait(_ticket: Ticket[Any, Any]) -> None:
        reached.set()
        await asyncio.Event().wait()

    async with serving(method, tmp_path, endpoint, built) as service:
        at = min(2, documented()[name][1])
        with trips_until(at, come_due, monkeypatch) as made:
            with pytest.raises(DeadlineExceeded):
                await service.rerank(request(documents))
            assert len(made) == at
        with trips_until(at, wait, monkeypatch) as made:
            # Nothing of the late request may be known: its query's vector was computed in time.
            others = RerankRequest(query=f"{QUERY} Tell!", documents=[f"{text}." for text in documents])
            asking = asyncio.create_task(service.rerank(others))
            await asyncio.wait_for(reached.wait(), 60)
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
            assert len(made) == at
        result = await service.rerank(request(documents))
        assert sorted(one.index for one in result.results) == list(range(len(documents)))
