"""LiteLLM, once for each provider setting whose server can be another one."""

from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import litellm

from tests.conformance.protocol import Client, Rank, Ranked, Target

litellm.suppress_debug_info = True

_TEXTS_ONLY = {"objects": "this provider takes texts only"}


def _ranker(provider: str, path: str) -> Rank:
    def rank(target: Target, query: str, documents: Sequence[Any], top_n: int | None, with_: bool) -> list[Ranked]:
        answer = litellm.rerank(
            model=f"{provider}/{target.model}",
            query=query,
            documents=list(documents),
            top_n=top_n,
            return_documents=with_,
            api_key=target.key,
            api_base=f"{target.url}{path}",
            max_retries=0,
        )
        return [
            Ranked(result["index"], result["relevance_score"], (result.get("document") or {}).get("text"))
            for result in answer.results or []
        ]

    return rank


def _client(provider: str, path: str, **differences: Any) -> Client:
    errors = (litellm.exceptions.APIConnectionError, litellm.exceptions.RateLimitError)
    return Client(f"LiteLLM {provider}/", _ranker(provider, path), errors, version("litellm"), **differences)


CLIENTS = [
    _client("cohere", "/v2/rerank"),
    _client("litellm_proxy", ""),
    _client("azure_ai", ""),
    _client("infinity", "/infinity"),
    _client("jina_ai", "/v1/rerank"),
    _client("hosted_vllm", ""),
    _client("huggingface", "", without={**_TEXTS_ONLY, "unknown model": "it names no model to this provider"}),
    _client("voyage", "/voyage"),
    _client("nvidia_nim", ""),
    _client("fireworks_ai", "/v1"),
]
