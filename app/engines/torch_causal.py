"""PyTorch causal language models as rerankers: one prefill, the last position, a few rows of the head.

Nothing is generated and the full vocabulary is never computed: the scorer names the tokens whose logits it reads, and
only those rows of the head are multiplied, in float32 (in bfloat16 twenty logits near 15 share about 14 values, which
are ties). What encodings have in common is computed once: the ids before an encoding's `boundary` are kept as keys and
values, for the other documents or windows of the request, and what all prompts of the model begin with for all of them.
"""

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, Final, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, DynamicCache, GenerationConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from app.domain import Encoding, FloatArray, IntArray
from app.engines.base import BatchLimits, EngineSpec
from app.errors import ConfigError
from app.options import read_options

Precision = Literal["float32", "bfloat16", "float16"]
Quantization = Literal["int8", "int4"]
# One layer's keys and values, each of shape [1, heads, tokens, size of a head].
LayerStates = tuple[torch.Tensor, torch.Tensor]

_TORCH_PRECISION: Final[Mapping[Precision, torch.dtype]] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
# A shorter beginning is cheaper to compute again than to copy.
_LEAST_SHARED_TOKENS: Final = 16
# Layers of these kinds keep keys and values, which can be cut and shared; recurrent ones keep one running state.
_SHAREABLE_LAYERS: Final = {"full_attention", "sliding_attention"}
_PROBE: Final = tuple(range(3, 11))
# How far our rows of the head may be from the model's own logits, relative to the largest of them.
_HEAD_TOLERANCE: Final[Mapping[Precision, float]] = {"float32": 1e-4, "bfloat16": 0.03, "float16": 0.01}


