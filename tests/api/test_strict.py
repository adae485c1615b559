"""RERANKD_STRICT: what means nothing is refused by every dialect, and nothing else is."""

from typing import Any

import pytest

from rerankd.api.dialects import DIALECTS
from rerankd.api.dialects.base import Dialect
from tests.api.conftest import Api, OpenApi, address_of, is_our_error

_EVERY_PATH = pytest.mark.parametrize(
    ("dialect", "path"),
    [(dialect, path) for dialect in DIALECTS for path in dialect.paths],
    ids=lambda value: value.name if isinstance(value, Dialect) else value,
)


async def _post(api: Api, dialect: Dialect, path: str, **fields: Any) -> Any:
    headers = {"X-Pinecone-Api-Version": "2025-10"} if dialect.name == "pinecone" else {}
    body = {**dialect.example, "model": "fake", **fields}
    return await api.post(address_of(path), body, headers=headers)


@_EVERY_PATH
async def test_an_unknown_field_is_refused_by_its_name(open_api: OpenApi, dialect: Dialect, path: str) -> None:
    async with open_api(strict=True) as api:
        assert (await _post(api, dialect, path)).status_code == 200
        answer = await _post(api, dialect, path, top_nn=3)
        assert is_our_error(answer, 400, "invalid_request")
        assert answer.json()["message"] == "top_nn: unknown field"
        assert api.requests_counted(dialect=dialect.name, status=400, model="none") == 1


async def test_without_it_the_field_is_only_named(open_api: OpenApi) -> None:
    async with open_api() as api:
        answer = await api.post("/v2/rerank", {"query": "q", "documents": ["a"], "top_nn": 3})
        assert answer.status_code == 200
        assert answer.headers["x-ignored-fields"] == "top_nn"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"passages": {"tokens": 20, "stride": 5}}, "passages.stride: unknown field"),
        ({"windows": {"size": 5}}, "windows.size: unknown field"),
        ({"top_nn": 1, "documents": None}, "top_nn: unknown field; documents must be a list, not null"),
        ({"x" * 5000: 1}, "x" * 100 + ": unknown field"),
        ({"line\nfeed": 1}, "line\nfeed: unknown field"),
        ({"": 1}, "body: unknown field"),
        (
            {f"f{number}": 1 for number in range(99)},
            "f0: unknown field; f1: unknown field; f2: unknown field; and 96 more",
        ),
    ],
)
async def test_fields_inside_of_others_and_strange_ones_are_named_too(
    open_api: OpenApi, fields: dict[str, Any], message: str
) -> None:
    async with open_api(strict=True) as api:
        answer = await api.post("/v2/rerank", {"query": "q", "documents": ["a"], **fields})
        assert is_our_error(answer, 400, "invalid_request")
        assert answer.json()["message"] == message


async def test_documents_have_what_fields_they_like(open_api: OpenApi) -> None:
    async with open_api(strict=True) as api:
        documents = [{"text": "a", "colour": "red", "metadata": {"year": 1}}]
        assert (await api.post("/v2/rerank", {"query": "q", "documents": documents})).status_code == 200
