"""Loads all weights of a transformers model from a folder to a device, in the configured precision.

Reads safetensors only, never pickled weights. Downloads nothing (`serving/sources.py` does that before).
"""

import json
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from safetensors import safe_open
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    MODEL_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    BitsAndBytesConfig,
    PreTrainedModel,
)
from transformers.utils import logging as transformers_logging

from rerankd.engines.torch.adapters import put_on, with_shared_weights
from rerankd.engines.torch.modular import bidirectional_classifier
from rerankd.errors import ConfigError, few
from rerankd.recognition.adapters import Adapter
from rerankd.recognition.kinds import ModelFiles
from rerankd.recognition.native import NativeForm, Renamed, checked_native_form
from rerankd.recognition.weights import check_code, check_safetensors, weight_files

Kind = Literal[
    "sequence classifier",
    "causal language model",
    "masked language model",
    "encoder-decoder",
    "vision-language model",
    "encoder",
]
Precision = Literal["float32", "bfloat16", "float16"]
Quantization = Literal["int8", "int4"]

_LOADERS: Final[Mapping[Kind, Any]] = {
    "sequence classifier": AutoModelForSequenceClassification,
    "causal language model": AutoModelForCausalLM,
    "masked language model": AutoModelForMaskedLM,
    "encoder-decoder": AutoModelForSeq2SeqLM,
    "vision-language model": AutoModelForImageTextToText,
    "encoder": AutoModel,
}
# The classes of transformers by their configuration, for models that come in a form of their own.
_NATIVE: Final[Mapping[Kind, Any]] = {
    "sequence classifier": MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    "causal language model": MODEL_FOR_CAUSAL_LM_MAPPING,
    "encoder": MODEL_MAPPING,
}
_TORCH_PRECISION: Final[Mapping[Precision, torch.dtype]] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
_LONGEST_REASON: Final = 400
# Remains of training that are not part of the model, and buffers that transformers recomputes.
_HARMLESS: Final = re.compile(
    r"(.*\.)?(lm_head|cls\.predictions|cls\.seq_relationship|generator_lm_head|generator_predictions"
    r"|discriminator_predictions|lm_predictions|mask_predictions|pooler|predictions)\..*"
    r"|(.*\.)?(position_ids|inv_freq|masked_bias|attn\.bias)"
)


class WeightsOptions(BaseModel):
    """Options of every engine that reads weights with transformers."""

    model_config = ConfigDict(extra="forbid")

    device: str = Field(default="auto", description='"auto", "cpu", "cuda" or "cuda:N".')
    precision: Precision | None = Field(default=None, description="Default: bfloat16 on CUDA, float32 on the CPU.")
    attention: str | None = Field(
        default=None, description="transformers' attn_implementation; default: its own choice for the model."
    )

    merge_adapter: bool = Field(
        default=False,
        description="Merge an adapter into weights of its own: faster, but they are not shared with other models.",
    )

    def precision_on(self, device: torch.device) -> Precision:
        return self.precision or ("bfloat16" if device.type == "cuda" else "float32")


class LargeWeightsOptions(WeightsOptions):
    """Options of the engines whose models may be larger than one device."""

    device_map: str | None = Field(
        default=None, description='"auto" or "balanced" spreads a model over several GPUs; needs accelerate.'
    )
    quantization: Quantization | None = Field(
        default=None, description="Quantize the weights while loading, with bitsandbytes."
    )

    def placement_on(self, device: torch.device) -> dict[str, Any]:
        """The arguments with which transformers places the weights; without them they stay on the CPU."""
        if self.quantization is None:
            return {"device_map": self.device_map} if self.device_map else {}
        four = self.quantization == "int4"
        return {
            "device_map": self.device_map or {"": device},
            "quantization_config": BitsAndBytesConfig(load_in_4bit=four, load_in_8bit=not four),
        }


