"""PyTorch causal language models that write their answer, greedily: the task `generate`."""

from collections.abc import Sequence

import numpy as np
import torch
from pydantic import Field
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel

from rerankd.config.options import read_options
from rerankd.domain import FloatArray, IntArray
from rerankd.engines.base import BatchLimits, EngineSpec, task_of
from rerankd.engines.torch.device_memory import within_memory
from rerankd.engines.torch.weights import LargeWeightsOptions, check_weights, load_language_model
from rerankd.tasks.generate import Decode, Generate, Generated, Prompt


class TorchGenerateOptions(LargeWeightsOptions):
    """`[model.engine_options]` of the engine `torch-generate`."""

    max_new_tokens: int = Field(default=200, ge=1, description="Longest answer.")


class TorchGenerateEngine:
    """A `*ForCausalLM` model that writes. `decode` makes text of token ids."""

    def __init__(
        self, model: PreTrainedModel, decode: Decode, *, max_new_tokens: int, name: str, pad_id: int, workers: int
    ) -> None:
        self._model = model
        self._decode = decode
        self._device = model.get_input_embeddings().weight.device
        self._pad_id = pad_id
        # Nothing of the model's own sampling settings: the same prompt always gets the same answer.
        self._generation = GenerationConfig(
            do_sample=False,
            max_new_tokens=max_new_tokens,
            pad_token_id=pad_id,
            eos_token_id=model.generation_config.eos_token_id,
        )
        self.workers = workers
        self.name = name

    @classmethod
    def load(cls, spec: EngineSpec) -> "TorchGenerateEngine":
        """Load safetensors weights; pickled ones are refused.

        Raises:
            ConfigError: the folder holds no such model, or the device is not there.
        """
        options, task = check(spec)
        model, name, _ = load_language_model(spec.folder, options, trust_remote_code=spec.trust_remote_code)
        return cls(
            model,
            task.decode,
            max_new_tokens=options.max_new_tokens,
            name=f"torch-generate/{name}/{options.max_new_tokens}",
            pad_id=spec.pad_id,
            workers=spec.workers or 1,
        )

    @property
    def preferred_batch(self) -> BatchLimits:
        if self._device.type == "cpu":
            return BatchLimits(tokens=4096, pairs=16)
        return BatchLimits(tokens=65_536, pairs=64)

    @torch.inference_mode()
    def run(self, prompts: Sequence[Prompt]) -> list[Generated]:
        """Continue prompts.

        Raises:
            OutOfMemory: the device has no room for so large a batch.
        """
        return within_memory(lambda: self._written(prompts))

    def _written(self, prompts: Sequence[Prompt]) -> list[Generated]:
        longest = max(len(prompt.ids) for prompt in prompts)
        ids = np.full((len(prompts), longest), self._pad_id, dtype=np.int64)
        mask = np.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, longest - len(prompt.ids) :] = prompt.ids
            mask[row, longest - len(prompt.ids) :] = 1
        recorder = _Recorder()
        written: IntArray = (
            self._model.generate(
                input_ids=torch.from_numpy(ids).to(self._device),
                attention_mask=torch.from_numpy(mask).to(self._device),
                generation_config=self._generation,
                max_new_tokens=min(self._generation.max_new_tokens, max(prompt.max_tokens for prompt in prompts)),
                logits_processor=LogitsProcessorList([recorder]),
            )[:, longest:]
            .cpu()
            .numpy()
        )
        rows = zip(prompts, written, recorder.logprobs(), strict=True)
        return [self._answer(tokens[: prompt.max_tokens], logprobs) for prompt, tokens, logprobs in rows]

    def _answer(self, tokens: IntArray, logprobs: FloatArray) -> Generated:
        """What was written up to the end of the answer, behind which it is filled up."""
        kept = np.flatnonzero(tokens != self._pad_id)
        return Generated(self._decode(tokens[kept].tolist()), logprobs[kept].tolist())


class _Recorder(LogitsProcessor):
    """Keeps the log-probability of the token that is chosen in each step: the most probable one."""

    def __init__(self) -> None:
        self._steps: list[torch.Tensor] = []

    def __call__(self, _ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self._steps.append(scores.float().log_softmax(-1).amax(-1))
        return scores

    def logprobs(self) -> FloatArray:
        """Of shape [prompts, steps]."""
        steps: FloatArray = torch.stack(self._steps, dim=1).cpu().numpy()
        return steps


def check(spec: EngineSpec) -> tuple[TorchGenerateOptions, Generate]:
    """The options and the task.

    Raises:
        ConfigError: an option, the scorer or the folder does not suit, as far as that can be known without the weights.
    """
    options = read_options(spec.options, TorchGenerateOptions, of="engine 'torch-generate'")
    check_weights("causal language model", spec.folder, options, trust_remote_code=spec.trust_remote_code)
    return options, task_of(spec, Generate)
