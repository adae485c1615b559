"""PyTorch causal language models as rerankers: one prefill, the last position, a few rows of the head.

Nothing is generated, and the full vocabulary is never computed: the scorer names the tokens whose logits it reads.
Common prefixes are computed once (`prefixes.py`).
"""

from collections.abc import Sequence

import numpy as np
import torch
from pydantic import Field
from transformers import PreTrainedModel

from rerankd.config.options import read_options
from rerankd.domain import FloatArray
from rerankd.engines.base import BatchLimits, EngineSpec
from rerankd.engines.torch.compressing import CompressingPrefill
from rerankd.engines.torch.device_memory import within_memory
from rerankd.engines.torch.head_rows import PROBE, HeadRows
from rerankd.engines.torch.layer_wise import load_layer_wise
from rerankd.engines.torch.positions import stretched_beyond
from rerankd.engines.torch.prefill import Prefill
from rerankd.engines.torch.prefixes import (
    PrefixStore,
    SharedPrefixes,
    beginnings_stand_alone,
    has_shareable_layers,
    shared_tokens,
)
from rerankd.engines.torch.weights import (
    Kind,
    LargeWeightsOptions,
    Precision,
    check_adapter,
    check_weights,
    load_language_model,
)
from rerankd.errors import ConfigError
from rerankd.recognition.kinds import ModelFiles
from rerankd.recognition.layer_wise import LayerWiseForm, layer_wise_form
from rerankd.tasks.encoding import Encoding


class TorchCausalOptions(LargeWeightsOptions):
    """`[model.engine_options]` of the engine `torch-causal`."""

    share_prefixes: bool = Field(default=True, description="Compute what prompts begin with once.")
    prefix_tokens: int = Field(default=16_384, ge=0, description="Tokens whose keys and values are kept for that.")
    cutoff_layer: int | None = Field(
        default=None, ge=1, description="Of models that score at several layers, the one to read; default: the last."
    )
    compress_ratio: int = Field(
        default=1, ge=1, description="Of models that compress passages, how many tokens become one; 1: none do."
    )
    compress_layers: tuple[int, ...] = Field(default=(), description="The layers before which that happens.")


class TorchCausalEngine:
    """A `*ForCausalLM` model; its logits are those of `output_tokens`, in that order."""

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        output_tokens: Sequence[int],
        name: str,
        pad_id: int,
        workers: int,
        prefixes: PrefixStore | None,
        compressing: CompressingPrefill | None = None,
    ) -> None:
        self._model = model
        self._compressing = compressing
        self._head = HeadRows(model, output_tokens)
        self._prefill = Prefill(model, pad_id=pad_id)
        self._stretched_beyond = stretched_beyond(model)
        self._prefixes = None if prefixes is None else SharedPrefixes(prefixes, self._prefill)
        # Such models store the angles of the current pass.
        self.workers = workers if self._stretched_beyond is None else 1
        self.name = name

    @classmethod
    def load(cls, spec: EngineSpec) -> "TorchCausalEngine":
        """Load safetensors weights; pickled ones are refused.

        Raises:
            ConfigError: the folder holds no such model, the device is not there, or the head does more than
                multiply.
        """
        options = check(spec)
        form = layer_wise_form(ModelFiles.read(spec.folder), cutoff_layer=options.cutoff_layer)
        model, name, precision = (
            load_language_model(spec.folder, options, trust_remote_code=spec.trust_remote_code, adapter=spec.adapter)
            if form is None
            else load_layer_wise(spec.folder, form, options)
        )
        compressing = _compressing(model, options, pad_id=spec.pad_id)
        sharing = options.share_prefixes and options.prefix_tokens > 0 and compressing is None
        sharing = sharing and _can_share(model, pad_id=spec.pad_id)
        engine = cls(
            model,
            output_tokens=spec.output_tokens,
            name=f"torch-causal/{name}",
            pad_id=spec.pad_id,
            workers=spec.workers or 1,
            prefixes=PrefixStore(max_tokens=options.prefix_tokens) if sharing else None,
            compressing=compressing,
        )
        engine.check_head(precision)
        return engine

    @property
    def preferred_batch(self) -> BatchLimits:
        if self._prefill.device.type == "cpu":
            return BatchLimits(tokens=4096, pairs=64)
        return BatchLimits(tokens=32_768, pairs=256)

    @torch.inference_mode()
    def run(self, encodings: Sequence[Encoding]) -> FloatArray:
        """Score sequences; the result has shape [sequences, output tokens], float32.

        Raises:
            OutOfMemory: the batch does not fit the device's memory.
        """
        return within_memory(lambda: self._logits(encodings))

    def _logits(self, encodings: Sequence[Encoding]) -> FloatArray:
        if self._stretched_beyond is None:
            return self._pass(encodings)
        logits = np.empty((len(encodings), len(self._head.tokens)), dtype=np.float32)
        longer = np.array([len(encoding.ids) > self._stretched_beyond for encoding in encodings])
        for rows in (np.flatnonzero(longer), np.flatnonzero(~longer)):
            if len(rows):
                logits[rows] = self._pass([encodings[row] for row in rows.tolist()])
        return logits

    def _pass(self, encodings: Sequence[Encoding]) -> FloatArray:
        if self._compressing is not None:
            return self._head(self._compressing.run(encodings))
        if self._prefixes is None:
            return self._head(self._prefill.run([()] * len(encodings), [encoding.ids for encoding in encodings])[0])
        boundaries = [shared_tokens(encoding) for encoding in encodings]
        states = self._prefixes.states_of(
            [encoding.ids[:boundary] for encoding, boundary in zip(encodings, boundaries, strict=True)]
        )
        rests = [encoding.ids[boundary:] for encoding, boundary in zip(encodings, boundaries, strict=True)]
        return self._head(self._prefill.run(states, rests)[0])

    @torch.inference_mode()
    def check_head(self, precision: Precision) -> None:
        """Compare the rows with the model's own full logits.

        Raises:
            ConfigError: the model's head does more than multiply.
        """
        ours = self.run([Encoding(PROBE, 0)])[0]
        read = torch.from_numpy(PROBE)[None].to(self._prefill.device)
        whole = self._model(input_ids=read, use_cache=False).logits[0, -1]
        self._head.check(ours, whole, precision=precision, engine="torch-causal")