class TorchCausalOptions(BaseModel):
    """`[model.engine_options]` of the engine `torch-causal`."""

    model_config = ConfigDict(extra="forbid")

    device: str = Field(default="auto", description='"auto", "cpu", "cuda" or "cuda:N".')
    device_map: str | None = Field(
        default=None, description='"auto" or "balanced" spreads a model over several GPUs; needs accelerate.'
    )
    precision: Precision | None = Field(default=None, description="Default: bfloat16 on CUDA, float32 on the CPU.")
    quantization: Quantization | None = Field(
        default=None, description="Round the weights while loading, with bitsandbytes."
    )
    attention: str | None = Field(
        default=None, description="transformers' attn_implementation; default: its own choice for the model."
    )
    share_prefixes: bool = Field(default=True, description="Compute what prompts begin with once.")
    prefix_tokens: int = Field(default=16_384, ge=0, description="Tokens whose keys and values are kept for that.")


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
        prefixes: "PrefixStore | None",
    ) -> None:
        self._model = model
        self._decoder = model.base_model
        self._device = model.get_input_embeddings().weight.device
        self._head = HeadRows(model, output_tokens)
        self._pad_id = pad_id
        self._prefixes = prefixes
        self.workers = workers
        self.name = name

    @classmethod
    def load(cls, spec: EngineSpec) -> "TorchCausalEngine":
        """Load safetensors weights; pickled ones are refused.

        Raises:
            ConfigError: the folder holds no such model, the device is not there, or the head does something else than
                multiply rows.
        """
        options = read_options(spec.options, TorchCausalOptions, of="engine 'torch-causal'")
        if not spec.output_tokens:
            raise ConfigError(
                "engine 'torch-causal' computes the logits of a few tokens; use a scorer that reads tokens: "
                "yes-no or first"
            )
        model, name, precision = load_causal_model(spec, options)
        sharing = options.share_prefixes and options.prefix_tokens > 0 and _is_shareable(model)
        engine = cls(
            model,
            output_tokens=spec.output_tokens,
            name=f"torch-causal/{name}",
            pad_id=spec.pad_id,
            workers=spec.workers or 1,
            prefixes=PrefixStore(max_tokens=options.prefix_tokens) if sharing else None,
        )
        engine.check_head(tolerance=_HEAD_TOLERANCE[precision])
        return engine

    @property
    def preferred_batch(self) -> BatchLimits:
        if self._device.type == "cpu":
            return BatchLimits(tokens=4096, pairs=64)
        return BatchLimits(tokens=32_768, pairs=256)

    @torch.inference_mode()
    def forward(self, encodings: Sequence[Encoding]) -> FloatArray:
        """Score sequences; the result has shape [sequences, output tokens], float32."""
        if self._prefixes is None:
            return self._head(self._run([()] * len(encodings), [encoding.ids for encoding in encodings])[0])
        boundaries = [_shared_tokens(encoding) for encoding in encodings]
        states = self._states_of(
            [encoding.ids[:boundary] for encoding, boundary in zip(encodings, boundaries, strict=True)]
        )
        rests = [encoding.ids[boundary:] for encoding, boundary in zip(encodings, boundaries, strict=True)]
        return self._head(self._run(states, rests)[0])

    @torch.inference_mode()
    def check_head(self, *, tolerance: float) -> None:
        """Compare the rows with the model's own full logits.

        Raises:
            ConfigError: the model's head does more than these rows say.
        """
        ids = np.array(_PROBE, dtype=np.int64)
        ours = self.forward([Encoding(ids, 0)])[0]
        tensor = torch.from_numpy(ids)[None].to(self._device)
        whole = self._model(input_ids=tensor, use_cache=False).logits[0, -1]
        wanted = whole.float().cpu().numpy()[list(self._head.tokens)]
        difference = float(np.abs(ours - wanted).max())
        if not difference <= tolerance * max(1.0, float(np.abs(wanted).max())):
            raise ConfigError(
                f"rows of this model's head differ from its own logits by {difference:.3g}: its head does more than "
                "multiply; this kind of model is not supported by engine 'torch-causal'"
            )

    def _states_of(self, prefixes: Sequence[IntArray]) -> list[Sequence[LayerStates]]:
        """The keys and values of every prefix, computed once for equal ones; an empty one has none."""
        assert self._prefixes is not None  # noqa: S101 - only called with a store
        known: dict[bytes, Sequence[LayerStates]] = {b"": ()}
        missing: dict[bytes, IntArray] = {}
        for ids in prefixes:
            key = ids.tobytes()
            if key not in known and key not in missing:
                states = self._prefixes.get(ids)
                if states is None:
                    missing[key] = ids
                else:
                    known[key] = states
        if missing:
            known |= zip(missing, self._compute(list(missing.values())), strict=True)
        return [known[ids.tobytes()] for ids in prefixes]

    def _compute(self, prefixes: Sequence[IntArray]) -> list[Sequence[LayerStates]]:
        """Compute prefixes and keep them, each from where the beginning that all of the model's prompts share ends."""
        assert self._prefixes is not None  # noqa: S101 - as above
        beginning = self._prefixes.beginning_of_all(prefixes)
        # The last token is left to each: a prefix may be no longer than the shared beginning.
        shared = min(len(beginning), *(len(ids) - 1 for ids in prefixes))
        beginning = beginning[:shared] if shared >= _LEAST_SHARED_TOKENS else beginning[:0]
        start = self._states_of_beginning(beginning)
        rests = [ids[len(beginning) :] for ids in prefixes]
        _, cache = self._run([start] * len(prefixes), rests, keep=True)
        computed = [
            [
                (
                    keys[row : row + 1, :, : len(ids)].clone(),
                    values[row : row + 1, :, : len(ids)].clone(),
                )
                for keys, values in cache
            ]
            for row, ids in enumerate(prefixes)
        ]
        for ids, states in zip(prefixes, computed, strict=True):
            self._prefixes.put(ids, states)
        return [*computed]

    def _states_of_beginning(self, ids: IntArray) -> Sequence[LayerStates]:
        assert self._prefixes is not None  # noqa: S101 - as above
        if not len(ids):
            return ()
        known = self._prefixes.get(ids)
        if known is None:
            _, known = self._run([()], [ids], keep=True)
            self._prefixes.put(ids, known)
        return known

    def _run(
        self, past: Sequence[Sequence[LayerStates]], rests: Sequence[IntArray], *, keep: bool = False
    ) -> tuple[torch.Tensor, Sequence[LayerStates]]:
        """One pass over what follows each past. Pasts are aligned at their ends and rests at their beginnings, so that
        every row is one run of real tokens: distances inside of sliding windows stay what they are.

        Returns:
            The hidden states of the last positions, shape [rows, hidden size], and with `keep` all layers' keys and
            values, each of shape [rows, heads, longest past + longest rest, size of a head].
        """
        before = [states[0][0].shape[2] if states else 0 for states in past]
        longest_past, longest_rest = max(before), max(map(len, rests))
        ids = np.full((len(rests), longest_rest), self._pad_id, dtype=np.int64)
        mask = np.zeros((len(rests), longest_past + longest_rest), dtype=np.int64)
        for row, (rest, start) in enumerate(zip(rests, before, strict=True)):
            ids[row, : len(rest)] = rest
            mask[row, longest_past - start : longest_past + len(rest)] = 1
        positions = np.array(before)[:, None] + np.arange(longest_rest)
        cache = _filled_cache(past, longest_past) if longest_past else DynamicCache() if keep else None
        output = self._decoder(
            input_ids=torch.from_numpy(ids).to(self._device),
            attention_mask=torch.from_numpy(mask).to(self._device),
            position_ids=torch.from_numpy(positions).to(self._device),
            past_key_values=cache,
            use_cache=cache is not None,
        )
        hidden = output.last_hidden_state
        last = torch.tensor([len(rest) - 1 for rest in rests], device=hidden.device)
        rows = torch.arange(len(rests), device=hidden.device)
        return hidden[rows, last], list(_layers(cache)) if keep else ()


