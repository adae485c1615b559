"""Keys: any of several, in either header; what is open is open."""

from hashlib import sha256
from pathlib import Path

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


async def test_without_keys_every_request_is_allowed(open_api: OpenApi) -> None:
    async with open_api() as api:
        assert (await api.post("/rerank", _GOOD)).status_code == 200
        assert (await api.post("/rerank", _GOOD, headers={"Authorization": "Bearer any"})).status_code == 200


def _key_file(folder: Path, text: str) -> Path:
    path = folder / "keys.toml"
    path.write_text(text, encoding="utf-8")
    return path


async def test_keys_of_a_file_have_limits_of_their_own(open_api: OpenApi, tmp_path: Path) -> None:
    hashed = sha256(b"second-secret").hexdigest()
    path = _key_file(
        tmp_path,
        f'[[key]]\nname = "slow"\nkey = "first-secret"\nrequests_per_s = 0.01\n'
        f'[[key]]\nname = "fast"\nsha256 = "{hashed}"\n',
    )
    async with open_api(api_keys="third-secret", api_keys_file=path) as api:
        slow = {"Authorization": "Bearer first-secret"}
        assert (await api.post("/rerank", _GOOD, headers=slow)).status_code == 200
        refused = await api.post("/rerank", _GOOD, headers=slow)
        assert is_our_error(refused, 429, "rate_limited")
        assert 50 < int(refused.headers["Retry-After"]) <= 100
        for key in ("second-secret", "third-secret"):
            for _ in range(3):
                answer = await api.post("/rerank", _GOOD, headers={"Authorization": f"Bearer {key}"})
                assert answer.status_code == 200


async def test_a_key_pays_for_the_tokens_that_the_model_reads(open_api: OpenApi, tmp_path: Path) -> None:
    path = _key_file(tmp_path, '[[key]]\nname = "a"\nkey = "secret"\ntokens_per_min = 10\n')
    async with open_api(api_keys_file=path) as api:
        headers = {"Authorization": "Bearer secret"}
        body = {"query": "q", "documents": ["word " * 20]}
        assert (await api.post("/rerank", body, headers=headers)).status_code == 200
        assert is_our_error(await api.post("/rerank", body, headers=headers), 429, "rate_limited")


async def test_a_private_service_shows_strangers_nothing(open_api: OpenApi) -> None:
    async with open_api(api_keys="secret", private=True) as api:
        for path in ("/metrics", "/openapi.json"):
            assert (await api.client.get(path)).status_code == 401
            assert (await api.client.get(path, headers={"Api-Key": "secret"})).status_code == 200
        for path in ("/docs", "/docs/swagger-ui-bundle.js", "/redoc"):
            assert (await api.client.get(path)).status_code == 404
        for path in ("/health", "/ready"):
            assert (await api.client.get(path)).status_code != 401
