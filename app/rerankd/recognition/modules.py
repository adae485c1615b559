"""Reads the head of a modular cross-encoder: modules behind the transformer, each in a folder of its own.

The tokens' vectors are pooled into one, which goes through dense layers and layer norms. The last layer gives scores.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, cast

from rerankd.errors import ConfigError
from rerankd.recognition.files import number_of, read_json
from rerankd.recognition.kinds import ModelFiles
from rerankd.recognition.weights import check_header

Pooling = Literal["cls", "mean", "max", "lasttoken"]
LayerActivation = Literal["Identity", "Tanh", "GELU", "ReLU", "SiLU"]
_POOLINGS: Final = ("cls", "mean", "max", "lasttoken")
_ACTIVATIONS: Final = ("Identity", "Tanh", "GELU", "ReLU", "SiLU")
# Older saves say the mode in a truth for each.
_OLD_POOLINGS: Final[Mapping[str, str]] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_lasttoken": "lasttoken",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
}
_VECTOR: Final = "sentence_embedding"
_SCORES: Final = "scores"
_WEIGHTS: Final = "model.safetensors"


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadLayer:
    """A dense layer with its activation, or (`outputs` None) a layer norm. `weights` is the file of its weights."""

    weights: Path
    inputs: int
    outputs: int | None = None
    bias: bool = True
    activation: LayerActivation = "Identity"
    residual: bool = False


@dataclass(frozen=True, slots=True)
class ModularHead:
    pooling: Pooling
    layers: Sequence[HeadLayer]

    @property
    def outputs(self) -> int:
        return next(layer.outputs for layer in reversed(self.layers) if layer.outputs is not None)


def read_modular_head(files: ModelFiles) -> ModularHead | None:
    """The head of a modular cross-encoder; None for every other model.

    Raises:
        ConfigError: a module does something else than is computed here, or its files are not whole.
    """
    if not files.is_modular or files.modules is None:
        return None
    folders = [files.folder / str(module.get("path", "")) for module in files.modules]
    configs = [
        (name, folder, read_json(folder / "config.json")) for name, folder in zip(files.chain, folders, strict=True)
    ]
    layers = [(_dense if name == "Dense" else _layer_norm)(folder, config) for name, folder, config in configs[2:]]
    _check_names(configs[2:])
    _, folder, config = configs[1]
    return ModularHead(_pooling(folder, config), layers)


def check_head(head: ModularHead) -> None:
    """Refuse a head whose weights are not there, or not whole.

    Raises:
        ConfigError: the message names the file.
    """
    for layer in head.layers:
        if not layer.weights.is_file():
            raise ConfigError(f"{layer.weights} is not there: the head has no weights; download the model again")
        check_header(layer.weights)


def _pooling(folder: Path, config: Mapping[str, Any]) -> Pooling:
    modes = [mode for key, mode in _OLD_POOLINGS.items() if config.get(key)]
    said = config.get("pooling_mode", modes[0] if len(modes) == 1 else modes or "mean")
    if said not in _POOLINGS:
        raise _other(folder, f"pooling_mode {said!r:.60}", _POOLINGS)
    return cast("Pooling", said)


def _dense(folder: Path, config: Mapping[str, Any]) -> HeadLayer:
    named = str(config.get("activation_function", "torch.nn.modules.activation.Tanh"))
    activation = named.removeprefix("torch.nn.modules.").rpartition(".")[2]
    if not named.startswith("torch.nn.modules.") or activation not in _ACTIVATIONS:
        raise _other(folder, f"activation_function {named!r:.80}", _ACTIVATIONS)
    inputs, outputs = (_size(folder, config, key) for key in ("in_features", "out_features"))
    return HeadLayer(
        weights=folder / _WEIGHTS,
        inputs=inputs,
        outputs=outputs,
        bias=bool(config.get("bias", True)),
        activation=cast("LayerActivation", activation),
        residual=bool(config.get("use_residual", False)),
    )


def _layer_norm(folder: Path, config: Mapping[str, Any]) -> HeadLayer:
    return HeadLayer(weights=folder / _WEIGHTS, inputs=_size(folder, config, "dimension"))


def _size(folder: Path, config: Mapping[str, Any], key: str) -> int:
    size = number_of(config, key, of=folder / "config.json")
    if size is None or size < 1:
        raise ConfigError(f"{folder / 'config.json'}: {key} is missing; download the model again")
    return size


def _check_names(configs: Sequence[tuple[str, Path, Mapping[str, Any]]]) -> None:
    """Refuse a chain whose modules do not each read what the one before gives, with scores at the end."""
    for place, (name, folder, config) in enumerate(configs):
        last = place == len(configs) - 1
        reads = config.get("module_input_name") or _VECTOR
        gives = config.get("module_output_name") or reads
        wanted = _SCORES if last else _VECTOR
        if reads != _VECTOR or (gives != wanted if name == "Dense" else last):
            raise ConfigError(
                f"{folder / 'config.json'}: {name} reads {reads!r} and gives {gives!r} in a place where {_VECTOR!r} is "
                f"read and {wanted!r} given; this chain of modules is not computed here, serve another model"
            )


def _other(folder: Path, what: str, known: Sequence[str]) -> ConfigError:
    return ConfigError(
        f"{folder / 'config.json'} says {what}, which is not computed here (known: {', '.join(known)}); "
        "serve another model"
    )
