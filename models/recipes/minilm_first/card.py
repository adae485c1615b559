"""Writes the model card from what the run has measured; no figure in it is typed by hand."""

from collections.abc import Sequence
from pathlib import Path
from string import Template
from typing import Any

from models.recipes.minilm_first.train import Plan, Progress
from rerankd.tools.exporting import Parity

TEMPLATE = Path(__file__).with_name("card.md")
_SHIPPED = "This folder holds what the service loads."
_KEPT_BACK = "It shows the whole way from lists to a served model; its weights are not shipped."


def write_card(
    path: Path, report: dict[str, Any], progress: Progress, parities: Sequence[Parity], *, plan: Plan
) -> None:
    (parity,) = parities
    card = Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        seed=plan.seed,
        minutes=f"{plan.minutes:g}",
        whole=" --whole" if plan.whole else "",
        learnt="All layers learnt" if plan.whole else "The two upper layers and the head learnt",
        shipped=_SHIPPED if beats_bm25(report) else _KEPT_BACK,
        lists=f"{progress.lists:,}",
        elapsed=f"{progress.elapsed_s / 60:.0f}",
        quality=quality_table(report),
        verdict=verdict(report),
        held_out=_table(("lists seen", "nDCG"), [(f"{seen:,}", f"{value:.3f}") for seen, value in progress.held_out]),
        curve="![Loss and held-out nDCG](curve.png)",
        megabytes=f"{parity.megabytes:.0f}",
        difference=f"{parity.largest_difference:.2f}",
        batch_effect=f"{parity.largest_batch_effect:.1g}",
    )
    path.write_text(card, encoding="utf-8")


def quality_table(report: dict[str, Any]) -> str:
    rows = []
    for data_set in report["sets"]:
        of_target = {row["target"]: row["measures"]["nDCG@10"] for row in data_set["rows"]}
        values = (of_target[name] for name in ("first-stage", "start", "minilm-first"))
        intervals = [f"{value['mean']:.3f} ({value['low']:.3f}-{value['high']:.3f})" for value in values]
        rows.append((data_set["name"], str(data_set["queries"]), *intervals))
    return _table(("set", "first queries", "BM25", "before training", "trained"), rows)


def verdict(report: dict[str, Any]) -> str:
    """Whether it may be shipped, and by what; the differences are paired."""
    said = "; ".join(f"{name} {one['mean']:+.3f} (p = {one['p']:.2g})" for name, one in _gains(report).items())
    return f"Against BM25: {said}. It {'beats' if beats_bm25(report) else 'does not beat'} BM25 on both sets."


def beats_bm25(report: dict[str, Any]) -> bool:
    """Whether it is ahead on every set that was measured."""
    return all(gain["mean"] > 0 for gain in _gains(report).values())


def _gains(report: dict[str, Any]) -> dict[str, dict[str, float]]:
    """The paired differences from BM25, by set."""
    return {
        data_set["name"]: row["against_baseline"]["nDCG@10"]
        for data_set in report["sets"]
        for row in data_set["rows"]
        if row["target"] == "minilm-first"
    }


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in (heads, ["---"] * len(heads), *rows))
