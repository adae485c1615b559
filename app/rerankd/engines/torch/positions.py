"""Finds models whose position angles depend on the longest sequence of a batch: those with the rotary embeddings
"longrope" (other angles beyond the original length) and "dynamic" (other angles for every length).
"""

from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedModel

from rerankd.errors import ConfigError


def stretched_beyond(model: PreTrainedModel) -> int | None:
    """The length above which sequences need a batch of their own, or None if lengths may be mixed.

    Raises:
        ConfigError: a sequence's logits depend on what was read before it.
    """
    for kind, parameters in _rotations(model).items():
        if kind == "dynamic":
            raise ConfigError(
                'rope_type "dynamic" is not supported: scores would depend on the longest text of a batch; '
                "remove it from config.json to serve texts of the original length"
            )
        if kind == "longrope":
            config = model.config.get_text_config()
            original = parameters.get("original_max_position_embeddings")
            return int(original or getattr(config, "original_max_position_embeddings", config.max_position_embeddings))
    return None


def _rotations(model: PreTrainedModel) -> Mapping[str, Mapping[str, Any]]:
    """The parameters of a model's rotary embeddings by their kind; some models have one for each kind of layer."""
    config = model.config.get_text_config()
    stated = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    nested = [one for one in stated.values() if isinstance(one, Mapping)]
    return {str(one.get("rope_type", one.get("type"))): one for one in nested or [stated]}
