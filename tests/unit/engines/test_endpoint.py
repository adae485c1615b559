"""The engine `endpoint`, against a real HTTP server that says what it is told to."""

import asyncio
import gzip
from collections.abc import Mapping
from math import inf
from pathlib import Path
from typing import Any

import pytest

import rerankd.engines.remote.client
from rerankd.engines import load_any_engine
from rerankd.engines.base import EngineSpec, RemoteEngine
from rerankd.engines.remote.client import parsed
from rerankd.errors import ConfigError, RemoteFailed, RemoteUnavailable
from rerankd.tasks.generate import Chat, Conversation, Generated, Message
from rerankd.tasks.read_tokens import ReadTokens
from tests.endpoint_server import Script, completion, serving_endpoint

MESSAGES = [{"role": "user", "content": "größer?"}]


def engine(url: str, **changes: Any) -> RemoteEngine[Conversation, list[Generated]]:
    loaded = load_any_engine("endpoint", spec_for({"url": url, "model": "chat", "max_tokens": 4, **changes}))
    assert isinstance(loaded, RemoteEngine)
    return loaded


def ask(asking: RemoteEngine[Conversation, list[Generated]], *, times: int = 1) -> list[Generated]:
    async def answers() -> list[Generated]:
        try:
            return await asking.ask([conversation()] * times, inf)
        finally:
            await asking.client.close()

    return asyncio.run(answers())


def spec_for(options: Mapping[str, Any]) -> EngineSpec:
    return EngineSpec(folder=Path(), pad_id=0, task=Chat(), options=options)


def conversation() -> Conversation:
    return Conversation(tuple(Message(**message) for message in MESSAGES))


def written(results: list[Generated]) -> list[str]:
    return [result.text for result in results]


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rerankd.engines.remote.client, "_FIRST_PAUSE_S", 0.01)


def test_an_answer_comes_back_as_text(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("secret\n")
    script = Script([(200, completion("[2] > [1] é")), (200, completion("a thought first, then [1] > [2]"))])
    with serving_endpoint(script) as url:
        asking = engine(url, api_key_file=str(key), parameters={"seed": 7})
        results = ask(asking, times=2)
    assert written(results) == ["[2] > [1] é", "a thought first, then [1] > [2]"]
    path, body, headers = script.asked[0]
    assert path == "/v1/chat/completions"
    assert body == {"model": "chat", "messages": MESSAGES, "max_tokens": 4, "temperature": 0, "seed": 7}
    assert headers["Authorization"] == "Bearer secret"
    assert "secret" not in asking.name


def test_a_long_answer_comes_back_whole() -> None:
    answer = "x" * 5000 + "[2] > [1]"
    with serving_endpoint(Script([(200, completion(answer))])) as url:
        assert written(ask(engine(url))) == [answer]


def test_log_probabilities_are_passed_on_where_the_endpoint_gives_them() -> None:
    answer = completion("[1]")
    answer["choices"][0]["logprobs"] = {"content": [{"token": "[1", "logprob": -0.5}, {"token": "]", "logprob": 0}]}
    with serving_endpoint(Script([(200, answer), (200, completion("[1]"))])) as url:
        asking = engine(url, parameters={"logprobs": True})
        results = ask(asking, times=2)
    assert [result.logprobs for result in results] == [[-0.5, 0.0], None]


def test_no_content_is_an_empty_answer() -> None:
    with serving_endpoint(Script([(200, completion(None))])) as url:
        assert written(ask(engine(url))) == [""]


@pytest.mark.parametrize("headers", [{}, {"retry-after": "0.01"}, {"retry-after": "soon"}])
def test_what_may_pass_is_tried_again(headers: dict[str, str]) -> None:
    script = Script([(429, {}), (503, {}), (200, completion("[1]"))], headers)
    with serving_endpoint(script) as url:
        assert written(ask(engine(url))) == ["[1]"]
    assert len(script.asked) == 3


def test_tries_end() -> None:
    script = Script([(500, {})])
    with serving_endpoint(script) as url, pytest.raises(RemoteUnavailable, match="did not answer: status 500"):
        ask(engine(url, retries=1))
    assert len(script.asked) == 2


def test_a_refusal_is_not_tried_again() -> None:
    script = Script([(401, {})])
    with serving_endpoint(script) as url, pytest.raises(RemoteFailed, match="status 401"):
        ask(engine(url))
    assert len(script.asked) == 1


@pytest.mark.parametrize("content", [b"not json", {"choices": []}, [], {"choices": [{"message": None}]}])
def test_what_is_no_completion_fails(content: Any) -> None:
    with (
        serving_endpoint(Script([(200, content)])) as url,
        pytest.raises(RemoteFailed, match="not a chat completion"),
    ):
        ask(engine(url))


def test_an_endpoint_that_is_away_fails() -> None:
    with serving_endpoint(Script([])) as url:
        pass
    with pytest.raises(RemoteUnavailable, match="ConnectError"):
        ask(engine(url, retries=1))


def test_an_endpoint_that_hangs_is_given_up() -> None:
    import socket  # noqa: PLC0415 - only here

    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with pytest.raises(RemoteUnavailable, match=r"ReadTimeout|within 0\.2 s"):
            ask(engine(f"http://127.0.0.1:{silent.getsockname()[1]}", retries=0, timeout_s=0.2))


def test_an_answer_that_never_ends_is_given_up() -> None:
    script = Script([(200, completion("[1] > [2]"))], seconds_per_byte=0.05)
    with serving_endpoint(script) as url, pytest.raises(RemoteUnavailable, match=r"within 0\.2 s"):
        ask(engine(url, retries=0, timeout_s=0.2))


@pytest.mark.parametrize("entry", [b"[]", b"{}", b"1"])
def test_an_answer_of_too_many_values_is_not_parsed(entry: bytes) -> None:
    """Four megabytes of empty lists would hold the event loop for 100 ms and more."""
    with pytest.raises(ValueError, match="more than 250000 JSON values"):
        parsed(b"[" + b",".join([entry] * 300_000) + b"]")
    assert len(parsed(b"[" + b",".join([entry] * 40_000) + b"]")) == 40_000


def test_an_endpoint_that_floods_has_failed() -> None:
    script = Script([(200, {"choices": [[]] * 200_000})])
    with serving_endpoint(script) as url, pytest.raises(RemoteFailed, match="more than 250000 JSON values"):
        ask(engine(url))


def test_an_answer_that_is_too_long_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rerankd.engines.remote.client, "_LONGEST_ANSWER", 10_000)
    script = Script([(200, completion("x" * 20_000))])
    with serving_endpoint(script) as url, pytest.raises(RemoteFailed, match="10000 bytes"):
        ask(engine(url))
    assert len(script.asked) == 1, "it would be as long again"


