"""Windows to train on: a query, passages in an order of chance, and the order that the teacher gives them."""

import random
from dataclasses import dataclass

import torch

from models.recipes.minilm_qa.blocks import Block
from rerankd.scorers.first import First
from rerankd.scorers.tokenizer_files import TokenizerFolder, ids_of

# in the teacher's logits: a labelled text is put below another only if the teacher is as sure as this
LABEL_BONUS = 5.0


@dataclass(frozen=True)
class Window:
    """What one pass reads: the passages as they are shown, and their positions from the best to the worst."""

    query: str
    passages: tuple[str, ...]
    order: tuple[int, ...]


@dataclass(frozen=True)
class Encoded:
    """A window's tokens: the prompt to the bracket before the first identifier, the order as text, and the identifiers'
    tokens from the best passage to the worst.
    """

    prompt: list[int]
    answer: list[int]
    identifiers: list[int]


def windows_of(block: Block, logits: torch.Tensor, *, size: int, rng: random.Random) -> list[Window]:
    """Return a window for each query of a block: its relevant document and a sample of the others.

    `logits` are the teacher's, [queries, documents].
    """
    windows = []
    for query, relevant, of_query in zip(block.queries, block.relevant, logits.tolist(), strict=True):
        others = [position for position in range(len(block.documents)) if position != relevant]
        shown = rng.sample([relevant, *rng.sample(others, min(size - 1, len(others)))], min(size, len(others) + 1))
        value = {position: of_query[position] + LABEL_BONUS * (position == relevant) for position in shown}
        order = sorted(range(len(shown)), key=lambda place: -value[shown[place]])
        windows.append(Window(query, tuple(block.documents[position] for position in shown), tuple(order)))
    return windows


class WindowEncoder:
    """Writes windows as the service does, with the scorer that it serves them with."""

    def __init__(self, scorer: First, files: TokenizerFolder) -> None:
        self._scorer, self._tokenizer = scorer, files.tokenizer

    def encode(self, window: Window) -> Encoded:
        """Return the tokens of a window; its order is the text that follows the first bracket.

        Raises:
            ValueError: the tokenizer writes the first identifier otherwise than the scorer reads it.
        """
        encoded = self._scorer.encode_window(window.query, window.passages, max_document_tokens=None)
        identifiers = [self._scorer.task.tokens[position] for position in window.order]
        letters = [self._tokenizer.decode([token]).strip() for token in identifiers]
        answer = ids_of(self._tokenizer, "] > [".join(letters) + "]").tolist()
        if answer[0] != identifiers[0]:
            raise ValueError(f"{letters[0]!r} is token {answer[0]} in a text and {identifiers[0]} in the prompt")
        return Encoded(encoded.encoding.ids.tolist(), answer, identifiers)
