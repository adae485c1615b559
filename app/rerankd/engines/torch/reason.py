"""PyTorch causal language models that write a thought before they judge: the task `reason`.

Weller et al., "Rank1: Test-Time Compute for Reranking in Information Retrieval", 2025. The thought is written greedily.
Then one prefill reads the answer's tokens behind it, exactly and in float32.
"""

from collections.abc import Sequence

import numpy as np
import torch
from transformers import PreTrainedModel, StoppingCriteria

from rerankd.domain import IntArray
from rerankd.engines.base import BatchLimits
from rerankd.engines.torch.device_memory import within_memory
from rerankd.engines.torch.head_rows import PROBE, HeadRows
from rerankd.engines.torch.positions import stretched_beyond
from rerankd.engines.torch.prefill import Prefill
from rerankd.engines.torch.weights import Precision
from rerankd.engines.torch.writing import Writer
from rerankd.errors import ConfigError
from rerankd.tasks.generate import Prompt
from rerankd.tasks.reason import Judged, Reason

# An ending has a few tokens; more of them would only be decoded for nothing.
_TAIL = 16


class ReasonEngine:
    """A `*ForCausalLM` model; its logits are those of the task's tokens, in that order."""

    def __init__(
        self,
        model: PreTrainedModel,
        task: Reason,
        *,
        max_new_tokens: int | None,
        name: str,
        pad_id: int,
        workers: int,
        preferred_batch: BatchLimits,
    ) -> None:
        if stretched_beyond(model) is not None:
            raise ConfigError('rope_type "longrope" is not supported by a scorer that writes and reads in one batch')
        self._model = model
        self._task = task
        self._writer = Writer(model, max_new_tokens=max_new_tokens, pad_id=pad_id)
        self._prefill = Prefill(model, pad_id=pad_id)
        self._head = HeadRows(model, task.tokens)
        self.workers = workers
        self.name = name
        self.preferred_batch = preferred_batch

    @torch.inference_mode()
    def run(self, prompts: Sequence[Prompt]) -> list[Judged]:
        """Judge prompts; logits are float32.

        Raises:
            OutOfMemory: the device has no room for so large a batch.
        """
        return within_memory(lambda: self._judged(prompts))

    @torch.inference_mode()
    def check_head(self, precision: Precision) -> None:
        """Compare the rows with the model's own full logits.

        Raises:
            ConfigError: the model's head does more than multiply.
        """
        ours = self._head(self._prefill.run([()], [PROBE])[0])[0]
        read = torch.from_numpy(PROBE)[None].to(self._prefill.device)
        whole = self._model(input_ids=read, use_cache=False).logits[0, -1]
        self._head.check(ours, whole, precision=precision, engine="torch-generate")

    def _judged(self, prompts: Sequence[Prompt]) -> list[Judged]:
        endings = _Endings(self._task, rows=len(prompts))
        thoughts = [self._writer.text_tokens(tokens) for tokens in self._writer.write(prompts, criterion=endings)]
        read = [
            self._before_the_answer(prompt.ids, thought, steps)
            for prompt, thought, steps in zip(prompts, thoughts, endings.steps, strict=True)
        ]
        logits = self._head(self._prefill.run([()] * len(read), read)[0])
        return [
            Judged(row, len(thought), self._task.decode(thought.tolist()))
            for row, thought in zip(logits, thoughts, strict=True)
        ]

    def _before_the_answer(self, prompt: IntArray, thought: IntArray, steps: int | None) -> IntArray:
        """What the model had read when it answered, or would read if it had to answer now."""
        if steps is not None and steps <= len(thought):
            return np.concatenate((prompt, thought[: steps - 1]))
        return self._task.close(prompt, self._task.decode(thought.tolist()))


class _Endings(StoppingCriteria):
    """Ends each row where its text ends as an answer does. `steps`: how many tokens it has there, None before."""

    def __init__(self, task: Reason, *, rows: int) -> None:
        self._task = task
        self._begins: int | None = None
        self.steps: list[int | None] = [None] * rows

    def __call__(self, ids: torch.Tensor, _scores: object, **_: object) -> torch.Tensor:
        if self._begins is None:
            self._begins = ids.shape[1] - 1
        last = ids[:, -1].tolist()
        for row, token in enumerate(last):
            if self.steps[row] is None and token in self._task.tokens and self._answers(ids[row]):
                self.steps[row] = ids.shape[1] - self._begins
        return torch.tensor([steps is not None for steps in self.steps], device=ids.device)

    def _answers(self, ids: torch.Tensor) -> bool:
        text = self._task.decode(ids[self._begins :][-_TAIL:].tolist())
        return text.endswith(self._task.endings)
