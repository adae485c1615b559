"""Tiny randomly initialised cross-encoders in the layout of a Hugging Face folder, one per family of tokenizer.

Their vocabularies are built by hand, because the tokenizers library's training breaks ties differently every time.

`python -m tests.tiny_models` writes tests/data/tiny-bert again: the one that needs no torch to be served.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors

TINY_BERT: Final = Path(__file__).resolve().parent / "data" / "tiny-bert"
MAX_LENGTH: Final = 128

CORPUS: Final = (
    "What is the capital of France? Paris is the capital and largest city of France.",
    "Berlin is the capital of Germany; Vienna is the capital of Austria and Madrid the capital of Spain.",
    "A vaccine trains the immune system to recognise a pathogen before it meets it.",
    "The stock market closed higher on Tuesday, led by banks and makers of semiconductors.",
    "Thirst, dark urine, dizziness and tiredness are symptoms of dehydration.",
    "list.sort() sorts in place; sorted() returns a new list. Numbers: 0 1 2 3 4 5 6 7 8 9, 3.14159.",
    "Hamlet is a tragedy by William Shakespeare, written about 1600.",
    "Die größte Stadt Österreichs ist Wien. Où est la bibliothèque? ¿Dónde está el café?",
    "Столица России - Москва. 東京は日本の首都です。 القاهرة هي عاصمة مصر",
    "How do planes fly, who wrote it, when was it built, why does it matter, and where can I find more about it?",
)

# Wide enough that the scores of different pairs differ clearly; transformers' own default gives nearly equal ones.
_INITIALIZER_RANGE: Final = 0.3
_SIZES: Final[Mapping[str, Any]] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "initializer_range": _INITIALIZER_RANGE,
}


# As wide as our own kernels want layers to be (app/rerankd/engines/onnx/kernels).
WIDE: Final[Mapping[str, Any]] = {
    **_SIZES,
    "hidden_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "intermediate_size": 256,
    "initializer_range": _INITIALIZER_RANGE / 4,
}


def build_bert(folder: Path, *, num_labels: int = 1, sizes: Mapping[str, Any] = _SIZES) -> Path:
    """WordPiece, `[CLS] a [SEP] b [SEP]`, with segment ids that matter."""
    from transformers import BertConfig, BertForSequenceClassification  # noqa: PLC0415 - only slow tests have torch

    tokenizer = wordpiece_tokenizer()
    _save_tokenizer(tokenizer, folder, pad="[PAD]", inputs=("input_ids", "token_type_ids", "attention_mask"))
    config = BertConfig(
        vocab_size=tokenizer.get_vocab_size(), max_position_embeddings=MAX_LENGTH, num_labels=num_labels, **sizes
    )
    return _save_model(BertForSequenceClassification, config, folder)


def build_xlmr(folder: Path, *, pad_id: int = 1, sizes: Mapping[str, Any] = _SIZES) -> Path:
    """Unigram, `<s> a </s></s> b </s>`, no segments, positions counted from behind the padding id."""
    from transformers import XLMRobertaConfig, XLMRobertaForSequenceClassification  # noqa: PLC0415 - as above

    tokenizer = unigram_tokenizer(pad_id=pad_id)
    _save_tokenizer(tokenizer, folder, pad="<pad>", inputs=("input_ids", "attention_mask"))
    config = XLMRobertaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        max_position_embeddings=MAX_LENGTH + pad_id + 1,
        type_vocab_size=1,
        pad_token_id=pad_id,
        bos_token_id=tokenizer.token_to_id("<s>"),
        eos_token_id=tokenizer.token_to_id("</s>"),
        num_labels=1,
        **sizes,
    )
    return _save_model(XLMRobertaForSequenceClassification, config, folder)


def build_modernbert(folder: Path, *, sizes: Mapping[str, Any] = _SIZES) -> Path:
    """Byte-level BPE, `[CLS] a [SEP] b [SEP]` without segments, rotary positions, local attention in one layer."""
    from transformers import ModernBertConfig, ModernBertForSequenceClassification  # noqa: PLC0415 - as above

    tokenizer = byte_level_tokenizer()
    _save_tokenizer(tokenizer, folder, pad="[PAD]", inputs=("input_ids", "attention_mask"))
    config = ModernBertConfig(
        vocab_size=tokenizer.get_vocab_size(),
        max_position_embeddings=MAX_LENGTH,
        global_attn_every_n_layers=2,
        local_attention=16,
        pad_token_id=tokenizer.token_to_id("[PAD]"),
        cls_token_id=tokenizer.token_to_id("[CLS]"),
        sep_token_id=tokenizer.token_to_id("[SEP]"),
        bos_token_id=tokenizer.token_to_id("[CLS]"),
        eos_token_id=tokenizer.token_to_id("[SEP]"),
        num_labels=1,
        initializer_cutoff_factor=3.0,
        **sizes,
    )
    return _save_model(ModernBertForSequenceClassification, config, folder)


def build_deberta(folder: Path) -> Path:
    """Unigram, `[CLS] a [SEP] b [SEP]` whose segments the model ignores, relative positions."""
    from transformers import DebertaV2Config, DebertaV2ForSequenceClassification  # noqa: PLC0415 - as above

    tokenizer = deberta_tokenizer()
    _save_tokenizer(tokenizer, folder, pad="[PAD]", inputs=("input_ids", "token_type_ids", "attention_mask"))
    config = DebertaV2Config(
        vocab_size=tokenizer.get_vocab_size(),
        max_position_embeddings=MAX_LENGTH,
        relative_attention=True,
        position_buckets=16,
        max_relative_positions=-1,
        pos_att_type=["p2c", "c2p"],
        norm_rel_ebd="layer_norm",
        share_att_key=True,
        position_biased_input=False,
        type_vocab_size=0,
        pad_token_id=tokenizer.token_to_id("[PAD]"),
        num_labels=1,
        **_SIZES,
    )
    return _save_model(DebertaV2ForSequenceClassification, config, folder)


def build_gte(folder: Path, **config: Any) -> Path:
    """Alibaba's own class "New" with its names of tensors: rotary positions with NTK scaling, gated layers."""
    import torch  # noqa: PLC0415 - as above
    from safetensors.torch import save_file  # noqa: PLC0415 - as above

    tokenizer = unigram_tokenizer()
    _save_tokenizer(tokenizer, folder, pad="<pad>", inputs=("input_ids", "attention_mask"))
    hidden, inner, words = _SIZES["hidden_size"], _SIZES["intermediate_size"], tokenizer.get_vocab_size()
    said = {
        "architectures": ["NewForSequenceClassification"],
        "auto_map": {"AutoModelForSequenceClassification": "org/new-impl--modeling.NewForSequenceClassification"},
        "model_type": "new",
        "id2label": {"0": "LABEL_0"},
        "vocab_size": words,
        "max_position_embeddings": MAX_LENGTH,
        "type_vocab_size": 1,
        "pad_token_id": 1,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
        "layer_norm_type": "layer_norm",
        "position_embedding_type": "rope",
        "rope_theta": 200.0,
        "rope_scaling": {"type": "ntk", "factor": 8.0},
        "pack_qkv": True,
        "logn_attention_scale": False,
        **_SIZES,
        **config,
    }
    (folder / "config.json").write_text(json.dumps(said))
    random = torch.Generator().manual_seed(0)

    def dense(name: str, outputs: int, inputs: int) -> dict[str, torch.Tensor]:
        return {f"{name}.{part}": 0.3 * torch.randn(size, generator=random)
                for part, size in (("weight", (outputs, inputs)), ("bias", (outputs,)))}  # fmt: skip

    def norm(name: str) -> dict[str, torch.Tensor]:
        return {f"{name}.weight": 1 + 0.1 * torch.randn(hidden, generator=random), f"{name}.bias": torch.zeros(hidden)}

    tensors = {
        "new.embeddings.word_embeddings.weight": torch.randn(words, hidden, generator=random),
        "new.embeddings.token_type_embeddings.weight": torch.randn(1, hidden, generator=random),
        **norm("new.embeddings.LayerNorm"),
        **dense("new.pooler.dense", hidden, hidden),
        **dense("classifier", 1, hidden),
    }
    for layer in (f"new.encoder.layer.{number}" for number in range(_SIZES["num_hidden_layers"])):
        tensors |= {
            **dense(f"{layer}.attention.qkv_proj", 3 * hidden, hidden),
            **dense(f"{layer}.attention.o_proj", hidden, hidden),
            **dense(f"{layer}.mlp.up_gate_proj", 2 * inner, hidden),
            **dense(f"{layer}.mlp.down_proj", hidden, inner),
            **norm(f"{layer}.attn_ln"),
            **norm(f"{layer}.mlp_ln"),
        }
        del tensors[f"{layer}.mlp.up_gate_proj.bias"]
    save_file(tensors, folder / "model.safetensors")
    return folder


