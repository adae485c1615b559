"""What a classifier's outputs mean, by config.json and the files of sentence-transformers."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, cast

import numpy as np

from rerankd.domain import FloatArray
from rerankd.errors import ConfigError, few
from rerankd.recognition.activations import ActivationName
from rerankd.recognition.files import number_of, table_of
from rerankd.recognition.kinds import ModelFiles
from rerankd.recognition.modules import read_modular_head
from rerankd.recognition.native import native_form

# The classes that sentence-transformers writes into a model's config, by their last name.
_TORCH_ACTIVATIONS: Final[Mapping[str, ActivationName]] = {"Sigmoid": "sigmoid", "Identity": "identity"}
Problem = Literal["single_label_classification", "multi_label_classification", "regression"]
_PROBLEMS: Final = ("single_label_classification", "multi_label_classification", "regression")


@dataclass(frozen=True, slots=True)
class Head:
    """What a classifier's outputs mean; `label` None: it has one, which is the score."""

    outputs: int
    label: int | None
    problem: Problem


def read_head(files: ModelFiles, *, label: int | None) -> Head:
    """How many outputs the head has, which of several means "relevant" (`label`), and what they are.

    Raises:
        ConfigError: there are several and none was named, or `problem_type` is unknown.
    """
    source = files.folder / "config.json"
    modular = read_modular_head(files)
    native = native_form(files)
    config = native.config if native else files.config
    names = {} if modular else table_of(config, "id2label", of=source)
    outputs = modular.outputs if modular else number_of(config, "num_labels", of=source) or len(names) or 2
    if outputs == 1:
        if label not in (None, 0):
            raise ConfigError(f"label = {label}, but this model's head has one output")
        return Head(1, None, _problem(files))
    # An option that a file says, and no scorer has checked yet.
    if not isinstance(label, int) or label >= outputs:
        raise ConfigError(
            f"this model's head has {outputs} outputs ({few([str(name) for name in names.values()]) or 'unnamed'}); "
            f"say which one means relevant: options = {{ label = N }}, with N from 0 to {outputs - 1} (`rerankd export "
            "--label N`)"
        )
    return Head(outputs, label, _problem(files))


def _problem(files: ModelFiles) -> Problem:
    """What the head's outputs mean. transformers reads no `problem_type` as classes of which one holds."""
    stated = files.config.get("problem_type") or "single_label_classification"
    if stated not in _PROBLEMS:
        raise ConfigError(
            f"{files.folder / 'config.json'}: problem_type is {stated!r:.60}; known: {', '.join(_PROBLEMS)}"
        )
    return cast("Problem", stated)


def score_of(head: Head, logits: FloatArray) -> FloatArray:
    """Raw scores of shape [pairs] from logits of shape [pairs, outputs]."""
    label = head.label
    if label is None or head.problem != "single_label_classification":
        return logits[:, label or 0]
    others = np.delete(logits, label, axis=1).astype(np.float64)
    highest = others.max(axis=1)
    rest = highest + np.log(np.exp(others - highest[:, None]).sum(axis=1))
    log_odds: FloatArray = (logits[:, label] - rest).astype(np.float32)
    return log_odds


def read_activation(files: ModelFiles, head: Head) -> ActivationName | None:
    """What turns the score into relevance, by the model's own word; None: it has none.

    Raises:
        ConfigError: the files name another one.
    """
    if head.label is not None:
        # What a config says of a head of several outputs is meant for each output, not for the log-odds of one.
        return "identity" if head.problem == "regression" else "sigmoid"
    name = named_activation(files)
    if name is None:
        native = native_form(files)
        return None if native is None else native.activation
    short = name.rsplit(".", 1)[-1]
    if short not in _TORCH_ACTIVATIONS:
        raise ConfigError(
            f"the model's config names the activation {name!r}, which is not known; "
            f"set options = {{ activation = ... }}, one of: {', '.join(_TORCH_ACTIVATIONS.values())}"
        )
    return _TORCH_ACTIVATIONS[short]


def named_activation(files: ModelFiles) -> str | None:
    """The activation that sentence-transformers wrote down."""
    source = activation_source(files)
    return None if source is None else source[1]


def activation_source(files: ModelFiles) -> tuple[str, str] | None:
    """The file, and the activation in it: of each of the places that sentence-transformers used over the years, in the
    order in which it reads them.
    """
    section = table_of(files.config, "sentence_transformers", of="config.json")
    for file, name in (
        ("config_sentence_transformers.json", files.sentence_transformers.get("activation_fn")),
        ("config.json", section.get("activation_fn")),
        ("config.json", files.config.get("sbert_ce_default_activation_function")),
    ):
        if name:
            return file, str(name)
    return None
