"""What an engine is: it runs tasks on some device, and knows neither queries nor documents."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar, runtime_checkable

import numpy as np

from rerankd.domain import FloatArray, IntArray
from rerankd.errors import ConfigError
from rerankd.recognition.weights import check_graph
from rerankd.tasks.base import Task
from rerankd.tasks.classify import Classify
from rerankd.tasks.embed import EncodedText
from rerankd.tasks.encoding import Encoding
from rerankd.tasks.read_tokens import ReadTokens

KindT = TypeVar("KindT")
T_contra = TypeVar("T_contra", contravariant=True)
Results_co = TypeVar("Results_co", covariant=True)

_INPUTS: Final = {"input_ids", "attention_mask", "token_type_ids"}


# What a classifier with one output needs.
ONE_LOGIT: Final = Classify(outputs=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSpec:
    """What an engine is loaded from. `task` is what the scorer needs. `workers` is the number of concurrent forward
    passes; None leaves it to the engine. `devices` get one replica each, with that many workers; empty means one
    replica, on the device of the options. `adapter` is the folder of changes to the model's weights.
    """

    folder: Path
    pad_id: int
    task: Task[Any] = ONE_LOGIT
    workers: int | None = None
    trust_remote_code: bool = False
    adapter: Path | None = None
    devices: Sequence[str] = ()
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def output_tokens(self) -> Sequence[int]:
        """The tokens whose logits a language model returns; empty for a model with its own head."""
        return self.task.tokens if isinstance(self.task, ReadTokens) else ()


def task_of(spec: EngineSpec, kind: type[KindT]) -> KindT:
    """The spec's task, for an engine that runs only this kind.

    Raises:
        ConfigError: it is another kind.
    """
    if not isinstance(spec.task, kind):
        raise ConfigError(f"the task {spec.task.name!r} is not run by this engine")
    return spec.task


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchLimits:
    """The preferred size of a forward pass on this device, in tokens and pairs; up to `stretch` times as much if that
    finishes a request in few passes. With `padded`, each sequence counts as many tokens as the longest. The engine
    rounds lengths up with `rounded_length`, so sequences of equal rounded length can share a batch at no cost.
    """

    tokens: int
    pairs: int
    stretch: float = 1.0
    padded: bool = True
    rounded_length: Callable[[int], int] = int

    def area(self, lengths: Sequence[int]) -> int:
        """The tokens that one pass computes for sequences of these lengths."""
        rounded = [self.rounded_length(length) for length in lengths]
        return len(rounded) * max(rounded) if self.padded else sum(rounded)


class Engine(Protocol[T_contra, Results_co]):
    """`run` may be called from `workers` threads at a time. It raises `OutOfMemory`, or what the runtime raises."""

    @property
    def name(self) -> str:
        """Backend, kind of device and precision. Shown to clients, so no URL, and no path outside the model's
        folder.
        """

    @property
    def workers(self) -> int: ...

    @property
    def preferred_batch(self) -> BatchLimits: ...

    def run(self, batch: Sequence[T_contra], /) -> Results_co:
        """Compute payloads of one task in one pass. The results are in the same order: a list, or an array with one
        row each.
        """


# Runs `classify`, `read_tokens` or `embed`; the results have shape [sequences, outputs].
LogitsEngine = Engine[Encoding, FloatArray]


class Remote(Protocol):
    """The way to a remote model. `on_change` is told why the model is away, or with an empty text that it is back."""

    on_change: Callable[[str], None]

    @property
    def longest_s(self) -> float:
        """How long a call takes at most, with all attempts."""

    @property
    def trouble(self) -> str:
        """Why the model is away; empty while it is not."""

    async def close(self) -> None: ...


@runtime_checkable
class RemoteEngine(Protocol[T_contra, Results_co]):
    """An engine with a remote model: it may be unavailable, each pass may cost money, and passes end on their own. It
    has `ask` in place of `run`.
    """

    @property
    def name(self) -> str: ...

    @property
    def workers(self) -> int: ...

    @property
    def preferred_batch(self) -> BatchLimits: ...

    @property
    def client(self) -> Remote: ...

    async def ask(self, batch: Sequence[T_contra], deadline: float, /) -> Results_co:
        """Compute payloads as `run` does. Nobody wants the results after `deadline`, a moment of `time.perf_counter`.

        Raises:
            RemoteUnavailable, RemoteFailed: for all that want one of these results.
        """


def computed_here(engine: Engine[Any, Any] | RemoteEngine[Any, Any]) -> Engine[Any, Any]:
    """The same engine, for callers of `run`.

    Raises:
        ConfigError: it has a remote model.
    """
    if isinstance(engine, RemoteEngine):
        raise ConfigError(f"engine {engine.name!r} asks a remote model, which cannot be computed here")
    return engine


@runtime_checkable
class RemarkingEngine(Protocol):
    """An engine with a remark about its speed for the operator; empty if there is none."""

    @property
    def remark(self) -> str: ...


@dataclass(frozen=True, slots=True)
class PaddedBatch:
    """Arrays of shape [sequences, longest], int64, as every exported transformer takes them."""

    input_ids: IntArray
    attention_mask: IntArray
    token_type_ids: IntArray


def pad(encodings: Sequence[Encoding], *, pad_id: int, length: int | None = None) -> PaddedBatch:
    """Pad sequences on the right to `length`, by default that of the longest."""
    shape = len(encodings), length or max(len(encoding.ids) for encoding in encodings)
    input_ids = np.full(shape, pad_id, dtype=np.int64)
    attention_mask = np.zeros(shape, dtype=np.int64)
    token_type_ids = np.zeros(shape, dtype=np.int64)
    for row, encoding in enumerate(encodings):
        end = len(encoding.ids)
        input_ids[row, :end] = encoding.ids
        attention_mask[row, :end] = 1
        token_type_ids[row, encoding.boundary : end] = 1
    return PaddedBatch(input_ids, attention_mask, token_type_ids)


def pooled_mask(texts: Sequence[Encoding], attention_mask: IntArray) -> IntArray:
    """The attention mask, shape [texts, longest], without the tokens that are no part of a text's vector."""
    pooled = attention_mask.copy()
    for row, text in enumerate(texts):
        if isinstance(text, EncodedText):
            pooled[row, : text.pooled_from] = 0
    return pooled