def build_jina_v2(folder: Path) -> Path:
    """XLM-RoBERTa by the names of Jina's own implementation, which its authors convert to; `plain` is the original."""
    import torch  # noqa: PLC0415 - as above
    from safetensors.torch import load_file, save_file  # noqa: PLC0415 - as above

    plain = build_xlmr(folder / "plain")
    tensors = load_file(plain / "model.safetensors")
    renamed = {}
    for name, tensor in tensors.items():
        for theirs, ours in _OF_JINA:
            name = name.replace(theirs, ours)  # noqa: PLW2901 - one after the other
        renamed[name] = tensor
    for prefix in [name.removesuffix("query.weight") for name in tensors if name.endswith("self.query.weight")]:
        layer = prefix.replace("encoder.layer.", "encoder.layers.").removesuffix("attention.self.")
        for part in ("weight", "bias"):
            thirds = [renamed.pop(f"{layer}attention.self.{name}.{part}") for name in ("query", "key", "value")]
            renamed[f"{layer}mixer.Wqkv.{part}"] = torch.cat(thirds)
    save_file(renamed, folder / "model.safetensors")
    said = json.loads((plain / "config.json").read_text()) | {
        "auto_map": {"AutoModelForSequenceClassification": "modeling_xlm_roberta.XLMRobertaForSequenceClassification"},
        "position_embedding_type": "absolute",
        "use_flash_attn": True,
    }
    del said["model_type"]
    (folder / "config.json").write_text(json.dumps(said))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((plain / name).read_bytes())
    return folder


