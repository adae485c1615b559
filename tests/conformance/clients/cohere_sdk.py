"""Cohere's own SDK; two of its major versions, each in an environment of its own."""

from collections.abc import Sequence
from typing import Any

import cohere
from cohere.core.api_error import ApiError

from tests.conformance.protocol import Client, Ranked, Target

_VERSION = cohere.__version__
_MAJOR = _VERSION.split(".")[0]


def _v2(target: Target, query: str, documents: Sequence[Any], top_n: int | None, _with: bool) -> list[Ranked]:
    client = cohere.ClientV2(target.key, base_url=target.url)
    answer = client.rerank(model=target.model, query=query, documents=list(documents), top_n=top_n)
    return [Ranked(result.index, result.relevance_score) for result in answer.results]


def _v1(target: Target, query: str, documents: Sequence[Any], top_n: int | None, with_: bool) -> list[Ranked]:
    client = cohere.Client(target.key, base_url=target.url)
    answer = client.rerank(
        model=target.model,
        query=query,
        documents=list(documents),
        top_n=top_n,
        return_documents=with_,
        rank_fields=["text"],
        max_chunks_per_doc=2,
    )
    return [
        Ranked(result.index, result.relevance_score, result.document.text if result.document else None)
        for result in answer.results
    ]


CLIENTS = [
    Client(
        f"cohere {_MAJOR} ClientV2",
        _v2,
        (ApiError,),
        _VERSION,
        without={"documents returned": "its method has no such parameter"},
    ),
    Client(f"cohere {_MAJOR} Client", _v1, (ApiError,), _VERSION),
]
