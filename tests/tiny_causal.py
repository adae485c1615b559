"""Tiny randomly initialised causal language models in the layout of a Hugging Face folder, one per family.

As in `tests.tiny_models`, vocabularies are built by hand so that they are the same every time.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

from tests.tiny_models import CORPUS

MAX_LENGTH: Final = 2048
# Short enough that prompts of the tests are longer: what lies beyond must not be read by layers that have a window.
SLIDING_WINDOW: Final = 48

_WORDS: Final = ("yes", "no", "Yes", "No", "Query", "Document", "passages", "relevance", "rank", "Rank")
LLAMA_MARKUP: Final = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
QWEN_MARKUP: Final = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
VISION_MARKUP: Final = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
JINA_MARKERS: Final = ("<|embed_token|>", "<|rerank_token|>")
RANK1_ANSWERS: Final = (" true", " false")
MISTRAL_MARKUP: Final = ("<unk>", "<s>", "</s>", "[INST]", "[/INST]")
GEMMA_MARKUP: Final = ("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>")
_SIZES: Final[Mapping[str, Any]] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 64,
    "max_position_embeddings": MAX_LENGTH,
    "initializer_range": 0.15,
}


def build_llama(folder: Path, **sizes: Any) -> Path:
    """Byte-level BPE with Llama 3's markup; a head of its own."""
    from transformers import LlamaConfig, LlamaForCausalLM  # noqa: PLC0415 - only slow tests have torch

    tokenizer = byte_level_tokenizer(LLAMA_MARKUP)
    return _save(LlamaForCausalLM, LlamaConfig, tokenizer, folder, pad="<|eot_id|>", tie_word_embeddings=False, **sizes)


def build_mistral(folder: Path) -> Path:
    """BPE over "▁" with byte fallback and Mistral's markup; every layer sees a sliding window."""
    from transformers import MistralConfig, MistralForCausalLM  # noqa: PLC0415 - as above

    return _save(
        MistralForCausalLM,
        MistralConfig,
        mistral_tokenizer(),
        folder,
        pad="</s>",
        sliding_window=SLIDING_WINDOW,
        tie_word_embeddings=False,
    )


def build_qwen3(folder: Path) -> Path:
    """Byte-level BPE with Qwen's markup and its marks of thought, which are no special tokens; tied embeddings."""
    from transformers import Qwen3Config, Qwen3ForCausalLM  # noqa: PLC0415 - as above

    tokenizer = byte_level_tokenizer(QWEN_MARKUP, plain=("<think>", "</think>"))
    return _save(Qwen3ForCausalLM, Qwen3Config, tokenizer, folder, pad="<|endoftext|>", tie_word_embeddings=True)


def build_rank1(folder: Path) -> Path:
    """A Qwen whose tokenizer knows the answers with a space before them as one token each, and no mark of thought."""
    from transformers import Qwen3Config, Qwen3ForCausalLM  # noqa: PLC0415 - as above

    tokenizer = byte_level_tokenizer(QWEN_MARKUP, plain=RANK1_ANSWERS)
    return _save(Qwen3ForCausalLM, Qwen3Config, tokenizer, folder, pad="<|endoftext|>", tie_word_embeddings=False)


def build_classifier(folder: Path, family: str) -> Path:
    """With a head of one output: a Llama, whose tokenizer puts its first token before texts, or a Qwen 3."""
    from transformers import (  # noqa: PLC0415 - as above
        LlamaConfig,
        LlamaForSequenceClassification,
        Qwen3Config,
        Qwen3ForSequenceClassification,
    )

    if family == "qwen3":
        tokenizer = byte_level_tokenizer(QWEN_MARKUP, plain=("<think>", "</think>"))
        return _save(Qwen3ForSequenceClassification, Qwen3Config, tokenizer, folder, pad="<|endoftext|>", num_labels=1)
    tokenizer = byte_level_tokenizer(LLAMA_MARKUP)
    beginning = ("<|begin_of_text|>", tokenizer.token_to_id("<|begin_of_text|>"))
    tokenizer.post_processor = processors.TemplateProcessing(single="<|begin_of_text|> $A", special_tokens=[beginning])
    return _save(LlamaForSequenceClassification, LlamaConfig, tokenizer, folder, pad="<|eot_id|>", num_labels=1)


