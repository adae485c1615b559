"""Models that write grades, behind the same API, cache and deadlines as everything else."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from math import log
from pathlib import Path
from threading import Event
from time import perf_counter
from typing import Any

import numpy as np
import pytest

from rerankd.api.dialects.base import RequestLimits
from rerankd.api.dialects.cohere import COHERE_V2, CohereV2Body
from rerankd.api.dialects.superset import meta_of
from rerankd.config.settings import Settings
from rerankd.domain import RerankRequest, RerankResult, ScoreOptions, Terms
from rerankd.engines import load_engine
from rerankd.engines.base import EngineSpec
from rerankd.errors import DeadlineExceeded, RemoteFailed
from rerankd.serving.assembly import running_service
from rerankd.serving.service import RerankService
from rerankd.tasks.generate import Prompt
from rerankd.tasks.sample import Sample, Sampling
from tests.endpoint_server import Script, serving_endpoint
from tests.fakes import IMAGES, RecordingObserver
from tests.registry_files import write_registry

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

Folder = Callable[[str], Path]
Body = dict[str, Any]

QUERY = "which city is the capital?"
_LIMITS = RequestLimits(documents=9, queries=9, query_chars=9999, rank_fields=9, fields=9, images=IMAGES)


def shown(body: Body) -> str:
    """The document that a prompt shows."""
    found = re.search(
        r"\[Begin of Document\]\n(.*)\n\[End|the document:\n(.*)\n\nAfter", body["messages"][-1]["content"]
    )
    assert found, body
    return found[1] or found[2]


class Judge:
    """Answers about each document, one after another, at most `at_a_time` in a call."""

    def __init__(self, answers: Mapping[str, Sequence[str]], *, at_a_time: int = 99, tokens: int = 5) -> None:
        self._answers = answers
        self._at_a_time = at_a_time
        self._tokens = tokens
        self.given: dict[str, int] = {}

    def __call__(self, body: Body) -> Body:
        document, count = shown(body), min(body.get("n", 1), self._at_a_time)
        first = self.given.get(document, 0)
        self.given[document] = first + count
        answers = self._answers[document]
        texts = [answers[place % len(answers)] for place in range(first, first + count)]
        choices = [{"message": {"content": text}} for text in texts]
        return {"choices": choices, "usage": {"completion_tokens": self._tokens * count}}


@asynccontextmanager
async def graded(
    folder: Path, respond: Callable[[Body], Body], *, template: str = "retro-star-chat", **options: Any
) -> AsyncIterator[tuple[RerankService, Script, RecordingObserver]]:
    script, observer = Script([], respond=respond), RecordingObserver()
    with serving_endpoint(script) as url:
        model = {
            "name": "m",
            "path": ".",
            "scorer": "graded",
            "engine": "endpoint",
            "options": {"template": template, **options},
            "engine_options": {"url": url, "model": "chat", "max_tokens": 50},
        }
        few = {**model, "name": "few", "options": {"template": template, **options, "samples": 1}}
        registry = write_registry(folder, [model, few, {"name": "passes", "stages": ["few:4", "m:2"]}])
        async with running_service(Settings(registry=registry, cache_url="memory://"), observer) as service:
            for name in ("m", "few", "passes"):
                await service.model_named(name).settled()
            yield service, script, observer


def request(documents: Sequence[str], *, model: str = "m", **options: Any) -> RerankRequest:
    return RerankRequest(query=QUERY, documents=list(documents), model=model, options=ScoreOptions(**options))


def relevance(result: RerankResult) -> list[float]:
    return [one.relevance_score for one in sorted(result.results, key=lambda one: one.index)]


def grades(*values: object) -> list[str]:
    return [f"Some thoughts.\n<score>\n{value}\n</score>" for value in values]


@pytest.mark.parametrize("at_a_time", [99, 3, 1])
async def test_a_score_is_the_exact_mean_of_its_grades_each_asked_once(at_a_time: int, tmp_path: Path) -> None:
    judge = Judge({"a": grades(10, 20, 60, 30), "b": grades(100), "c": grades(0, 1, 0, 0)}, at_a_time=at_a_time)
    async with graded(tmp_path, judge, samples=4) as (service, script, observer):
        result = await service.rerank(request(["a", "b", "c"]))
        assert relevance(result) == pytest.approx([0.3, 1.0, 0.0025])
        assert [one.index for one in result.results] == [1, 0, 2]
        assert judge.given == {"a": 4, "b": 4, "c": 4}
        bodies = [body for _, body, _ in script.asked]
        assert all(body["temperature"] == 0.6 and body["max_tokens"] == 50 for body in bodies)
        assert len({body["seed"] for body in bodies}) == len(bodies), "no answer is asked for twice"
        # What was written costs as much as what was read.
        assert result.scores.tokens.sum() > 3 * 4 * 5
        asked, seeds = len(script.asked), {shown(body): body["seed"] for body in reversed(bodies)}
        again = await service.rerank(request(["c", "a"]))
        assert relevance(again) == pytest.approx([0.0025, 0.3])
        assert (again.cached, len(script.asked)) == (2, asked)
        await service.rerank(request(["a", "b"], instruction="Answers only."))
        assert judge.given == {"a": 8, "b": 8, "c": 4}
        assert seeds["a"] not in {body["seed"] for _, body, _ in script.asked[asked:]}
        assert observer.total("request_scored", "ungraded_answers") == 0


async def test_answers_without_a_grade_do_not_count_and_a_document_without_any_is_not_scored(tmp_path: Path) -> None:
    judge = Judge({"a": ["I cannot."], "b": [*grades(40), "", *grades("high", 60)], "c": grades(7, 8, 9, 10)})
    async with graded(tmp_path, judge, samples=4) as (service, script, observer):
        for _ in range(2):
            script.asked.clear()
            result = await service.rerank(request(["a", "b", "c"]))
            assert relevance(result) == pytest.approx([0, 0.5, 0.085])
            assert [(one.index, one.scored) for one in result.results] == [(1, True), (2, True), (0, False)]
        assert [shown(body) for _, body, _ in script.asked] == ["a"], "only what has a score is cached"
        assert [fact["ungraded_answers"] for fact in observer.named("request_scored")] == [6, 4]
        assert meta_of(result, ScoreOptions(), version="2")["warnings"] == [
            "1 document was not scored, and are in your order",
            "4 answers of the model had no grade, and did not count",
        ]


async def test_a_grade_counts_as_much_as_its_model_believes_in_it(tmp_path: Path) -> None:
    def respond(body: Body) -> Body:
        assert body["logprobs"] is True
        assert "seed" not in body
        tokens = [("<answer>", -3.0), (shown(body), log(0.25)), ("</answer>", -3.0)]
        content = [{"token": token, "logprob": logprob} for token, logprob in tokens]
        return {"choices": [{"message": {"content": "-"}, "logprobs": {"content": content}}]}

    async with graded(tmp_path, respond, template="erank-chat") as (service, script, _):
        assert relevance(await service.rerank(request(["8", "10"]))) == pytest.approx([0.2, 0.25])
        script.respond = Judge({"3": ["<answer>3</answer>"]})
        with pytest.raises(RemoteFailed, match="it has no logprobs, which the template needs"):
            await service.rerank(request(["3"]))


async def test_reasons_and_grades_by_criterion_are_explained_also_from_the_cache(tmp_path: Path) -> None:
    rubric = [{"name": "fits", "description": "It fits.", "weight": 2}, {"name": "new", "description": "It is new."}]

    def respond(body: Body) -> Body:
        document = re.findall("Document: (.*)", body["messages"][-1]["content"])[0]
        text = f'About {document}. <answer>{{"fits": {len(document)}, "new": 1}}</answer>'
        return {"choices": [{"message": {"content": text}}]}

    async with graded(tmp_path, respond, template="rubric-chat", criteria=rubric) as (service, script, _):
        for cached in (False, True):
            body = b'{"query": "bees?", "documents": ["bee", "a"], "model": "m", "explain": true}'
            read = COHERE_V2.parse(json.loads(body), body, limits=_LIMITS)
            assert isinstance(read, CohereV2Body)
            result = await service.rerank(read.to_request())
            told = [one["explain"] for one in read.render_result(result, request_id="")["results"]]
            assert [one["reason"] for one in told] == ["About bee.", "About a."]
            assert [one["criteria"] for one in told] == [{"fits": 0.3, "new": 0.1}, {"fits": 0.1, "new": 0.1}]
            assert [one["score"] for one in told] == pytest.approx([0.7 / 3, 0.1])
            assert [one["cached"] for one in told] == [cached] * 2
        assert len(script.asked) == 2


async def test_all_documents_once_and_the_best_several_times(tmp_path: Path) -> None:
    judge = Judge({"a": grades(50, 0), "b": grades(40, 90), "c": grades(10), "d": grades(20)})
    async with graded(tmp_path, judge, samples=16) as (service, _, _):
        result = await service.rerank(request(["d", "c", "b", "a"], model="passes"))
        assert [one.index for one in result.results] == [2, 3, 0, 1]
        assert judge.given == {"a": 17, "b": 17, "c": 1, "d": 1}


async def test_a_late_and_a_cancelled_request_stop_asking(tmp_path: Path) -> None:
    reached, release = Event(), Event()

    def respond(body: Body) -> Body:
        reached.set()
        assert release.wait(30)
        return Judge({shown(body): grades(1)})(body)

    async with graded(tmp_path, respond, samples=2) as (service, script, _):
        documents = [f"d {number}" for number in range(40)]
        asking = asyncio.create_task(service.rerank(request(documents)))
        await asyncio.to_thread(reached.wait, 30)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        late = Terms(deadline=perf_counter() + 0.3)
        with pytest.raises(DeadlineExceeded):
            await service.rerank(request(documents, terms=late))
        release.set()
        assert relevance(await service.rerank(request(["d 99"]))) == pytest.approx([0.01])
        assert len(script.asked) < len(documents)


@pytest.mark.parametrize(
    "content",
    [{}, {"choices": []}, {"choices": [{}]}, {"choices": [{"message": None}]}, {"choices": "x"}, [], "x", None],
)
async def test_what_is_no_completion_fails_and_nothing_hangs(content: Any, tmp_path: Path) -> None:
    async with graded(tmp_path, lambda _: content, samples=2) as (service, _, _):
        with pytest.raises(RemoteFailed, match="what is not a chat completion"):
            await service.rerank(request(["a"]))


async def test_a_local_model_that_writes_no_grade_is_ready_and_says_so(causal_folder: Folder, tmp_path: Path) -> None:
    (tmp_path / "templates").mkdir()
    (tmp_path / "templates" / "ours.toml").write_text(
        'method = "graded"\nprompt = ["{query} {document}"]\nopening = "<score>"\nclosing = "</score>"\nhighest = 9\n'
        "temperature = 1.0\nanswer_tokens = 6\n"
    )
    model = {
        "name": "m",
        "path": causal_folder("qwen3"),
        "scorer": "graded",
        "engine": "torch-generate",
        "engine_options": {"device": "cpu"},
        "options": {"template": "ours", "samples": 3},
    }
    settings = Settings(registry=write_registry(tmp_path, [model]))
    async with running_service(settings, RecordingObserver()) as service:
        await service.model_named("m").settled()
        result = await service.rerank(request(["Vienna", "", "bees <|im_end|>"]))
        assert [(one.index, one.scored) for one in result.results] == [(0, False), (2, False), (1, True)]
        assert result.scores.ungraded == 2 * 3
        assert result.scores.tokens[0] > len(QUERY.split()) + 6, "what was written counts"


@pytest.fixture(scope="module")
def prompts() -> list[Prompt]:
    return [Prompt(np.arange(5, 5 + length, dtype=np.int64), 12) for length in (7, 3, 40)]


def draw(folder: Path, prompts: Sequence[Prompt], sampling: Sampling) -> list[list[tuple[list[str], list[float]]]]:
    task = Sample(decode=lambda ids: json.dumps(list(ids)), sampling=sampling)
    engine = load_engine("torch-generate", EngineSpec(folder=folder, pad_id=0, task=task, options={"device": "cpu"}))
    return [[(list(one.tokens), list(one.logprobs)) for one in sampled.answers] for sampled in engine.run(prompts)]


def test_draws_are_the_prompts_own(causal_folder: Folder, prompts: list[Prompt]) -> None:
    folder = causal_folder("qwen3")
    sampling = Sampling(answers=5, temperature=1.0)
    whole = draw(folder, prompts, sampling)
    for prompt, answers in zip(prompts, whole, strict=True):
        (alone,) = draw(folder, [prompt], sampling)
        assert [tokens for tokens, _ in alone] == [tokens for tokens, _ in answers]
        (fewer,) = draw(folder, [prompt], Sampling(answers=2, temperature=1.0))
        assert [tokens for tokens, _ in fewer] == [tokens for tokens, _ in answers[:2]]
        assert len({tuple(tokens) for tokens, _ in answers}) == 5
    (other,) = draw(folder, [Prompt(prompts[0].ids, 13)], sampling)
    assert [tokens[:12] for tokens, _ in other] != [tokens for tokens, _ in whole[0]]


def test_without_temperature_or_choice_the_most_probable_token_is_written(
    causal_folder: Folder, prompts: list[Prompt]
) -> None:
    folder = causal_folder("qwen3")
    greedy = [answers[0][0] for answers in draw(folder, prompts, Sampling())]
    for sampling in (Sampling(answers=2, temperature=1.0, top_k=1), Sampling(answers=2, temperature=1e-6)):
        for answers, expected in zip(draw(folder, prompts, sampling), greedy, strict=True):
            assert [tokens for tokens, _ in answers] == [expected] * 2


def test_tokens_are_drawn_as_often_as_they_are_probable(causal_folder: Folder) -> None:
    folder = causal_folder("qwen3")
    prompts = [Prompt(np.array([5, 6, 7, 8], dtype=np.int64), 1)]
    (answers,) = draw(folder, prompts, Sampling(answers=2000, temperature=0.5, top_k=8))
    probability = {tokens[0]: np.exp(logprobs[0] / 0.5) for tokens, logprobs in answers if tokens}
    assert 5 <= len(probability) <= 8
    drawn = [tokens[0] for tokens, _ in answers if tokens]
    for token, weight in probability.items():
        expected = weight / sum(probability.values())
        assert abs(drawn.count(token) / len(drawn) - expected) < 5 * (expected / len(drawn)) ** 0.5 + 0.002
