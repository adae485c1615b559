"""`rerankd inspect`: what a model is and how it would be served here, with what was read from which file."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from rerankd.config.registry import ModelSpec
from rerankd.config.settings import Settings
from rerankd.errors import ConfigError
from rerankd.recognition.recognised import Recognised
from rerankd.scorers import load_any_scorer
from rerankd.scorers.base import ScorerSpec
from rerankd.serving.choosing import Inspected, inspect
from rerankd.serving.model_files import template_folders


def inspect_whole(spec: ModelSpec, settings: Settings) -> Inspected:
    """What is known of a model without its weights, its tokenizer and prompt included, which only the scorer reads.

    Raises:
        ConfigError: there is no such model, or a file in it is unusable.
        SourceUnreachable: the hub cannot be reached now.
    """
    found = inspect(spec, settings)
    outcome = found.outcome
    if not isinstance(outcome, Recognised) or found.choice is None:
        return found
    scorer = ScorerSpec(
        folder=found.files.folder,
        source=spec.path,
        templates=template_folders(settings),
        options=outcome.options,
    )
    try:
        load_any_scorer(outcome.scorer, scorer)
    except ConfigError as error:
        return replace(found, choice=None, problem=str(error))
    return found


def describe_model(spec: ModelSpec, inspected: Inspected) -> dict[str, Any]:
    """All of it, as JSON shows it; what is unknown is null."""
    outcome, choice, files = inspected.outcome, inspected.choice, inspected.files
    described: dict[str, Any] = {
        "served": choice is not None,
        "family": outcome.family or None,
        "folder": str(files.folder),
        "repository": files.repository or None,
        "adapter": spec.adapter or None,
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
