"""Reads the modules that sentence-transformers puts behind a transformer, each in a folder of its own.

The tokens' vectors are pooled into one, which goes through dense layers and layer norms. The last layer gives the
scores of a cross-encoder, or the vector of a bi-encoder.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal, cast, get_args

from rerankd.errors import ConfigError
from rerankd.recognition.files import number_of, read_json
from rerankd.recognition.kinds import ModelFiles
from rerankd.recognition.weights import check_header

Pooling = Literal["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"]
LayerActivation = Literal["Identity", "Tanh", "GELU", "ReLU", "SiLU"]
_POOLINGS: Final = get_args(Pooling)
_ACTIVATIONS: Final = ("Identity", "Tanh", "GELU", "ReLU", "SiLU")
# Older saves say the mode in a truth for each. Several are concatenated, in this order.
_OLD_POOLINGS: Final[Mapping[str, Pooling]] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_VECTOR: Final = "sentence_embedding"
_SCORES: Final = "scores"
_TOKENS: Final = "token_embeddings"
_WEIGHTS: Final = "model.safetensors"


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadLayer:
    """A dense layer with its activation, or (`outputs` None) a layer norm. `weights` is the file of its weights, which
    may be `shared` with others.
    """

    weights: Path
    inputs: int
    outputs: int | None = None
    bias: bool = True
    activation: LayerActivation = "Identity"
    residual: bool = False
    shared: bool = False


@dataclass(frozen=True, slots=True)
class Normalize:
    """Divides a vector by its Euclidean length."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModularHead:
    """Several `poolings` are concatenated. Without `pools_prompt` a prompt's tokens are left out of them. `outputs` is
    how many numbers come out: the first of those that the last layer gives.
    """

    poolings: Sequence[Pooling]
    layers: Sequence[HeadLayer | Normalize]
    outputs: int
    pools_prompt: bool = True


def read_modular_head(files: ModelFiles) -> ModularHead | None:
    """The head of a modular cross-encoder; None for every other model.

    Raises:
        ConfigError: a module does something else than is computed here, or its files are not whole.
    """
    if not files.is_modular or files.modules is None:
        return None
    modules = _modules_of(files)
    return _head(modules, gives=_SCORES)


def read_embedding_head(files: ModelFiles) -> ModularHead:
    """The modules of an embedding model behind its transformer.

    Raises:
        ConfigError: as `read_modular_head`, or the chain gives no vector.
    """
    chain = files.chain
    if chain[:2] != ("Transformer", "Pooling") or not set(chain[2:]) <= {"Dense", "LayerNorm", "Normalize", "Dropout"}:
        said = f"modules.json says {' -> '.join(chain)}" if chain else "there is no modules.json"
        raise ConfigError(
            f"{files.folder}: {said}, so that it is not known how a text becomes one vector; what is served is "
            "Transformer -> Pooling, then any of Dense, LayerNorm and Normalize: serve another model, or save this one "
            "again with sentence-transformers"
        )
    head = _head(_modules_of(files), gives=_VECTOR)
    kept = number_of(files.sentence_transformers, "truncate_dim", of="config_sentence_transformers.json")
    return head if kept is None else replace(head, outputs=min(kept, head.outputs))


def read_token_layers(files: ModelFiles) -> tuple[list[HeadLayer | Normalize], int]:
    """The layers that each token's vector goes through in a late-interaction model, and the width that comes out.

    Raises:
        ConfigError: the chain has other modules, or their files are not whole.
    """
    known = {"Dense", "LayerNorm", "Normalize", "Dropout", "MultiVectorMask"}
    if files.chain[:1] != ("Transformer",) or not set(files.chain[1:]) <= known:
        raise ConfigError(
            f"{files.folder}: modules.json says {' -> '.join(files.chain)}; late interaction is Transformer, then any "
            f"of {', '.join(sorted(known))}: serve another model"
        )
    modules = [module for module in _modules_of(files) if module[0] != "MultiVectorMask"]
    for name, folder, config in modules:
        if (
            config.get("module_input_name", _TOKENS) != _TOKENS
            or (config.get("module_output_name") or _TOKENS) != _TOKENS
        ):
            raise ConfigError(
                f"{folder / 'config.json'}: {name} does not read and give {_TOKENS!r}; serve another model"
            )
    layers = [_READERS[name](folder, config) for name, folder, config in modules]
    widths = [layer.outputs for layer in layers if isinstance(layer, HeadLayer) and layer.outputs is not None]
    width = widths[-1] if widths else number_of(files.config, "hidden_size", of=files.folder / "config.json")
    if width is None:
        raise ConfigError(f"{files.folder / 'config.json'}: hidden_size is missing; download the model again")
    return layers, width


