"""The page at /docs: what it is made of comes from this service. test_browser.py looks at it."""

import re

import pytest

from tests.api.conftest import Api

_FILES = {
    "/docs": "text/html",
    "/docs/start.js": "text/javascript",
    "/docs/swagger-ui.css": "text/css",
    "/docs/swagger-ui-bundle.js": "text/javascript",
}


@pytest.mark.parametrize("path", _FILES)
async def test_its_files_may_load_nothing_from_elsewhere(api: Api, path: str) -> None:
    answer = await api.client.get(path)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == f"{_FILES[path]}; charset=utf-8"
    policy = dict(rule.split(" ", 1) for rule in answer.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["connect-src"] == "'self'"


async def test_what_the_page_names_is_there(api: Api) -> None:
    page = (await api.client.get("/docs")).text
    named = re.findall(r'(?:src|href)="([^":]+)"', page)
    assert set(named) == {"openapi.json", "docs/swagger-ui.css", "docs/swagger-ui-bundle.js", "docs/start.js"}
    for name in named:
        assert (await api.client.get(f"/{name}")).status_code == 200


async def test_pages_that_would_ask_a_cdn_are_not_served(api: Api) -> None:
    assert (await api.client.get("/redoc")).status_code == 404