# The order in which the authors' conversion renames.
_OF_JINA: Final = (
    ("encoder.layer.", "encoder.layers."),
    ("embeddings.LayerNorm", "emb_ln"),
    ("attention.output.LayerNorm", "norm1"),
    ("attention.output.dense", "mixer.out_proj"),
    ("output.LayerNorm", "norm2"),
    ("intermediate.dense", "mlp.fc1"),
    ("output.dense", "mlp.fc2"),
)


def build_provence(folder: Path, *, multilingual: bool = False) -> Path:
    """DeBERTa or XLM-RoBERTa with a head for the score and one for each token; texts are stripped, as a converted
    sentencepiece does.
    """
    import torch  # noqa: PLC0415 - as above
    from safetensors.torch import load_file, save_file  # noqa: PLC0415 - as above

    (build_xlmr if multilingual else build_deberta)(folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Strip(), tokenizer.normalizer])
    tokenizer.save(str(folder / "tokenizer.json"))
    tensors = load_file(folder / "model.safetensors")
    hidden = _SIZES["hidden_size"]
    random = torch.Generator().manual_seed(1)
    tensors |= {
        "token_classifier.weight": torch.randn(2, hidden, generator=random),
        "token_classifier.bias": torch.randn(2, generator=random),
    }
    if multilingual:
        for part in ("weight", "bias"):
            tensors[f"roberta.pooler.dense.{part}"] = tensors.pop(f"classifier.dense.{part}")
            tensors[f"classifier.{part}"] = tensors.pop(f"classifier.out_proj.{part}")
    save_file(tensors, folder / "model.safetensors")
    name = "XProvence" if multilingual else "Provence"
    said = json.loads((folder / "config.json").read_text()) | {
        "architectures": [name],
        "auto_map": {"AutoModel": f"modeling.{name}"},
        "model_type": name,
    }
    (folder / "config.json").write_text(json.dumps(said))
    return folder


FAMILIES: Final[Mapping[str, Callable[[Path], Path]]] = {
    "bert": build_bert,
    "xlmr": build_xlmr,
    "modernbert": build_modernbert,
    "deberta": build_deberta,
}


def wordpiece_tokenizer() -> Tokenizer:
    normalizer, pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    words = {word for text in CORPUS for word, _ in pre_tokenizer.pre_tokenize_str(normalizer.normalize_str(text))}
    characters = sorted(set("".join(words)))
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *characters, *(f"##{one}" for one in characters)]
    vocabulary += sorted(words - set(characters))
    tokenizer = Tokenizer(models.WordPiece(_numbered(vocabulary), unk_token="[UNK]"))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizer
    _add_special(tokenizer, vocabulary[:5])
    tokenizer.post_processor = processors.BertProcessing(_special(tokenizer, "[SEP]"), _special(tokenizer, "[CLS]"))
    return tokenizer


