"""The engine `remote` before a real second server, and before services that are ill: scores, calls, deadlines, retries,
and the fallback.
"""

import asyncio
import json
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from time import perf_counter
from typing import Any

import httpx
import numpy as np
import pytest

import rerankd.engines.remote.client
from loadtest.servers import free_port, rerankd_at, wait
from rerankd.config.settings import Settings
from rerankd.domain import Aggregation, PassageWishes, RerankRequest, ScoreOptions, Terms, Truncation
from rerankd.errors import DeadlineExceeded, InvalidRequest, ModelNotReady, RemoteFailed, RemoteUnavailable
from rerankd.serving.assembly import running_service
from rerankd.serving.service import RerankService
from rerankd.tools.checking import check_settings
from tests.canned_server import canned_server, http_answer, raw_server
from tests.fakes import RecordingObserver
from tests.oracles import hold
from tests.registry_files import write_registry
from tests.servers import Server, rerankd_server, wait_until_ready
from tests.tiny_models import CORPUS, TINY_BERT

pytestmark = pytest.mark.timeout(120)

FAMILY = "Cohere, Jina, Voyage, TEI, vLLM, NIM, llama.cpp, other rerankd servers and OpenAI-compatible chat models"
QUERY = "where do bees live?"
DOCUMENTS = ["y", *CORPUS[:6], " Vienna \n", "größer 東京 🐝"]
TOLERANCE = 1e-6
# With the sigmoid of a logit behind it, or as the service gives it.
PROTOCOLS = {
    "cohere": "relevance",
    "jina": "relevance",
    "voyage": "relevance",
    "tei": "logit",
    "vllm": "relevance",
    "vllm-score": "relevance",
    "nim": "logit",
    "llama.cpp": "relevance",
    "rerankd": "relevance",
}


def entry(url: str, protocol: str = "cohere", **options: Any) -> dict[str, Any]:
    """A registry's entry. Keys of the entry itself, and `scores`, may be among the options."""
    keys: dict[str, Any] = {
        key: options.pop(key) for key in ("name", "workers", "fallback", "max_length") if key in options
    }
    scorer: dict[str, Any] = {key: options.pop(key) for key in ("scores",) if key in options}
    return {
        "name": "remote",
        "engine": "remote",
        "options": {"protocol": protocol, **scorer},
        "engine_options": {"url": url, "model": "tiny", **options},
        **keys,
    }


@asynccontextmanager
async def serving(folder: Path, *entries: Mapping[str, Any]) -> AsyncIterator[tuple[RerankService, RecordingObserver]]:
    observer = RecordingObserver()
    async with running_service(Settings(registry=write_registry(folder, entries)), observer) as service:
        for model in service.models:
            with suppress(ModelNotReady):
                await model.settled()
        yield service, observer


def request(*documents: str, query: str = QUERY, model: str = "remote", **options: Any) -> RerankRequest:
    return RerankRequest(query=query, documents=documents or DOCUMENTS, model=model, options=ScoreOptions(**options))


def within(seconds: float) -> Terms:
    return Terms(deadline=perf_counter() + seconds)


