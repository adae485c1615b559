"""Rerankers whose inner layers score too: which of them is read, by which head, and what transformers computes below.

BAAI's bge-reranker-v2-minicpm-layerwise and bge-reranker-v2.5-gemma2-lightweight. A score at layer L is that of a model
with L layers, so all later ones are left out. MiniCPM's arithmetic is that of transformers' Granite.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import sqrt
from typing import Any, Final

from rerankd.errors import ConfigError
from rerankd.recognition.kinds import ModelFiles
from rerankd.recognition.native import NativeForm, Renamed


@dataclass(frozen=True, slots=True)
class LayerWiseForm:
    """`native` is the decoder up to the layer that is read, `head` the name of the tensor that makes its state a
    score, shape [1, hidden size]. `compresses`: the layers before which the whole model may compress passages.
    """

    native: NativeForm
    layer: int
    head: str
    compresses: range = range(0)


def layer_wise_form(files: ModelFiles, *, cutoff_layer: int | None) -> LayerWiseForm | None:
    """How a model is read at a layer, by default the last one; None for every model that is read at its end only.

    Raises:
        ConfigError: it does not score at this layer, or its heads are of another kind.
    """
    form = _FORMS.get(files.architecture)
    if form is None:
        return None
    try:
        return form(files, cutoff_layer)
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise ConfigError(
            f"{files.folder / 'config.json'}: a number that the score depends on is missing or unusable ({error!r}); "
            "download the file again"
        ) from None


def _minicpm(files: ModelFiles, cutoff_layer: int | None) -> LayerWiseForm:
    """Hu et al., "MiniCPM", 2024: embeddings and residuals are scaled, by the depth of the whole model."""
    said = files.config
    for key, computed in (("head_type", "simple"), ("head_multi", True), ("rope_scaling", None)):
        if said.get(key) != computed:
            raise _not_computed(files, key, computed)
    layers, first = int(said["num_hidden_layers"]), int(said["start_layer"])
    layer = _chosen(files, cutoff_layer, range(first, layers + 1))
    scales = {
        "embedding_multiplier": float(said["scale_emb"]),
        "residual_multiplier": float(said["scale_depth"]) / sqrt(layers),
        "attention_multiplier": 1 / sqrt(said["hidden_size"] / said["num_attention_heads"]),
    }
    return LayerWiseForm(
        native=_below(files, layer, {**scales, "model_type": "granite"}),
        layer=layer,
        head=f"lm_head.{layer - first}.linear_head.weight",
    )


def _gemma(files: ModelFiles, cutoff_layer: int | None) -> LayerWiseForm:
    """Gemma 2, which may compress passages before any layer but the first. The authors take head i for the i-th layer
    that is asked for, so the first head wherever one layer is: not the head of that layer.
    """
    said = files.config
    if said.get("layer_wise") is not True:
        raise _not_computed(files, "layer_wise", computed=True)
    layers = range(int(said["start_layer"]), int(said["num_hidden_layers"]) + 1, int(said["layer_sep"]))
    layer = _chosen(files, cutoff_layer, layers)
    kinds = {"layer_types": said["layer_types"][:layer]} if said.get("layer_types") else {}
    return LayerWiseForm(
        native=_below(files, layer, {**kinds, "model_type": "gemma2"}),
        layer=layer,
        head="lm_head.0.linear_head.weight",
        compresses=range(1, layers.stop - 1),
    )


def _chosen(files: ModelFiles, cutoff_layer: int | None, layers: range) -> int:
    """The layer to read. A model whose last layer has no head must be told one."""
    last = int(files.config["num_hidden_layers"])
    layer = last if cutoff_layer is None else cutoff_layer
    if layer not in layers:
        raise ConfigError(
            f"cutoff_layer = {layer}: this model scores at the layers {layers[0]} to {layers[-1]}"
            f"{f', every {layers.step}' if layers.step > 1 else ''}; set engine_options = {{ cutoff_layer = ... }}"
        )
    return layer


def _below(files: ModelFiles, layer: int, changes: Mapping[str, Any]) -> NativeForm:
    """The decoder up to a layer."""
    own = ("auto_map", "architectures", "model_type")
    config = {key: value for key, value in files.config.items() if key not in own}
    later = "|".join(map(str, range(layer, int(config["num_hidden_layers"]))))
    left_out = [Renamed(r"lm_head\..*"), *([Renamed(rf"model\.layers\.({later})\..*")] if later else [])]
    return NativeForm(
        config={**config, **changes, "num_hidden_layers": layer, "tie_word_embeddings": False},
        renamed=[*left_out, Renamed(r"model\.(.*)", (r"\1",))],
    )


def _not_computed(files: ModelFiles, key: str, computed: object) -> ConfigError:
    return ConfigError(
        f"{files.folder / 'config.json'}: {key} is {files.config.get(key)!r:.120}, and only {computed!r} is computed "
        "here; serve another model"
    )


_FORMS: Final[Mapping[str, Callable[[ModelFiles, int | None], LayerWiseForm]]] = {
    "LayerWiseMiniCPMForCausalLM": _minicpm,
    "CostWiseGemmaForCausalLM": _gemma,
}
# Their prompts are those of their makers' package, whatever such a model is called.
LAYER_WISE_TEMPLATES: Final[Mapping[str, str]] = {
    "LayerWiseMiniCPMForCausalLM": "bge-reranker-layerwise",
    "CostWiseGemmaForCausalLM": "bge-reranker-lightweight",
}