def build_nemotron(folder: Path) -> Path:
    """As NVIDIA saves its rerankers on Llama: a type and a class of its own code, and no padding token in any file."""
    build_classifier(folder, "llama")
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "architectures": ["LlamaBidirectionalForSequenceClassification"],
        "model_type": "llama_bidirec",
        "auto_map": {"AutoModelForSequenceClassification": "own.LlamaBidirectionalForSequenceClassification"},
        "pooling": "avg",
        "temperature": 0.2,
        "pad_token_id": None,
    }
    (folder / "config.json").write_text(json.dumps(config))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "pad_token": None}))
    return folder


def build_qwen2(folder: Path) -> Path:
    """Byte-level BPE with Qwen's markup; queries, keys and values have biases, which new models have as zeros."""
    import numpy as np  # noqa: PLC0415 - as above
    from safetensors.numpy import load_file, save_file  # noqa: PLC0415 - as above
    from transformers import Qwen2Config, Qwen2ForCausalLM  # noqa: PLC0415 - as above

    tokenizer = byte_level_tokenizer(QWEN_MARKUP)
    _save(Qwen2ForCausalLM, Qwen2Config, tokenizer, folder, pad="<|endoftext|>", tie_word_embeddings=False)
    weights, rng = load_file(folder / "model.safetensors"), np.random.default_rng(0)
    biases = {name: rng.normal(size=bias.shape) for name, bias in weights.items() if name.endswith(".bias")}
    drawn = {name: bias.astype(np.float32) for name, bias in biases.items()}
    save_file({**weights, **drawn}, folder / "model.safetensors", {"format": "pt"})
    return folder


