"""The cases that every client goes through. Runs inside the client's own environment: standard library only."""

import math
from collections.abc import Callable, Mapping
from typing import Final

from tests.conformance.protocol import Client, Ranked, Target

QUERY: Final = "What is the capital of France?"
DOCUMENTS: Final = (
    "Berlin is a large city with many museums.",
    "Paris is the capital of France.",
    "The mitochondrion is the powerhouse of the cell.",
    "Bread is baked from flour, water, salt and yeast.",
)
RIGHT: Final = 1
STRANGE: Final = (
    "Größte Stadt Österreichs: Wien 🎻",
    "東京は日本の首都です。",
    "القاهرة هي عاصمة مصر",
    'quotes " and \\ backslashes \t tabs \n lines \u2028 separators',
    "👩‍👩‍👧 e\u0301 \u202e right to left",
)
_WRONG_KEY: Final = "wrong-key"
_UNKNOWN_MODEL: Final = "no-such-model"


def right_document_first(client: Client, target: Target) -> None:
    ranked = client.rank(target, QUERY, DOCUMENTS, None, False)
    assert ranked, "no results"
    assert ranked[0].index == RIGHT, ranked
    _as_ranked(client, ranked, len(DOCUMENTS))


def top_n(client: Client, target: Target) -> None:
    ranked = client.rank(target, QUERY, DOCUMENTS, 1, False)
    assert [result.index for result in ranked] == [RIGHT], ranked
    more = client.rank(target, QUERY, DOCUMENTS, 50, False)
    assert sorted(result.index for result in more) == list(range(len(DOCUMENTS))), more


def documents_returned(client: Client, target: Target) -> None:
    ranked = client.rank(target, QUERY, DOCUMENTS, None, True)
    assert [result.text for result in ranked] == [DOCUMENTS[result.index] for result in ranked], ranked


def unicode(client: Client, target: Target) -> None:
    ranked = client.rank(target, "Wo liegt Österreichs größte Stadt? 🎻", STRANGE, None, False)
    _as_ranked(client, ranked, len(STRANGE))
    if "documents returned" not in client.without:
        echoed = client.rank(target, "東京", STRANGE, None, True)
        assert [result.text for result in echoed] == [STRANGE[result.index] for result in echoed], echoed


def objects(client: Client, target: Target) -> None:
    documents = [{"text": text, "id": f"doc-{index}"} for index, text in enumerate(DOCUMENTS)]
    ranked = client.rank(target, QUERY, documents, None, False)
    assert ranked[0].index == RIGHT, ranked
    _as_ranked(client, ranked, len(DOCUMENTS))


def blank_document(client: Client, target: Target) -> None:
    documents = [DOCUMENTS[0], " ", DOCUMENTS[RIGHT]]
    ranked = client.rank(target, QUERY, documents, None, False)
    assert [result.index for result in ranked] == [2, 0, 1], ranked


def wrong_key(client: Client, target: Target) -> None:
    _refused(client, target._replace(key=_WRONG_KEY), "wrong key", "API key is not valid")


def no_documents(client: Client, target: Target) -> None:
    """Some clients answer themselves: no documents, no results."""
    try:
        ranked = client.rank(target, QUERY, [], None, False)
    except client.errors as error:
        _readable(client, error, "no documents", "no documents", "documents must not be empty")
    else:
        assert ranked == [], ranked


def unknown_model(client: Client, target: Target) -> None:
    _refused(client, target._replace(model=_UNKNOWN_MODEL), "unknown model", "no-such-model'; known: ")


def overload(client: Client, target: Target) -> None:
    _refused(client, target, "overload", "tokens wait already")


CASES: Final[Mapping[str, Callable[[Client, Target], None]]] = {
    "right document first": right_document_first,
    "top_n": top_n,
    "documents returned": documents_returned,
    "unicode": unicode,
    "objects": objects,
    "blank document": blank_document,
    "wrong key": wrong_key,
    "no documents": no_documents,
    "unknown model": unknown_model,
    "overload": overload,
}


class NotRefused(Exception):
    """The server answered where it should not have."""


def _refused(client: Client, target: Target, case: str, message: str) -> None:
    try:
        ranked = client.rank(target, QUERY, DOCUMENTS, None, False)
    except client.errors as error:
        _readable(client, error, case, message)
    else:
        raise NotRefused(f"answered: {ranked}")


def _readable(client: Client, error: BaseException, case: str, *messages: str) -> None:
    shown = any(message in str(error) for message in messages)
    assert shown or case in client.hides, f"unreadable: {error!r}"


def _as_ranked(client: Client, ranked: list[Ranked], documents: int) -> None:
    """Every document once, by descending score."""
    assert sorted(result.index for result in ranked) == list(range(documents)), ranked
    scores = [result.score for result in ranked]
    assert all(math.isfinite(score) for score in scores), ranked
    assert not client.sorts or scores == sorted(scores, reverse=True), ranked
