"""Tiny randomly initialised encoder-decoders in the layout of a Hugging Face folder."""

import json
from pathlib import Path
from typing import Any, Final

from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors

from tests.tiny_models import CORPUS

MAX_LENGTH: Final = 512
_ANSWERS: Final = ("true", "false", "yes", "no", "sim", "não", "Sim", "Não")
_PROMPTS: Final = (
    "Query:",
    "Document:",
    "Document0:",
    "Document1:",
    "Relevant:",
    "Pergunta:",
    "Documento:",
    "Relevante:",
)
_SIZES: Final[dict[str, Any]] = {
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 64,
    "num_layers": 2,
    "num_heads": 4,
    "decoder_start_token_id": 0,
    # Wide enough that the logits of different pairs differ clearly.
    "initializer_factor": 1.0,
}


def build_t5(folder: Path, **config: Any) -> Path:
    """T5 1.0: the head's rows are the embeddings', and what the decoder gives is scaled for them."""
    from transformers import T5Config, T5ForConditionalGeneration  # noqa: PLC0415 - only slow tests have torch

    return _save(T5ForConditionalGeneration, T5Config, folder, **config)


def build_untied_t5(folder: Path) -> Path:
    """T5 1.1: a head of its own, nothing is scaled, a gated feed-forward layer."""
    from transformers import T5Config, T5ForConditionalGeneration  # noqa: PLC0415 - as above

    def with_own_head(config: Any) -> Any:
        model: Any = T5ForConditionalGeneration(config)
        model.lm_head.weight = type(model.lm_head.weight)(model.lm_head.weight.detach().flip(0) / 8)
        return model

    _save(with_own_head, T5Config, folder, tie_word_embeddings=False, feed_forward_proj="gated-gelu")
    # As version 4 of transformers wrote it: there is no other word on the scaling.
    config = json.loads((folder / "config.json").read_text())
    del config["scale_decoder_outputs"]
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
    return folder


def build_mt5(folder: Path) -> Path:
    """mT5 never scales."""
    from transformers import MT5Config, MT5ForConditionalGeneration  # noqa: PLC0415 - as above

    return _save(MT5ForConditionalGeneration, MT5Config, folder, initializer_factor=0.5)


def t5_tokenizer() -> Tokenizer:
    """Unigram over words that begin with "▁", which no piece goes beyond; it ends a text with "</s>"."""
    words = sorted({f"▁{word}" for text in (*CORPUS, *_ANSWERS, *_PROMPTS) for word in text.split()})
    characters = sorted(set("".join(words)))
    beginnings = {word[:end] for word in words for end in (2, 3, 5)} | {f"▁{word}" for word in _ANSWERS}
    pieces = [*((one, -9.0) for one in characters), *((one, -6.0 - 1 / len(one)) for one in sorted(beginnings))]
    special = ["<pad>", "</s>", "<unk>"]
    unused = [f"<extra_id_{number}>" for number in reversed(range(20))]
    vocabulary = dict([*((one, 0.0) for one in special), *pieces, *((one, 0.0) for one in unused)])
    tokenizer = Tokenizer(models.Unigram(list(vocabulary.items()), unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="always")]
    )
    tokenizer.add_special_tokens([AddedToken(one, special=True) for one in (*special, *unused)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    return tokenizer


def _save(kind: Any, config_kind: Any, folder: Path, **config: Any) -> Path:
    """A tiny model with the same random weights every time."""
    import torch  # noqa: PLC0415 - as above
    from transformers.utils import logging  # noqa: PLC0415 - as above

    logging.disable_progress_bar()
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = t5_tokenizer()
    tokenizer.save(str(folder / "tokenizer.json"))
    saved = {"tokenizer_class": "T5Tokenizer", "model_max_length": MAX_LENGTH, "extra_ids": 20, "pad_token": "<pad>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(saved, indent=1) + "\n", encoding="utf-8")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        kind(config_kind(vocab_size=tokenizer.get_vocab_size(), **{**_SIZES, **config})).save_pretrained(folder)
    return folder
