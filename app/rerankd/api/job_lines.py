"""Answers the lines of jobs as the path that they name answers requests, without HTTP."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Final

import orjson

from rerankd.api.dialects.base import Dialect, RequestLimits
from rerankd.api.parsing.bodies import BodyReader
from rerankd.api.parsing.raw_body import RawBody
from rerankd.api.rerank import Choice, parse, written
from rerankd.concurrency.turns import Share
from rerankd.errors import Forbidden, InvalidRequest, RerankError, Unauthorized, Unavailable
from rerankd.gateway.failures import INTERNAL_ERROR, failure_of
from rerankd.gateway.gateway import BackgroundCall, Gateway
from rerankd.gateway.held_bytes import DOCUMENT_BYTES, QUERY_BYTES

logger = logging.getLogger(__name__)

_ANSWERED: Final = 200
_NO_HEADERS: Final[Mapping[str, str]] = {}


class LineAnswers:
    """See `rerankd.jobs.runner.Answers`. Lines may name the `endpoints`: paths of the dialects, without parameters."""

    def __init__(
        self,
        dialects: Sequence[Dialect],
        *,
        gateway: Gateway,
        bodies: BodyReader,
        limits: RequestLimits,
        strict: bool = False,
    ) -> None:
        self.endpoints = [
            path for path in dict.fromkeys(path for dialect in dialects for path in dialect.paths) if "{" not in path
        ]
        self._choices = {path: Choice.on(path, dialects) for path in self.endpoints}
        self._gateway = gateway
        self._bodies = bodies
        self._limits = limits
        self._strict = strict

    async def read(self, text: bytes, /, *, owner: str) -> Mapping[str, Any]:
        return (await self._bodies.read_text(text, caller=owner)).fields

    async def answer(
        self, line: Mapping[str, Any], text: bytes, /, *, endpoint: str, owner: str, left_s: float
    ) -> tuple[int, bytes]:
        choice = self._choices[endpoint]
        try:
            with self._gateway.background_call(owner) as call:
                await call.resume()
                call.deadline = call.started + left_s
                try:
                    return _ANSWERED, await call.paced(self._answer(call, choice, line["body"], text))
                finally:
                    call.claim.release()
        except (Unavailable, Unauthorized, Forbidden):
            raise
        except RerankError as error:
            failure = failure_of(error)
        except Exception:
            logger.exception("unexpected error")
            failure = INTERNAL_ERROR
        body = choice.default.errors.body(failure.status, failure.code, failure.message)
        return failure.status, orjson.dumps(body)

    async def _answer(self, call: BackgroundCall, choice: Choice, fields: Mapping[str, Any], text: bytes) -> bytes:
        dialect = choice.of(fields, _NO_HEADERS)
        documents = min(dialect.count(fields), self._limits.documents)
        call.claim.take(len(text) + QUERY_BYTES + DOCUMENT_BYTES * documents)
        share = Share(caller=call.facts.key, left=len(text))
        parsing = parse(dialect, fields, RawBody(text).field("body"), limits=self._limits, strict=self._strict)
        body, requests = await self._bodies.loop.run(share, parsing)
        try:
            results = await call.rerank(requests)
        except InvalidRequest as error:
            raise dialect.reworded(error, requests) from None
        return await self._bodies.loop.run(share, written(body, results, request_id=""))
