"""PyTorch causal language models that write their answer, greedily: for the scorer `generative`."""

from collections.abc import Sequence

import numpy as np
import torch
from pydantic import Field
from transformers import GenerationConfig, PreTrainedModel

from rerankd.config.options import read_options
from rerankd.domain import FloatArray, IntArray
from rerankd.engines.base import BatchLimits, EngineSpec
from rerankd.engines.torch.device_memory import within_memory
from rerankd.engines.torch.weights import LargeWeightsOptions, check_weights, load_language_model
from rerankd.errors import ConfigError
from rerankd.tasks.encoding import Encoding


class TorchGenerateOptions(LargeWeightsOptions):
    """`[model.engine_options]` of the engine `torch-generate`."""

    max_new_tokens: int = Field(default=200, ge=1, description="Longest answer.")


class TorchGenerateEngine:
    """A `*ForCausalLM` model that writes: its outputs are the ids of what it writes greedily, padded with -1."""

    def __init__(self, model: PreTrainedModel, *, max_new_tokens: int, name: str, pad_id: int, workers: int) -> None:
        self._model = model
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
        options = check(spec)
        model, name, _ = load_language_model(spec.folder, options, trust_remote_code=spec.trust_remote_code)
        return cls(
            model,
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
    def run(self, encodings: Sequence[Encoding]) -> FloatArray:
        """Continue sequences; the result has shape [sequences, `max_new_tokens`]: ids of tokens, -1 behind the end.

        Raises:
            OutOfMemory: the device has no room for so large a batch.
        """
        return within_memory(lambda: self._written(encodings))

    def _written(self, encodings: Sequence[Encoding]) -> FloatArray:
        longest = max(len(encoding.ids) for encoding in encodings)
        ids = np.full((len(encodings), longest), self._pad_id, dtype=np.int64)
        mask = np.zeros_like(ids)
        for row, encoding in enumerate(encodings):
            ids[row, longest - len(encoding.ids) :] = encoding.ids
            mask[row, longest - len(encoding.ids) :] = 1
        written = self._model.generate(
            input_ids=torch.from_numpy(ids).to(self._device),
            attention_mask=torch.from_numpy(mask).to(self._device),
            generation_config=self._generation,
        )[:, longest:]
        answers: IntArray = written.cpu().numpy()
        # The same width every time: a request's rows may come from several passes.
        outputs = np.full((len(encodings), self._generation.max_new_tokens), -1, dtype=np.float32)
        outputs[:, : answers.shape[1]] = np.where(answers == self._pad_id, -1, answers)
        return outputs


def check(spec: EngineSpec) -> TorchGenerateOptions:
    """The options.

    Raises:
        ConfigError: an option, the scorer or the folder does not suit, as far as that can be known without the weights.
    """
    options = read_options(spec.options, TorchGenerateOptions, of="engine 'torch-generate'")
    if spec.output_tokens:
        raise ConfigError("engine 'torch-generate' writes texts; set scorer = \"generative\"")
    check_weights("causal language model", spec.folder, options, trust_remote_code=spec.trust_remote_code)
    return options
