"""The SDKs of Amazon Bedrock, DashScope and Google's ranking API."""

from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import boto3
import dashscope
from botocore.config import Config
from botocore.exceptions import ClientError, ParamValidationError
from dashscope.v2.errors import DashScopeError
from google.api_core.exceptions import GoogleAPICallError
from google.auth.exceptions import GoogleAuthError
from google.cloud import discoveryengine_v1 as discoveryengine
from google.cloud.discoveryengine_v1.services.rank_service.transports import RankServiceRestTransport
from google.oauth2.credentials import Credentials

from tests.conformance.protocol import Client, Ranked, Target

_CONFIG = "projects/project/locations/global/rankingConfigs/default_ranking_config"
_TEXTS_ONLY = {"objects": "its types have texts only"}


def _bedrock(target: Target, query: str, documents: Sequence[Any], top_n: int | None, _with: bool) -> list[Ranked]:
    client = boto3.client(
        "bedrock-agent-runtime",
        endpoint_url=target.url,
        region_name="us-east-1",
        aws_access_key_id="id",
        aws_secret_access_key="secret",
        config=Config(retries={"max_attempts": 0}),
    )
    # It signs requests; the server's key is a header of its own.
    client.meta.events.register(
        "before-send.bedrock-agent-runtime.Rerank", lambda request, **_: request.headers.update({"Api-Key": target.key})
    )
    chosen: dict[str, Any] = {"modelConfiguration": {"modelArn": target.model}}
    if top_n is not None:
        chosen["numberOfResults"] = top_n
    answer = client.rerank(
        queries=[{"type": "TEXT", "textQuery": {"text": query}}],
        sources=[{"type": "INLINE", "inlineDocumentSource": _source(document)} for document in documents],
        rerankingConfiguration={"type": "BEDROCK_RERANKING_MODEL", "bedrockRerankingConfiguration": chosen},
    )
    return [Ranked(result["index"], result["relevanceScore"]) for result in answer["results"]]


def _source(document: Any) -> dict[str, Any]:
    if isinstance(document, str):
        return {"type": "TEXT", "textDocument": {"text": document}}
    return {"type": "JSON", "jsonDocument": document}


def _dashscope(target: Target, query: str, documents: Sequence[Any], top_n: int | None, with_: bool) -> list[Ranked]:
    client = dashscope.Client(api_key=target.key, base_url=f"{target.url}/api/v1", max_retries=0)
    answer = client.rerank.create(
        model=target.model, query=query, documents=list(documents), top_n=top_n, return_documents=with_
    )
    return [
        Ranked(result.index, result.relevance_score, result.document.text if result.document else None)
        for result in answer.results
    ]


def _vertex(target: Target, query: str, documents: Sequence[Any], top_n: int | None, with_: bool) -> list[Ranked]:
    transport = RankServiceRestTransport(host=target.url, credentials=Credentials(target.key))
    records = [discoveryengine.RankingRecord(id=str(index), content=text) for index, text in enumerate(documents)]
    request = discoveryengine.RankRequest(
        ranking_config=_CONFIG,
        model=target.model,
        query=query,
        records=records,
        top_n=top_n or 0,
        ignore_record_details_in_response=not with_,
    )
    answer = discoveryengine.RankServiceClient(transport=transport).rank(request)
    return [Ranked(int(record.id), record.score, record.content or None) for record in answer.records]


CLIENTS = [
    Client(
        "boto3 bedrock-agent-runtime",
        _bedrock,
        (ClientError, ParamValidationError),
        version("boto3"),
        without={"documents returned": "its answer has none"},
        hides={"no documents": "it checks the number itself"},
    ),
    Client("dashscope", _dashscope, (DashScopeError, ValueError), version("dashscope"), without=_TEXTS_ONLY),
    Client(
        "google-cloud-discoveryengine",
        _vertex,
        (GoogleAPICallError, GoogleAuthError),
        version("google-cloud-discoveryengine"),
        without=_TEXTS_ONLY,
        hides={"wrong key": "its credentials ask for a new token and fail"},
    ),
]