class TorchGenerateOptions(TorchCausalOptions):
    """`[model.engine_options]` of the engine `torch-generate`; prefixes are not shared."""

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
        options = read_options(spec.options, TorchGenerateOptions, of="engine 'torch-generate'")
        if spec.output_tokens:
            raise ConfigError("engine 'torch-generate' writes texts; use the scorer generative")
        model, name, _ = load_causal_model(spec, options)
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
    def forward(self, encodings: Sequence[Encoding]) -> FloatArray:
        """Continue sequences; the result has shape [sequences, `max_new_tokens`]: ids of tokens, -1 behind the end."""
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


@dataclass(frozen=True, slots=True)
class _Kept:
    ids: IntArray
    states: Sequence[LayerStates]


class PrefixStore:
    """Keys and values of what prompts begin with, for at most `max_tokens` tokens, least recently used out first."""

    def __init__(self, *, max_tokens: int) -> None:
        self._max_tokens = max_tokens
        self._kept: OrderedDict[bytes, _Kept] = OrderedDict()
        self._tokens = 0
        self._beginning: IntArray | None = None
        self._lock = Lock()

    def get(self, ids: IntArray) -> Sequence[LayerStates] | None:
        with self._lock:
            kept = self._kept.get(ids.tobytes())
            if kept is None:
                return None
            self._kept.move_to_end(ids.tobytes())
            return kept.states

    def put(self, ids: IntArray, states: Sequence[LayerStates]) -> None:
        with self._lock:
            if ids.tobytes() not in self._kept:
                self._kept[ids.tobytes()] = _Kept(ids.copy(), states)
                self._tokens += len(ids)
            while self._tokens > self._max_tokens:
                _, oldest = self._kept.popitem(last=False)
                self._tokens -= len(oldest.ids)

    def beginning_of_all(self, prefixes: Sequence[IntArray]) -> IntArray:
        """What these and all earlier prefixes begin with: soon the fixed words of the model's prompt."""
        with self._lock:
            beginning = prefixes[0] if self._beginning is None else self._beginning
            for ids in prefixes:
                beginning = beginning[: _common_length(beginning, ids)]
            self._beginning = beginning.copy()
            return self._beginning


