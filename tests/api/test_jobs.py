"""Files and batches over HTTP: where they are off, and forms that are none."""

from pathlib import Path

import pytest
from openapi_spec_validator import validate

from tests.api.conftest import Api, OpenApi, is_our_error

_FORM = "multipart/form-data; boundary=b"


def _part(name: str, content: bytes, *, file: str = "") -> bytes:
    named = f'; filename="{file}"' if file else ""
    return b'--b\r\nContent-Disposition: form-data; name="%b"%b\r\n\r\n%b\r\n' % (
        name.encode(),
        named.encode(),
        content,
    )


_PURPOSE, _FILE, _END = _part("purpose", b"batch"), _part("file", b"{}", file="f.jsonl"), b"--b--\r\n"


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/v1/files"), ("GET", "/v1/files/x/content"), ("POST", "/v1/batches"), ("POST", "/v1/batches/x/cancel")],
)
async def test_where_there_are_no_jobs_the_answer_says_how_to_have_them(api: Api, method: str, path: str) -> None:
    answer = await api.client.request(method, path)
    assert is_our_error(answer, 501, "not_configured")
    assert "RERANKD_JOBS_FOLDER" in answer.json()["message"]
    assert not any("batches" in path for path in (await api.client.get("/openapi.json")).json()["paths"])


async def test_a_key_is_asked_for_first(open_api: OpenApi, tmp_path: Path) -> None:
    async with open_api(api_keys="secret") as api:
        assert is_our_error(await api.client.get("/v1/batches"), 401, "unauthorized")
    async with open_api(api_keys="secret", jobs_folder=tmp_path) as api:
        assert is_our_error(await api.client.post("/v1/files", content=b"x" * 10_000), 401, "unauthorized")
        assert (await api.client.get("/v1/batches", headers={"Api-Key": "secret"})).json()["data"] == []


async def test_the_document_describes_jobs(open_api: OpenApi, tmp_path: Path) -> None:
    async with open_api(jobs_folder=tmp_path) as api:
        document = (await api.client.get("/openapi.json")).json()
    validate(document)
    assert {"get", "post"} <= set(document["paths"]["/v1/files"])
    assert "/v1/batches/{batch_id}/cancel" in document["paths"]


@pytest.mark.parametrize(
    ("kind", "content", "message"),
    [
        ("application/json", b"{}", "send the file as multipart/form-data"),
        ("multipart/form-data", _PURPOSE + _FILE + _END, "send the file as multipart/form-data"),
        (f"multipart/form-data; boundary={'b' * 300}", b"", "boundary is too long"),
        (_FORM, _FILE + _END, 'the field purpose must be "batch"'),
        (_FORM, _part("purpose", b"vision") + _FILE + _END, 'the field purpose must be "batch"'),
        (_FORM, _PURPOSE + _END, "no part `file`"),
        (_FORM, _PURPOSE + _FILE + _FILE + _END, "two parts `file`"),
        (_FORM, _PURPOSE + _FILE, "ends before its last boundary"),
        (_FORM, b"", "ends before its last boundary"),
        (_FORM, b"nonsense" * 100, "malformed"),
        (_FORM, _part("purpose", b"x" * 5000) + _FILE + _END, "more than 4096 bytes"),
        (_FORM, _part("x", b"") * 17 + _END, "at most 16 parts"),
    ],
)
async def test_a_form_that_is_none_is_refused_and_nothing_is_kept(
    open_api: OpenApi, tmp_path: Path, kind: str, content: bytes, message: str
) -> None:
    async with open_api(jobs_folder=tmp_path) as api:
        answer = await api.client.post("/v1/files", content=content, headers={"Content-Type": kind})
        assert is_our_error(answer, 400, "invalid_request")
        assert message in answer.json()["message"]
        assert (await api.client.get("/v1/files")).json()["data"] == []


async def test_fields_may_come_in_any_order_and_a_file_holds_any_bytes(open_api: OpenApi, tmp_path: Path) -> None:
    content = bytes(range(256)) * 8000 + b"\r\n--b\r"
    async with open_api(jobs_folder=tmp_path) as api:
        for form in (_part("file", content, file="a") + _PURPOSE, _PURPOSE + _part("file", content)):
            sent = (await api.client.post("/v1/files", content=form + _END, headers={"Content-Type": _FORM})).json()
            assert sent["bytes"] == len(content)
            assert (await api.client.get(f"/v1/files/{sent['id']}/content")).content == content
        listed = (await api.client.get("/v1/files", params={"limit": 1})).json()
        assert (len(listed["data"]), listed["has_more"]) == (1, True)
        assert api.gateway.held.total == 0, "files are on the disk"


async def test_a_file_beyond_the_bound_is_refused(open_api: OpenApi, tmp_path: Path) -> None:
    async with open_api(jobs_folder=tmp_path, jobs_max_file_bytes=100_000) as api:
        for size in (100_001, 1_000_000):
            form = _PURPOSE + _part("file", b"x" * size) + _END
            answer = await api.client.post("/v1/files", content=form, headers={"Content-Type": _FORM})
            assert is_our_error(answer, 413, "request_too_large")
        assert (await api.client.get("/v1/files")).json()["data"] == []


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({}, 400, "input_file_id"),
        ({"input_file_id": "file-x", "endpoint": "/v1/rerank"}, 404, "no such file"),
        ({"input_file_id": "file-x", "endpoint": "/v1/embeddings"}, 400, "/v1/rerank"),
        ({"input_file_id": "file-x", "endpoint": "/rerank", "completion_window": "169h"}, 400, "from 1h to 168h"),
        ({"input_file_id": "file-x", "endpoint": "/rerank", "metadata": {"a": 1}}, 400, "metadata"),
    ],
)
async def test_a_batch_that_cannot_be_is_refused(
    open_api: OpenApi, tmp_path: Path, body: dict[str, object], status: int, message: str
) -> None:
    async with open_api(jobs_folder=tmp_path) as api:
        answer = await api.client.post("/v1/batches", json=body)
    assert answer.status_code == status
    assert message in answer.json()["message"]
