"""Relevance from clicks, without the bias of ranks: inverse propensity weighting. Pure.

A user clicks what is relevant and was looked at, and looks at rank k with a probability that is the rank's propensity
(the position-based model). A click at rank k then counts 1 / propensity, whose mean over showings is the document's
relevance (Joachims, Swaminathan and Schnabel 2017, arXiv 1608.04468; Wang et al. 2016).
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from rerankd.errors import ConfigError
from rerankd.tools.adapting.lessons import Corpus, Lesson, family_of
from rerankd.tools.evaluation.measures import Values
from rerankd.tools.trec import read_objects

_FIELDS: Final = ("query", "results", "clicked")
# A rank that is looked at more seldom than this counts as if it were looked at so often: a bias, for less variance.
LEAST_PROPENSITY: Final = 0.01


@dataclass(frozen=True, slots=True)
class Showing:
    """One list of documents that a user saw, best first, and those clicked. `shuffled`: in an order by chance."""

    query: str
    results: Sequence[str]
    clicked: frozenset[str]
    shuffled: bool = False


def read_clicks(path: Path, corpus: Corpus) -> list[Showing]:
    """Showings of a JSONL file: `query`, `results` (ids in the order shown), `clicked` (ids) and maybe `shuffled`.

    Raises:
        ConfigError: the file is missing or empty, a line is no showing, or it names a document that the corpus lacks.
    """
    showings = [_showing(f"{path}:{number}", entry, corpus) for number, entry in read_objects(path, fields=_FIELDS)]
    if not showings:
        raise ConfigError(f"{path} holds no clicks; write one showing a line: query, results, clicked")
    return showings


def _showing(where: str, entry: Mapping[str, Any], corpus: Corpus) -> Showing:
    query, results, clicked, shuffled = (entry.get(name) for name in (*_FIELDS, "shuffled"))
    if not isinstance(query, str) or not query.strip():
        raise ConfigError(f"{where}: query must be a text")
    if not isinstance(results, list) or not results or not isinstance(clicked, list):
        raise ConfigError(f"{where}: results and clicked must be lists of document ids, results not empty")
    if shuffled not in (None, True, False):
        raise ConfigError(f"{where}: shuffled must be true or false")
    shown, chosen = [str(name) for name in results], frozenset(str(name) for name in clicked)
    unknown = [name for name in shown if name not in corpus]
    if unknown:
        raise ConfigError(f"{where}: results name {', '.join(unknown[:3])}, which the corpus does not have")
    if len(set(shown)) < len(shown):
        raise ConfigError(f"{where}: a document is in results twice")
    if not chosen <= set(shown):
        raise ConfigError(f"{where}: clicked names a document that is not in results")
    return Showing(query, shown, chosen, bool(shuffled))


def power_propensities(ranks: int, *, eta: float) -> Values:
    """(1 / rank) ** eta for ranks from 1, shape [ranks]."""
    propensities: Values = (1.0 / np.arange(1, ranks + 1)) ** eta
    return propensities


def measured_propensities(showings: Iterable[Showing]) -> Values:
    """The clicks of each rank over those of the first, from shuffled showings alone: there, chance alone decides which
    rank a document has. Shape [ranks]; ranks behind one without clicks are left out.

    Raises:
        ConfigError: no shuffled showing was clicked at its first rank.
    """
    shown: dict[int, int] = defaultdict(int)
    clicks: dict[int, int] = defaultdict(int)
    for showing in showings:
        if showing.shuffled:
            for rank, document in enumerate(showing.results):
                shown[rank] += 1
                clicks[rank] += document in showing.clicked
    if not clicks[0]:
        raise ConfigError("no shuffled showing was clicked at its first rank, so propensities cannot be measured")
    rates = []
    for rank in range(len(shown)):
        if not clicks[rank]:
            break
        rates.append(clicks[rank] / shown[rank])
    return np.minimum(1.0, np.array(rates) / rates[0])


def click_lessons(showings: Sequence[Showing], propensities: Values) -> list[Lesson]:
    """A lesson for each query that was clicked. The gain of a document is the mean over its showings of 1 / propensity
    where it was clicked and 0 where not: an unbiased estimate of its relevance, and so it may be above 1.

    Showings at ranks without a propensity count for nothing.
    """
    weights = 1.0 / np.maximum(propensities, LEAST_PROPENSITY)
    by_query: dict[str, list[Showing]] = defaultdict(list)
    for showing in showings:
        by_query[family_of(showing.query)].append(showing)
    lessons = []
    for number, (family, of_query) in enumerate(by_query.items()):
        gains = {name: gain for name, gain in _relevance(of_query, weights).items() if gain > 0}
        if gains:
            query = of_query[0].query
            lessons.append(Lesson(query_id=f"clicks-{number}", query=query, gains=gains, family=family))
    return lessons


def _relevance(showings: Sequence[Showing], weights: Values) -> dict[str, float]:
    total: dict[str, float] = defaultdict(float)
    times: dict[str, int] = defaultdict(int)
    for showing in showings:
        for document, weight in zip(showing.results, weights.tolist(), strict=False):
            times[document] += 1
            total[document] += weight * (document in showing.clicked)
    return {document: total[document] / times[document] for document in times}