class HeadRows:
    """The rows of a language model's head that belong to a few tokens, in float32, as the model applies them."""

    def __init__(self, model: PreTrainedModel, tokens: Sequence[int]) -> None:
        head = model.get_output_embeddings()
        if not head.weight.is_floating_point():
            raise ConfigError("this model's head is stored in integers; rows of it cannot be taken")
        if max(tokens) >= head.weight.shape[0]:
            raise ConfigError(f"the scorer reads token {max(tokens)}, the model's head has {head.weight.shape[0]} rows")
        config = model.config.get_text_config()
        self.tokens = tuple(tokens)
        index = torch.tensor(self.tokens, device=head.weight.device)
        self._rows = head.weight.detach()[index].float()
        bias = getattr(head, "bias", None)
        self._bias = None if bias is None else bias.detach()[index].float()
        # Gemma 2 squeezes its logits; Cohere multiplies, Granite divides them.
        self._cap = getattr(config, "final_logit_softcapping", None)
        self._factor = float(getattr(config, "logit_scale", None) or 1.0)
        self._factor /= float(getattr(config, "logits_scaling", None) or 1.0)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits of shape [rows, tokens] from hidden states of shape [rows, hidden size]."""
        logits = torch.nn.functional.linear(hidden.float(), self._rows.to(hidden.device), self._bias) * self._factor
        return logits if self._cap is None else torch.tanh(logits / self._cap) * self._cap

    def __call__(self, hidden: torch.Tensor) -> FloatArray:
        return np.asarray(self.logits(hidden).cpu().numpy(), dtype=np.float32)


def load_causal_model(spec: EngineSpec, options: TorchCausalOptions) -> tuple[PreTrainedModel, str, Precision]:
    """Load a causal language model; the text names device and precision, as cache keys need it.

    Raises:
        ConfigError: the folder holds no such model, not all of its weights, or a library or device is missing.
    """
    device = torch_device(options.device)
    precision = options.precision or ("bfloat16" if device.type == "cuda" else "float32")
    model = read_causal_model(
        spec.folder,
        dtype=_TORCH_PRECISION[precision],
        attention=options.attention,
        trust_remote_code=spec.trust_remote_code,
        **_placement(options, device),
    )
    if options.device_map is None and options.quantization is None:
        model = model.to(device)
    parts = (device.type, precision, *([options.quantization] if options.quantization else []))
    return model, "/".join(parts), precision


def read_causal_model(
    folder: Path,
    *,
    dtype: torch.dtype = torch.float32,
    attention: str | None = None,
    trust_remote_code: bool = False,
    **placement: Any,  # noqa: ANN401 - transformers' own arguments
) -> PreTrainedModel:
    """Load a causal language model with all of its weights, from safetensors only.

    Raises:
        ConfigError: the folder holds no such model, or not all of its weights.
    """
    transformers_logging.disable_progress_bar()
    try:
        model, loading = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            attn_implementation=attention,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            **placement,
        )
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        raise ConfigError(f"transformers cannot load {folder}: {error}") from error
    # transformers fills what is missing with random numbers
    if loading["missing_keys"]:
        missing = ", ".join(sorted(loading["missing_keys"]))
        raise ConfigError(f"the weights in {folder} lack {missing:.200}: this is no complete causal language model")
    return model.eval()


def torch_device(name: str) -> torch.device:
    """The device of that name; "auto" is a GPU where there is one.

    Raises:
        ConfigError: this machine has no such device.
    """
    wanted = ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name
    try:
        device = torch.device(wanted)
    except RuntimeError:
        raise ConfigError(f'unknown device {name!r}; use "auto", "cpu", "cuda" or "cuda:N"') from None
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f'device {name!r} is not supported; use "auto", "cpu", "cuda" or "cuda:N"')
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f'device {name!r}: this machine or this torch has no such GPU; set device = "cpu"')
    return device


def _placement(options: TorchCausalOptions, device: torch.device) -> dict[str, Any]:
    """What transformers must know while it reads weights; it leaves them on the processor if told nothing."""
    if options.quantization is None:
        return {"device_map": options.device_map} if options.device_map else {}
    four = options.quantization == "int4"
    return {
        "device_map": options.device_map or {"": device},
        "quantization_config": BitsAndBytesConfig(load_in_4bit=four, load_in_8bit=not four),
    }


def _is_shareable(model: PreTrainedModel) -> bool:
    kinds = getattr(model.config.get_text_config(), "layer_types", None)
    return kinds is None or set(kinds) <= _SHAREABLE_LAYERS


def _shared_tokens(encoding: Encoding) -> int:
    """How many of an encoding's first ids to take from the store; at least one id remains to be computed."""
    shared = min(encoding.boundary, len(encoding.ids) - 1)
    return shared if shared >= _LEAST_SHARED_TOKENS else 0


def _common_length(one: IntArray, other: IntArray) -> int:
    length = min(len(one), len(other))
    differing = np.flatnonzero(one[:length] != other[:length])
    return int(differing[0]) if len(differing) else length


def _filled_cache(past: Sequence[Sequence[LayerStates]], longest: int) -> DynamicCache:
    """A cache whose rows are these pasts, aligned at their ends; what lies before a shorter one is masked."""
    some = next(states for states in past if states)
    cache = DynamicCache()
    for layer, (keys, values) in enumerate(some):
        cache.update(
            _aligned([states[layer][0] if states else None for states in past], keys, longest),
            _aligned([states[layer][1] if states else None for states in past], values, longest),
            layer,
        )
    return cache


def _aligned(pasts: Sequence[torch.Tensor | None], like: torch.Tensor, longest: int) -> torch.Tensor:
    _, heads, _, size = like.shape
    if all(past is like for past in pasts):
        return like.expand(len(pasts), heads, longest, size)
    rows = like.new_zeros((len(pasts), heads, longest, size))
    for row, past in enumerate(pasts):
        if past is not None:
            rows[row, :, longest - past.shape[2] :] = past[0]
    return rows


def _layers(cache: DynamicCache) -> Iterator[LayerStates]:
    for layer in cache.layers:
        yield layer.keys, layer.values
