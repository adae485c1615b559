"""A model of a server with POST /v2/rerank: rerankd, or any that implements Cohere's API."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from time import perf_counter
from typing import Any
from urllib.parse import quote, urlsplit

import httpx

from rerankd.domain import RerankRequest
from rerankd.errors import ConfigError, InvalidRequest, ModelNotFound
from rerankd.tools.evaluation.targets import REFUSED, Answer, Ask

_ATTEMPTS = 5
_LONGEST_PAUSE_S = 10.0
_TRY_AGAIN = (429, 503)
_TIMEOUT = httpx.Timeout(600, connect=10)
_VOLATILE = {"created", "status"}


class Served:
    """`url` is where the server listens; a fragment names the model: http://host:8000#minilm-qa."""

    def __init__(self, url: str, *, api_key: str | None) -> None:
        """Check the URL only, not whether the server answers.

        Raises:
            ConfigError: it is no http or https URL.
        """
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise ConfigError(f"{url!r} is not the URL of a server; write http://host:port")
        self.name = url.rstrip("/")
        self._base = parts._replace(fragment="", query="").geturl().rstrip("/")
        self._model = parts.fragment or None
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}

    async def identity(self) -> Mapping[str, Any]:
        """What the server reports. Weights that change under the same revision are not noticed."""
        async with self._client() as client:
            wanted = self._model or (await self._described(client, "/info")).get("model_id")
            model = await self._described(client, f"/v1/models/{quote(wanted, safe='/')}") if wanted else {}
        return {"url": self.name, "model": {key: value for key, value in model.items() if key not in _VOLATILE}}

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Ask]:
        async with self._client() as client:

            async def ask(request: RerankRequest) -> Answer:
                return await self._answer(client, request)

            yield ask

    async def _answer(self, client: httpx.AsyncClient, request: RerankRequest) -> Answer:
        body: dict[str, Any] = {"query": request.query, "documents": list(request.documents)}
        body |= {"model": self._model} if self._model else {}
        max_tokens = request.options.max_tokens_per_doc
        body |= {"max_tokens_per_doc": max_tokens} if max_tokens else {}
        for _ in range(_ATTEMPTS):
            started = perf_counter()
            response = await self._send(client, "POST", "/v2/rerank", json=body)
            seconds = perf_counter() - started
            if response.status_code not in _TRY_AGAIN:
                break
            await asyncio.sleep(_pause_s(response))
        if _object(response).get("error_type") == InvalidRequest.code:
            return REFUSED
        return _read(self._checked(response), seconds, documents=len(request.documents))

    async def _described(self, client: httpx.AsyncClient, path: str) -> Mapping[str, Any]:
        """The server's description of itself; empty if it is not rerankd."""
        response = await self._send(client, "GET", path)
        described = _object(response)
        if response.status_code == httpx.codes.UNAUTHORIZED or described.get("error_type") == ModelNotFound.code:
            self._checked(response)
        return described if response.is_success else {}

    async def _send(self, client: httpx.AsyncClient, method: str, path: str, **content: Any) -> httpx.Response:  # noqa: ANN401 - httpx's own
        try:
            return await client.request(method, self._base + path, **content)
        except httpx.HTTPError as error:
            what = str(error) or type(error).__name__
            raise ConfigError(f"{self._base} does not answer ({what}); start it, or correct --url") from None

    def _checked(self, response: httpx.Response) -> httpx.Response:
        if response.is_success:
            return response
        if response.status_code == httpx.codes.UNAUTHORIZED:
            raise ConfigError(f"{self._base} needs an API key; give it with --api-key")
        raise ConfigError(f"{self._base} answered {response.status_code}: {_message(response)}")

    def _client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(headers=self._headers, timeout=_TIMEOUT)


def _read(response: httpx.Response, seconds: float, *, documents: int) -> Answer:
    try:
        results = response.json()["results"]
        order = [int(result["index"]) for result in results]
        relevance_scores = [float(result["relevance_score"]) for result in results]
    except (ValueError, KeyError, TypeError):
        raise ConfigError(f"{response.url} does not speak Cohere's rerank API: {response.text[:200]!r}") from None
    if sorted(order) != list(range(documents)):
        raise ConfigError(
            f"{response.url} ranked {len(order)} of {documents} documents; it must rank each of them once"
        )
    return Answer(order, relevance_scores, seconds)


def _pause_s(response: httpx.Response) -> float:
    try:
        return min(float(response.headers.get("Retry-After", 1)), _LONGEST_PAUSE_S)
    except ValueError:
        return 1.0


def _message(response: httpx.Response) -> str:
    return str(_object(response).get("message") or response.text[:200])


def _object(response: httpx.Response) -> Mapping[str, Any]:
    try:
        content = response.json()
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}
