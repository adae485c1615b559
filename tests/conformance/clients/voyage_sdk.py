"""Voyage's own SDK."""

from collections.abc import Sequence
from typing import Any

import voyageai
from voyageai.error import VoyageError

from tests.conformance.protocol import Client, Ranked, Target


def _rank(target: Target, query: str, documents: Sequence[Any], top_n: int | None, _with: bool) -> list[Ranked]:
    client = voyageai.Client(api_key=target.key, base_url=f"{target.url}/v1")
    answer = client.rerank(query, list(documents), model=target.model, top_k=top_n)
    return [Ranked(result.index, result.relevance_score, result.document) for result in answer.results]


CLIENTS = [
    Client(
        "voyageai",
        _rank,
        (VoyageError,),
        voyageai.__version__,
        without={"objects": "it sends texts only"},
    )
]
