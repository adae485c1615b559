"""`rerankd inspect`: what a model is and how it would be served here, with what was read from which file."""

from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from rerankd.recognition.recognised import Recognised
from rerankd.serving.choosing import Inspected


def describe_model(inspected: Inspected) -> dict[str, Any]:
    """All of it, as JSON shows it; what is unknown is null."""
    outcome, choice, files = inspected.outcome, inspected.choice, inspected.files
    described: dict[str, Any] = {
        "served": choice is not None,
        "family": outcome.family or None,
        "folder": str(files.folder),
        "repository": files.repository or None,
    }
    if isinstance(outcome, Recognised):
        described |= {
            "scorer": outcome.scorer,
            "task": outcome.task,
            "input": outcome.input,
            "template": outcome.template,
            "head": outcome.head,
            "activation": outcome.activation,
            "max_length": outcome.max_length,
            "options": dict(outcome.options),
        }
    if choice is not None:
        described |= {"engine": choice.engine, "engine_options": dict(choice.options), "because": choice.because}
    described["refused"] = inspected.problem or None
    described["read"] = [{"file": evidence.file, "says": evidence.says} for evidence in outcome.evidence]
    return described


def inspection_table(described: Mapping[str, Any]) -> Table:
    """The same for a terminal."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, show_header=False)
    table.add_column("what")
    table.add_column("is", overflow="fold")
    for name, value in described.items():
        if name != "read" and value not in (None, {}):
            table.add_row(name.replace("_", " "), _shown(value))
    for place, evidence in enumerate(described["read"]):
        table.add_row("" if place else "read", f"{evidence['file']}: {evidence['says']}")
    return table


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} = {one}" for key, one in value.items())
    return str(value)
