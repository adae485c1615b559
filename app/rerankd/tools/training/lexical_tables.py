"""What the model's lexical part knows of each word piece: the stem it stands for and how rare it is.

The graph sees word pieces, BM25 wants stemmed words. So each piece has a random code: the same for all pieces of one
stem, and zero for endings ("##s", "##ing"). The codes of a word's pieces add up to the word's code. Two words match if
their codes are equal.
"""

import random
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from transformers import PreTrainedTokenizerBase

from rerankd.tools.training.lexical import rarity, stem

CONTINUES = "##"
# fmt: off
ENDINGS = frozenset([
    "s", "es", "ed", "ing", "ly", "d", "er", "ers", "e", "al", "ally", "ion", "ions", "ment", "ments", "ness", "ies",
    "y",
])
# fmt: on
# sums of sixteen codes are still exact in float32
LARGEST_CODE = 2**20 - 1


class LexicalTables(NamedTuple):
    """One row a word piece.

    `codes` is the piece's share of its word's code, `rarities` its inverse document frequency, and `starts` 1 where a
    word begins. All three are zero for what is no part of a word. `mean_words` is the length of an average text, and
    `rarest` what no word's rarity exceeds.
    """

    codes: torch.Tensor
    rarities: torch.Tensor
    starts: torch.Tensor
    mean_words: torch.Tensor
    rarest: torch.Tensor

    @classmethod
    def empty(cls, pieces: int) -> "LexicalTables":
        """Tables of the right shapes, for a model whose own are loaded next."""
        nothing = torch.zeros(pieces)
        return cls(nothing, nothing.clone(), nothing.clone(), torch.tensor(1.0), torch.tensor(1.0))


def lexical_tables(tokenizer: PreTrainedTokenizerBase, texts: Iterable[Sequence[int]], *, seed: int) -> LexicalTables:
    """Count the pieces of `texts`, given as token ids without special tokens."""
    pieces: list[str] = tokenizer.convert_ids_to_tokens(range(tokenizer.vocab_size))
    stems = [_stem_of(piece) for piece in pieces]
    starts = [bool(stem) and not piece.startswith(CONTINUES) for piece, stem in zip(pieces, stems, strict=True)]
    texts_with: Counter[str] = Counter()
    count = words = 0
    for ids in texts:
        texts_with.update({stems[piece] for piece in ids})
        words += sum(starts[piece] for piece in ids)
        count += 1
    rng = random.Random(seed)
    code_of = {stem: float(rng.randint(1, LARGEST_CODE)) for stem in sorted(set(stems))} | {"": 0.0}
    rarity_of = {stem: rarity(texts_with[stem], count) for stem in code_of} | {"": 0.0}
    return LexicalTables(
        codes=torch.tensor([code_of[stem] for stem in stems]),
        rarities=torch.tensor([rarity_of[stem] for stem in stems]),
        starts=torch.tensor(starts, dtype=torch.float32),
        mean_words=torch.tensor(words / count),
        rarest=torch.tensor(rarity(1, count)),
    )


def _stem_of(piece: str) -> str:
    """Return the stem that a piece stands for, or nothing for endings, punctuation and special tokens."""
    if piece.startswith(CONTINUES):
        rest = piece.removeprefix(CONTINUES)
        return "" if rest in ENDINGS or not _is_word(rest) else CONTINUES + stem(rest)
    return stem(piece) if _is_word(piece) else ""


def _is_word(piece: str) -> bool:
    return re.fullmatch(r"\w+", piece) is not None
