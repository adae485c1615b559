"""HTTP answers through the same gateway as every other front end, so the answers are the same."""

from math import inf
from pathlib import Path
from typing import Any

import pytest

from rerankd.domain import RerankRequest
from rerankd.errors import RerankError
from rerankd.gateway.failures import Failure, failure_of
from rerankd.scorers.ranking import sigmoid
from tests.api.conftest import Api, OpenApi
from tests.fakes import FakeService

_KEYS = """
[[key]]
name = "a"
key = "secret"
[[key]]
name = "spent"
key = "secret-spent"
requests_per_s = 0.001
"""

_Outcome = list[tuple[int, float]] | Failure


async def _over_http(api: Api, request: RerankRequest, *, key: str, timeout_s: float) -> _Outcome:
    body: dict[str, Any] = {"query": request.query, "documents": request.documents, "model": request.model}
    headers = {"Authorization": f"Bearer {key}"}
    if timeout_s < inf:
        headers["X-Request-Deadline-Ms"] = str(1000 * timeout_s)
    answer = await api.post("/v2/rerank", body, headers=headers)
    content = answer.json()
    if answer.status_code == 200:
        return [(result["index"], result["relevance_score"]) for result in content["results"]]
    seconds = float(answer.headers["Retry-After-Ms"]) / 1000 if "Retry-After-Ms" in answer.headers else None
    return Failure(
        status=answer.status_code, code=content["error_type"], message=content["message"], retry_after_s=seconds
    )


async def _directly(api: Api, request: RerankRequest, *, key: str, timeout_s: float) -> _Outcome:
    try:
        (result,) = await api.gateway.rerank([request], api_key=key, timeout_s=timeout_s)
    except RerankError as error:
        return failure_of(error)
    return [(ranked.index, ranked.relevance_score) for ranked in result.results]


def _request(**fields: Any) -> RerankRequest:
    return RerankRequest(**{"query": "q", "documents": ["a", "b b", "c"], **fields})


@pytest.mark.parametrize(
    ("request_", "key", "timeout_s", "status"),
    [
        (_request(), "secret", inf, None),
        (_request(), "wrong", inf, 401),
        (_request(), "", inf, 401),
        (_request(model="none"), "secret", inf, 404),
        (_request(model="broken"), "secret", inf, 503),
        (_request(documents=["a"] * 101), "secret", inf, 413),
        (_request(documents=["poison"]), "secret", inf, 500),
        (_request(), "secret", 1e-6, 504),
        (_request(), "secret-spent", inf, 429),
    ],
)
async def test_http_and_a_direct_call_have_the_same_outcome(
    open_api: OpenApi, tmp_path: Path, request_: RerankRequest, key: str, timeout_s: float, status: int | None
) -> None:
    keys = tmp_path / "keys.toml"
    keys.write_text(_KEYS, encoding="utf-8")
    async with open_api(FakeService(activation=sigmoid, max_documents=100), api_keys_file=keys) as api:
        if status == 429:
            await api.gateway.rerank([request_], api_key=key)
        over_http = await _over_http(api, request_, key=key, timeout_s=timeout_s)
        directly = await _directly(api, request_, key=key, timeout_s=timeout_s)
        if isinstance(directly, Failure):
            assert isinstance(over_http, Failure)
            assert directly.status == over_http.status == status
            assert directly.code == over_http.code
            assert over_http.retry_after_s == pytest.approx(directly.retry_after_s, abs=2)
        else:
            assert status is None
            assert over_http == directly
