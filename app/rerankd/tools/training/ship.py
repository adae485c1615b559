"""Writes the folder that is shipped: tokenizer, configuration, int8 graph and golden pairs."""

import hashlib
import json
from collections.abc import Collection
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from rerankd.tools.training.model import CrossEncoder, save_model, score_pairs
from rerankd.tools.training.runtime import OnnxScorer, encode_pairs

ARCHITECTURE = "MinilmQaCrossEncoder"
MAX_TOKENS = 512
TOLERANCE_FACTOR = 3.0
# engines that compute in bfloat16 what is not int8 are a tenth of a logit off
LEAST_TOLERANCE = 0.25
# what a tokenizer needs; the rest that is saved tells how this run happened to load and cut
TOKENIZER_SETTINGS = frozenset(
    [
        "cls_token",
        "do_lower_case",
        "mask_token",
        "model_max_length",
        "pad_token",
        "sep_token",
        "strip_accents",
        "tokenize_chinese_chars",
        "tokenizer_class",
        "unk_token",
    ]
)

GOLDEN_PAIRS = (
    ("how long do honey bees live", "A worker bee lives six weeks in summer and up to five months in winter."),
    ("how long do honey bees live", "Honey is stored in the comb and sealed with wax by the workers of the hive."),
    ("What causes tides?", "Tides are caused by the gravitational pull of the Moon and, less so, of the Sun."),
    ("What causes tides?", "The stock market closed higher on Tuesday after a volatile session."),
    ("Aspirin lowers the risk of colorectal cancer.", "In four trials aspirin reduced colorectal cancer."),
    ("größte Stadt Österreichs", "Wien ist mit fast zwei Millionen Einwohnern die größte Stadt Österreichs."),
    ("日本の首都はどこですか", "東京は日本の首都です。"),
    ("boundary layer transition hypersonic flow", "heat transfer on a blunt cone at mach 10 was measured ."),
    ("who wrote Hamlet? 🎭", "Hamlet is a tragedy by William Shakespeare, written between 1599 and 1601."),
    ("symptoms of dehydration", "Thirst, dark urine, dizziness and tiredness are signs of dehydration. " * 60),
    ("x", "y"),
    ("treatment of asthma", "Inhaled corticosteroids are the most effective long-term treatment of asthma in adults."),
)


def write_hugging_face_folder(
    model: CrossEncoder, tokenizer: PreTrainedTokenizerBase, folder: Path, *, weights: bool
) -> None:
    """Write configuration and tokenizer, and the float32 weights where `weights` is set."""
    model.config.sentence_transformers = {"activation_fn": "torch.nn.modules.activation.Sigmoid"}
    model.config.id2label, model.config.label2id = {0: "relevance"}, {"relevance": 0}
    model.config.architectures = [ARCHITECTURE]
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.model_max_length = MAX_TOKENS
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
    _keep_only(folder / "tokenizer_config.json", TOKENIZER_SETTINGS)
    if weights:
        save_model(model, folder)
    else:
        model.config.save_pretrained(folder)


def _keep_only(path: Path, names: Collection[str]) -> None:
    settings = json.loads(path.read_text(encoding="utf-8"))
    kept = {name: value for name, value in settings.items() if name in names}
    path.write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")


def write_golden(model: CrossEncoder, tokenizer: PreTrainedTokenizerBase, graph: Path, path: Path) -> float:
    """Write pairs with the float32 logits and a tolerance that the int8 graph keeps; return its largest difference."""
    logits = score_pairs(model, tokenizer, GOLDEN_PAIRS)
    quantized = torch.from_numpy(OnnxScorer(graph).score(encode_pairs(tokenizer, GOLDEN_PAIRS)))
    largest = float((logits - quantized).abs().max())
    pairs = [
        {"query": query, "document": document, "logit": round(logit, 5)}
        for (query, document), logit in zip(GOLDEN_PAIRS, logits.tolist(), strict=True)
    ]
    golden = {"pairs": pairs, "tolerance": round(max(LEAST_TOLERANCE, TOLERANCE_FACTOR * largest), 3)}
    path.write_text(json.dumps(golden, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    return largest


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
