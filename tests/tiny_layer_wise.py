"""Tiny randomly initialised rerankers that score at several layers, in the layout and the names of their authors."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from tokenizers import Tokenizer

from tests.tiny_causal import GEMMA_MARKUP, MAX_LENGTH, SLIDING_WINDOW, byte_fallback_tokenizer, mistral_tokenizer

LAYERS: Final = 5
_SIZES: Final[Mapping[str, Any]] = {
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "num_hidden_layers": LAYERS,
    "max_position_embeddings": MAX_LENGTH,
    "initializer_range": 0.15,
}


def build_minicpm(folder: Path, **config: Any) -> Path:
    """bge-reranker-v2-minicpm-layerwise: the layers' names are Llama's; heads from layer 2 on."""
    from transformers import LlamaConfig, LlamaModel  # noqa: PLC0415 - only slow tests have torch

    said = {
        "architectures": ["LayerWiseMiniCPMForCausalLM"],
        "auto_map": {"AutoModelForCausalLM": "modeling_minicpm_reranker.LayerWiseMiniCPMForCausalLM"},
        "model_type": "minicpm",
        "head_multi": True,
        "head_type": "simple",
        "rms_norm_eps": 1e-05,
        "rope_scaling": None,
        "rope_theta": 5000.0,
        "scale_depth": 1.4,
        "scale_emb": 3,
        "start_layer": 2,
        **_SIZES,
        **config,
    }
    return _save(LlamaModel, LlamaConfig(**_SIZES), said, mistral_tokenizer(), folder, heads=LAYERS - 1)


def build_gemma(folder: Path, **config: Any) -> Path:
    """bge-reranker-v2.5-gemma2-lightweight: Gemma 2, whose scores are squeezed; heads for the layers 1, 3 and 5."""
    from transformers import Gemma2Config, Gemma2Model  # noqa: PLC0415 - only slow tests have torch

    sizes = {
        **_SIZES,
        "head_dim": 8,
        "sliding_window": SLIDING_WINDOW,
        "query_pre_attn_scalar": 8,
        "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 5.0,
    }
    said = {
        "architectures": ["CostWiseGemmaForCausalLM"],
        "auto_map": {"AutoModelForCausalLM": "gemma_model.CostWiseGemmaForCausalLM"},
        "model_type": "cost_wise_gemma",
        "layer_wise": True,
        "start_layer": 1,
        "layer_sep": 2,
        "pad_token_id": 0,
        **sizes,
        **config,
    }
    tokenizer = byte_fallback_tokenizer(GEMMA_MARKUP, leading_space=False)
    return _save(Gemma2Model, Gemma2Config(**sizes), said, tokenizer, folder, heads=3)


def _save(kind: Any, config: Any, said: Mapping[str, Any], tokenizer: Tokenizer, folder: Path, *, heads: int) -> Path:
    import torch  # noqa: PLC0415 - as above
    from safetensors.torch import save_file  # noqa: PLC0415 - as above

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config.vocab_size = tokenizer.get_vocab_size()
    (folder / "config.json").write_text(json.dumps({**said, "vocab_size": config.vocab_size}))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        decoder = kind(config)
        tensors = {f"model.{name}": tensor.clone() for name, tensor in decoder.state_dict().items()}
        # A norm of ones would hide that it is applied.
        tensors["model.norm.weight"] += torch.rand(config.hidden_size)
        for number in range(heads):
            tensors[f"lm_head.{number}.linear_head.weight"] = torch.randn(1, config.hidden_size) / 4
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
