"""The SDKs of Together, Mixedbread, Pinecone, Infinity and Xinference."""

from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import mixedbread
import pinecone
import together
from infinity_client.api.default import rerank as infinity_rerank
from infinity_client.client import AuthenticatedClient
from infinity_client.errors import UnexpectedStatus
from infinity_client.models import RerankInput
from infinity_client.types import UNSET
from xinference_client import RESTfulClient

from tests.conformance.protocol import Client, Ranked, Target


def _together(target: Target, query: str, documents: Sequence[Any], top_n: int | None, with_: bool) -> list[Ranked]:
    client = together.Together(api_key=target.key, base_url=target.url, max_retries=1)
    top: Any = together.omit if top_n is None else top_n
    answer = client.rerank.create(
        model=target.model, query=query, documents=list(documents), top_n=top, return_documents=with_
    )
    return [
        Ranked(result.index, result.relevance_score, result.document.text if result.document else None)
        for result in answer.results
    ]


def _mixedbread(target: Target, query: str, documents: Sequence[Any], top_n: int | None, with_: bool) -> list[Ranked]:
    client = mixedbread.Mixedbread(api_key=target.key, base_url=target.url, max_retries=1)
    top: Any = mixedbread.omit if top_n is None else top_n
    answer = client.rerank(model=target.model, query=query, input=list(documents), top_k=top, return_input=with_)
    return [Ranked(result.index, result.score, result.input) for result in answer.data]


def _pinecone(target: Target, query: str, documents: Sequence[Any], top_n: int | None, with_: bool) -> list[Ranked]:
    client = pinecone.Pinecone(api_key=target.key, host=target.url, retry_config=pinecone.RetryConfig(max_retries=0))
    answer = client.inference.rerank(
        model=target.model, query=query, documents=list(documents), top_n=top_n, return_documents=with_
    )
    return [
        Ranked(result.index, result.score, result.document["text"] if result.document else None)
        for result in answer.data
    ]


def _infinity(target: Target, query: str, documents: Sequence[Any], top_n: int | None, with_: bool) -> list[Ranked]:
    client = AuthenticatedClient(target.url, token=target.key, raise_on_unexpected_status=True)
    body = RerankInput(
        query=query,
        documents=list(documents),
        model=target.model,
        top_n=UNSET if top_n is None else top_n,
        return_documents=with_,
    )
    answer = infinity_rerank.sync(client=client, body=body)
    return [
        Ranked(result.index, result.relevance_score, result.document or None)
        for result in getattr(answer, "results", [])
    ]


def _xinference(target: Target, query: str, documents: Sequence[Any], top_n: int | None, with_: bool) -> list[Ranked]:
    model = RESTfulClient(target.url, api_key=target.key).get_model(target.model)
    answer = model.rerank(list(documents), query, top_n=top_n, return_documents=with_, return_len=True)
    return [
        Ranked(result["index"], result["relevance_score"], result.get("document", {}).get("text"))
        for result in answer["results"]
    ]


CLIENTS = [
    Client("together", _together, (together.APIStatusError,), version("together")),
    Client("mixedbread", _mixedbread, (mixedbread.APIStatusError,), version("mixedbread")),
    Client(
        "pinecone",
        _pinecone,
        (pinecone.PineconeException,),
        version("pinecone"),
    ),
    Client(
        "infinity-client",
        _infinity,
        (UnexpectedStatus,),
        version("infinity-client"),
        without={"objects": "it sends texts only"},
    ),
    Client("xinference-client", _xinference, (RuntimeError,), version("xinference-client")),
]
