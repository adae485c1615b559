"""Loads a decoder up to the layer that a reranker is read at, with the head of one output that reads it there."""

from pathlib import Path

import torch
from safetensors import safe_open
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from rerankd.engines.torch.weights import LargeWeightsOptions, Precision, load_language_model
from rerankd.errors import ConfigError
from rerankd.recognition.layer_wise import LayerWiseForm
from rerankd.recognition.weights import weight_files


def load_layer_wise(
    folder: Path, form: LayerWiseForm, options: LargeWeightsOptions
) -> tuple[PreTrainedModel, str, Precision]:
    """A causal language model whose head has one row. Weights of later layers are not read.

    Raises:
        ConfigError: as `load_language_model`, or there is no such head.
    """
    decoder, name, precision = load_language_model(
        folder, options, trust_remote_code=False, kind="encoder", native=form.native
    )
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(decoder.config)
    # These two are all that such a model has.
    model.model, model.lm_head = decoder, _head(folder, form.head, like=decoder.norm.weight)
    return model.eval(), f"{name}/layer-{form.layer}", precision


def _head(folder: Path, name: str, *, like: torch.Tensor) -> nn.Linear:
    for path in weight_files(folder):
        with safe_open(path, framework="pt") as tensors:
            if name in tensors.keys():  # noqa: SIM118 - no mapping
                weight = tensors.get_tensor(name)
                if weight.shape != (1, len(like)):
                    raise ConfigError(f"{path}: {name} has the shape {list(weight.shape)}, not [1, {len(like)}]")
                head = nn.Linear(len(like), 1, bias=False, device="meta")
                head.weight = nn.Parameter(weight.to(like.device, like.dtype), requires_grad=False)
                return head
    raise ConfigError(f"the weights in {folder} lack {name}: this layer has no head; download the model again")