def unigram_tokenizer(*, pad_id: int = 1) -> Tokenizer:
    special = ["<s>", "</s>", "<unk>"]
    special.insert(pad_id, "<pad>")
    tokenizer = _unigram(special, unk="<unk>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[_special(tokenizer, "<s>"), _special(tokenizer, "</s>")],
    )
    return tokenizer


def byte_level_tokenizer() -> Tokenizer:
    pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"]
    words = sorted({word for text in CORPUS for word, _ in pre_tokenizer.pre_tokenize_str(text)})
    merges = list(dict.fromkeys((word[:end], word[end]) for word in words for end in range(1, min(len(word), 5))))
    vocabulary = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet()), *(left + right for left, right in merges)]
    tokenizer = Tokenizer(models.BPE(_numbered(vocabulary), merges))
    tokenizer.pre_tokenizer = pre_tokenizer
    _add_special(tokenizer, special)
    tokenizer.post_processor = _bert_template(tokenizer)
    return tokenizer


def deberta_tokenizer() -> Tokenizer:
    tokenizer = _unigram(["[PAD]", "[CLS]", "[SEP]", "[UNK]"], unk="[UNK]")
    tokenizer.post_processor = _bert_template(tokenizer)
    return tokenizer


TOKENIZERS: Final[Mapping[str, Callable[[], Tokenizer]]] = {
    "bert": wordpiece_tokenizer,
    "xlmr": unigram_tokenizer,
    "modernbert": byte_level_tokenizer,
    "deberta": deberta_tokenizer,
}


def _unigram(special: list[str], *, unk: str) -> Tokenizer:
    """Letters, and the beginnings of words: the longer the likelier."""
    words = sorted({f"▁{word}" for text in CORPUS for word in text.split()})
    characters = sorted(set("".join(words)))
    beginnings = sorted({word[:end] for word in words for end in (2, 3, 5)} - set(characters))
    pieces = [*((one, -9.0) for one in characters), *((piece, -6.0 - 1 / len(piece)) for piece in beginnings)]
    tokenizer = Tokenizer(models.Unigram([*((one, 0.0) for one in special), *pieces], special.index(unk)))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    _add_special(tokenizer, special)
    return tokenizer


def _numbered(vocabulary: list[str]) -> dict[str, int]:
    return {token: number for number, token in enumerate(dict.fromkeys(vocabulary))}


def _add_special(tokenizer: Tokenizer, tokens: list[str]) -> None:
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in tokens])


def _bert_template(tokenizer: Tokenizer) -> processors.TemplateProcessing:
    return processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[_special(tokenizer, "[CLS]"), _special(tokenizer, "[SEP]")],
    )


def _special(tokenizer: Tokenizer, token: str) -> tuple[str, int]:
    return token, tokenizer.token_to_id(token)


def _save_tokenizer(tokenizer: Tokenizer, folder: Path, *, pad: str, inputs: tuple[str, ...]) -> None:
    """As transformers does, but without it; the tokenizer class is the one that reads any tokenizer.json."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    saved = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": MAX_LENGTH,
        "model_input_names": list(inputs),
        "pad_token": pad,
        **{
            role: token
            for role, choices in {
                "cls_token": ("[CLS]", "<s>"),
                "sep_token": ("[SEP]", "</s>"),
                "unk_token": ("[UNK]", "<unk>"),
            }.items()
            for token in choices
            if tokenizer.token_to_id(token) is not None
        },
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(saved, indent=1) + "\n", encoding="utf-8")


def _save_model(kind: Any, config: Any, folder: Path) -> Path:
    """A tiny model with the same random weights every time."""
    import torch  # noqa: PLC0415 - only slow tests have torch
    from transformers.utils import logging  # noqa: PLC0415 - as above

    logging.disable_progress_bar()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        kind(config).save_pretrained(folder)
    return folder


def main() -> None:
    """Write tests/data/tiny-bert."""
    from tempfile import TemporaryDirectory  # noqa: PLC0415 - tests need none of this

    from rerankd.tools.exporting import export_classifier  # noqa: PLC0415 - as above

    with TemporaryDirectory() as source:
        export_classifier(build_bert(Path(source)), TINY_BERT, precisions=["float32"])


if __name__ == "__main__":
    main()
