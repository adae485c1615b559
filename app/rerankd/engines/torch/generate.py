"""PyTorch causal language models that write: the tasks `generate`, `reason` and `sample`."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from pydantic import Field
from transformers import LogitsProcessor, PreTrainedModel

from rerankd.config.options import read_options
from rerankd.domain import FloatArray, IntArray
from rerankd.engines.base import BatchLimits, Engine, EngineSpec, task_of
from rerankd.engines.torch.device_memory import within_memory
from rerankd.engines.torch.reason import ReasonEngine
from rerankd.engines.torch.sample import SampleEngine
from rerankd.engines.torch.weights import LargeWeightsOptions, check_adapter, check_weights, load_language_model
from rerankd.engines.torch.writing import Writer
from rerankd.tasks.generate import Decode, Generate, Generated, Prompt
from rerankd.tasks.reason import Reason
from rerankd.tasks.sample import Sample


class TorchGenerateOptions(LargeWeightsOptions):
    """`[model.engine_options]` of the engine `torch-generate`."""

    max_new_tokens: int | None = Field(
        default=None, ge=1, description="Longest answer; default: as long as the scorer's `answer_tokens` says."
    )


class TorchGenerateEngine:
    """A `*ForCausalLM` model that writes greedily. `decode` makes text of token ids."""

    def __init__(
        self,
        model: PreTrainedModel,
        decode: Decode,
        *,
        max_new_tokens: int | None,
        name: str,
        pad_id: int,
        workers: int,
    ) -> None:
        self._decode = decode
        self._writer = Writer(model, max_new_tokens=max_new_tokens, pad_id=pad_id)
        self._pad_id = pad_id
        self.workers = workers
        self.name = name

    @classmethod
    def load(cls, spec: EngineSpec) -> Engine[Prompt, Any]:
        """Load safetensors weights; pickled ones are refused. The engine is that of the spec's task.

        Raises:
            ConfigError: the folder holds no such model, or the device is not there.
        """
        options, task = check(spec)
        model, name, precision = load_language_model(
            spec.folder, options, trust_remote_code=spec.trust_remote_code, adapter=spec.adapter
        )
        longest = options.max_new_tokens
        name = f"torch-generate/{name}" + (f"/{longest}" if longest else "")
        if isinstance(task, Reason):
            engine = ReasonEngine(
                model,
                task,
                max_new_tokens=longest,
                name=name,
                pad_id=spec.pad_id,
                workers=spec.workers or 1,
                preferred_batch=_preferred_batch(model.get_input_embeddings().weight.device),
            )
            engine.check_head(precision)
            return engine
        if isinstance(task, Sample):
            return SampleEngine(
                model,
                task,
                max_new_tokens=longest,
                name=name,
                pad_id=spec.pad_id,
                workers=spec.workers or 1,
                preferred_batch=_preferred_batch(model.get_input_embeddings().weight.device),
            )
        return cls(
            model,
            task.decode,
            max_new_tokens=longest,
            name=name,
            pad_id=spec.pad_id,
            workers=spec.workers or 1,
        )

    @property
    def preferred_batch(self) -> BatchLimits:
        return _preferred_batch(self._writer.device)

    @torch.inference_mode()
    def run(self, prompts: Sequence[Prompt]) -> list[Generated]:
        """Continue prompts.

        Raises:
            OutOfMemory: the device has no room for so large a batch.
        """
        return within_memory(lambda: self._written(prompts))

    def _written(self, prompts: Sequence[Prompt]) -> list[Generated]:
        recorder = _Recorder()
        written = self._writer.write(prompts, recorder=recorder)
        return [self._answer(tokens, logprobs) for tokens, logprobs in zip(written, recorder.logprobs(), strict=True)]

    def _answer(self, tokens: IntArray, logprobs: FloatArray) -> Generated:
        """What was written up to the end of the answer, behind which it is filled up."""
        kept = np.flatnonzero(tokens != self._pad_id)
        return Generated(self._decode(tokens[kept].tolist()), logprobs[kept].tolist())


def _preferred_batch(device: torch.device) -> BatchLimits:
    if device.type == "cpu":
        return BatchLimits(tokens=4096, pairs=16)
    return BatchLimits(tokens=65_536, pairs=64)


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


def check(spec: EngineSpec) -> tuple[TorchGenerateOptions, Generate | Reason | Sample]:
    """The options and the task.

    Raises:
        ConfigError: an option, the scorer or the folder does not suit, as far as that can be known without the weights.
    """
    options = read_options(spec.options, TorchGenerateOptions, of="engine 'torch-generate'")
    check_weights("causal language model", spec.folder, options, trust_remote_code=spec.trust_remote_code)
    check_adapter(spec.adapter, options, trust_remote_code=spec.trust_remote_code)
    return options, spec.task if isinstance(spec.task, Reason | Sample) else task_of(spec, Generate)