_Module = tuple[str, Path, Mapping[str, Any]]


def _modules_of(files: ModelFiles) -> list[_Module]:
    """Class, folder and config of every module behind the transformer. Dropout does nothing to a finished model."""
    folders = [files.folder / str(module.get("path", "")) for module in files.modules or ()]
    named = list(zip(files.chain, folders, strict=True))[1:]
    # Older saves have no file where there is nothing to say.
    return [
        (name, folder, {} if name == "Normalize" else read_json(folder / "config.json"))
        for name, folder in named
        if name != "Dropout"
    ]


def _head(modules: Sequence[_Module], *, gives: str) -> ModularHead:
    (_, folder, config), *behind = modules
    _check_names(behind, gives=gives)
    poolings = _poolings(folder, config)
    layers = [_READERS[name](folder, config) for name, folder, config in behind]
    sizes = [layer.outputs for layer in layers if isinstance(layer, HeadLayer) and layer.outputs is not None]
    outputs = sizes[-1] if sizes else len(poolings) * _width(folder, config)
    return ModularHead(
        poolings=poolings,
        layers=layers,
        outputs=outputs,
        pools_prompt=bool(config.get("include_prompt", True)),
    )


def check_layers(layers: Sequence[HeadLayer | Normalize]) -> None:
    """Refuse layers whose weights are not there, or not whole.

    Raises:
        ConfigError: the message names the file.
    """
    for layer in layers:
        if isinstance(layer, Normalize):
            continue
        if not layer.weights.is_file():
            raise ConfigError(f"{layer.weights} is not there: the head has no weights; download the model again")
        check_header(layer.weights)


def _poolings(folder: Path, config: Mapping[str, Any]) -> tuple[Pooling, ...]:
    said = config.get("pooling_mode") or [mode for key, mode in _OLD_POOLINGS.items() if config.get(key)] or "mean"
    modes = said if isinstance(said, list) else [said]
    for mode in modes:
        if mode not in _POOLINGS:
            raise _other(folder, f"pooling_mode {mode!r:.60}", _POOLINGS)
    return tuple(modes)


def _width(folder: Path, config: Mapping[str, Any]) -> int:
    """Of the tokens' vectors; older saves have another word for it."""
    return _size(
        folder, config, "embedding_dimension" if "embedding_dimension" in config else "word_embedding_dimension"
    )


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


def _normalize(folder: Path, config: Mapping[str, Any]) -> Normalize:  # noqa: ARG001 - as the others
    return Normalize()


_READERS: Final[Mapping[str, Callable[[Path, Mapping[str, Any]], HeadLayer | Normalize]]] = {
    "Dense": _dense,
    "LayerNorm": _layer_norm,
    "Normalize": _normalize,
}


def _size(folder: Path, config: Mapping[str, Any], key: str) -> int:
    size = number_of(config, key, of=folder / "config.json")
    if size is None or size < 1:
        raise ConfigError(f"{folder / 'config.json'}: {key} is missing; download the model again")
    return size


def _check_names(modules: Sequence[_Module], *, gives: str) -> None:
    """Refuse a chain whose modules do not each read what the one before gives, and give what the next one reads; the
    last one `gives` what is wanted.
    """
    for place, (name, folder, config) in enumerate(modules):
        last = place == len(modules) - 1
        said_reads = config.get("module_input_name") or _VECTOR
        said_gives = config.get("module_output_name") or said_reads
        wanted = gives if last else _VECTOR
        # Only a dense layer may give something else than it reads.
        if said_reads != _VECTOR or (said_gives if name == "Dense" else _VECTOR) != wanted:
            raise ConfigError(
                f"{folder / 'config.json'}: {name} reads {said_reads!r} and gives {said_gives!r} in a place where "
                f"{_VECTOR!r} is read and {wanted!r} given; this chain of modules is not computed here, serve another "
                "model"
            )


def _other(folder: Path, what: str, known: Sequence[str]) -> ConfigError:
    return ConfigError(
        f"{folder / 'config.json'} says {what}, which is not computed here (known: {', '.join(known)}); "
        "serve another model"
    )
