"""Scores a corpus for anchor queries: the work of `rerankd anchors`."""

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np

from rerankd.config.named_models import served_registry
from rerankd.config.settings import Settings
from rerankd.domain import FloatArray, RerankRequest
from rerankd.errors import ConfigError
from rerankd.scorers.anchors import Anchors, digest_of
from rerankd.serving.assembly import anchor_identity
from rerankd.tools.evaluation.in_process import InProcess
from rerankd.tools.evaluation.targets import Ask

_DOCUMENTS_PER_REQUEST: Final = 500


async def make_anchors(
    settings: Settings,
    model: str | None,
    corpus: Sequence[str],
    queries: Sequence[str],
    *,
    on_progress: Callable[[int], None],
) -> Anchors:
    """Score each text of a corpus, of which no two are alike, once for each query. Queries that the model cannot read
    are left out. `on_progress` learns how many pairs were scored.

    Raises:
        ConfigError: the model scores no pairs, has anchors already, or can read none of the queries.
        RerankError: it does not answer.
    """
    identity = _identity(settings, model)
    columns = []
    async with InProcess(settings, model).opened() as ask:
        for query in queries:
            column = await _column(ask, query, corpus, on_progress)
            if column is not None:
                columns.append(column)
    if not columns:
        raise ConfigError("the model can read none of the queries: they are too long, or blank")
    return Anchors(np.stack(columns, axis=1), [digest_of(text) for text in corpus], identity=identity)


def _identity(settings: Settings, model: str | None) -> str:
    spec = served_registry(settings).named(model)
    if spec.anchors.file:
        raise ConfigError(
            f"the model {spec.name!r} has anchors, and would not read every document; name with --model an entry of "
            "the same path without them"
        )
    return anchor_identity(spec, settings)


async def _column(ask: Ask, query: str, corpus: Sequence[str], on_progress: Callable[[int], None]) -> FloatArray | None:
    """The raw score of each text; None: the query was refused."""
    values = np.empty(len(corpus), dtype=np.float32)
    for start in range(0, len(corpus), _DOCUMENTS_PER_REQUEST):
        documents = corpus[start : start + _DOCUMENTS_PER_REQUEST]
        answer = await ask(RerankRequest(query=query, documents=documents))
        on_progress(len(documents))
        if not answer.order:
            return None
        values[start + np.asarray(answer.order)] = answer.values
    return values
