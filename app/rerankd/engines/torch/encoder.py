"""PyTorch encoders of the transformers library, on CPU or CUDA: sequence classifiers and embedding models."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from threading import local
from typing import Final

import numpy as np
import torch
from pydantic import Field
from transformers import PreTrainedModel

from rerankd.config.options import read_options
from rerankd.domain import FloatArray, IntArray
from rerankd.engines.base import BatchLimits, EngineSpec, pad, pooled_mask
from rerankd.engines.torch.device_memory import to_device, within_memory
from rerankd.engines.torch.graphs import CudaRecorder, Graphs, Record
from rerankd.engines.torch.modular import PruningModel, modular_model
from rerankd.engines.torch.packing import ATTENTION, can_pack, first_position, logits_of, pack
from rerankd.engines.torch.positions import stretched_beyond
from rerankd.engines.torch.weights import (
    Kind,
    Precision,
    WeightsOptions,
    check_adapter,
    check_weights,
    load_weights,
    read_tensors,
    takes_token_types,
    torch_device,
)
from rerankd.errors import ConfigError
from rerankd.recognition.kinds import ModelFiles
from rerankd.recognition.modules import ModularHead, Normalize, check_layers, read_embedding_head, read_modular_head
from rerankd.tasks.embed import Embed
from rerankd.tasks.encoding import Encoding
from rerankd.tasks.prune import Prune

# The maximum length of a model that names none.
_UNLIMITED: Final = 2**31
# The names of Provence's second head.
_PRUNING: Final = "token_classifier."


class TorchEncoderOptions(WeightsOptions):
    """`[model.engine_options]` of the engine `torch-encoder`."""

    packed: bool = Field(
        default=False,
        description="Lay sequences end to end instead of padding them: BERT, RoBERTa and XLM-R, ModernBERT, GTE.",
    )
    compile: bool = Field(default=False, description="Compile the layers with torch.compile; the first passes wait.")
    cuda_graphs: bool = Field(
        default=False, description="Record small padded batches as CUDA graphs, once for each shape, and replay them."
    )


class TorchEncoderEngine:
    """A `*ForSequenceClassification` model, or an encoder with a `ModularHead`, which gives logits or a vector, or a
    `PruningModel`. The head is computed in the model's precision, its outputs are returned as float32.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        device: torch.device,
        precision: Precision,
        pad_id: int,
        workers: int,
        cuda_graphs: bool = False,
    ) -> None:
        self._model = model
        self._device = device
        self._pad_id = pad_id
        self._takes_token_types = takes_token_types(model)
        self._pools_prompt = getattr(model, "pools_prompt", True)
        self._stretched_beyond = stretched_beyond(model)
        self._packed = model.config._attn_implementation == ATTENTION  # noqa: SLF001 - it has no other name
        self._streams = local()
        self._graphs = self._recorded_by(CudaRecorder(device)) if cuda_graphs else None
        # Such models store the angles of the current pass.
        self.workers = workers if self._stretched_beyond is None else 1
        self.name = f"torch/{device.type}/{precision}" + ("/packed" if self._packed else "")

    @classmethod
    def load(cls, spec: EngineSpec) -> "TorchEncoderEngine":
        """Load safetensors weights; pickled ones are refused.

        Raises:
            ConfigError: the folder holds no such model, or the device is not there.
        """
        options = check(spec)
        device = torch_device(options.device)
        precision = options.precision_on(device)
        model = _load(spec, options, device=device)
        name_padding(model, spec.pad_id)
        _refuse_changing_attention(model)
        if options.compile:
            model.base_model.compile(dynamic=True)
        return cls(
            model,
            device=device,
            precision=precision,
            pad_id=spec.pad_id,
            workers=spec.workers or 1,
            cuda_graphs=options.cuda_graphs,
        )

    @property
    def preferred_batch(self) -> BatchLimits:
        if self._device.type == "cpu":
            return BatchLimits(tokens=1024, pairs=64, padded=not self._packed)
        return BatchLimits(tokens=32_768, pairs=256, padded=not self._packed)

    @torch.inference_mode()
    def run(self, encodings: Sequence[Encoding]) -> FloatArray:
        """Score sequences; the result has shape [sequences, outputs of the head], float32.

        Raises:
            OutOfMemory: the batch does not fit the device's memory.
        """
        return within_memory(lambda: self._grouped(encodings))

    def _grouped(self, encodings: Sequence[Encoding]) -> FloatArray:
        """One pass, or two where a long sequence would change the positions of short ones."""
        longer = np.array([len(encoding.ids) > (self._stretched_beyond or _UNLIMITED) for encoding in encodings])
        if not longer.any() or longer.all():
            return self._logits(encodings)
        parts = [np.flatnonzero(longer), np.flatnonzero(~longer)]
        logits = [self._logits([encodings[row] for row in rows.tolist()]) for rows in parts]
        return np.concatenate(logits)[np.argsort(np.concatenate(parts))]

    def _logits(self, encodings: Sequence[Encoding]) -> FloatArray:
        with self._stream():
            logits = self._forward_packed(encodings) if self._packed else self._forward_padded(encodings)
            return np.asarray(logits.float().cpu().numpy(), dtype=np.float32)

    def _recorded_by(self, recorder: Record) -> Graphs:
        positions = getattr(self._model.config, "max_position_embeddings", None) or _UNLIMITED
        return Graphs(
            self._lay_out,
            self._compute,
            recorder,
            device=self._device,
            max_length=positions - first_position(self._model),
        )

    def _stream(self) -> AbstractContextManager[None]:
        """Each thread uses a stream of its own, so that it waits only for its own work."""
        if self._device.type != "cuda":
            return nullcontext()
        if not hasattr(self._streams, "own"):
            self._streams.own = torch.cuda.Stream(self._device)
        own: AbstractContextManager[None] = torch.cuda.stream(self._streams.own)
        return own

    def _forward_packed(self, encodings: Sequence[Encoding]) -> torch.Tensor:
        batch = pack(encodings)
        return logits_of(
            self._model,
            to_device(batch.tokens, self._device),
            to_device(batch.bounds, self._device),
            longest=batch.longest,
            token_types=self._takes_token_types,
        )

    def _forward_padded(self, encodings: Sequence[Encoding]) -> torch.Tensor:
        replayed = self._graphs.logits(encodings) if self._graphs else None
        if replayed is not None:
            return replayed
        inputs = self._lay_out(encodings)
        return self._compute({name: to_device(array, self._device) for name, array in inputs.items()})

    def _lay_out(self, encodings: Sequence[Encoding], length: int | None = None) -> Mapping[str, IntArray]:
        batch = pad(encodings, pad_id=self._pad_id, length=length)
        inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
        if self._takes_token_types:
            inputs["token_type_ids"] = batch.token_type_ids
        if not self._pools_prompt:
            inputs["pooled"] = pooled_mask(encodings, batch.attention_mask)
        return inputs

    def _compute(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        logits: torch.Tensor = self._model(**inputs).logits
        return logits


def check(spec: EngineSpec) -> TorchEncoderOptions:
    """The options.

    Raises:
        ConfigError: an option, the scorer or the folder does not fit. The weights are not read.
    """
    options = read_options(spec.options, TorchEncoderOptions, of="engine 'torch-encoder'")
    head = _head(spec)
    if head is not None:
        check_layers(head.layers)
    kind: Kind = "sequence classifier" if head is None else "encoder"
    check_weights(kind, spec.folder, options, trust_remote_code=spec.trust_remote_code)
    check_adapter(spec.adapter, options, trust_remote_code=spec.trust_remote_code)
    if options.cuda_graphs and (options.packed or options.compile or torch_device(options.device).type != "cuda"):
        raise ConfigError(
            "engine 'torch-encoder': cuda_graphs = true records padded passes on a GPU; leave `packed` and `compile` "
            "out, and name no other device"
        )
    if options.packed and options.attention:
        raise ConfigError("engine 'torch-encoder': packed = true uses its own attention; leave `attention` out")
    return options


def _load(spec: EngineSpec, options: TorchEncoderOptions, *, device: torch.device) -> PreTrainedModel:
    """The model on its device, with packed sequences if these are configured or faster."""
    head = _head(spec)
    model = load_weights(
        "sequence classifier" if head is None else "encoder",
        spec.folder,
        options,
        device=device,
        trust_remote_code=spec.trust_remote_code,
        adapter=spec.adapter,
    )
    if head is not None:
        model = modular_model(model, head).to(device)
    elif isinstance(spec.task, Prune):
        model = PruningModel(model, read_tensors(spec.folder, _PRUNING)).to(device)
    if options.packed and isinstance(model, PreTrainedModel) and can_pack(model):
        model.set_attn_implementation(ATTENTION)
    elif options.packed:
        raise ConfigError(f"a {model.config.model_type} model cannot be packed; leave `packed` out")
    return model


def _head(spec: EngineSpec) -> ModularHead | None:
    """The modules behind the encoder; None for a classifier of transformers."""
    files = ModelFiles.read(spec.folder)
    if not isinstance(spec.task, Embed):
        return read_modular_head(files)
    if spec.task.pooling is None:
        return read_embedding_head(files)
    return ModularHead(poolings=[spec.task.pooling], layers=[Normalize()], outputs=spec.task.outputs)


def name_padding(model: PreTrainedModel, pad_id: int) -> None:
    """Set a model's padding id if its config has none: language models with a classifier's head look for the last token
    that is not padding.
    """
    config = model.config.get_text_config()
    if config.pad_token_id is None or config.pad_token_id < 0:
        config.pad_token_id = pad_id
        model.config.pad_token_id = pad_id


def _refuse_changing_attention(model: PreTrainedModel) -> None:
    """Refuse BigBird's sparse attention: a batch of short sequences changes how all later ones are computed."""
    if getattr(model.config, "attention_type", None) == "block_sparse":
        raise ConfigError(
            'config.json says attention_type = "block_sparse", with which a text\'s score depends on those that were '
            'read before it; write "original_full" there'
        )
