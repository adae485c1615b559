"""PyTorch encoder-decoders as rerankers: an encoder reads the prompt, a decoder makes one step, k rows of the head.

Nothing is generated: the scorer names the tokens whose logits it reads where the first token would be written.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import torch
from safetensors import safe_open
from transformers import PreTrainedModel

from rerankd.config.options import read_options
from rerankd.domain import FloatArray
from rerankd.engines.base import BatchLimits, EngineSpec, pad
from rerankd.engines.torch.device_memory import to_device, within_memory
from rerankd.engines.torch.first_step import first_states, has_plain_steps
from rerankd.engines.torch.head_rows import PROBE, HeadRows
from rerankd.engines.torch.weights import (
    LargeWeightsOptions,
    Precision,
    check_adapter,
    check_weights,
    load_language_model,
)
from rerankd.errors import ConfigError
from rerankd.recognition.kinds import ModelFiles
from rerankd.recognition.weights import weight_files
from rerankd.tasks.encoding import Encoding

_HEAD: Final = "lm_head.weight"


class TorchSeq2SeqOptions(LargeWeightsOptions):
    """`[model.engine_options]` of the engine `torch-seq2seq`."""


class TorchSeq2SeqEngine:
    """A `*ForConditionalGeneration` model of texts; its logits are those of `output_tokens`, in that order."""

    def __init__(
        self, model: PreTrainedModel, *, output_tokens: Sequence[int], name: str, pad_id: int, workers: int
    ) -> None:
        self._model = model
        self._head = HeadRows(model, output_tokens)
        self._device: torch.device = model.get_input_embeddings().weight.device
        self._start = start_token(model, pad_id=pad_id)
        self._pad_id = pad_id
        self._plain_steps = has_plain_steps(model)
        self.workers = workers
        self.name = name

    @classmethod
    def load(cls, spec: EngineSpec) -> "TorchSeq2SeqEngine":
        """Load safetensors weights; pickled ones are refused.

        Raises:
            ConfigError: the folder holds no such model, the device is not there, or the head does more than
                multiply.
        """
        options = check(spec)
        _refuse_missing_head(spec.folder)
        model, name, precision = load_language_model(
            spec.folder,
            options,
            trust_remote_code=spec.trust_remote_code,
            kind="encoder-decoder",
            adapter=spec.adapter,
        )
        engine = cls(
            model,
            output_tokens=spec.output_tokens,
            name=f"torch-seq2seq/{name}",
            pad_id=spec.pad_id,
            workers=spec.workers or 1,
        )
        engine.check_head(precision)
        return engine

    @property
    def preferred_batch(self) -> BatchLimits:
        if self._device.type == "cpu":
            return BatchLimits(tokens=4096, pairs=64)
        return BatchLimits(tokens=32_768, pairs=256)

    @torch.inference_mode()
    def run(self, encodings: Sequence[Encoding]) -> FloatArray:
        """Score sequences; the result has shape [sequences, output tokens], float32.

        Raises:
            OutOfMemory: the batch does not fit the device's memory.
        """
        return within_memory(lambda: self._head(self._first_states(encodings)))

    def _first_states(self, encodings: Sequence[Encoding]) -> torch.Tensor:
        """What the decoder gives for the first token of its answer, shape [sequences, hidden size]."""
        batch = pad(encodings, pad_id=self._pad_id)
        mask = to_device(batch.attention_mask, self._device)
        read = self._model.get_encoder()(input_ids=to_device(batch.input_ids, self._device), attention_mask=mask)
        if self._plain_steps:
            return first_states(self._model.get_decoder(), mask.new_tensor([self._start]), read.last_hidden_state, mask)
        answer = self._model.get_decoder()(
            input_ids=mask.new_full((len(encodings), 1), self._start),
            encoder_hidden_states=read.last_hidden_state,
            encoder_attention_mask=mask,
            use_cache=False,
        )
        states: torch.Tensor = answer.last_hidden_state[:, 0]
        return states

    @torch.inference_mode()
    def check_head(self, precision: Precision) -> None:
        """Compare the rows with the model's own full logits.

        Raises:
            ConfigError: the model's head does more than multiply.
        """
        ours = self.run([Encoding(PROBE, 0)])[0]
        read = torch.from_numpy(PROBE)[None].to(self._device)
        whole = self._model(input_ids=read, decoder_input_ids=read.new_full((1, 1), self._start), use_cache=False)
        self._head.check(ours, whole.logits[0, 0], precision=precision, engine="torch-seq2seq")


def start_token(model: PreTrainedModel, *, pad_id: int) -> int:
    """The token behind which the decoder begins to write."""
    stated = getattr(model.config, "decoder_start_token_id", None)
    return pad_id if stated is None else int(stated)


def _refuse_missing_head(folder: Path) -> None:
    """Refuse weights without the head that config.json promises: transformers would take the embeddings for it."""
    if ModelFiles.read(folder).config.get("tie_word_embeddings") is not False:
        return
    for path in weight_files(folder):
        with safe_open(path, framework="pt") as tensors:
            if _HEAD in tensors.keys():  # noqa: SIM118 - no mapping
                return
    raise ConfigError(
        f"the weights in {folder} lack {_HEAD}, and config.json says tie_word_embeddings = false: this is not a "
        "complete encoder-decoder"
    )


def check(spec: EngineSpec) -> TorchSeq2SeqOptions:
    """The options.

    Raises:
        ConfigError: an option, the scorer or the folder does not fit. The weights are not read.
    """
    options = read_options(spec.options, TorchSeq2SeqOptions, of="engine 'torch-seq2seq'")
    check_weights("encoder-decoder", spec.folder, options, trust_remote_code=spec.trust_remote_code)
    check_adapter(spec.adapter, options, trust_remote_code=spec.trust_remote_code)
    return options
