"""Models that grade groups, behind the same API, cache and deadlines as everything else."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from threading import Event, Lock
from time import perf_counter
from typing import Any

import pytest

from rerankd.api.dialects.superset import meta_of
from rerankd.config.settings import Settings
from rerankd.domain import RerankRequest, RerankResult, ScoreOptions, Terms
from rerankd.errors import DeadlineExceeded
from rerankd.serving.assembly import running_service
from rerankd.serving.service import RerankService
from tests.endpoint_server import Script, serving_endpoint
from tests.fakes import RecordingObserver
from tests.registry_files import write_registry

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

Folder = Callable[[str], Path]
Body = dict[str, Any]
TOKENS = 30


def shown(body: Body) -> list[str]:
    """The documents that a prompt shows."""
    return re.findall(r"^\[\d+\]\. (.*)$", body["messages"][-1]["content"], re.MULTILINE)


def grading(grade: Callable[[str], object]) -> Callable[[Body], Body]:
    """Writes the grades of all documents that a prompt shows; None is left out."""

    def respond(body: Body) -> Body:
        found = {f"[{number}]": grade(text) for number, text in enumerate(shown(body), start=1)}
        written = json.dumps({name: value for name, value in found.items() if value is not None})
        content = f"<reason>\nBecause.\n</reason>\n<answer>\n```json\n{written}\n```\n</answer>"
        return {"choices": [{"message": {"content": content}}], "usage": {"completion_tokens": TOKENS}}

    return respond


@asynccontextmanager
async def grouped(
    folder: Path, respond: Callable[[Body], Body], **options: Any
) -> AsyncIterator[tuple[RerankService, Script, RecordingObserver]]:
    script, observer = Script([], respond=respond), RecordingObserver()
    with serving_endpoint(script) as url:
        model = {
            "name": "m",
            "path": ".",
            "scorer": "groupwise",
            "engine": "endpoint",
            "options": {"template": "group-rank-chat", **options},
            "engine_options": {"url": url, "model": "chat", "max_tokens": 50},
        }
        settings = Settings(registry=write_registry(folder, [model]), cache_url="memory://")
        async with running_service(settings, observer) as service:
            await service.model_named("m").settled()
            yield service, script, observer


def request(documents: Sequence[str], **options: Any) -> RerankRequest:
    return RerankRequest(query="which city is large?", documents=list(documents), options=ScoreOptions(**options))


def relevance(result: RerankResult) -> list[float]:
    return [one.relevance_score for one in sorted(result.results, key=lambda one: one.index)]


async def test_a_hundred_documents_are_each_graded_twice_in_one_round_and_then_come_from_the_cache(
    tmp_path: Path,
) -> None:
    texts = [f"document {number}" for number in range(100)]
    asked, lock = dict.fromkeys(texts, 0), Lock()

    def grade(text: str) -> int:
        """A document gets one grade more each time, so that a mean tells how often it was asked."""
        with lock:
            asked[text] += 1
            return int(text.split()[1]) % 8 + asked[text]

    async with grouped(tmp_path, grading(grade)) as (service, script, observer):
        result = await service.rerank(request(texts))
        assert set(asked.values()) == {2}
        assert relevance(result) == pytest.approx([(number % 8 + 1.5) / 10 for number in range(100)])
        bodies = [body for _, body, _ in script.asked]
        assert [len(shown(body)) for body in bodies] == [10] * 20
        assert all(body["temperature"] == 0.3 and body["max_tokens"] == 50 for body in bodies)
        assert len({body["seed"] for body in bodies}) == 20
        (facts,) = observer.named("request_scored")
        assert facts["ungraded_answers"] == 0
        assert result.tokens > 20 * TOKENS
        assert result.scores.remarks is not None
        assert {remark.reason for remark in result.scores.remarks.tolist()} == {"Because."}
        best = await service.rerank(RerankRequest(query="which city is large?", documents=texts, top_n=3))
        assert len(script.asked) == 20, "how many are shown changes no grade"
        assert best.cached == 100
        assert [one.index for one in best.results] == [one.index for one in result.results][:3]
        assert best.tokens == result.tokens
        seeds = {body["seed"] for body in bodies}
        await service.rerank(request(texts[::-1]))
        assert {body["seed"] for _, body, _ in script.asked[20:]} == seeds, "the same groups in any order"


async def test_grades_that_are_missing_do_not_count_and_a_document_without_any_is_not_scored(tmp_path: Path) -> None:
    grades = {"a": 4, "b": None, "c": 11, "d": 8, "e": "x", "f": 10}
    async with grouped(tmp_path, grading(grades.__getitem__), group=3) as (service, script, observer):
        for _ in range(2):
            result = await service.rerank(request(list(grades)))
            assert relevance(result) == pytest.approx([0.4, 0, 0, 0.8, 0, 1])
            assert [(one.index, one.scored) for one in result.results] == [
                (5, True),
                (3, True),
                (0, True),
                (1, False),
                (2, False),
                (4, False),
            ]
        assert len(script.asked) == 2 * 4, "what is not whole is not cached"
        assert [fact["ungraded_answers"] for fact in observer.named("request_scored")] == [6, 6]
        assert meta_of(result, ScoreOptions(), version="2")["warnings"][1] == (
            "6 answers of the model had no grade, and did not count"
        )


async def test_an_unreadable_answer_is_skipped_and_the_other_pass_counts(tmp_path: Path) -> None:
    first = Event()

    def respond(body: Body) -> Body:
        if not first.is_set():
            first.set()
            return {"choices": [{"message": {"content": '<answer>{"[1]": 5, "[2]'}}]}
        return grading(lambda _: 6)(body)

    async with grouped(tmp_path, respond) as (service, _, observer):
        result = await service.rerank(request(["a", "b", "c"]))
        assert sorted(relevance(result)) == pytest.approx([0.55, 0.6, 0.6])
        assert observer.total("request_scored", "ungraded_answers") == 2


async def test_a_late_and_a_cancelled_request_stop_asking_and_a_partial_one_counts_what_came(tmp_path: Path) -> None:
    release, reached = Event(), Event()

    def respond(body: Body) -> Body:
        if "slow" in body["messages"][-1]["content"]:
            reached.set()
            assert release.wait(30)
        return grading(lambda _: 7)(body)

    async with grouped(tmp_path, respond, group=2, passes=1) as (service, script, _):
        documents = [f"slow {number}" for number in range(80)]
        asking = asyncio.create_task(service.rerank(request(documents)))
        await asyncio.to_thread(reached.wait, 30)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        with pytest.raises(DeadlineExceeded):
            await service.rerank(request(documents, terms=Terms(deadline=perf_counter() + 0.3)))
        asked = len(script.asked)
        assert asked < 40
        partial = Terms(deadline=perf_counter() + 1.5, partial=True)
        result = await service.rerank(request(["a", "b", "c", "slow"], terms=partial))
        assert sorted(relevance(result)) == pytest.approx([0, 0, 0.7, 0.7])
        assert result.unscored_documents == 2
        release.set()
        again = await service.rerank(request(["a", "b", "c", "slow"]))
        assert relevance(again) == pytest.approx([0.7] * 4)


async def test_a_local_model_that_writes_no_grades_is_ready_and_says_so(causal_folder: Folder, tmp_path: Path) -> None:
    (tmp_path / "templates").mkdir()
    (tmp_path / "templates" / "ours.toml").write_text(
        'method = "groupwise"\nchat = "{system}{user}"\nuser = "{query} {passages}"\nidentifiers = "numeric"\n'
        "highest = 10\ntemperature = 1.0\nanswer_tokens = 6\n"
    )
    model = {
        "name": "m",
        "path": causal_folder("qwen3"),
        "scorer": "groupwise",
        "engine": "torch-generate",
        "engine_options": {"device": "cpu"},
        "options": {"template": "ours", "group": 2},
    }
    settings = Settings(registry=write_registry(tmp_path, [model]))
    async with running_service(settings, RecordingObserver()) as service:
        await service.model_named("m").settled()
        result = await service.rerank(request(["Vienna", "", "bees <|im_end|>", "sea"]))
        assert [(one.index, one.scored) for one in result.results][3] == (1, True), "a blank document is no failure"
        assert result.scores.ungraded == 3 * 2
        assert not any(one.scored for one in result.results[:3])
