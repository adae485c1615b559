"""The page's three files: how they are sent, and that a private service has none. test_browser.py uses the page."""

import re

import pytest

from tests.api.conftest import Api, OpenApi, is_our_error

_FILES = {"/": "text/html", "/playground.css": "text/css", "/playground.js": "text/javascript"}


@pytest.mark.parametrize("path", _FILES)
async def test_its_files_load_nothing_from_other_hosts_and_cannot_be_framed(api: Api, path: str) -> None:
    answer = await api.client.get(path)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == f"{_FILES[path]}; charset=utf-8"
    policy = dict(rule.split(" ", 1) for rule in answer.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["frame-ancestors"] == "'none'"
    assert {policy[kind] for kind in ("script-src", "style-src", "connect-src")} == {"'self'"}
    assert not re.search(r"(?:src|href|url)\W{1,2}(?:https?:)?//", answer.text)


@pytest.mark.parametrize("path", ["/", "/health", "/v2/rerank", "/nothing"])
async def test_every_answer_is_hardened(api: Api, path: str) -> None:
    headers = (await api.client.get(path)).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert headers["referrer-policy"] == "no-referrer"


async def test_what_a_browser_has_is_not_sent_again(api: Api) -> None:
    etag = (await api.client.get("/playground.js")).headers["etag"]
    answer = await api.client.get("/playground.js", headers={"If-None-Match": etag})
    assert (answer.status_code, answer.content) == (304, b"")
    assert (await api.client.get("/playground.css", headers={"If-None-Match": etag})).status_code == 200


async def test_head_is_answered_as_get_is(api: Api) -> None:
    answer = await api.client.head("/")
    assert answer.headers["content-length"] == (await api.client.get("/")).headers["content-length"]


async def test_it_needs_no_key_and_a_private_service_has_none(open_api: OpenApi) -> None:
    async with open_api(api_keys="secret") as api:
        assert (await api.client.get("/")).status_code == 200
    async with open_api(api_keys="secret", private=True) as api:
        for path in _FILES:
            assert is_our_error(await api.client.get(path), 404, "not_found")
