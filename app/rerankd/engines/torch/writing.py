"""Writing with a causal language model: a batch of prompts goes in, token ids come out. Each token is the most probable
one of those that are left to it.
"""

from collections.abc import Sequence

import numpy as np
import torch
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteria,
    StoppingCriteriaList,
)

from rerankd.domain import IntArray
from rerankd.tasks.generate import Prompt


class Writer:
    """`max_new_tokens` None: each answer is as long as its prompt allows."""

    def __init__(self, model: PreTrainedModel, *, max_new_tokens: int | None, pad_id: int) -> None:
        self._model = model
        self._limit = max_new_tokens
        self._pad_id = pad_id
        self.device: torch.device = model.get_input_embeddings().weight.device
        ends = model.generation_config.eos_token_id
        self._ends = [] if ends is None else ends if isinstance(ends, list) else [ends]
        # Nothing of the model's own sampling settings: the same prompt always gets the same answer.
        self._generation = GenerationConfig(do_sample=False, pad_token_id=pad_id, eos_token_id=ends)

    def write(
        self,
        prompts: Sequence[Prompt],
        *,
        recorder: LogitsProcessor | None = None,
        criterion: StoppingCriteria | None = None,
    ) -> list[IntArray]:
        """What the model writes behind each prompt, with the tokens that end it, and filled up with padding."""
        longest = max(len(prompt.ids) for prompt in prompts)
        ids = np.full((len(prompts), longest), self._pad_id, dtype=np.int64)
        mask = np.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, longest - len(prompt.ids) :] = prompt.ids
            mask[row, longest - len(prompt.ids) :] = 1
        most = max(prompt.max_tokens for prompt in prompts)
        written: IntArray = (
            self._model.generate(
                input_ids=torch.from_numpy(ids).to(self.device),
                attention_mask=torch.from_numpy(mask).to(self.device),
                generation_config=self._generation,
                max_new_tokens=most if self._limit is None else min(most, self._limit),
                logits_processor=LogitsProcessorList([] if recorder is None else [recorder]),
                stopping_criteria=StoppingCriteriaList([] if criterion is None else [criterion]),
            )[:, longest:]
            .cpu()
            .numpy()
        )
        return [tokens[: prompt.max_tokens] for prompt, tokens in zip(prompts, written, strict=True)]

    def text_tokens(self, tokens: IntArray) -> IntArray:
        """What was written before the model ended its answer."""
        ending = np.flatnonzero(np.isin(tokens, [self._pad_id, *self._ends]))
        return tokens[: ending[0]] if len(ending) else tokens
