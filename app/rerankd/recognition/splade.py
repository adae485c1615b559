"""Reads learned sparse models (SPLADE): a masked language model, and how its logits are pooled."""

from dataclasses import dataclass
from typing import Final, Literal

from rerankd.errors import ConfigError
from rerankd.recognition.files import read_json
from rerankd.recognition.kinds import ModelFiles, refuse_other_root, refuse_unknown_settings

_CHAINS: Final = (("MLMTransformer", "SpladePooling"), ("Transformer", "SpladePooling"))
_POOLING: Final = "SpladePooling"


@dataclass(frozen=True, slots=True, kw_only=True)
class SpladePooling:
    """`twice`: the logarithm is taken of the logarithm again, as OpenSearch's models do."""

    strategy: Literal["max", "sum"] = "max"
    twice: bool = False


def read_splade(files: ModelFiles) -> SpladePooling:
    """How the logits are pooled; SPLADE's own way where the authors' code saved no modules.json.

    Raises:
        ConfigError: it is no such model, or says something that is not computed here.
    """
    if not files.architecture.endswith("ForMaskedLM"):
        raise ConfigError(f"{files.folder}: config.json says {files.architecture}; SPLADE is a masked language model")
    if files.modules is None:
        return SpladePooling()
    if files.chain not in _CHAINS:
        raise ConfigError(
            f"{files.folder}: modules.json says {' -> '.join(files.chain)}; what is served is a masked language model "
            "and SpladePooling: serve another model (one with a Router reads queries in another way)"
        )
    refuse_other_root(files)
    # The older class MLMTransformer has no other task, and names none.
    named = "transformer_task" in files.transformer or "MLMTransformer" not in files.chain
    refuse_unknown_settings(files, task="fill-mask" if named else "feature-extraction", prompted=True)
    path = files.folder / str(files.modules[1].get("path", "")) / "config.json"
    said = read_json(path)
    strategy, activation = said.get("pooling_strategy", "max"), said.get("activation_function", "relu")
    if strategy not in ("max", "sum") or activation not in ("relu", "log1p_relu"):
        raise ConfigError(f"{path}: {strategy!r} pooling of {activation!r} is not computed here; serve another model")
    return SpladePooling(strategy=strategy, twice=activation == "log1p_relu")
