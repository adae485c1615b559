"""PyTorch causal language models that write several answers to a prompt: the task `sample`.

Each answer has random numbers of its own, one for each token, seeded by the prompt. So an answer does not depend on the
rest of its batch.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import LogitsProcessor, PreTrainedModel

from rerankd.domain import FloatArray, IntArray
from rerankd.engines.base import BatchLimits
from rerankd.engines.torch.device_memory import within_memory
from rerankd.engines.torch.writing import Writer
from rerankd.tasks.generate import Prompt
from rerankd.tasks.sample import Answer, Sample, Sampled, Sampling, seeds_of


class SampleEngine:
    """A `*ForCausalLM` model. `preferred_batch` is in answers; a prompt takes the place of all of its own."""

    def __init__(
        self,
        model: PreTrainedModel,
        task: Sample,
        *,
        max_new_tokens: int | None,
        name: str,
        pad_id: int,
        workers: int,
        preferred_batch: BatchLimits,
    ) -> None:
        self._task = task
        self._writer = Writer(model, max_new_tokens=max_new_tokens, pad_id=pad_id)
        self.workers = workers
        self.name = name
        answers = task.sampling.answers
        self.preferred_batch = BatchLimits(
            tokens=max(1, preferred_batch.tokens // answers), pairs=max(1, preferred_batch.pairs // answers)
        )

    @torch.inference_mode()
    def run(self, prompts: Sequence[Prompt]) -> list[Sampled]:
        """Answer prompts; log-probabilities are computed in float32.

        Raises:
            OutOfMemory: the device has no room for so large a batch.
        """
        return within_memory(lambda: self._sampled(prompts))

    def _sampled(self, prompts: Sequence[Prompt]) -> list[Sampled]:
        answers = self._task.sampling.answers
        rows = [prompt for prompt in prompts for _ in range(answers)]
        draws = _Draws(self._task.sampling, seeds_of(prompts), tokens=max(prompt.max_tokens for prompt in prompts))
        written = [self._writer.text_tokens(tokens) for tokens in self._writer.write(rows, recorder=draws)]
        read = [self._answer(tokens, row) for tokens, row in zip(written, draws.logprobs(), strict=True)]
        starts = range(0, len(rows), answers)
        return [
            Sampled(read[start : start + answers], sum(map(len, written[start : start + answers]))) for start in starts
        ]

    def _answer(self, tokens: IntArray, logprobs: FloatArray) -> Answer:
        return Answer([self._task.decode([token]) for token in tokens.tolist()], logprobs[: len(tokens)].tolist())


class _Draws(LogitsProcessor):
    """Chooses each token by inverting the cumulative distribution at a number that was drawn before, and leaves no
    other. One row of numbers in [0, 1) for each answer.
    """

    def __init__(self, sampling: Sampling, seeds: Sequence[int], *, tokens: int) -> None:
        self._sampling = sampling
        self._numbers: NDArray[np.float64] = np.array(
            [
                np.random.default_rng([seed, answer]).random(tokens)
                for seed in seeds
                for answer in range(sampling.answers)
            ]
        )
        self._steps: list[torch.Tensor] = []

    def __call__(self, _ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        logprobs = scores.float().log_softmax(-1)
        chosen = self._chosen(logprobs)
        self._steps.append(logprobs.gather(1, chosen)[:, 0])
        return torch.full_like(scores, -torch.inf).scatter_(1, chosen, 0.0)

    def logprobs(self) -> FloatArray:
        """Of shape [answers, steps]."""
        steps: FloatArray = torch.stack(self._steps, dim=1).cpu().numpy()
        return steps

    def _chosen(self, logprobs: torch.Tensor) -> torch.Tensor:
        """The next token of each row, shape [rows, 1]."""
        if not self._sampling.temperature:
            return logprobs.argmax(-1, keepdim=True)
        if self._sampling.top_k is not None:
            least = logprobs.topk(min(self._sampling.top_k, logprobs.shape[1])).values[:, -1:]
            logprobs = logprobs.masked_fill(logprobs < least, -torch.inf)
        ends = (logprobs.double() / self._sampling.temperature).softmax(-1).cumsum(-1)
        drawn = torch.from_numpy(self._numbers[:, len(self._steps), None]).to(ends.device)
        # `right`: a token without probability is never chosen.
        places = torch.searchsorted(ends, drawn * ends[:, -1:], right=True)
        return places.clamp(max=logprobs.shape[1] - 1)