def load_language_model(
    folder: Path,
    options: LargeWeightsOptions,
    *,
    trust_remote_code: bool,
    kind: Kind = "causal language model",
    native: NativeForm | None = None,
    adapter: Path | None = None,
    besides: Collection[str] = (),
) -> tuple[PreTrainedModel, str, Precision]:
    """Load a language model, as `read_weights` does. The text names device and precision, for cache keys.

    Raises:
        ConfigError: the folder holds no such model, not all of its weights, or a library or device is missing.
    """
    device = torch_device(options.device)
    precision = options.precision_on(device)
    placement = options.placement_on(device)
    if placement or native is not None:
        model = read_weights(
            kind,
            folder,
            precision=precision,
            attention=options.attention,
            trust_remote_code=trust_remote_code,
            native=native,
            besides=besides,
            **placement,
        )
        model = model if placement else model.to(device)
    else:
        model = load_weights(
            kind,
            folder,
            options,
            device=device,
            trust_remote_code=trust_remote_code,
            adapter=adapter,
            besides=besides,
        )
    parts = (device.type, precision, *([options.quantization] if options.quantization else []))
    return model, "/".join(parts), precision


def load_weights(
    kind: Kind,
    folder: Path,
    options: WeightsOptions,
    *,
    device: torch.device,
    trust_remote_code: bool = False,
    adapter: Path | None = None,
    besides: Collection[str] = (),
) -> PreTrainedModel:
    """Load a model onto its device, with its adapter. Equal models of transformers' classes share their weights.

    Raises:
        ConfigError: the folder holds no such model, not all of its weights, or the adapter does not fit.
    """
    precision = options.precision_on(device)

    def load() -> PreTrainedModel:
        model = read_weights(
            kind,
            folder,
            precision=precision,
            attention=options.attention,
            trust_remote_code=trust_remote_code,
            besides=besides,
        )
        return model.to(device)

    if trust_remote_code:
        return load()
    model = with_shared_weights((kind, precision, options.attention, str(device), *_marks(folder)), load)
    if adapter is not None:
        put_on(model, Adapter.read(adapter), merge=options.merge_adapter)
    return model


def _marks(folder: Path) -> list[tuple[str, int, int]]:
    """What differs once a file has been replaced."""
    files = sorted(path for ending in ("*.json", "*.safetensors") for path in folder.rglob(ending))
    return [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in files]


def check_adapter(adapter: Path | None, options: WeightsOptions, *, trust_remote_code: bool) -> None:
    """Check an adapter before weights are read.

    Raises:
        ConfigError: it says something that is not applied, or is put on no model that is loaded so.
    """
    if adapter is None:
        return
    placed = isinstance(options, LargeWeightsOptions) and (options.device_map or options.quantization)
    if trust_remote_code or placed:
        raise ConfigError(
            "an adapter is put on weights in the memory of one device, of a class of transformers: leave device_map, "
            "quantization and trust_remote_code out"
        )
    Adapter.read(adapter)


def read_weights(
    kind: Kind,
    folder: Path,
    *,
    precision: Precision = "float32",
    attention: str | None = None,
    trust_remote_code: bool = False,
    native: NativeForm | None = None,
    besides: Collection[str] = (),
    **placement: Any,  # noqa: ANN401 - transformers' own arguments
) -> PreTrainedModel:
    """Load a model with all of its weights; `native`: in this form, and not in the one that its files say. `besides`
    are weights there that others read.

    Raises:
        ConfigError: the folder holds no such model, or not all of its weights.
    """
    transformers_logging.disable_progress_bar()
    if native is None:
        native = _check_files(kind, folder, trust_remote_code=trust_remote_code)
    try:
        loader, source = _source(kind, folder, native)
        model, loading = loader.from_pretrained(
            **source,
            dtype=_TORCH_PRECISION[precision],
            attn_implementation=attention,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            **placement,
        )
    except Exception as error:
        # transformers raises anything, and so does a model's own code that was written for another version
        raise ConfigError(_refusal(kind, folder, error)) from error
    _check_complete(kind, folder, type(model).__name__, loading, besides)
    if native is not None and native.pooling is not None:
        return bidirectional_classifier(model, pooling=native.pooling, temperature=native.temperature)
    return model.eval()


def _check_complete(
    kind: Kind, folder: Path, model_class: str, loading: Mapping[str, Collection[str]], besides: Collection[str]
) -> None:
    """Refuse what transformers would accept: it fills missing weights with random numbers and drops unknown ones."""
    # An encoder's own pooler is not read: its head does the pooling.
    lacking = [key for key in loading["missing_keys"] if kind != "encoder" or not key.startswith("pooler.")]
    if lacking:
        missing = few(sorted(lacking))
        raise ConfigError(f"the weights in {folder} lack {missing}: this is not a complete {kind}")
    unread = sorted(key for key in loading["unexpected_keys"] if not _HARMLESS.fullmatch(key) and key not in besides)
    if unread:
        raise ConfigError(
            f"the weights in {folder} hold {few(unread)}, which {model_class} does not use: "
            "this is another kind of model, or one with more heads; if its scores do not depend on them, save the "
            "model without them"
        )


