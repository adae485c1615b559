"""Whether the adapted model is better: both models on held-out queries, as `rerankd eval` measures them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from rerankd.tools.evaluation.datasets import DataSet
from rerankd.tools.evaluation.journal import Journal
from rerankd.tools.evaluation.measures import MAIN_MEASURE
from rerankd.tools.evaluation.report import Depths, Report, Row, build_report
from rerankd.tools.evaluation.scoring import plan_scoring
from rerankd.tools.evaluation.significance import Difference
from rerankd.tools.evaluation.targets import Target

# A better mean is believed if chance alone gives one as good more seldom.
SIGNIFICANT: Final = 0.05


@dataclass(frozen=True, slots=True)
class Proof:
    """The report, whose baseline is the model before; `after` is the name of the adapted one."""

    report: Report
    after: str

    @property
    def rows(self) -> tuple[Row, Row]:
        """Before, after."""
        rows = {row.target: row for row in self.report.summary}
        return rows[self.report.baseline], rows[self.after]

    @property
    def difference(self) -> Difference:
        return self.rows[1].against_baseline[MAIN_MEASURE]

    @property
    def is_better(self) -> bool:
        return self.difference.mean > 0 and self.difference.p < SIGNIFICANT

    def __str__(self) -> str:
        before, after = (row.measures[MAIN_MEASURE].mean for row in self.rows)
        return f"{MAIN_MEASURE} {before:.4f} before, {after:.4f} after: {self.difference.mean:+.4f}, p = {self._p}"

    @property
    def _p(self) -> str:
        return f"{self.difference.p:.3f}" if self.difference.p >= 0.001 else "below .001"


async def prove(
    before: Target,
    after: Target,
    data_sets: Sequence[DataSet],
    journal: Journal,
    *,
    depth: int,
    details: dict[str, Any],
    on_answer: Callable[[int, int], None],
) -> Proof:
    """Score all held-out queries with both models. What the journal has is not scored again.

    Raises:
        ConfigError: a model cannot be loaded, or a query cannot be scored.
    """
    scoring = await plan_scoring([before, after], data_sets, journal, max_tokens_per_doc=None)
    done = scoring.done
    async for _work in scoring.run():
        done += 1
        on_answer(done, scoring.total)
    report = build_report(
        data_sets, scoring.rankings(), baseline=before.name, depths=Depths(main=depth), details=details
    )
    return Proof(report, after.name)
