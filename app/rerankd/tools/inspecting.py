"""`rerankd inspect`: what a model is and how it would be served here, with what was read from which file."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from rerankd.config.registry import ModelSpec
from rerankd.config.settings import Settings
from rerankd.errors import ConfigError
from rerankd.recognition.adapters import ADAPTER_CONFIG, ADAPTER_WEIGHTS, Adapter
from rerankd.recognition.files import read_json
from rerankd.recognition.recognised import Recognised
from rerankd.recognition.weights import check_header
from rerankd.scorers import load_any_scorer
from rerankd.scorers.base import ScorerSpec
from rerankd.serving.choosing import Inspected, inspect
from rerankd.serving.model_files import adapter_folder, template_folders


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
        adapter_folder(spec, settings)
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


def describe_adapter(folder: Path) -> dict[str, Any]:
    """What an adapter says that it changes, what its weights change, and why it would be refused.

    Raises:
        ConfigError: it has no configuration that can be read.
    """
    said = read_json(folder / ADAPTER_CONFIG)
    described: dict[str, Any] = {
        "adapter": str(folder),
        "base": said.get("base_model_name_or_path"),
        "kind": said.get("peft_type"),
        "rank": said.get("r"),
        "rank_pattern": said.get("rank_pattern") or {},
        "alpha": said.get("lora_alpha"),
        "alpha_pattern": said.get("alpha_pattern") or {},
        "rslora": bool(said.get("use_rslora")),
        "target_modules": said.get("target_modules"),
        "modules_to_save": said.get("modules_to_save") or [],
    }
    try:
        Adapter.read(folder)
        changes = _changes(folder / ADAPTER_WEIGHTS)
    except ConfigError as error:
        return {**described, "refused": str(error)}
    return {**described, **changes, "refused": None}


def _changes(weights: Path) -> dict[str, Any]:
    """How many layers of each name get low-rank matrices, and which other weights there are."""
    names = [name.removeprefix("base_model.model.") for name in check_header(weights)]
    changed = Counter(name.partition(".lora_A.")[0].rpartition(".")[2] for name in names if ".lora_A." in name)
    return {
        "changes": dict(sorted(changed.items())),
        "replaces": sorted(name for name in names if ".lora_" not in name),
    }


def inspection_table(described: Mapping[str, Any]) -> Table:
    """The same for a terminal."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, show_header=False)
    table.add_column("what")
    table.add_column("is", overflow="fold")
    for name, value in described.items():
        if name not in ("read", "adapter_says") and value not in (None, {}, []):
            table.add_row(name.replace("_", " "), _shown(value))
    for name, value in (described.get("adapter_says") or {}).items():
        if name not in ("adapter", "refused") and value not in (None, {}, []):
            table.add_row(f"adapter's {name.replace('_', ' ')}", _shown(value))
    for place, evidence in enumerate(described.get("read", ())):
        table.add_row("" if place else "read", f"{evidence['file']}: {evidence['says']}")
    return table


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if isinstance(value, Mapping):
        return ", ".join(f"{key} = {one}" for key, one in value.items())
    return str(value)
