"""Reads what an adapter says of itself: a folder of peft's, with low-rank changes to the weights of another model.

LoRA (Hu et al. 2021, arXiv 2106.09685) and rsLoRA (Kalajdzievski 2023, arXiv 2312.03732): W' = W + s B A, where B A has
rank r and s is alpha / r, or alpha / sqrt(r).
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import Any, Final

from rerankd.errors import ConfigError
from rerankd.recognition.files import number_of, read_json, table_of, texts_of
from rerankd.recognition.weights import check_header

ADAPTER_CONFIG: Final = "adapter_config.json"
ADAPTER_WEIGHTS: Final = "adapter_model.safetensors"
ADAPTER_FILES: Final = (ADAPTER_CONFIG, ADAPTER_WEIGHTS)
# What is applied, and what says only how the adapter was trained or which modules it changes: the weights say that too.
# fmt: off
_READ: Final = frozenset([
    "alpha_pattern", "base_model_name_or_path", "bias", "init_lora_weights", "lora_alpha", "modules_to_save",
    "peft_type", "r", "rank_pattern", "use_rslora",
])
_OF_TRAINING: Final = frozenset([
    "auto_mapping", "exclude_modules", "fan_in_fan_out", "inference_mode", "layers_pattern", "layers_to_transform",
    "lora_dropout", "megatron_core", "peft_version", "qalora_group_size", "revision", "target_modules", "task_type",
])
# fmt: on
# Ways to begin that leave the base's weights alone.
_BEGINNINGS: Final = (True, False, None, "gaussian", "orthogonal", "eva")
_MERGE: Final = "merge adapter and model (peft's merge_and_unload, then save_pretrained) and serve the result"


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """`base` is the model that it was trained on, as its authors called it. `saved` are modules that it replaces."""

    folder: Path
    base: str
    alpha: float
    stabilized: bool
    alpha_of: Mapping[str, float]
    rank: int
    rank_of: Mapping[str, int]
    saved: Sequence[str]

    @classmethod
    def read(cls, folder: Path) -> "Adapter":
        """Read adapter_config.json, and check that the weights are whole.

        Raises:
            ConfigError: it is another kind of adapter, says something that is not applied, or is not whole.
        """
        path = folder / ADAPTER_CONFIG
        config = read_json(path)
        _refuse_others(path, config)
        if not (folder / ADAPTER_WEIGHTS).is_file():
            raise ConfigError(
                f"no {ADAPTER_WEIGHTS} in {folder}; pickled adapters (adapter_model.bin) are never read: save it again "
                "with save_pretrained"
            )
        check_header(folder / ADAPTER_WEIGHTS)
        rank = number_of(config, "r", of=path)
        alpha = config.get("lora_alpha")
        if not rank or rank < 1 or isinstance(alpha, bool) or not isinstance(alpha, int | float):
            raise ConfigError(f"{path} says r = {rank!r} and lora_alpha = {alpha!r:.60}; save the adapter again")
        return cls(
            folder=folder,
            base=str(config.get("base_model_name_or_path") or ""),
            alpha=float(alpha),
            stabilized=bool(config.get("use_rslora")),
            alpha_of={name: float(value) for name, value in table_of(config, "alpha_pattern", of=path).items()},
            rank=rank,
            rank_of={name: int(value) for name, value in table_of(config, "rank_pattern", of=path).items()},
            saved=texts_of(config, "modules_to_save", of=path),
        )

    def scale(self, module: str, *, rank: int) -> float:
        """What a module's B A is multiplied by.

        Raises:
            ConfigError: its matrices have another rank than the configuration says.
        """
        said = _of_module(module, self.rank_of, self.rank)
        if said != rank:
            raise ConfigError(
                f"{self.folder / ADAPTER_CONFIG} says rank {said} for {module}, and its matrices have {rank}; save the "
                "adapter again"
            )
        alpha = float(_of_module(module, self.alpha_of, self.alpha))
        return alpha / (sqrt(rank) if self.stabilized else rank)

    def replaces(self, name: str) -> bool:
        """Whether a weight belongs to a module that is replaced as a whole."""
        parts = name.split(".")
        return any(saved in (name, *parts) or f".{saved}." in f".{name}." for saved in self.saved)

    def check_base(self, path: str, *, said: str) -> None:
        """Check that this is an adapter of the model at a path; `said`: the operator says that it is a copy of that.

        Raises:
            ConfigError: the adapter names another model.
        """
        if said:
            if said != self.base:
                raise ConfigError(
                    f"adapter_of = {said!r}, and {self.folder / ADAPTER_CONFIG} names {self.base!r} as its base"
                )
        elif _last(self.base) != _last(path):
            raise ConfigError(
                f"{self.folder / ADAPTER_CONFIG} names {self.base!r} as the model that it changes, and `path` is "
                f"{path}: set path to that model, or, if this is a copy of it, adapter_of = {self.base!r}"
            )


def _of_module(module: str, patterns: Mapping[str, Any], usual: Any) -> Any:  # noqa: ANN401 - numbers
    """The value of the first pattern that is the end of a module's name, or a regular expression for it."""
    try:
        found = (value for pattern, value in patterns.items() if re.fullmatch(rf"(.*\.)?({pattern})", module))
        return next(found, usual)
    except re.error as error:
        raise ConfigError(f"{ADAPTER_CONFIG}: a pattern of modules cannot be read ({error})") from None


def _refuse_others(path: Path, config: Mapping[str, Any]) -> None:
    kind = config.get("peft_type")
    if kind != "LORA":
        raise ConfigError(f"{path} says peft_type = {kind!r:.60}; only LORA is applied: {_MERGE}")
    if config.get("bias", "none") != "none":
        raise ConfigError(f"{path} says bias = {config['bias']!r:.60}; trained biases are not applied: {_MERGE}")
    if config.get("init_lora_weights") not in _BEGINNINGS:
        raise ConfigError(
            f"{path} says init_lora_weights = {config['init_lora_weights']!r:.60}, which changes the model's own "
            f"weights: {_MERGE}"
        )
    for key, value in config.items():
        if value and key not in _READ | _OF_TRAINING:
            raise ConfigError(f"{path} says {key} = {value!r:.60}, which is not applied: {_MERGE}")


def _last(name: str) -> str:
    """The last part of a path or of a name on the hub, without a revision."""
    return name.removeprefix("hub:").partition("@")[0].rstrip("/").rpartition("/")[2].lower()
