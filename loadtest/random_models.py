"""Makes cross-encoders with the shapes of well-known models and random weights, including tokenizers.

The cost of a forward pass depends on shapes and lengths, not on the weights, so load tests need no download.
The vocabularies hold the words of `tools/benchmark/workload.py` and are filled up to the original's size.
Needs torch and transformers.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import torch
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    ModernBertConfig,
    ModernBertForSequenceClassification,
    PreTrainedModel,
    XLMRobertaConfig,
    XLMRobertaForSequenceClassification,
)
from transformers.utils import logging

from rerankd.tools.benchmark.workload import VOCABULARY

# Transformers' own range gives nearly the same score to all pairs, and orders that cannot be compared.
_SPREAD = 0.08
_TINY: Final[Mapping[str, Any]] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "initializer_range": 0.3,
}


def minilm_l6(*, tiny: bool) -> tuple[PreTrainedModel, Tokenizer]:
    """BERT of 6 layers and width 384: 22.7 million parameters."""
    size = _TINY if tiny else {}
    shape = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
    vocabulary = _filled(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *VOCABULARY.split()], 30_522, tiny=tiny)
    config = BertConfig(vocab_size=len(vocabulary), num_labels=1, **{**shape, "initializer_range": _SPREAD, **size})
    return BertForSequenceClassification(config), _wordpiece(vocabulary)


def xlmr_large(*, tiny: bool) -> tuple[PreTrainedModel, Tokenizer]:
    """XLM-RoBERTa of 24 layers and width 1,024: 560 million parameters, as bge-reranker-v2-m3 has."""
    size = _TINY if tiny else {}
    shape = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
    pieces = ["<s>", "<pad>", "</s>", "<unk>", *dict.fromkeys(f"▁{word}" for word in VOCABULARY.split())]
    vocabulary = _filled(pieces, 250_002, tiny=tiny)
    config = XLMRobertaConfig(
        vocab_size=len(vocabulary),
        max_position_embeddings=514,
        type_vocab_size=1,
        pad_token_id=1,
        bos_token_id=0,
        eos_token_id=2,
        num_labels=1,
        **{**shape, **size},
    )
    return XLMRobertaForSequenceClassification(config), _unigram(vocabulary)


def modernbert_base(*, tiny: bool) -> tuple[PreTrainedModel, Tokenizer]:
    """ModernBERT of 22 layers and width 768, two of three with local attention: 149 million parameters."""
    size = {**_TINY, "global_attn_every_n_layers": 2, "local_attention": 16} if tiny else {}
    vocabulary = _filled(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *VOCABULARY.split()], 50_368, tiny=tiny)
    special = {"pad_token_id": 0, "cls_token_id": 2, "bos_token_id": 2, "sep_token_id": 3, "eos_token_id": 3}
    config = ModernBertConfig(vocab_size=len(vocabulary), max_position_embeddings=512, num_labels=1, **special, **size)
    return ModernBertForSequenceClassification(config), _wordpiece(vocabulary)


MODELS: Final[Mapping[str, Callable[..., tuple[PreTrainedModel, Tokenizer]]]] = {
    "minilm-l6": minilm_l6,
    "xlmr-large": xlmr_large,
    "modernbert-base": modernbert_base,
}


def build(name: str, folder: Path, *, tiny: bool = False) -> Path:
    """Write a Hugging Face folder; the same weights every time. `tiny` keeps the kind and shrinks the size."""
    logging.disable_progress_bar()
    folder.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, tokenizer = MODELS[name](tiny=tiny)
    model.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    inputs = ["input_ids", "attention_mask"]
    roles = {"pad": ("[PAD]", "<pad>"), "cls": ("[CLS]", "<s>"), "sep": ("[SEP]", "</s>"), "unk": ("[UNK]", "<unk>")}
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": 512,
        "model_input_names": [*inputs, "token_type_ids"] if name == "minilm-l6" else inputs,
        **{
            f"{role}_token": token
            for role, tokens in roles.items()
            for token in tokens
            if tokenizer.token_to_id(token) is not None
        },
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config, indent=1) + "\n", encoding="utf-8")
    return folder


def _filled(pieces: list[str], size: int, *, tiny: bool) -> list[str]:
    """The pieces, each once, and in models of true size as many that never occur as the original's has in all."""
    distinct = list(dict.fromkeys(pieces))
    return distinct if tiny else [*distinct, *(f"[unused{number}]" for number in range(size - len(distinct)))]


def _wordpiece(vocabulary: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece({piece: n for n, piece in enumerate(vocabulary)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    _add_special(tokenizer, vocabulary[:5])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")],
    )
    return tokenizer


def _unigram(vocabulary: list[str]) -> Tokenizer:
    pieces = [(piece, 0.0 if number < 4 else -8.0) for number, piece in enumerate(vocabulary)]
    tokenizer = Tokenizer(models.Unigram(pieces, 3))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    _add_special(tokenizer, vocabulary[:4])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in ("<s>", "</s>")],
    )
    return tokenizer


def _add_special(tokenizer: Tokenizer, tokens: list[str]) -> None:
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in tokens])
