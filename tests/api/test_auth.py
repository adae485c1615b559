"""Keys: any of several, in either header; what is open is open."""

import pytest

from tests.api.conftest import OpenApi, is_our_error

_KEYS = "first-key, second-key,klüger"
_GOOD = {"query": "q", "documents": ["a"]}
_GUARDED = ("/v1/models", "/models", "/v1/models/fake", "/info")


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": "Bearer first-key"},
        {"Authorization": "bearer second-key"},
        {"Authorization": "BEARER  second-key "},
        {"Api-Key": "first-key"},
        {"api-key": "second-key"},
        {"Authorization": "Basic Zm9vOmJhcg==", "Api-Key": "first-key"},
        {"Authorization": "Bearer klüger".encode()},
    ],
)
async def test_a_key_lets_in(open_api: OpenApi, headers: dict[str, str]) -> None:
    async with open_api(api_keys=_KEYS) as api:
        assert (await api.post("/rerank", _GOOD, headers=headers)).status_code == 200
        for path in _GUARDED:
            assert (await api.client.get(path, headers=headers)).status_code == 200


@pytest.mark.parametrize(
    ("headers", "message"),
    [
        ({}, "no API key"),
        ({"Authorization": ""}, "no API key"),
        ({"Authorization": "Bearer"}, "no API key"),
        ({"Authorization": "Bearer "}, "no API key"),
        ({"Authorization": "Basic first-key"}, "no API key"),
        ({"Authorization": "first-key"}, "no API key"),
        ({"Api-Key": ""}, "no API key"),
        ({"Authorization": "Bearer wrong"}, "not valid"),
        ({"Authorization": "Bearer first-ke"}, "not valid"),
        ({"Authorization": "Bearer first-key2"}, "not valid"),
        ({"Authorization": "Bearer FIRST-KEY"}, "not valid"),
        ({"Authorization": "Bearer first-key, second-key,klüger".encode()}, "not valid"),
        ({"Authorization": b"Bearer \xff\xfe"}, "not valid"),
        ({"Authorization": "Bearer " + "x" * 60_000}, "not valid"),
        ({"Api-Key": "wrong"}, "not valid"),
        ({"Authorization": "Bearer wrong", "Api-Key": "first-key"}, "not valid"),
    ],
)
async def test_without_a_valid_key_nothing_is_told(open_api: OpenApi, headers: dict[str, str], message: str) -> None:
    async with open_api(api_keys=_KEYS) as api:
        answers = [await api.post(path, _GOOD, headers=headers) for path in ("/v2/rerank", "/v1/rerank", "/rerank")]
        answers += [await api.client.get(path, headers=headers) for path in _GUARDED]
    for answer in answers:
        assert is_our_error(answer, 401, "unauthorized")
        assert message in answer.json()["message"]
        assert answer.headers["www-authenticate"] == "Bearer"
        assert "fake" not in answer.text


async def test_a_key_is_asked_for_before_the_body_is_read(open_api: OpenApi) -> None:
    async with open_api(api_keys=_KEYS) as api:
        assert (await api.post("/rerank", content=b"{")).status_code == 401


async def test_health_readiness_and_metrics_need_no_key(open_api: OpenApi) -> None:
    async with open_api(api_keys=_KEYS) as api:
        statuses = {path: (await api.client.get(path)).status_code for path in ("/health", "/ready", "/metrics")}
    assert statuses == {"/health": 200, "/ready": 503, "/metrics": 200}, "one of the fake models is broken"


@pytest.mark.parametrize("keys", ["", _KEYS])
async def test_a_client_may_ask_whether_keys_are_needed(open_api: OpenApi, keys: str) -> None:
    async with open_api(api_keys=keys) as api:
        assert (await api.client.get("/v1/cluster/auth")).json() == {"auth": bool(keys)}


async def test_without_keys_everybody_may_and_the_log_says_so_loudly(
    open_api: OpenApi, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_api() as api:
        assert (await api.post("/rerank", _GOOD)).status_code == 200
        assert (await api.post("/rerank", _GOOD, headers={"Authorization": "Bearer any"})).status_code == 200
    assert "NO API KEYS ARE SET" in caplog.text
