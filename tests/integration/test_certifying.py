"""Models are asked questions with obvious answers at load; one that ranks them wrongly is uncertified, or refused."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rerankd.config.registry import read_registry
from rerankd.config.settings import SHIPPED_REGISTRY, Settings
from rerankd.domain import FloatArray, WindowPlan
from rerankd.engines.base import BatchLimits, LogitsEngine, computed_here
from rerankd.errors import ModelNotReady
from rerankd.scorers.base import Edges, EncodedPairs, EncodedWindow, Kinds, Made, Scorer
from rerankd.scorers.ranking import identity
from rerankd.serving.assembly import load_parts, running_service
from rerankd.serving.certifying import ENGLISH, OTHERS, certify
from rerankd.tasks.classify import Classify
from rerankd.tasks.encoding import Encoding, stacked
from tests.fakes import RecordingObserver
from tests.registry_files import write_registry


class Other:
    """An engine with other outputs than the one inside of it."""

    name = "other"
    workers = 1
    preferred_batch = BatchLimits(tokens=1000, pairs=10)

    def __init__(self, inner: LogitsEngine, *, factor: float) -> None:
        self._inner = inner
        self._factor = factor

    def run(self, encodings: Sequence[Encoding]) -> FloatArray:
        return self._factor * self._inner.run(encodings)


class CountsWords:
    """A scorer of lists whose prompt is how many words each candidate shares with the query."""

    names_best = False
    fingerprint = ""
    pad_id = 0
    task = Classify(outputs=2)
    max_length = 100
    plan = WindowPlan(window=2, stride=1, schedule="sliding", depth=10)

    def encode_window(self, query: str, documents: Sequence[str], **_: Any) -> EncodedWindow[Encoding]:
        words = set(query.lower().strip("?").split())
        shared = [len(words & set(document.lower().replace(",", "").split())) for document in documents]
        return EncodedWindow(Encoding(np.array(shared), 0), np.zeros(len(documents), dtype=np.int64))

    def drops(self, text: str) -> bool:
        return not text

    def by_kind(self, kinds: Kinds[Made], /) -> Made:
        return kinds.lists(self)

    def interpret_window(self, outputs: FloatArray, /, *, candidates: int) -> FloatArray:
        return outputs[:candidates]


class Reads:
    """A scorer of pairs whose tokens are what a function makes of a text."""

    fingerprint = ""
    pad_id = 0
    task = Classify(outputs=1)
    max_length = 100
    activation = staticmethod(identity)

    def __init__(self, tokenize: Callable[[str], list[str]]) -> None:
        self._tokenize = tokenize

    def encode(self, query: str, documents: Sequence[str], **_: Any) -> EncodedPairs[Encoding]:
        ids = [[hash(token) % 10_000 for token in self._tokenize(f"{query} {document}")] for document in documents]
        widest = max(map(len, ids))
        rows = [Encoding(np.array(row + [row[0]] * (widest - len(row))), 0) for row in ids]
        return EncodedPairs(rows, np.zeros(len(documents), dtype=np.int64))

    def room(self, query: str, instruction: str | None = None) -> int:
        return self.max_length

    def edges(self, texts: Sequence[str]) -> list[Edges]:
        counts = [len(self._tokenize(text)) for text in texts]
        return [Edges(np.arange(count + 1), np.ones(count, dtype=np.bool_)) for count in counts]

    def drops(self, text: str) -> bool:
        return not text

    def by_kind(self, kinds: Kinds[Made], /) -> Made:
        return kinds.pairs(self)

    def interpret(self, rows: Iterable[FloatArray], /) -> FloatArray:
        return stacked(rows)[:, 0]


class GivesItsInput:
    name = "its-input"
    workers = 1
    preferred_batch = BatchLimits(tokens=1000, pairs=10)

    def run(self, encodings: Sequence[Encoding]) -> FloatArray:
        return np.array([encoding.ids for encoding in encodings], dtype=np.float32)


@pytest.fixture(scope="module")
def shipped() -> tuple[LogitsEngine, Scorer]:
    registry = read_registry(SHIPPED_REGISTRY)
    parts = load_parts(registry.model[0], Settings())
    return computed_here(parts.engine), parts.scorer


def test_the_shipped_model_is_certified_in_its_language(shipped: tuple[LogitsEngine, Scorer]) -> None:
    certificate = certify(*shipped)
    assert certificate is not None
    assert (certificate.asked, list(certificate.wrong), certificate.reason) == (len(ENGLISH), [], "")


@pytest.mark.parametrize("factor", [-1.0, 0.0])
def test_a_head_that_is_upside_down_or_says_nothing_is_found_out(
    shipped: tuple[LogitsEngine, Scorer], factor: float
) -> None:
    engine, scorer = shipped
    certificate = certify(Other(engine, factor=factor), scorer)
    assert certificate is not None
    assert list(certificate.wrong) == [question.text for question in ENGLISH]
    assert "rerankd inspect" in certificate.reason


@pytest.mark.parametrize(
    ("tokenize", "asked"),
    [
        (str.split, len(ENGLISH) + len(OTHERS)),
        (list, len(ENGLISH)),
        (lambda text: ["?" if word > "z" else word for word in text.split()], len(ENGLISH)),
    ],
    ids=["words", "letters", "unknown words"],
)
def test_other_languages_are_asked_where_the_tokenizer_reads_them(
    tokenize: Callable[[str], list[str]], asked: int
) -> None:
    certificate = certify(GivesItsInput(), Reads(tokenize))
    assert certificate is not None
    assert certificate.asked == asked


@pytest.mark.parametrize(("factor", "wrong"), [(1.0, 0), (-1.0, len(ENGLISH)), (0.0, len(ENGLISH))])
def test_a_list_must_be_ordered_whatever_comes_first(factor: float, wrong: int) -> None:
    certificate = certify(Other(GivesItsInput(), factor=factor), CountsWords())
    assert certificate is not None
    assert len(certificate.wrong) == wrong


async def test_an_uncertified_model_serves_with_a_warning(tiny_model: Path, tmp_path: Path) -> None:
    registry = write_registry(tmp_path, [{"name": "tiny", "path": tiny_model}])
    observer = RecordingObserver()
    async with running_service(Settings(registry=registry, cache_url="none://"), observer) as service:
        model = service.model_named("tiny")
        await model.settled()
        assert model.details["certified"] is False
        assert "uncertified" in model.warning
    assert observer.named("model_certified") == [{"model": "tiny", "certified": False}]


async def test_an_uncertified_model_is_refused_where_that_is_asked_for(tiny_model: Path, tmp_path: Path) -> None:
    registry = write_registry(tmp_path, [{"name": "tiny", "path": tiny_model, "certify": "strict"}])
    async with running_service(Settings(registry=registry, cache_url="none://"), RecordingObserver()) as service:
        with pytest.raises(ModelNotReady, match=r"uncertified.*certify = \"warn\""):
            await service.model_named("tiny").settled()
