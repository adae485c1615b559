"""The error tree is public: every code is stable, unique, and has an answer that every client can read."""

import json
from collections.abc import Iterator

import pytest

from rerankd.api.answers import error_answer
from rerankd.errors import (
    BodyTooSlow,
    CacheUnavailable,
    ConfigError,
    Overloaded,
    RerankError,
    Unauthorized,
    Unavailable,
)

# Clients rely on these: an addition is fine, a change is a new major version.
_PUBLIC = {
    "internal_error": 500,
    "invalid_request": 400,
    "unauthorized": 401,
    "forbidden": 403,
    "model_not_found": 404,
    "not_found": 404,
    "request_timeout": 408,
    "not_changed": 409,
    "request_too_large": 413,
    "unavailable": 503,
    "overloaded": 429,
    "rate_limited": 429,
    "model_not_ready": 503,
    "remote_unavailable": 503,
    "store_unavailable": 503,
    "deadline_exceeded": 504,
    "remote_failed": 502,
    "not_configured": 501,
    "store_full": 507,
    "scoring_failed": 500,
}


def _tree(root: type[RerankError]) -> Iterator[type[RerankError]]:
    yield root
    for child in root.__subclasses__():
        yield from _tree(child)


_ALL = list(_tree(RerankError))


def test_codes_and_statuses_are_the_public_ones() -> None:
    assert {error.code: error.status for error in _ALL} == _PUBLIC
    assert len({error.code for error in _ALL}) == len(_ALL), "two errors share a code"


@pytest.mark.parametrize("error", _ALL, ids=lambda error: error.code)
def test_every_error_states_its_own_code_and_status(error: type[RerankError]) -> None:
    assert {"code", "status"} <= set(vars(error))


@pytest.mark.parametrize("message", ["what is wrong", "", 'quotes " and \n lines'])
@pytest.mark.parametrize("error", _ALL, ids=lambda error: error.code)
def test_every_error_is_answered_with_four_strings(error: type[RerankError], message: str) -> None:
    answer = error_answer(error(message))
    body = json.loads(bytes(answer.body))
    assert answer.status_code == error.status
    assert answer.headers["content-type"] == "application/json"
    assert body == dict.fromkeys(("message", "detail", "error"), body["message"]) | {"error_type": error.code}
    assert body["message"].startswith(message or error.code)


@pytest.mark.parametrize(("seconds", "header"), [(0.0, "1"), (0.2, "1"), (1.0, "1"), (1.1, "2"), (90.0, "90")])
def test_what_may_succeed_later_says_when(seconds: float, header: str) -> None:
    for kind in (Unavailable, Overloaded):
        assert error_answer(kind("later", retry_after_s=seconds)).headers["retry-after"] == header


def test_a_missing_key_says_how_to_send_one() -> None:
    answer = error_answer(Unauthorized("no key"))
    assert answer.headers["www-authenticate"] == "Bearer"
    assert b"; send yours in the header `Authorization: Bearer KEY`" in bytes(answer.body)


def test_errors_of_operators_and_of_caches_are_no_answers() -> None:
    assert not issubclass(ConfigError, RerankError)
    assert not issubclass(CacheUnavailable, RerankError)


def test_a_body_that_is_too_slow_closes_its_connection() -> None:
    assert error_answer(BodyTooSlow("too slow")).headers["connection"] == "close"
