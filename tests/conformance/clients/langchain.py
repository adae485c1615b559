"""LangChain's document compressors."""

from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import requests
from cohere.core.api_error import ApiError
from langchain_cohere import CohereRerank
from langchain_community.document_compressors import jina_rerank
from langchain_core.documents import Document
from langchain_nvidia_ai_endpoints import NVIDIARerank
from langchain_voyageai import VoyageAIRerank
from voyageai.error import VoyageError

from tests.conformance.protocol import Client, Ranked, Target, by_text

_NO_RETURN = {"documents returned": "it keeps the documents itself"}
_TEXTS_ONLY = {**_NO_RETURN, "objects": "it sends texts only"}


def _documents(documents: Sequence[Any]) -> list[Document]:
    return [Document(page_content=text) for text in documents]


def _cohere(target: Target, query: str, documents: Sequence[Any], top_n: int | None, _with: bool) -> list[Ranked]:
    reranker = CohereRerank(cohere_api_key=target.key, base_url=target.url, model=target.model)
    answer = reranker.rerank(list(documents), query, top_n=top_n)
    return [Ranked(result["index"], result["relevance_score"]) for result in answer]


def _jina(target: Target, query: str, documents: Sequence[Any], top_n: int | None, _with: bool) -> list[Ranked]:
    jina_rerank.JINA_API_URL = f"{target.url}/v1/rerank"  # the only way to point it at another server
    reranker = jina_rerank.JinaRerank(jina_api_key=target.key, model=target.model)
    answer = reranker.rerank(list(documents), query, top_n=top_n)
    return [Ranked(result["index"], result["relevance_score"]) for result in answer]


def _voyage(target: Target, query: str, documents: Sequence[Any], top_n: int | None, _with: bool) -> list[Ranked]:
    reranker = VoyageAIRerank(api_key=target.key, base_url=f"{target.url}/v1", model=target.model, top_k=top_n)
    answer = reranker.compress_documents(_documents(documents), query)
    return by_text(documents, [(found.page_content, found.metadata["relevance_score"]) for found in answer])


def _nvidia(target: Target, query: str, documents: Sequence[Any], top_n: int | None, _with: bool) -> list[Ranked]:
    reranker = NVIDIARerank(
        base_url=f"{target.url}/v1", api_key=target.key, model=target.model, top_n=top_n or len(documents)
    )
    answer = reranker.compress_documents(_documents(documents), query)
    return by_text(documents, [(found.page_content, found.metadata["relevance_score"]) for found in answer])


CLIENTS = [
    Client("LangChain CohereRerank", _cohere, (ApiError,), version("langchain-cohere"), without=_NO_RETURN),
    Client(
        "LangChain JinaRerank",
        _jina,
        (RuntimeError, requests.RequestException),
        version("langchain-community"),
        without=_NO_RETURN,
    ),
    Client("LangChain VoyageAIRerank", _voyage, (VoyageError,), version("langchain-voyageai"), without=_TEXTS_ONLY),
    Client(
        "LangChain NVIDIARerank",
        _nvidia,
        (Exception,),  # it raises nothing more special
        version("langchain-nvidia-ai-endpoints"),
        without=_TEXTS_ONLY,
    ),
]
