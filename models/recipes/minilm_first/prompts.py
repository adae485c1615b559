"""Prompts as the service writes them: the scorer `first` itself, with this model's template."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from rerankd.scorers import load_list_scorer
from rerankd.scorers.base import ListScorer, ScorerSpec

TEMPLATE = "minilm-first"
TEMPLATES = Path(__file__).resolve().parents[2] / "templates"
WINDOW = 8
# identifier, 61 tokens of text (`passage_tokens` of the template), [SEP]
SLOT_TOKENS = 63
LONGEST_QUERY_TOKENS = 512
LONGEST_PROMPT = WINDOW * SLOT_TOKENS + LONGEST_QUERY_TOKENS
STRIDE = 4
DEPTH = 24
OPTIONS = {"template": TEMPLATE, "window": WINDOW, "stride": STRIDE, "depth": DEPTH}


@dataclass(frozen=True)
class Prompt:
    """A window's token ids and those of all identifiers' tokens."""

    ids: Sequence[int]
    names: Sequence[int]


class PromptWriter:
    """Writes windows for the tokenizer and configuration in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._scorer: ListScorer = load_list_scorer("first", scorer_spec(folder))

    def write(self, query: str, texts: Sequence[str]) -> Prompt:
        window = self._scorer.encode_window(query, texts, max_document_tokens=None)
        return Prompt(window.encoding.ids.tolist(), self._scorer.output_tokens)


def scorer_spec(folder: Path) -> ScorerSpec:
    return ScorerSpec(folder=folder, templates=[TEMPLATES], options=OPTIONS)


def padded(prompts: Sequence[Prompt]) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and attention mask of shape [prompts, longest]."""
    ids = torch.zeros(len(prompts), max(len(prompt.ids) for prompt in prompts), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt.ids)] = torch.tensor(prompt.ids)
        mask[row, : len(prompt.ids)] = 1
    return ids, mask
