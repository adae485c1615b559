"""Haystack's rankers."""

from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from cohere.core.api_error import ApiError
from haystack import Document
from haystack.utils import Secret
from haystack_integrations.components.rankers.cohere import CohereRanker
from haystack_integrations.components.rankers.huggingface_api import HuggingFaceTEIRanker
from haystack_integrations.components.rankers.jina import JinaRanker
from haystack_integrations.components.rankers.nvidia import NvidiaRanker

from tests.conformance.protocol import Client, Ranked, Target

_WITHOUT = {"documents returned": "it keeps the documents itself", "objects": "it sends texts only"}


def _run(ranker: Any, query: str, documents: Sequence[Any]) -> list[Ranked]:
    given = [Document(id=str(index), content=text) for index, text in enumerate(documents)]
    return [Ranked(int(found.id), float(found.score)) for found in ranker.run(query, given)["documents"]]


def _cohere(target: Target, query: str, documents: Sequence[Any], top_n: int | None, _with: bool) -> list[Ranked]:
    key = Secret.from_token(target.key)
    ranker = CohereRanker(target.model, top_k=top_n or len(documents) or 1, api_key=key, api_base_url=target.url)
    return _run(ranker, query, documents)


def _jina(target: Target, query: str, documents: Sequence[Any], top_n: int | None, _with: bool) -> list[Ranked]:
    key = Secret.from_token(target.key)
    return _run(JinaRanker(target.model, key, top_n, base_url=f"{target.url}/v1/rerank"), query, documents)


def _nvidia(target: Target, query: str, documents: Sequence[Any], top_n: int | None, _with: bool) -> list[Ranked]:
    key = Secret.from_token(target.key)
    top = top_n or len(documents) or 1
    return _run(NvidiaRanker(target.model, api_url=f"{target.url}/v1", api_key=key, top_k=top), query, documents)


def _tei(target: Target, query: str, documents: Sequence[Any], top_n: int | None, _with: bool) -> list[Ranked]:
    top = top_n or len(documents) or 1
    ranker = HuggingFaceTEIRanker(url=target.url, top_k=top, token=Secret.from_token(target.key), max_retries=0)
    return _run(ranker, query, documents)


CLIENTS = [
    Client("Haystack CohereRanker", _cohere, (ApiError,), version("cohere-haystack"), without=_WITHOUT),
    Client("Haystack JinaRanker", _jina, (RuntimeError,), version("jina-haystack"), without=_WITHOUT),
    Client("Haystack NvidiaRanker", _nvidia, (ValueError,), version("nvidia-haystack"), without=_WITHOUT),
    Client(
        "Haystack HuggingFaceTEIRanker",
        _tei,
        (RuntimeError,),
        version("huggingface-api-haystack"),
        without={**_WITHOUT, "unknown model": "it names no model"},
    ),
]
