"""What a body costs grows with its bytes and no faster, for every field of every dialect, up to the requests that the
service is asked for: twice the bytes take about twice the time, and memory stays below ten times the bytes and 64 MiB.
"""

import asyncio
import gc
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import suppress

import pytest
from starlette.requests import Request
from starlette.types import Message

from loadtest.hostile import SHAPES, HostileBody, hostile_bodies, spread
from rerankd.api.dialects import DIALECTS
from rerankd.api.dialects.base import RequestLimits
from rerankd.api.parsing.bodies import BodyLimits, BodyReader
from rerankd.config.settings import Settings
from rerankd.domain import ImageLimits
from rerankd.errors import RerankError

_MIB = 2**20
_SETTINGS = Settings()
_BODIES = BodyLimits(
    max_values=_SETTINGS.max_body_values,
    max_fields=_SETTINGS.max_body_fields,
    max_text_bytes=_SETTINGS.max_text_bytes,
)
_CALLS = RequestLimits(
    documents=_SETTINGS.max_documents,
    queries=_SETTINGS.max_queries,
    query_chars=_SETTINGS.max_query_chars,
    rank_fields=_SETTINGS.max_rank_fields,
    fields=_SETTINGS.max_body_fields,
    images=ImageLimits(images=_SETTINGS.max_images, bytes=_SETTINGS.max_image_bytes),
)
_SIZES = (_MIB // 8, _MIB // 2)
# What is refused at once takes less time than can be compared.
_SLACK_S = 0.02
_ALL = list(hostile_bodies())
# `make amplification` sends all of them. These are each field of each dialect, and every shape where lists, texts and
# whole bodies go.
_MORE = spread(hostile_bodies(), one_in=53) + [
    body
    for body in _ALL
    if body.dialect.name == "cohere-v2" and body.field in ("documents", "query", "body", "rank_fields")
]
_FEW = spread(hostile_bodies(), one_in=101) + [
    body
    for body in _ALL
    if body.dialect.name == "jina" and str(body).endswith(("documents-one-document-of-many-numbers", "large-document"))
]


def _request(body: bytes) -> Request:
    parts = [body[start : start + 65_536] for start in range(0, len(body), 65_536)]
    messages: Iterator[Message] = iter(
        [{"type": "http.request", "body": part, "more_body": True} for part in parts]
        + [{"type": "http.request", "body": b"", "more_body": False}]
    )

    async def receive() -> Message:
        for message in messages:
            return message
        await asyncio.Event().wait()
        raise AssertionError

    return Request({"type": "http", "method": "POST", "path": "/", "headers": []}, receive)


async def _understand(hostile: HostileBody, content: bytes) -> None:
    """What a request does before it asks the service for anything. A refusal is as good an end as any."""
    with suppress(RerankError):
        body = await BodyReader(_BODIES).read_object(_request(content))
        call = hostile.dialect.parse(body.fields, body.text, limits=_CALLS)
        call.to_requests()


def _cpu_s(hostile: HostileBody, size: int) -> float:
    content = hostile.content(size)
    best = float("inf")
    gc.collect()
    for _ in range(2):
        started = time.process_time()
        asyncio.run(_understand(hostile, content))
        best = min(best, time.process_time() - started)
    return best


def _check_time(hostile: HostileBody) -> None:
    least, most = (_cpu_s(hostile, size) for size in _SIZES)
    assert most < 4 * 2 * (least + _SLACK_S), f"{least:.3f} s, and {most:.3f} s for four times the bytes"


def _check_memory(hostile: HostileBody, size: int) -> None:
    content = hostile.content(size)
    gc.collect()
    tracemalloc.start()
    try:
        asyncio.run(_understand(hostile, content))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 10 * len(content) + 64 * _MIB


def test_every_field_of_every_dialect_is_tried_with_every_shape() -> None:
    tried = {(body.dialect.name, body.field, body.shape) for body in _ALL}
    for dialect in DIALECTS:
        for shape in SHAPES:
            fields = {field for name, field, used in tried if name == dialect.name and used == shape}
            known = {place.split(".")[0] for place in fields}
            expected = {
                name
                for field_name, field in dialect.body.model_fields.items()
                for name in getattr(field.validation_alias, "choices", [field_name])
            }
            assert expected <= known, "a field is not tried"
    assert {"windows.initial_order", "passages.tokens", "parameters.truncate", "query.text"} <= {f for _, f, _ in tried}


def test_what_is_tried_has_about_the_bytes_that_were_asked_for() -> None:
    for body in _FEW:
        assert 0.3 * _MIB < len(body.content(_MIB)) < 2 * _MIB + 4096, str(body)


@pytest.mark.timed
@pytest.mark.usefixtures("service_collector")
@pytest.mark.parametrize("hostile", _FEW, ids=str)
def test_a_bodys_cost_grows_with_its_bytes(hostile: HostileBody) -> None:
    _check_time(hostile)


@pytest.mark.parametrize(
    "shape", ["short texts", "empty lists", "small objects", "objects in objects", "one emoji in ASCII"]
)
def test_what_takes_most_memory_stays_within_its_bound(shape: str) -> None:
    """Of about as many values as are taken, and of more."""
    hostile = next(body for body in _ALL if (body.dialect.name, body.field, body.shape) == ("jina", "documents", shape))
    for size in (_MIB, 4 * _MIB):
        _check_memory(hostile, size)


@pytest.mark.slow
@pytest.mark.uncovered
@pytest.mark.timeout(1800)
@pytest.mark.usefixtures("service_collector")
def test_more_bodies_cost_grows_with_their_bytes() -> None:
    for hostile in _MORE:
        _check_time(hostile)
    for hostile in _MORE[::6]:  # measuring memory takes longest
        _check_memory(hostile, 4 * _MIB)