def test_an_answer_is_not_unpacked() -> None:
    """Bytes that were packed twice become a million times as many, in one step."""
    packed = gzip.compress(gzip.compress(bytes(10 * 2**20)))
    script = Script([(200, packed)], {"content-encoding": "gzip, gzip"})
    with serving_endpoint(script) as url, pytest.raises(RemoteFailed, match="status 200 and a compressed answer"):
        ask(engine(url, retries=1))
    assert [headers["Accept-Encoding"] for _, _, headers in script.asked] == ["identity"]


def test_the_name_that_everybody_is_shown_says_nothing_of_where_the_model_is() -> None:
    assert engine("http://user:secret@models.internal:9000/v1", parameters={"seed": 1}).name == "endpoint"


def test_all_tries_together_end_in_time() -> None:
    asking = engine("http://x", timeout_s=60, retries=2)
    assert asking.client.longest_s == 3 * 60 + 2 * 20


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"url": "ftp://x"}, "engine 'endpoint': url"),
        ({"model": None}, "engine 'endpoint': model"),
        ({"api_key_file": "/nowhere/key"}, "cannot read api_key_file /nowhere/key"),
        ({"api_key": "x"}, "unknown key 'api_key' .did you mean 'api_key_file'"),
    ],
)
def test_unusable_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_any_engine("endpoint", spec_for({"url": "http://x", "model": "m", **options}))


def test_a_scorer_that_reads_logits_cannot_use_it() -> None:
    spec = EngineSpec(folder=Path(), pad_id=0, task=ReadTokens((1,)), options={"url": "http://x", "model": "m"})
    with pytest.raises(
        ConfigError, match="'read_tokens', and 'endpoint' runs chat and sample_chat; set engine to one of: onnx"
    ):
        load_any_engine("endpoint", spec)


@pytest.mark.parametrize("content", ["", " \n", "s3cret w0rd", "s3cret\nw0rd", "s3crét", "s3cret\x00"])
def test_a_key_that_fits_no_header_is_refused_without_showing_it(tmp_path: Path, content: str) -> None:
    """The client would put it into its own error, and that into /ready."""
    key = tmp_path / "key"
    key.write_text(content)
    with pytest.raises(ConfigError, match="must hold one word of ASCII characters") as refused:
        engine("http://x", api_key_file=str(key))
    assert "s3cr" not in str(refused.value)


def test_a_url_with_a_password_is_refused_without_showing_it() -> None:
    with pytest.raises(ConfigError, match="url must be a URL such as") as refused:
        engine("http://user:s3cret/w0rd@x:port")
    assert "s3cret" not in str(refused.value)


def test_a_proxy_that_cannot_be_used_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://user:s3cret@proxy:port")
    with pytest.raises(ConfigError, match=r"^HTTP_PROXY cannot be read as a URL") as refused:
        engine("http://x")
    assert "s3cret" not in str(refused.value)


def test_an_endpoint_in_a_network_of_no_proxy_is_asked_directly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("NO_PROXY", "fe80::/10, 127.0.0.0/8")
    with serving_endpoint(Script([(200, completion("[1]"))])) as url:
        assert written(ask(engine(url))) == ["[1]"]


def test_requests_go_through_the_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    script = Script([(200, completion("[1]"))])
    with serving_endpoint(script) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.removesuffix("/v1"))
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.delenv("no_proxy", raising=False)
        assert written(ask(engine("http://elsewhere.invalid/v1"))) == ["[1]"]
    assert script.asked[0][0] == "http://elsewhere.invalid/v1/chat/completions"
