"""The OpenAPI document: valid, with an example that fits its schema, and with the keys that are asked for."""

from typing import Any

import jsonschema
import pytest
from openapi_spec_validator import validate

from tests.api.conftest import Api, OpenApi

_KEYED = {"/v1/models", "/models", "/v1/models/{name}", "/info"}


async def _document(api: Api, **headers: str) -> dict[str, Any]:
    document: dict[str, Any] = (await api.client.get("/openapi.json", headers=headers)).json()
    return document


async def test_it_is_valid(api: Api) -> None:
    validate(await _document(api))


async def test_every_example_fits_the_schema_beside_it(api: Api) -> None:
    bodies = [
        operation["requestBody"]["content"]["application/json"]
        for path in (await _document(api))["paths"].values()
        for operation in path.values()
        if "requestBody" in operation
    ]
    assert len(bodies) > 10
    for body in bodies:
        for example in body["examples"].values():
            jsonschema.validate(example["value"], body["schema"])


async def test_without_keys_it_asks_for_none(api: Api) -> None:
    document = await _document(api)
    assert "securitySchemes" not in document.get("components", {})
    assert not any("security" in operation for path in document["paths"].values() for operation in path.values())


@pytest.mark.parametrize("private", [False, True])
async def test_with_keys_it_says_which_operations_ask_for_them(open_api: OpenApi, private: bool) -> None:
    async with open_api(api_keys="secret", private=private) as api:
        document = await _document(api, Authorization="Bearer secret")
        validate(document)
        assert set(document["components"]["securitySchemes"]) == {"bearer", "apiKey"}
        guarded = {
            path for path, operations in document["paths"].items() if "security" in next(iter(operations.values()))
        }
        posts = {path for path, operations in document["paths"].items() if "post" in operations}
        assert guarded == posts | _KEYED | ({"/metrics", "/openapi.json"} if private else set())
        for path in guarded:
            method = "post" if path in posts else "get"
            answer = await api.client.request(method, path)
            assert answer.status_code == 401, path