def build_jina_v3(folder: Path, **config: Any) -> Path:
    """Qwen3 without a head and a projector, by the names of jina-reranker-v3's authors."""
    import torch  # noqa: PLC0415 - as above
    from safetensors.torch import load_file, save_file  # noqa: PLC0415 - as above
    from transformers import Qwen3Config, Qwen3ForCausalLM  # noqa: PLC0415 - as above

    tokenizer = byte_level_tokenizer((*QWEN_MARKUP, *JINA_MARKERS), plain=("<think>", "</think>"))
    _save(Qwen3ForCausalLM, Qwen3Config, tokenizer, folder, pad="<|endoftext|>", tie_word_embeddings=True, **config)
    random = torch.Generator().manual_seed(0)
    hidden = _SIZES["hidden_size"]
    projector = {
        "projector.0.weight": torch.randn(hidden // 2, hidden, generator=random),
        "projector.2.weight": torch.randn(hidden // 2, hidden // 2, generator=random),
    }
    save_file(load_file(folder / "model.safetensors") | projector, folder / "model.safetensors")
    said = json.loads((folder / "config.json").read_text())
    said |= {"architectures": ["JinaForRanking"], "auto_map": {"AutoModel": "modeling.JinaForRanking"}}
    (folder / "config.json").write_text(json.dumps(said))
    return folder


def build_qwen3_vl(folder: Path) -> Path:
    """Qwen3 that also sees images, with positions in three dimensions."""
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration  # noqa: PLC0415 - as above

    tokenizer = byte_level_tokenizer((*QWEN_MARKUP, *VISION_MARKUP), plain=("<think>", "</think>"))
    text = {
        **_SIZES,
        "vocab_size": tokenizer.get_vocab_size(),
        "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0, "mrope_section": [2, 1, 1]},
    }
    vision = {
        "depth": 2, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 32,
        "num_position_embeddings": 16, "deepstack_visual_indexes": [0], "initializer_range": 0.15,
    }  # fmt: skip
    write_image_settings(folder, patch_size=16, mean=0.5)
    return _save(
        Qwen3VLForConditionalGeneration,
        Qwen3VLConfig,
        tokenizer,
        folder,
        pad="<|endoftext|>",
        text_config=text,
        vision_config=vision,
        tie_word_embeddings=True,
        **_vision_tokens(tokenizer),
    )


def build_qwen2_vl(folder: Path, **config: Any) -> Path:
    """Qwen2 that also sees images, in patches of 14 pixels."""
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration  # noqa: PLC0415 - as above

    tokenizer = byte_level_tokenizer((*QWEN_MARKUP, *VISION_MARKUP), plain=("True", "False"))
    text = {
        **{name: value for name, value in _SIZES.items() if name != "head_dim"},
        "vocab_size": tokenizer.get_vocab_size(),
        "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0, "mrope_section": [2, 1, 1]},
        "bos_token_id": None,
        "eos_token_id": None,
    }
    vision = {"depth": 2, "embed_dim": 16, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2, "initializer_range": 0.15}
    write_image_settings(folder, patch_size=14, mean=0.48)
    return _save(
        Qwen2VLForConditionalGeneration,
        Qwen2VLConfig,
        tokenizer,
        folder,
        pad="<|endoftext|>",
        text_config=text,
        vision_config=vision,
        tie_word_embeddings=True,
        **_vision_tokens(tokenizer),
        **config,
    )


def build_jina_m0(folder: Path) -> Path:
    """Qwen2-VL with a head of two layers, by the names of jina-reranker-m0's authors."""
    import torch  # noqa: PLC0415 - as above
    from safetensors.torch import load_file, save_file  # noqa: PLC0415 - as above

    build_qwen2_vl(folder)
    random = torch.Generator().manual_seed(0)
    shapes = {"0.weight": (32, 32), "0.bias": (32,), "2.weight": (1, 32), "2.bias": (1,)}
    head = {f"score.{name}": torch.randn(shape, generator=random) / 8 for name, shape in shapes.items()}
    save_file(load_file(folder / "model.safetensors") | head, folder / "model.safetensors", {"format": "pt"})
    said = json.loads((folder / "config.json").read_text())
    said |= {"architectures": ["JinaVLForRanking"], "auto_map": {"AutoModel": "modeling.JinaVLForRanking"}}
    (folder / "config.json").write_text(json.dumps(said))
    return folder


def _vision_tokens(tokenizer: Tokenizer) -> Mapping[str, int]:
    start, end, image, video = map(tokenizer.token_to_id, VISION_MARKUP)
    return {
        "vision_start_token_id": start, "vision_end_token_id": end, "image_token_id": image, "video_token_id": video
    }  # fmt: skip


def write_image_settings(folder: Path, *, patch_size: int, mean: float) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    said = {
        "image_processor_type": "Qwen2VLImageProcessorFast", "patch_size": patch_size, "temporal_patch_size": 2,
        "merge_size": 2, "size": {"shortest_edge": 3136, "longest_edge": 12_845_056}, "image_mean": [mean] * 3,
        "image_std": [0.5] * 3,
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(said))


def build_phi3(folder: Path) -> Path:
    """Byte-level BPE; a sequence beyond the original length turns the positions of its whole batch otherwise."""
    from transformers import Phi3Config, Phi3ForCausalLM  # noqa: PLC0415 - as above

    rotation = {"rope_type": "longrope", "rope_theta": 10_000.0, "short_factor": [1.0] * 4, "long_factor": [3.0] * 4}
    return _save(
        Phi3ForCausalLM,
        Phi3Config,
        byte_level_tokenizer(QWEN_MARKUP),
        folder,
        pad="<|endoftext|>",
        bos_token_id=None,
        eos_token_id=None,
        original_max_position_embeddings=SLIDING_WINDOW + 32,
        rope_scaling=rotation,
    )


def build_gemma2(folder: Path) -> Path:
    """BPE with Gemma's markup; logits are squeezed, and every other layer sees a sliding window."""
    from transformers import Gemma2Config, Gemma2ForCausalLM  # noqa: PLC0415 - as above

    tokenizer = byte_fallback_tokenizer(GEMMA_MARKUP, leading_space=False)
    return _save(
        Gemma2ForCausalLM,
        Gemma2Config,
        tokenizer,
        folder,
        pad="<pad>",
        sliding_window=SLIDING_WINDOW,
        query_pre_attn_scalar=8,
        final_logit_softcapping=5.0,
    )


def build_llama4(folder: Path) -> Path:
    """Experts and chunks of attention; transformers gives no way to its decoder without the head."""
    from transformers import Llama4ForCausalLM, Llama4TextConfig  # noqa: PLC0415 - as above

    return _save(
        Llama4ForCausalLM,
        Llama4TextConfig,
        byte_level_tokenizer(LLAMA_MARKUP),
        folder,
        pad="<|eot_id|>",
        bos_token_id=None,
        eos_token_id=None,
        intermediate_size_mlp=64,
        num_local_experts=2,
        attention_chunk_size=SLIDING_WINDOW,
    )


def build_t5(folder: Path) -> Path:
    """An encoder and a decoder: no causal language model."""
    from transformers import T5Config, T5ForConditionalGeneration  # noqa: PLC0415 - as above

    tokenizer = byte_level_tokenizer(QWEN_MARKUP)
    return _save(T5ForConditionalGeneration, T5Config, tokenizer, folder, pad="<|endoftext|>", d_model=32, d_kv=8)


CAUSAL_FAMILIES: Final[Mapping[str, Callable[[Path], Path]]] = {
    "llama": build_llama,
    "mistral": build_mistral,
    "qwen3": build_qwen3,
    "gemma2": build_gemma2,
}
# The shipped templates whose markup a family's tokenizer knows.
FIRST_TEMPLATES: Final[Mapping[str, str]] = {
    "llama": "first-llama-3",
    "mistral": "first-mistral",
    "qwen3": "first-qwen3",
}


def byte_level_tokenizer(markup: Sequence[str], *, plain: Sequence[str] = ()) -> Tokenizer:
    pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words = sorted({word for text in (*CORPUS, *_WORDS) for word, _ in pre_tokenizer.pre_tokenize_str(text)})
    tokenizer = Tokenizer(_bpe([*markup, *plain, *sorted(pre_tokenizers.ByteLevel.alphabet())], words))
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    return _with_markup(tokenizer, markup, plain)


def mistral_tokenizer() -> Tokenizer:
    """It puts "<s>" before every text."""
    tokenizer = byte_fallback_tokenizer(MISTRAL_MARKUP)
    beginning = ("<s>", tokenizer.token_to_id("<s>"))
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[beginning])
    return tokenizer


def byte_fallback_tokenizer(markup: Sequence[str], *, leading_space: bool = True) -> Tokenizer:
    bytes_ = [f"<0x{value:02X}>" for value in range(256)]
    words = sorted({word for text in CORPUS for word in text.replace(" ", " ▁").split()} | set(_WORDS))
    characters = sorted(set("".join(words)) | {"▁", "[", "]", *"ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"})
    bpe = _bpe([*markup, *bytes_, *characters], words, byte_fallback=True, unk_token="<unk>")
    tokenizer = Tokenizer(bpe)
    scheme = "first" if leading_space else "never"
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme=scheme)])
    return _with_markup(tokenizer, markup, ())


