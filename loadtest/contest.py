"""The results of a comparison of servers: figures, agreement of scores, and the file that keeps them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import isnan
from pathlib import Path
from typing import Any, Final, Self

import numpy as np

from loadtest.contestants import CONTESTANTS
from rerankd.tools.benchmark.measurement import Measurement, Spread

_LEAST_CORRELATION: Final = {"float32": 0.999, "int8": 0.9}
_HEAD: Final = (
    "server",
    "weights",
    "clients",
    "pairs/s",
    "of rerankd's",
    "p50 ms",
    "p95 ms",
    "score diff.",
    "rank corr.",
    "failed",
)

Scores = Mapping[int, float]


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far a server's scores are from the reference's: of relevance scores, and of orders (Spearman)."""

    largest_difference: float
    rank_correlation: float


@dataclass(slots=True)
class Contest:
    """What was measured, by contestant and number of clients, one measurement a round. `options` are what figures
    depend on: only with the same ones may a stopped run be gone on with.
    """

    options: Mapping[str, Any] = field(default_factory=dict)
    measurements: dict[str, dict[int, list[Measurement]]] = field(default_factory=dict)
    agreements: dict[str, Agreement] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, file: Path) -> Self:
        """Read what `write` wrote. A contestant that was absent may be there now."""
        content = json.loads(file.read_text(encoding="utf-8"))
        return cls(
            options=content["options"],
            measurements={
                name: {int(clients): [Measurement(**one) for one in rounds] for clients, rounds in loads.items()}
                for name, loads in content["measurements"].items()
            },
            agreements={name: Agreement(**one) for name, one in content["agreements"].items()},
        )

    def write(self, file: Path, details: Mapping[str, str]) -> None:
        """Write all that is known so far; a run that is stopped meanwhile leaves the old file or the new one."""
        unfinished = file.with_name(f"{file.name}.part")
        unfinished.write_text(json.dumps({**asdict(self), "details": details}, indent=2) + "\n", encoding="utf-8")
        unfinished.replace(file)

    def rounds(self, name: str, clients: int) -> list[Measurement]:
        """The measurements of one contestant under one load, to be added to."""
        return self.measurements.setdefault(name, {}).setdefault(clients, [])

    def ratios(self, name: str, clients: int) -> Spread | None:
        """Pairs a second over those of rerankd with weights of the same precision, round by round."""
        ours = self.measurements.get(f"rerankd onnx {CONTESTANTS[name].precision}", {}).get(clients, [])
        theirs = self.measurements[name][clients]
        ratios = [a.pairs_per_s / b.pairs_per_s for a, b in zip(theirs, ours, strict=False) if b.pairs_per_s]
        return Spread.of(ratios) if ratios else None


def agreement(answers: Sequence[Scores], reference: Sequence[Scores]) -> Agreement:
    """Over all documents of all requests; correlations are means over requests."""
    differences, correlations = [], []
    for ours, theirs in zip(reference, answers, strict=True):
        a, b = (np.array([scores[index] for index in sorted(ours)]) for scores in (ours, theirs))
        differences.append(np.abs(a - b).max())
        correlations.append(np.corrcoef(_ranks(a), _ranks(b))[0, 1] if len(a) > 1 else 1.0)
    return Agreement(float(max(differences)), float(np.mean(correlations)))


def _ranks(values: "np.typing.NDArray[np.float64]") -> "np.typing.NDArray[np.int64]":
    return np.argsort(np.argsort(values, kind="stable"), kind="stable")


def lines(contest: Contest) -> list[list[str]]:
    """A head, and a line for each contestant and number of clients that was measured."""
    return [
        [*_HEAD],
        *(
            _line(contest, name, clients, measured)
            for name, loads in contest.measurements.items()
            for clients, measured in loads.items()
            if measured
        ),
    ]


def _line(contest: Contest, name: str, clients: int, measured: Sequence[Measurement]) -> list[str]:
    pairs = Spread.of([one.pairs_per_s for one in measured])
    ratio = contest.ratios(name, clients)
    agrees = contest.agreements.get(name)
    precision = CONTESTANTS[name].precision
    differs = agrees is not None and not agrees.rank_correlation >= _LEAST_CORRELATION[precision]
    short = any(is_short(one, clients=clients) for one in measured)
    return [
        name,
        precision,
        str(clients),
        f"{pairs.median:,.0f} ({pairs.low:,.0f}..{pairs.high:,.0f})" + (" SHORT WINDOW" if short else ""),
        f"{ratio.median:.2f} ({ratio.low:.2f}..{ratio.high:.2f})" if ratio else "-",
        *(_milliseconds([one.latency_ms[which] for one in measured]) for which in ("p50", "p95")),
        f"{agrees.largest_difference:.1e}" if agrees else "-",
        (f"{agrees.rank_correlation:.3f}" + (" OTHER SCORES" if differs else "")) if agrees else "-",
        str(sum(sum(one.errors.values()) for one in measured)),
    ]


def is_short(measured: Measurement, *, clients: int) -> bool:
    """Whether fewer requests ended in the window than there were clients: then its rate is mostly chance, and the
    slowest requests, which were given up, are missing from its latencies.
    """
    return measured.requests < clients


def _milliseconds(values: Sequence[float]) -> str:
    known = [value for value in values if not isnan(value)]
    return f"{Spread.of(known).median:,.0f}" if known else "-"
