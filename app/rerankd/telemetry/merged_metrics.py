"""Adds up the metrics of the processes of one service, so that one scrape shows all of it.

Counters and histograms are added, and so are most gauges: connections, held bytes, memory. A few say the same in every
process, or are true only where they hold in all. What a process counted stays when it ends, as far as a scrape has seen
it: counters must not fall.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, Protocol

from prometheus_client.core import Metric
from prometheus_client.samples import Exemplar, Sample

# Of one metric: name, help, type, unit and samples of name, labels, value and exemplar. JSON.
Family = list[Any]
_Place = tuple[str, tuple[tuple[str, str], ...]]

_COUNTED: Final = ("counter", "histogram", "summary")
_LEAST: Final = frozenset({"rerank_model_ready", "process_start_time_seconds"})
_MOST: Final = frozenset(
    {
        "rerank_model_certified",
        "rerank_gpu_memory_used_bytes",
        "rerank_gpu_memory_bytes",
        "rerank_build_info",
        "python_info",
        "process_max_fds",
    }
)


class Collecting(Protocol):
    """Metrics to expose: a registry, or those of several processes."""

    def collect(self) -> Iterable[Metric]: ...


class MergedMetrics:
    """The metrics of several processes as one."""

    def __init__(self, families: Sequence[Family]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        """As a registry does."""
        for name, documentation, kind, unit, samples in self._families:
            metric = Metric(name, documentation, kind, unit)
            for sample, labels, value, exemplar in samples:
                told = Exemplar(*exemplar) if exemplar else None
                metric.samples.append(Sample(sample, labels, value, None, told))
            yield metric


def told_families(registry: Collecting) -> list[Family]:
    """The metrics of this process, for another."""
    return [
        [
            family.name,
            family.documentation,
            family.type,
            family.unit,
            [[one.name, one.labels, one.value, one.exemplar] for one in family.samples],
        ]
        for family in registry.collect()
    ]


def counted(families: Iterable[Family]) -> list[Family]:
    """Those that stay when their process ends."""
    return [family for family in families if family[2] in _COUNTED]


def merge(processes: Iterable[Iterable[Family]]) -> list[Family]:
    """The metrics of all processes as those of one."""
    merged: dict[str, Family] = {}
    samples: dict[str, dict[_Place, list[Any]]] = {}
    for families in processes:
        for name, documentation, kind, unit, of_family in families:
            known = samples.setdefault(name, {})
            merged.setdefault(name, [name, documentation, kind, unit, known])
            for sample, labels, value, exemplar in of_family:
                place = sample, _sorted(labels)
                if place not in known:
                    known[place] = [sample, labels, value, exemplar]
                else:
                    known[place][2] = _joined(sample, known[place][2], value)
                    known[place][3] = exemplar or known[place][3]
    return [[*family[:4], [*samples[name].values()]] for name, family in merged.items()]


def _joined(sample: str, one: float, other: float) -> float:
    # When a counter began.
    if sample in _LEAST or sample.endswith("_created"):
        return min(one, other)
    return max(one, other) if sample in _MOST else one + other


def _sorted(labels: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(labels.items()))
