"""A valid key that is for something else gets 403, in the form that each client reads."""

from pathlib import Path

import pytest

from tests.api.conftest import OpenApi, is_our_error

_BODY = {"query": "q", "documents": ["a"]}


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    path = tmp_path / "keys.toml"
    tables = [
        f'[[key]]\nname = "{scope}"\nkey = "{scope}-key"\nscopes = ["{scope}"]\n' for scope in ("rerank", "metrics")
    ]
    path.write_text("".join(tables), encoding="utf-8")
    path.chmod(0o600)
    return path


@pytest.mark.parametrize("path", ["/v2/rerank", "/v1/rerank", "/rerank"])
async def test_a_key_for_metrics_does_not_rank(open_api: OpenApi, keys: Path, path: str) -> None:
    async with open_api(api_keys_file=keys, private=True) as api:
        answer = await api.post(path, _BODY, headers={"Authorization": "Bearer metrics-key"})
        assert is_our_error(answer, 403, "forbidden")
        assert (await api.post("/v2/rerank", _BODY, headers={"Api-Key": "rerank-key"})).status_code == 200


async def test_a_private_service_gives_metrics_to_keys_for_metrics_alone(open_api: OpenApi, keys: Path) -> None:
    async with open_api(api_keys_file=keys, private=True) as api:
        for key, status in (("rerank-key", 403), ("metrics-key", 200)):
            assert (await api.client.get("/metrics", headers={"Api-Key": key})).status_code == status
        for path in ("/v1/models", "/info", "/openapi.json"):
            assert (await api.client.get(path, headers={"Api-Key": "metrics-key"})).status_code == 403
