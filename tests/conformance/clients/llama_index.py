"""LlamaIndex's node postprocessors."""

from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import httpx
import voyageai
from cohere.core.api_error import ApiError
from llama_index.core.schema import NodeWithScore, TextNode
from llama_index.postprocessor.cohere_rerank import CohereRerank
from llama_index.postprocessor.jinaai_rerank import JinaRerank
from llama_index.postprocessor.nvidia_rerank import NVIDIARerank
from llama_index.postprocessor.tei_rerank import TextEmbeddingInference
from llama_index.postprocessor.voyageai_rerank import VoyageAIRerank
from voyageai.error import VoyageError

from tests.conformance.protocol import Client, Ranked, Target

_WITHOUT = {"documents returned": "it keeps the documents itself", "objects": "it sends texts only"}


def _rerank(postprocessor: Any, query: str, documents: Sequence[Any]) -> list[Ranked]:
    nodes = [NodeWithScore(node=TextNode(text=text, id_=str(index)), score=0) for index, text in enumerate(documents)]
    found = postprocessor.postprocess_nodes(nodes, query_str=query)
    return [Ranked(int(node.node.node_id), float(node.score)) for node in found]


def _cohere(target: Target, query: str, documents: Sequence[Any], top_n: int | None, _with: bool) -> list[Ranked]:
    top = top_n or len(documents)
    reranker = CohereRerank(top_n=top, model=target.model, api_key=target.key, base_url=target.url)
    return _rerank(reranker, query, documents)


def _jina(target: Target, query: str, documents: Sequence[Any], top_n: int | None, _with: bool) -> list[Ranked]:
    top = top_n or len(documents)
    reranker = JinaRerank(top_n=top, model=target.model, api_key=target.key, base_url=f"{target.url}/v1")
    return _rerank(reranker, query, documents)


def _tei(target: Target, query: str, documents: Sequence[Any], top_n: int | None, _with: bool) -> list[Ranked]:
    top = top_n or len(documents)
    reranker = TextEmbeddingInference(top_n=top, base_url=target.url, auth_token=f"Bearer {target.key}")
    return _rerank(reranker, query, documents)


def _voyage(target: Target, query: str, documents: Sequence[Any], top_n: int | None, _with: bool) -> list[Ranked]:
    reranker = VoyageAIRerank(model=target.model, api_key=target.key, top_n=top_n)
    reranker._client = voyageai.Client(api_key=target.key, base_url=f"{target.url}/v1")  # it takes no URL
    return _rerank(reranker, query, documents)


def _nvidia(target: Target, query: str, documents: Sequence[Any], top_n: int | None, _with: bool) -> list[Ranked]:
    top = top_n or len(documents)
    reranker = NVIDIARerank(model=target.model, api_key=target.key, base_url=f"{target.url}/v1", top_n=top)
    return _rerank(reranker, query, documents)


def _version(name: str) -> str:
    return version(f"llama-index-postprocessor-{name}")


_NOT_READ = "it does not read error bodies"
CLIENTS = [
    Client("LlamaIndex CohereRerank", _cohere, (ApiError,), _version("cohere-rerank"), without=_WITHOUT),
    Client("LlamaIndex JinaRerank", _jina, (RuntimeError,), _version("jinaai-rerank"), without=_WITHOUT),
    Client(
        "LlamaIndex TextEmbeddingInference",
        _tei,
        (AssertionError, TypeError, httpx.HTTPError),
        _version("tei-rerank"),
        without={**_WITHOUT, "unknown model": "it names no model"},
        hides=dict.fromkeys(("wrong key", "overload"), _NOT_READ),
    ),
    Client("LlamaIndex VoyageAIRerank", _voyage, (VoyageError,), _version("voyageai-rerank"), without=_WITHOUT),
    Client(
        "LlamaIndex NVIDIARerank",
        _nvidia,
        (httpx.HTTPStatusError, ValueError),
        _version("nvidia-rerank"),
        without=_WITHOUT,
        hides={
            **dict.fromkeys(("wrong key", "overload"), _NOT_READ),
            "unknown model": "it compares with /v1/models itself",
        },
    ),
]
