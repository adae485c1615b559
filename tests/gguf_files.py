"""Writes transformers' language models as GGUF files, as llama.cpp's converter does."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, quantize
from safetensors.numpy import load_file

_TENSORS = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def write_gguf(
    folder: Path,
    target: Path,
    *,
    kind: str = "F32",
    pre: str = "qwen2",
    says: Mapping[str, Any] | None = None,
    tensors: Mapping[str, np.ndarray] | None = None,
) -> Path:
    """Write a folder's model. `kind` is how matrices are stored; `says` and `tensors` are put in beside its own."""
    config = json.loads((folder / "config.json").read_text())
    family, heads = config["model_type"], config["num_attention_heads"]
    writer = GGUFWriter(target, family)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_chat_template("{{ messages }}")
    _add_tokenizer(writer, folder, pre=pre)
    for key, value in (says or {}).items():
        _add(writer, key, value)
    for name, numbers in load_file(folder / "model.safetensors").items():
        parts = name.removesuffix(".weight").removesuffix(".bias").removeprefix("model.layers.")
        layer, _, rest = parts.partition(".")
        ours = f"blk.{layer}.{_TENSORS[rest]}" if layer.isdigit() else _TENSORS[parts]
        if family == "llama" and ("q_proj" in name or "k_proj" in name):
            stored_order = _in_pairs(numbers, heads if "q_proj" in name else config["num_key_value_heads"])
        else:
            stored_order = numbers
        stored = GGMLQuantizationType[kind if numbers.ndim == 2 else "F32"]
        writer.add_tensor(f"{ours}.{name.rpartition('.')[2]}", quantize(stored_order, stored), raw_dtype=stored)
    for name, numbers in (tensors or {}).items():
        writer.add_tensor(name, numbers)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def _in_pairs(rows: np.ndarray, heads: int) -> np.ndarray:
    """The two halves of every head, one of each after the other."""
    halves = rows.reshape(heads, 2, len(rows) // heads // 2, -1)
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(rows.shape)


def _add_tokenizer(writer: GGUFWriter, folder: Path, *, pre: str) -> None:
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    named = json.loads((folder / "tokenizer_config.json").read_text())
    special = {token["content"]: token["special"] for token in tokenizer["added_tokens"]}
    tokens = sorted(tokenizer["model"]["vocab"], key=tokenizer["model"]["vocab"].__getitem__)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([(3 if special[token] else 4) if token in special else 1 for token in tokens])
    writer.add_token_merges([" ".join(merge) for merge in tokenizer["model"]["merges"]])
    writer.add_pad_token_id(tokens.index(named["pad_token"]))
    writer.add_eos_token_id(tokens.index(named["pad_token"]))


def _add(writer: GGUFWriter, key: str, value: object) -> None:
    """Write one value over what is there."""
    for shard in writer.kv_data:
        shard.pop(key, None)
    match value:
        case str():
            writer.add_string(key, value)
        case int():
            writer.add_uint32(key, value)
        case float():
            writer.add_float32(key, value)
        case list():
            writer.add_array(key, value)
        case _:
            raise TypeError(f"{value!r} has no type of GGUF's here")