@pytest.fixture(scope="module")
def far_port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def remote(far_port: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A second server, with a small model, and one that is even further away."""
    folder = tmp_path_factory.mktemp("remote")
    ahead = entry(f"http://127.0.0.1:{far_port}", "rerankd", name="ahead", retries=0, failures=1, pause_s=0.2)
    registry = write_registry(folder, [{"name": "tiny", "path": TINY_BERT}, {**ahead, "fallback": "tiny"}])
    with rerankd_server(folder, registry, RERANKD_CACHE_URL="none://") as server:
        wait_until_ready(server)
        yield server


@pytest.fixture(scope="module")
def direct(remote: Server) -> Mapping[int, tuple[float, float]]:
    """The relevance and the logit of each document, as the remote itself answers, best first."""
    body = {"query": QUERY, "documents": DOCUMENTS, "explain": True}
    results = httpx.post(f"{remote.url}/v2/rerank", json=body).json()["results"]
    return {result["index"]: (result["relevance_score"], result["explain"]["score"]) for result in results}


@pytest.fixture
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rerankd.engines.remote.client, "_FIRST_PAUSE_S", 0.01)


def asked(server: Server) -> float:
    """How many requests a server has answered."""
    lines = httpx.get(f"{server.url}/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("rerank_requests_total{"))


async def test_every_protocol_gives_the_order_and_the_scores_of_the_remote(
    remote: Server, direct: Mapping[int, tuple[float, float]], tmp_path: Path
) -> None:
    entries = [entry(remote.url, protocol, name=protocol) for protocol in PROTOCOLS]
    raw = [entry(remote.url, protocol, name=f"{protocol}-raw", scores="logit") for protocol in ("vllm", "rerankd")]
    async with serving(tmp_path, *entries, *raw) as (service, _):
        for model in service.models:
            result = await service.rerank(request(model=model.name))
            kind = PROTOCOLS.get(model.name, "logit")
            assert model.details["scores"] == kind
            assert model.details["engine"] == f"remote/{model.name.removesuffix('-raw')}"
            assert [ranked.index for ranked in result.results] == list(direct), model.name
            relevance, raw = np.array(list(direct.values()), dtype=np.float32).T
            ours = np.array([(ranked.relevance_score, ranked.value) for ranked in result.results], dtype=np.float32)
            np.testing.assert_allclose(ours[:, 1], raw if kind == "logit" else relevance, atol=TOLERANCE)
            hold(FAMILY, ours[:, 0], relevance, first=model is service.models[0])


async def test_what_the_cache_knows_is_not_asked_for(remote: Server, tmp_path: Path) -> None:
    async with serving(tmp_path, entry(remote.url)) as (service, _):
        before = asked(remote)
        first = await service.rerank(request(*DOCUMENTS[:4]))
        again = await service.rerank(request(*DOCUMENTS[:4]))
        assert asked(remote) == before + 1
        assert again.results == first.results
        assert again.cached == 4


async def test_a_long_document_is_read_in_passages(remote: Server, tmp_path: Path) -> None:
    """Four bytes are a token here, so a passage of 16 has about 64 characters."""
    text = " ".join(CORPUS[:6])
    async with serving(tmp_path, entry(remote.url)) as (service, _):
        wishes = PassageWishes(tokens=16, overlap=0, aggregation=Aggregation.MAX)
        result = await service.rerank(request(text, truncation=Truncation.CHUNK, passages=wishes))
        (score,) = result.results
        passages = result.scores.passages
        assert passages is not None
        start, end = int(passages.starts[0]), int(passages.ends[0])
        alone = await service.rerank(request(text[start:end]))
    assert passages.counts[0] >= len(text) / 64 - 1
    assert 0 < end - start <= 68
    assert score.value == alone.results[0].value


@asynccontextmanager
async def recording(
    asked: list[dict[str, Any]], answer: Callable[[dict[str, Any]], Awaitable[bytes]] | None = None
) -> AsyncIterator[str]:
    """A service that speaks Cohere's protocol, scores texts by their length, and keeps what it was asked."""

    async def answers(body: bytes) -> bytes:
        fields = json.loads(body)
        asked.append(fields)
        return await (answer or by_length)(fields)

    async with canned_server(answers) as url:
        yield url


async def by_length(fields: Mapping[str, Any]) -> bytes:
    texts = fields["documents"]
    results = [{"index": index, "relevance_score": len(text) / 1000} for index, text in enumerate(texts)]
    return http_answer(200, json.dumps({"results": results[::-1]}).encode())


async def test_a_request_is_as_few_calls_as_the_service_allows(tmp_path: Path) -> None:
    calls: list[dict[str, Any]] = []
    texts = ["x" * length for length in range(1, 601)]
    async with recording(calls) as url, serving(tmp_path, entry(url, max_documents=300)) as (service, _):
        result = await service.rerank(request(*texts))
        assert [ranked.index for ranked in result.results] == list(range(599, -1, -1))
        assert [len(call["documents"]) for call in calls] == [300, 300]
        calls.clear()
        await service.rerank(request(*texts[:400], "new"))
        assert [call["documents"] for call in calls] == [["new"]]


async def test_only_documents_of_one_query_share_a_call(tmp_path: Path) -> None:
    calls: list[dict[str, Any]] = []
    async with recording(calls) as url, serving(tmp_path, entry(url, workers=1)) as (service, _):
        await asyncio.gather(*(service.rerank(request("a", "b", query=query)) for query in ("one", "two", "one")))
    assert sorted(call["query"] for call in calls) == ["one", "two"]
    assert all(sorted(call["documents"]) == ["a", "b"] for call in calls)


async def test_no_more_calls_run_than_there_are_workers(tmp_path: Path) -> None:
    calls: list[dict[str, Any]] = []
    running: set[str] = set()
    most = 0

    async def slowly(fields: dict[str, Any]) -> bytes:
        nonlocal most
        running.add(fields["query"])
        most = max(most, len(running))
        await asyncio.sleep(0.02)
        running.remove(fields["query"])
        return await by_length(fields)

    async with recording(calls, slowly) as url, serving(tmp_path, entry(url, workers=2)) as (service, _):
        await asyncio.gather(*(service.rerank(request("a", query=f"query {number}")) for number in range(12)))
    assert len(calls) == 12
    assert most == 2


async def test_a_stated_pause_is_kept(tmp_path: Path) -> None:
    times: list[float] = []

    async def busy_first(fields: dict[str, Any]) -> bytes:
        times.append(perf_counter())
        return http_answer(429, b"{}", "Retry-After: 0.3") if len(times) == 1 else await by_length(fields)

    async with recording([], busy_first) as url, serving(tmp_path, entry(url)) as (service, _):
        await service.rerank(request("a"))
        assert len(times) == 2
        assert times[1] - times[0] >= 0.3


async def test_a_pause_beyond_the_deadline_is_told_and_not_waited_for(tmp_path: Path) -> None:
    calls: list[dict[str, Any]] = []

    async def busy(_: dict[str, Any]) -> bytes:
        return http_answer(429, b"{}", "Retry-After: 17")

    async with recording(calls, busy) as url, serving(tmp_path, entry(url)) as (service, _):
        with pytest.raises(RemoteUnavailable, match=r"\(cohere\) did not answer: status 429") as refused:
            await service.rerank(request("a", terms=within(5)))
    assert refused.value.retry_after_s == 17
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path": "rerank"}, "path must begin with /, not 'rerank'"),
        ({"protocol": "openai", "max_documents": 2}, "protocol 'openai' asks for one document in a call"),
        ({"url": "http://user:s3cret@x", "api_key_file": "key"}, "url has a user or a password in it, and there is an"),
        ({"api_key_file": "/nowhere/key"}, "cannot read api_key_file /nowhere/key"),
        ({"documents_per_minute": 3}, "unknown key 'documents_per_minute' (did you mean 'documents_per_min'?)"),
    ],
)
async def test_unusable_options_are_named(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    one = entry(options.pop("url", "http://x"), options.pop("protocol", "cohere"), **options)
    registry = write_registry(tmp_path, [one])
    (checked,) = (await asyncio.to_thread(check_settings, Settings(registry=registry))).models
    assert [message in problem for problem in checked.problems] == [True], checked.problems
    async with serving(tmp_path, one) as (service, _):
        assert message in service.models[0].reason
    assert "s3cret" not in f"{checked.problems} {service.models[0].reason}"


def results(*scores: object) -> bytes:
    return json.dumps(
        {"results": [{"index": index, "relevance_score": score} for index, score in enumerate(scores)]}
    ).encode()


@pytest.mark.parametrize(
    ("status", "content", "problem"),
    [
        (200, results(0.5), "1 results for 2 documents, and none for document 1"),
        (200, results(0.5, 0.5, 0.5), "a result for document 2 of 2"),
        (200, results(0.5, 0.5).replace(b'"index": 1', b'"index": 0'), "two results for document 0"),
        (200, results(0.5, 0.5).replace(b'"index": 1', b'"index": -1'), "document -1 of 2"),
        (200, results(0.5, 0.5).replace(b'"index": 1', b'"index": true'), "document True of 2"),
        (200, results(0.5, 0.5).replace(b'"index": 1', b'"place": 1'), "KeyError: 'index'"),
        (200, results(0.5, None), "None where a finite number should be"),
        (200, results(0.5, "0.5"), "'0.5' where a finite number"),
        (200, results(0.5, 1e300), "1e[+]300 where a finite number"),
        (200, results(0.5, float("nan")), "not a list of scores"),
        (200, b'{"results": {"index": 0}}', "not a list"),
        (200, b'{"results": [0.5, 0.5]}', "not a list of scores"),
        (200, b'"results"', "not a list of scores"),
        (200, b"<html>Sign in</html>", "not a list of scores"),
        (200, b"", "not a list of scores"),
        (302, b"", "status 302"),
        (401, b'{"message": "no such key s3cret"}', "status 401"),
        (422, b"{}", "status 422"),
    ],
)
async def test_an_answer_that_is_none_is_a_failure_and_never_a_score(
    status: int, content: bytes, problem: str, tmp_path: Path
) -> None:
    calls: list[dict[str, Any]] = []

    async def wrongly(_: dict[str, Any]) -> bytes:
        return http_answer(status, content)

    async with recording(calls, wrongly) as url, serving(tmp_path, entry(url)) as (service, _):
        with pytest.raises(RemoteFailed, match=rf"\(cohere\) answered with status {status}.*") as failed:
            await service.rerank(request("a", "b"))
    assert re.search(problem, failed.value.message)
    assert "s3cret" not in failed.value.message
    assert len(calls) == 1, "neither half of it would be answered better"


@pytest.mark.parametrize(
    ("key", "password", "header"),
    [("s3cret", "", b"Bearer s3cret"), ("", "user:s3cre%74@", b"Basic dXNlcjpzM2NyZXQ=")],
    ids=["a key", "a password"],
)
async def test_a_secret_is_sent_and_shown_to_nobody(
    key: str, password: str, header: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "key").write_text(f"{key}\n")
    heads: list[bytes] = []

    async def refusing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(http_answer(401, b"s3cret is wrong", "Connection: close"))

    one = entry("", retries=0, failures=1, **({"api_key_file": str(tmp_path / "key")} if key else {}))
    async with raw_server(refusing) as url:
        one["engine_options"]["url"] = url.replace("//", f"//{password}")
        with caplog.at_level(logging.DEBUG):
            async with serving(tmp_path, one) as (service, _):
                with pytest.raises(RemoteFailed) as failed:
                    await service.rerank(request("a"))
                shown = f"{failed.value} {service.models[0].details} {service.models[0].warning}"
    assert b"Authorization: " + header in heads[0]
    shown += " ".join(f"{record.getMessage()} {record.__dict__}" for record in caplog.records)
    assert "status 401" in shown
    assert "s3cre" not in shown


class Silent:
    """A service that takes requests and never answers; `left` is set when a caller has closed its connection."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.left = asyncio.Event()
        self.calls = 0

    async def __call__(self, reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        self.calls += 1
        self.asked.set()
        while await reader.read(1000):
            pass
        self.left.set()


async def test_a_deadline_ends_the_call(tmp_path: Path) -> None:
    silent = Silent()
    async with raw_server(silent) as url, serving(tmp_path, entry(url)) as (service, _):
        with pytest.raises((DeadlineExceeded, RemoteUnavailable)):
            await service.rerank(request("a", terms=within(0.2)))
        async with asyncio.timeout(10):
            await silent.left.wait()


async def test_a_cancelled_request_cancels_its_call(tmp_path: Path) -> None:
    silent = Silent()
    async with raw_server(silent) as url, serving(tmp_path, entry(url)) as (service, _):
        call = asyncio.create_task(service.rerank(request("a")))
        await silent.asked.wait()
        call.cancel()
        async with asyncio.timeout(10):
            await silent.left.wait()


async def test_a_call_goes_on_while_somebody_wants_it(tmp_path: Path) -> None:
    """Two requests want one score; the first goes away."""
    calls: list[dict[str, Any]] = []
    going_on = asyncio.Event()

    async def when_told(fields: dict[str, Any]) -> bytes:
        await going_on.wait()
        return await by_length(fields)

    async with recording(calls, when_told) as url, serving(tmp_path, entry(url)) as (service, observer):
        first = asyncio.create_task(service.rerank(request("a")))
        while not calls:  # noqa: ASYNC110 - the server has no event for it
            await asyncio.sleep(0.001)
        second = asyncio.create_task(service.rerank(request("a")))
        while not observer.named("pairs_coalesced"):  # noqa: ASYNC110 - nor has the batcher
            await asyncio.sleep(0.001)
        first.cancel()
        await asyncio.sleep(0.01)
        going_on.set()
        assert (await second).results[0].value == pytest.approx(0.001)
    assert len(calls) == 1


@pytest.mark.usefixtures("short_pauses")
async def test_a_service_that_hangs_is_not_waited_for_by_each_request(tmp_path: Path) -> None:
    silent = Silent()
    remote = entry("", fallback="local", timeout_s=0.1, retries=0, failures=2, pause_s=60)
    async with raw_server(silent) as url:
        remote["engine_options"]["url"] = url
        async with serving(tmp_path, remote, {"name": "local", "path": TINY_BERT}) as (service, observer):
            answers = [await service.rerank(request(terms=within(30))) for _ in range(6)]
            local = await service.rerank(request(model="local"))
            warning = service.model_named("remote").warning
    assert silent.calls == 2
    assert [answer.model for answer in answers] == ["local"] * 6
    assert all(answer.results == local.results for answer in answers)
    assert observer.named("remote_changed")[-1] == {"model": "remote", "away": True}
    assert observer.named("fallback_asked") == [{"model": "remote", "reason": "remote_unavailable"}] * 6
    assert re.fullmatch(
        r"the remote model \(cohere\) is away: not all of the answer came within 0.1 s; it is tried again in \d+ s; "
        "local answers",
        warning,
    )


async def test_a_fallback_answers_before_the_deadline_of_a_request_whose_remote_hangs(tmp_path: Path) -> None:
    """The remote has half of the time, the fallback the other half."""
    remote = entry("", fallback="local")
    async with raw_server(Silent()) as url:
        remote["engine_options"]["url"] = url
        async with serving(tmp_path, remote, {"name": "local", "path": TINY_BERT}) as (service, _):
            answer = await service.rerank(request(terms=within(4)))
    assert answer.model == "local"


async def test_a_fallback_is_no_way_round_what_the_caller_must_change(tmp_path: Path) -> None:
    remote = entry("http://127.0.0.1:9", fallback="local")
    async with serving(tmp_path, remote, {"name": "local", "path": TINY_BERT}) as (service, observer):
        with pytest.raises(InvalidRequest, match="does not take an instruction"):
            await service.rerank(request("a", instruction="only the newest"))
    assert not observer.named("fallback_asked")


async def test_fallbacks_follow_one_another_and_the_last_error_is_told(tmp_path: Path) -> None:
    away = f"http://127.0.0.1:{free_port()}"
    one, other = entry(away, name="one", retries=0, fallback="other"), entry(away, "tei", name="other", retries=0)
    async with serving(tmp_path, one, other) as (service, observer):
        with pytest.raises(RemoteUnavailable, match=r"\(tei\) did not answer: ConnectError"):
            await service.rerank(request("a", model="one"))
    assert len(observer.named("fallback_asked")) == 1


async def test_a_member_of_a_cascade_has_its_fallback(tmp_path: Path) -> None:
    away = entry(f"http://127.0.0.1:{free_port()}", retries=0, fallback="local")
    local = {"name": "local", "path": TINY_BERT}
    async with serving(tmp_path, away, local, {"name": "both", "stages": ["local", "remote:3"]}) as (service, _):
        answer = await service.rerank(request(model="both"))
        expected = await service.rerank(request(model="local"))
    assert [ranked.index for ranked in answer.results] == [ranked.index for ranked in expected.results]


async def test_documents_a_minute_are_bounded(tmp_path: Path) -> None:
    calls: list[dict[str, Any]] = []
    async with recording(calls) as url, serving(tmp_path, entry(url, documents_per_min=3)) as (service, _):
        await service.rerank(request("a", "b", "c", "d"))
        with pytest.raises(RemoteUnavailable, match="was sent all documents") as refused:
            await service.rerank(request("e"))
        assert 0 < refused.value.retry_after_s <= 60
        assert (await service.rerank(request("a"))).cached == 1
    assert len(calls) == 1


async def test_a_chat_model_is_read_at_yes_and_no(tmp_path: Path) -> None:
    calls: list[dict[str, Any]] = []
    listed = {
        "sure": {"yes": -0.1, " Yes": -3.0, "no": -4.0, "maybe": -5.0},
        "hardly": {"No": -0.2, "maybe": -2.5},
        "odd": {"maybe": -0.1},
    }

    async def tokens(fields: dict[str, Any]) -> bytes:
        document = fields["messages"][-1]["content"].rpartition("Document: ")[2]
        top = [{"token": token, "logprob": logprob} for token, logprob in listed[document].items()]
        return http_answer(200, json.dumps({"choices": [{"logprobs": {"content": [{"top_logprobs": top}]}}]}).encode())

    async with recording(calls, tokens) as url, serving(tmp_path, entry(f"{url}/v1", "openai")) as (service, _):
        answer = await service.rerank(request("hardly", "sure", instruction="be strict"))
        with pytest.raises(RemoteFailed, match="neither 'yes' nor 'no' is among its 1 most probable tokens"):
            await service.rerank(request("odd"))
    assert [(ranked.index, round(ranked.relevance_score, 4)) for ranked in answer.results] == [(1, 0.9812), (0, 0.0911)]
    assert {key: calls[0][key] for key in ("max_tokens", "temperature", "logprobs", "top_logprobs")} == {
        "max_tokens": 1,
        "temperature": 0,
        "logprobs": True,
        "top_logprobs": 20,
    }
    assert "be strict" in calls[0]["messages"][-1]["content"]


def test_a_remote_that_comes_and_dies_while_its_front_serves(remote: Server, far_port: int, tmp_path: Path) -> None:
    """The module's server is the front here, with a fallback of its own; behind it is a third process."""
    registry = write_registry(tmp_path, [{"name": "tiny", "path": TINY_BERT, "options": {"activation": "identity"}}])

    def ask() -> dict[str, Any]:
        body = {"model": "ahead", "query": QUERY, "documents": DOCUMENTS}
        answer = httpx.post(f"{remote.url}/v1/rerank", json=body, timeout=30)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def assert_away() -> list[Any]:
        answer = ask()
        assert answer["model"] == "tiny"
        assert answer["meta"]["warnings"] == ["the model 'ahead' could not answer; 'tiny' did"]
        ready = httpx.get(f"{remote.url}/ready")
        assert ready.status_code == 200, "a load balancer must not take the front away: it answers"
        assert re.match(
            r"the remote model \(rerankd\) is away: \w+; it is tried again .*; tiny answers",
            ready.json()["models"]["ahead"]["warning"],
        )
        assert 'rerank_remote_up{model="ahead"} 0.0' in httpx.get(f"{remote.url}/metrics").text
        return list(answer["results"])

    local = assert_away()
    with rerankd_at(far_port, tmp_path, registry, {}) as far:
        wait_until_ready(far)
        wait(remote, lambda: ask()["model"] == "ahead")
        answer = ask()
        assert [one["index"] for one in answer["results"]] == [one["index"] for one in local]
        assert answer["results"] != local, "a logit is not taken for a relevance"
        assert "warning" not in httpx.get(f"{remote.url}/ready").json()["models"]["ahead"]
        assert 'rerank_remote_up{model="ahead"} 1.0' in httpx.get(f"{remote.url}/metrics").text
    assert assert_away() == local
    log = remote.log.read_text()
    assert "a remote model is away" in log
    assert "a remote model is back" in log
