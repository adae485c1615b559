"""The dashboard, the alert rules and the documentation name only metrics that the service exports, with its labels."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from rerankd.domain import Timings
from rerankd.telemetry.gpu_memory import GpuMemoryReader
from rerankd.telemetry.metrics import PrometheusObserver
from tests.fakes import NvidiaLibrary

_ROOT = Path(__file__).resolve().parents[2]
_DEPLOY = _ROOT / "deploy"
_DASHBOARDS = sorted((_DEPLOY / "grafana" / "dashboards").glob("*.json"))
_RULES = sorted((_DEPLOY / "prometheus" / "rules").glob("*.yml"))

# What Prometheus itself adds to every series, and the one series that it makes per target.
_TARGET_LABELS = {"job", "instance"}
_OF_PROMETHEUS: Mapping[str, set[str]] = {"up": set()}
_OPERATORS = {"and", "or", "unless", "bool", "offset"}


def _exported() -> dict[str, set[str]]:
    """Every sample name that the observer exports once everything has happened, with its labels."""
    observer = PrometheusObserver(GpuMemoryReader(NvidiaLibrary()))
    observer.request_finished(model="m", dialect="cohere-v2", status=200, duration_s=0.1, key="", tokens=9)
    observer.job_line_tried(model="m", status=200, key="", tokens=9)
    observer.job_changed(running=0, ended="completed")
    observer.request_scored(
        model="m", timings=Timings(), dropped_tokens=1, unordered_windows=1, ungraded_answers=1, comparisons=1
    )
    observer.request_fused(model="m", mode="rrf")
    observer.request_abstained(model="m")
    observer.request_started()
    observer.engine_started(model="m", workers=2, max_waiting_tokens=1000)
    observer.batch_scored(model="m", pairs=2, tokens=20, padded_tokens=24, seconds=0.1)
    observer.thread_given_up(model="m")
    observer.batch_failed(model="m", pairs=2)
    observer.queue_changed(model="m", waiting_tokens=10, waiting_s=0.1)
    observer.work_cancelled(model="m", tokens=10)
    observer.request_shed(model="m", reason="overloaded")
    observer.deadline_missed(model="m")
    observer.cache_looked_up(hits=1, misses=1)
    observer.cache_failed(operation="get")
    observer.cache_opened(entries=lambda: 1, size=lambda: 400)
    observer.watch_held_bytes(lambda: 0)
    observer.model_readiness_changed(model="m", ready=True)
    observer.model_certified(model="m", certified=True)
    observer.remote_changed(model="m", away=False)
    observer.fallback_asked(model="m", reason="remote_unavailable")
    samples: dict[str, set[str]] = {}
    for family in observer.registry.collect():
        for sample in family.samples:
            samples.setdefault(sample.name, set()).update(sample.labels)
    return samples


def _dashboard(path: Path) -> dict[str, Any]:
    dashboard: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return dashboard


def _expressions() -> Iterator[tuple[str, str]]:
    """Every PromQL expression of the deployment, with the place that it is from."""
    for path in _DASHBOARDS:
        dashboard = _dashboard(path)
        for panel in dashboard["panels"]:
            for target in panel.get("targets", []):
                yield f"panel {panel['title']}", target["expr"]
        for variable in (one for one in dashboard["templating"]["list"] if one["type"] == "query"):
            metric, label = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["definition"]).groups()  # type: ignore[union-attr]
            yield f"variable {variable['name']}", f"sum by ({label}) ({metric})"
    for path in _RULES:
        for rule in _rules(path):
            yield rule.get("alert") or rule["record"], rule["expr"]


def _rules(path: Path) -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(path.read_text(encoding="utf-8"))["groups"] for rule in group["rules"]]


def _selected(expression: str) -> Iterator[tuple[str, set[str]]]:
    """The metrics that an expression selects, each with the labels that its braces match on."""
    bare = re.sub(r'"[^"]*"', '""', expression)
    bare = re.sub(r"\[[^\]]*\]", "", bare)
    bare = re.sub(r"\b(by|without|on|ignoring)\s*\([^)]*\)", "", bare)
    for name, braces in re.findall(r"\b([a-zA-Z_]\w*)\b(?!\s*\()(?:\{([^}]*)\})?", bare):
        if name not in _OPERATORS:
            yield name, set(re.findall(r"(\w+)\s*[=!]", braces))


def _grouped_by(expression: str) -> set[str]:
    groups = re.findall(r"\b(?:by|without|on|ignoring)\s*\(([^)]*)\)", expression)
    return {label.strip() for group in groups for label in group.split(",")} - {"le"}


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("up == 0", [("up", set())]),
        ('rate(a_total{x="b", y=~"$c"}[5m]) > 0.02', [("a_total", {"x", "y"})]),
        ("sum by (le) (rate(a_bucket[$__rate_interval])) / sum(b{})", [("a_bucket", set()), ("b", set())]),
        ("a > 0 unless on (x, y) b > 0", [("a", set()), ("b", set())]),
    ],
)
def test_metrics_of_an_expression_are_found(expression: str, expected: list[tuple[str, set[str]]]) -> None:
    assert list(_selected(expression)) == expected


def test_there_is_a_dashboard_and_there_are_alerts() -> None:
    assert _DASHBOARDS
    assert _RULES
    assert len(list(_expressions())) > 30


@pytest.mark.parametrize(("place", "expression"), list(_expressions()))
def test_every_expression_uses_metrics_and_labels_that_the_service_exports(place: str, expression: str) -> None:
    exported = {**_exported(), **_OF_PROMETHEUS}
    selected = list(_selected(expression))
    assert selected, place
    for metric, labels in selected:
        assert metric in exported, f"{place} asks for {metric}"
        assert labels <= exported[metric] | _TARGET_LABELS, f"{place} matches {metric} on {labels}"
    known = set().union(*(exported[metric] for metric, _ in selected)) | _TARGET_LABELS
    assert _grouped_by(expression) <= known, place


def test_everything_that_the_service_exports_is_drawn_or_watched() -> None:
    used = {metric for _, expression in _expressions() for metric, _ in _selected(expression)}
    endings = re.compile(r"_(bucket|count|sum|total|created)$")
    families = {endings.sub("", name) for name in _exported() if name.startswith("rerank_")}
    assert families - {endings.sub("", name) for name in used} == set()


@pytest.mark.parametrize("path", _DASHBOARDS, ids=lambda path: path.name)
def test_a_dashboard_can_be_imported_anywhere(path: Path) -> None:
    """The user chooses the data source at the import; no uid of one Grafana is in it."""
    dashboard = _dashboard(path)
    choice, *variables = dashboard["templating"]["list"]
    assert (choice["name"], choice["type"], choice["query"]) == ("datasource", "datasource", "prometheus")
    charts = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
    asked = [*charts, *variables, *(target for panel in charts for target in panel["targets"])]
    assert [part["datasource"] for part in asked] == [{"type": "prometheus", "uid": "${datasource}"}] * len(asked)
    assert "uid" not in dashboard
    assert set(re.findall(r'"uid": "([^"]*)"', path.read_text(encoding="utf-8"))) == {"${datasource}"}


@pytest.mark.parametrize("path", _DASHBOARDS, ids=lambda path: path.name)
def test_panels_have_ids_of_their_own_and_do_not_overlap(path: Path) -> None:
    panels = _dashboard(path)["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24, panel["title"]
        taken |= cells


def test_operations_guide_names_every_metric_and_no_other() -> None:
    guide = (_ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    names = {name for name in _exported() if name.startswith("rerank_") and not name.endswith("_created")}
    exported = {re.sub(r"_(bucket|sum|count)$", "", name) for name in names}
    assert set(re.findall(r"^\| `(rerank_\w+)", guide, re.MULTILINE)) == exported


def test_operations_guide_says_what_to_do_for_every_alert() -> None:
    guide = (_ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    rules = [rule for path in _RULES for rule in _rules(path) if "alert" in rule]
    assert re.findall(r"^#### (Rerank\w+)$", guide, re.MULTILINE) == [rule["alert"] for rule in rules]
    for rule in rules:
        assert rule["annotations"]["runbook_url"] == f"docs/operations.md#{rule['alert'].lower()}"