def _refusal(kind: Kind, folder: Path, error: Exception) -> str:
    """Shorten a message of transformers, which can list every model that it supports."""
    try:
        model_type = json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"]
    except (OSError, ValueError, KeyError, TypeError):
        model_type = None
    return (
        f"transformers cannot load {folder} as a {kind} (model_type {model_type!r}): {_beginning(str(error))}; engine "
        "'torch-encoder' reads sequence classifiers, 'torch-causal' and 'torch-generate' causal language models, "
        "'torch-seq2seq' encoder-decoders"
    )


def _beginning(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST_REASON else f"{line[:_LONGEST_REASON]}..."


def check_weights(kind: Kind, folder: Path, options: WeightsOptions, *, trust_remote_code: bool) -> None:
    """Check a model before its weights are read.

    Raises:
        ConfigError: no such device, incomplete weights in the folder, or code that is not trusted.
    """
    torch_device(options.device)
    _check_files(kind, folder, trust_remote_code=trust_remote_code)


def _check_files(kind: Kind, folder: Path, *, trust_remote_code: bool) -> NativeForm | None:
    """Check that the weights are whole, and that a class of transformers may compute them."""
    check_safetensors(folder)
    native = checked_native_form(ModelFiles.read(folder))
    if native is not None and native.kind == kind:
        return native
    check_code(folder, trust_remote_code=trust_remote_code, loader=_LOADERS[kind].__name__)
    return None


def _source(kind: Kind, folder: Path, native: NativeForm | None) -> tuple[Any, Mapping[str, Any]]:
    """The class of transformers that loads a model, and where that takes configuration and weights from."""
    if native is None:
        return _LOADERS[kind], {"pretrained_model_name_or_path": folder}
    config = AutoConfig.for_model(**native.config)
    loader = _NATIVE[kind][type(config)]
    if not native.renamed:
        return loader, {"pretrained_model_name_or_path": folder, "config": config}
    renamed = _renamed_tensors(folder, native.renamed)
    return loader, {"pretrained_model_name_or_path": None, "config": config, "state_dict": renamed}


def _renamed_tensors(folder: Path, rules: Sequence[Renamed]) -> dict[str, torch.Tensor]:
    """A folder's tensors by their names in transformers. The first rule that fits a name counts; tensors that no rule
    fits keep their names, and those that are left out are not read.
    """
    renamed: dict[str, torch.Tensor] = {}
    for path in weight_files(folder):
        with safe_open(path, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - no mapping
                rule = next((rule for rule in rules if re.fullmatch(rule.pattern, name)), None)
                names = [name] if rule is None else [re.sub(rule.pattern, new, name) for new in rule.names]
                parts = tensors.get_tensor(name).chunk(len(names)) if names else ()
                renamed |= dict(zip(names, parts, strict=True))
    return renamed


def read_tensors(folder: Path, prefix: str) -> dict[str, torch.Tensor]:
    """The tensors of a folder's weights whose names begin so, by the rest of their names."""
    found: dict[str, torch.Tensor] = {}
    for path in weight_files(folder):
        with safe_open(path, framework="pt") as tensors:
            names = [name for name in tensors.keys() if name.startswith(prefix)]  # noqa: SIM118 - no mapping
            found |= {name.removeprefix(prefix): tensors.get_tensor(name) for name in names}
    return found


def torch_device(name: str) -> torch.device:
    """The device of that name; "auto" is a GPU if there is one.

    Raises:
        ConfigError: this machine has no such device.
    """
    wanted = ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name
    try:
        device = torch.device(wanted)
    except RuntimeError:
        raise ConfigError(f'unknown device {name!r}; use "auto", "cpu", "cuda" or "cuda:N"') from None
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f'device {name!r} is not supported; use "auto", "cpu", "cuda" or "cuda:N"')
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f'device {name!r}: this machine or this torch has no such GPU; set device = "cpu"')
    return device


def takes_token_types(model: PreTrainedModel) -> bool:
    """Whether a model reads segments."""
    return (getattr(model.config, "type_vocab_size", 0) or 0) > 1