def _bpe(start: Sequence[str], words: Sequence[str], **options: Any) -> models.BPE:
    merges = list(dict.fromkeys((word[:end], word[end]) for word in words for end in range(1, min(len(word), 5))))
    vocabulary = [*start, *(left + right for left, right in merges)]
    return models.BPE({token: number for number, token in enumerate(dict.fromkeys(vocabulary))}, merges, **options)


def _with_markup(tokenizer: Tokenizer, markup: Sequence[str], plain: Sequence[str]) -> Tokenizer:
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in markup])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in plain])
    return tokenizer


def _save(kind: Any, config_kind: Any, tokenizer: Tokenizer, folder: Path, *, pad: str, **config: Any) -> Path:
    """A tiny model with the same random weights every time."""
    import torch  # noqa: PLC0415 - only slow tests have torch
    from transformers.utils import logging  # noqa: PLC0415 - as above

    logging.disable_progress_bar()
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    saved = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": MAX_LENGTH, "pad_token": pad}
    (folder / "tokenizer_config.json").write_text(json.dumps(saved, indent=1) + "\n", encoding="utf-8")
    filled = config_kind(
        vocab_size=tokenizer.get_vocab_size(), pad_token_id=tokenizer.token_to_id(pad), **{**_SIZES, **config}
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        kind(filled).save_pretrained(folder)
    return folder