def cut_by_length(encodings: Sequence[Encoding], limits: BatchLimits) -> list[list[Encoding]]:
    """Batches within these limits, of sequences of similar length."""
    batches: list[list[Encoding]] = []
    lengths: list[int] = []
    for encoding in sorted(encodings, key=lambda one: len(one.ids), reverse=True):
        lengths.append(len(encoding.ids))
        if not batches or len(lengths) > limits.pairs or limits.area(lengths) > limits.tokens:
            batches.append([])
            lengths = lengths[-1:]
        batches[-1].append(encoding)
    return batches


def find_graph(folder: Path, *, file: str | None, usual: Sequence[str]) -> str:
    """The name of a model's ONNX graph, relative to its folder: `file`, or else the first of the usual ones.

    Raises:
        ConfigError: there is none, or it is no whole file.
    """
    candidates = [file] if file else usual
    # The cache key does not cover a graph outside of the folder. (Links are fine: the hub's cache uses them.)
    if file and (Path(file).is_absolute() or ".." in Path(file).parts):
        raise ConfigError(f"file = {file!r} is not inside of the model's folder {folder}; put the graph there")
    for candidate in candidates:
        if (folder / candidate).is_file():
            check_graph(folder / candidate)
            return candidate
    there = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.onnx"))
    raise ConfigError(
        f"no ONNX graph in {folder} (tried: {', '.join(candidates)}; there: {', '.join(there) or 'none'}); "
        'make one with `rerankd export`, or name it: engine_options = { file = "..." }'
    )


def check_inputs(shapes: Mapping[str, Sequence[int | str | None]]) -> None:
    """Refuse a graph whose inputs are not a cross-encoder's. In shapes, a dynamic size is not an integer.

    Raises:
        ConfigError: it takes something else, or only one number of sequences or one length.
    """
    if set(shapes) - _INPUTS or "input_ids" not in shapes:
        raise ConfigError(
            f"the ONNX graph takes {', '.join(sorted(shapes))}; a cross-encoder takes input_ids, attention_mask "
            "and for some models token_type_ids"
        )
    for name, shape in shapes.items():
        if len(shape) != 2 or any(isinstance(size, int) for size in shape):
            raise ConfigError(
                f"the ONNX graph takes {name} of the fixed shape {list(shape)}; export it with a free number of "
                "sequences and a free length: `rerankd export`"
            )


def check_output(name: str, shape: Sequence[int | str | None] | None) -> None:
    """Refuse a graph whose output does not have one row per sequence. Without a shape, accept it.

    Raises:
        ConfigError: it has.
    """
    if shape and len(shape) != 2:
        raise ConfigError(
            f"the ONNX graph gives {name} of shape {list(shape)}; a cross-encoder gives logits of shape "
            "[sequences, outputs]: is this the graph of an embedding model?"
        )