def _compressing(model: PreTrainedModel, options: TorchCausalOptions, *, pad_id: int) -> CompressingPrefill | None:
    if options.compress_ratio == 1:
        return None
    return CompressingPrefill(model, pad_id=pad_id, ratio=options.compress_ratio, layers=options.compress_layers)


def _can_share(model: PreTrainedModel, *, pad_id: int) -> bool:
    if stretched_beyond(model) is not None or not has_shareable_layers(model):
        return False
    return beginnings_stand_alone(Prefill(model, pad_id=pad_id))


def check(spec: EngineSpec) -> TorchCausalOptions:
    """The options.

    Raises:
        ConfigError: an option, the scorer or the folder does not fit. The weights are not read.
    """
    options = read_options(spec.options, TorchCausalOptions, of="engine 'torch-causal'")
    form = layer_wise_form(ModelFiles.read(spec.folder), cutoff_layer=options.cutoff_layer)
    if form is None and options.cutoff_layer is not None:
        raise ConfigError("cutoff_layer is for models that score at several layers; leave it out")
    _check_compression(options, form)
    # Of those no code of their authors is needed.
    kind: Kind = "causal language model" if form is None else "encoder"
    check_weights(kind, spec.folder, options, trust_remote_code=spec.trust_remote_code or form is not None)
    if form is not None and spec.adapter is not None:
        raise ConfigError("a model that scores at several layers takes no adapter; merge it into the model")
    check_adapter(spec.adapter, options, trust_remote_code=spec.trust_remote_code)
    return options


def _check_compression(options: TorchCausalOptions, form: LayerWiseForm | None) -> None:
    """Refuse compression that would do nothing, or that the model was not trained with.

    Raises:
        ConfigError: it is one of these.
    """
    ratio, layers = options.compress_ratio, options.compress_layers
    if ratio == 1 and not layers:
        return
    if form is None or not form.compresses:
        raise ConfigError(
            "compress_ratio and compress_layers are for models that compress passages, as "
            "bge-reranker-v2.5-gemma2-lightweight does; leave them out"
        )
    if ratio == 1 or not set(layers) & set(range(form.layer)) or not set(layers) <= set(form.compresses):
        raise ConfigError(
            f"compress_ratio = {ratio} with compress_layers = {list(layers)}: give both, a ratio of 2, 4 or 8 and "
            f"layers from {form.compresses[0]} to {form.compresses[-1]}, at least one of them below the layer that is "
            f"read ({form.layer})"
        )
