"""Folders with what a scorer of language models reads: a tokenizer and two configurations, no weights."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from tokenizers import Tokenizer

from rerankd.config.settings import SHIPPED_REGISTRY
from tests.tiny_causal import (
    GEMMA_MARKUP,
    JINA_MARKERS,
    LLAMA_MARKUP,
    QWEN_MARKUP,
    RANK1_ANSWERS,
    VISION_MARKUP,
    byte_fallback_tokenizer,
    byte_level_tokenizer,
    mistral_tokenizer,
    write_image_settings,
)
from tests.tiny_seq2seq import t5_tokenizer

SHIPPED_TEMPLATES: Final = SHIPPED_REGISTRY.parent / "templates"
TOKENIZERS: Final[Mapping[str, Callable[[], Tokenizer]]] = {
    "llama": lambda: byte_level_tokenizer(LLAMA_MARKUP),
    "mistral": mistral_tokenizer,
    "qwen3": lambda: byte_level_tokenizer(QWEN_MARKUP, plain=("<think>", "</think>")),
    "rank1": lambda: byte_level_tokenizer(QWEN_MARKUP, plain=RANK1_ANSWERS),
    "qwen3-vl": lambda: byte_level_tokenizer((*QWEN_MARKUP, *VISION_MARKUP), plain=("<think>", "</think>")),
    "t5": t5_tokenizer,
    "jina-v3": lambda: byte_level_tokenizer((*QWEN_MARKUP, *JINA_MARKERS), plain=("<think>", "</think>")),
    "gemma": lambda: byte_fallback_tokenizer(GEMMA_MARKUP, leading_space=False),
}


def tokenizer_folder(folder: Path, family: str, *, max_length: int = 2048) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    TOKENIZERS[family]().save(str(folder / "tokenizer.json"))
    config: dict[str, object] = {"max_position_embeddings": max_length, "pad_token_id": 0}
    if family == "qwen3-vl":
        write_image_settings(folder, patch_size=16, mean=0.5)
        config["image_token_id"] = Tokenizer.from_file(str(folder / "tokenizer.json")).token_to_id("<|image_pad|>")
    if family == "jina-v3":
        config |= {"architectures": ["JinaForRanking"], "model_type": "qwen3"}
    (folder / "config.json").write_text(json.dumps(config))
    return folder
