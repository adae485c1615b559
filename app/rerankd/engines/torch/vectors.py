"""PyTorch models that give a text as many vectors, or weights of words, as it has: late interaction and SPLADE."""

from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from rerankd.config.options import read_options
from rerankd.domain import FloatArray
from rerankd.engines.base import BatchLimits, EngineSpec, pad
from rerankd.engines.torch.device_memory import to_device, within_memory
from rerankd.engines.torch.modular import read_layers
from rerankd.engines.torch.positions import stretched_beyond
from rerankd.engines.torch.weights import (
    Kind,
    Precision,
    WeightsOptions,
    check_weights,
    read_weights,
    takes_token_types,
    torch_device,
)
from rerankd.recognition.kinds import ModelFiles
from rerankd.recognition.late_interaction import read_late_interaction
from rerankd.recognition.modules import check_layers
from rerankd.recognition.splade import SpladePooling, read_splade
from rerankd.tasks.embed_tokens import EmbedTokens, ExpandedText
from rerankd.tasks.encoding import Encoding
from rerankd.tasks.weigh_words import WORD_WEIGHT

_UNLIMITED: Final = 2**31
Rows = Any
Split = Callable[[FloatArray, Sequence[Encoding]], list[Rows]]


class TorchVectorsEngine:
    """Runs `embed_tokens` or `weigh_words`. Vectors are computed in the model's precision, and returned as float32."""

    def __init__(
        self, model: nn.Module, split: Split, *, device: torch.device, precision: Precision, pad_id: int, workers: int
    ) -> None:
        """`split` makes each text's result of the padded outputs of a pass."""
        self._model = model
        self._split = split
        self._device = device
        self._pad_id = pad_id
        encoder: Any = model.encoder
        self._takes_token_types = takes_token_types(encoder)
        self._stretched_beyond = stretched_beyond(encoder) or _UNLIMITED
        # Models with stretched positions store the angles of the current pass.
        self.workers = workers if self._stretched_beyond == _UNLIMITED else 1
        self.name = f"torch/{device.type}/{precision}"

    @classmethod
    def load(cls, spec: EngineSpec) -> "TorchVectorsEngine":
        """Load safetensors weights; pickled ones are refused.

        Raises:
            ConfigError: the folder holds no such model, or the device is not there.
        """
        options = check(spec)
        device = torch_device(options.device)
        precision = options.precision_on(device)
        files = ModelFiles.read(spec.folder)
        tokens = isinstance(spec.task, EmbedTokens)
        encoder = read_weights(
            _kind(spec),
            spec.folder,
            precision=precision,
            attention=options.attention,
            trust_remote_code=spec.trust_remote_code,
            # Stanford's projection, which `read_layers` reads.
            besides=("linear.weight",) if tokens else (),
        )
        model: nn.Module = _TokenVectors(encoder, files) if tokens else _WordWeights(encoder, read_splade(files))
        return cls(
            model.eval().to(device),
            _each_token if tokens else _each_word,
            device=device,
            precision=precision,
            pad_id=spec.pad_id,
            workers=spec.workers or 1,
        )

    @property
    def preferred_batch(self) -> BatchLimits:
        return (
            BatchLimits(tokens=1024, pairs=64) if self._device.type == "cpu" else BatchLimits(tokens=16_384, pairs=256)
        )

    @torch.inference_mode()
    def run(self, texts: Sequence[Encoding]) -> list[Rows]:
        """What each text has: see the tasks.

        Raises:
            OutOfMemory: the batch does not fit the device's memory.
        """
        return within_memory(lambda: self._grouped(texts))

    def _grouped(self, texts: Sequence[Encoding]) -> list[Rows]:
        """One pass, or two where a long sequence would change the positions of short ones."""
        results: list[Rows] = [None] * len(texts)
        for longer in (False, True):
            places = [place for place, text in enumerate(texts) if (len(text.ids) > self._stretched_beyond) is longer]
            if places:
                for place, rows in zip(places, self._pass([texts[place] for place in places]), strict=True):
                    results[place] = rows
        return results

    def _pass(self, texts: Sequence[Encoding]) -> list[Rows]:
        batch = pad(texts, pad_id=self._pad_id)
        for row, text in enumerate(texts):
            if isinstance(text, ExpandedText) and text.unattended:
                batch.attention_mask[row, len(text.ids) - text.unattended :] = 0
        inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
        if self._takes_token_types:
            inputs["token_type_ids"] = batch.token_type_ids
        outputs = self._model({name: to_device(array, self._device) for name, array in inputs.items()})
        return self._split(outputs.float().cpu().numpy(), texts)


class _TokenVectors(nn.Module):
    """The layers of a late-interaction model on each token's vector."""

    def __init__(self, encoder: PreTrainedModel, files: ModelFiles) -> None:
        super().__init__()
        self.encoder = encoder
        self._layers = read_layers(read_late_interaction(files).layers).to(encoder.dtype)

    def forward(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        vectors: torch.Tensor = self._layers(self.encoder(**inputs).last_hidden_state)
        return vectors


class _WordWeights(nn.Module):
    """A masked language model's logits as weights of words: log(1 + relu(logit)), pooled over a text's tokens."""

    def __init__(self, encoder: PreTrainedModel, pooling: SpladePooling) -> None:
        super().__init__()
        self.encoder = encoder
        self._pooling = pooling

    def forward(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        logits: torch.Tensor = self.encoder(**inputs).logits
        weights = torch.log1p(torch.relu(logits * inputs["attention_mask"].unsqueeze(-1)))
        if self._pooling.twice:
            weights = torch.log1p(weights)
        return weights.amax(dim=1) if self._pooling.strategy == "max" else weights.sum(dim=1)


def _each_token(vectors: FloatArray, texts: Sequence[Encoding]) -> list[Rows]:
    # Copies: a part would keep the whole pass in memory for as long as it is used.
    return [rows[: len(text.ids)].copy() for rows, text in zip(vectors, texts, strict=True)]


def _each_word(weights: FloatArray, _texts: Sequence[Encoding]) -> list[Rows]:
    found = []
    for row in weights:
        tokens = np.flatnonzero(row)
        words = np.empty(len(tokens), dtype=WORD_WEIGHT)
        words["token"], words["weight"] = tokens, row[tokens]
        found.append(words)
    return found


def check(spec: EngineSpec) -> WeightsOptions:
    """The options.

    Raises:
        ConfigError: an option or the folder does not fit. The weights are not read.
    """
    options = read_options(spec.options, WeightsOptions, of="engine 'torch-vectors'")
    files = ModelFiles.read(spec.folder)
    if isinstance(spec.task, EmbedTokens):
        check_layers(read_late_interaction(files).layers)
    else:
        read_splade(files)
    check_weights(_kind(spec), spec.folder, options, trust_remote_code=spec.trust_remote_code)
    return options


def _kind(spec: EngineSpec) -> Kind:
    return "encoder" if isinstance(spec.task, EmbedTokens) else "masked language model"
