"""Forward passes as CUDA graphs: the kernels for a batch's shape are recorded once and replayed with one launch.

A GPU runs a small model's kernels faster than Python launches them one by one, so Python would limit the speed. Shapes
are rounded up, so that there are few. Passes large enough to keep the GPU busy are not recorded.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Final

import torch

from rerankd.domain import IntArray
from rerankd.engines.torch.device_memory import to_device
from rerankd.tasks.encoding import Encoding

logger = logging.getLogger(__name__)

# Makes arrays of shape [sequences, length], including `attention_mask`, of sequences and a length.
LayOut = Callable[[Sequence[Encoding], int], Mapping[str, IntArray]]
Compute = Callable[[Mapping[str, torch.Tensor]], torch.Tensor]
Replay = Callable[[], None]
# Computes once, and returns the tensor that each replay overwrites.
Record = Callable[[Callable[[], torch.Tensor]], tuple[torch.Tensor, Replay]]

# Above this, the kernels take longer than their launch.
_MAX_TOKENS: Final = 16_384
_MAX_SHAPES: Final = 256
_LENGTH_STEP: Final = 32
_ROWS_STEP: Final = 8

# torch records one graph at a time per process.
_recording = Lock()


@dataclass(frozen=True, slots=True)
class _Recorded:
    """A pass of one shape: its input tensors on the device, and its output tensor."""

    inputs: Mapping[str, torch.Tensor]
    logits: torch.Tensor
    replay: Replay


class Graphs:
    """The recorded passes of one model on one device. They share memory, so only one is replayed at a time."""

    def __init__(
        self, lay_out: LayOut, compute: Compute, record: Record, *, device: torch.device, max_length: int
    ) -> None:
        self._lay_out = lay_out
        self._compute = compute
        self._record = record
        self._device = device
        self._max_length = max_length
        self._lock = Lock()
        self._recorded: dict[tuple[int, int], _Recorded] = {}
        self._usable = True

    def logits(self, encodings: Sequence[Encoding]) -> torch.Tensor | None:
        """Logits of a batch, shape [sequences, outputs], on the CPU. None if there is no graph for it: the batch is too
        large, there are too many shapes, or the model cannot be recorded.
        """
        rows, longest = len(encodings), max(len(encoding.ids) for encoding in encodings)
        shape = _rounded_rows(rows), self._rounded_length(longest)
        if shape[0] * shape[1] > _MAX_TOKENS:
            return None
        inputs = self._lay_out(encodings, shape[1])
        with self._lock:
            recorded = self._recorded.get(shape) or self._record_pass(shape, list(inputs))
            if recorded is None:
                return None
            # The other rows keep an earlier batch's values, and their results are not read.
            for name, array in inputs.items():
                recorded.inputs[name][:rows].copy_(to_device(array, self._device), non_blocking=True)
            recorded.replay()
            # Waits for the device, so that the next replay does not overwrite these logits.
            return recorded.logits[:rows].to("cpu", copy=True)

    def _rounded_length(self, length: int) -> int:
        rounded = -(-length // _LENGTH_STEP) * _LENGTH_STEP
        return rounded if rounded <= self._max_length else length

    def _record_pass(self, shape: tuple[int, int], names: list[str]) -> _Recorded | None:
        if not self._usable or len(self._recorded) >= _MAX_SHAPES:
            return None
        # A row without a visible token would divide by zero.
        inputs = {
            name: torch.full(shape, int(name == "attention_mask"), dtype=torch.int64, device=self._device)
            for name in names
        }
        try:
            with _recording:
                logits, replay = self._record(lambda: self._compute(inputs))
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:
            logger.exception("the model's passes cannot be recorded as CUDA graphs; serving without")
            self._usable = False
            return None
        recorded = _Recorded(inputs, logits, replay)
        self._recorded[shape] = recorded
        return recorded


def _rounded_rows(rows: int) -> int:
    """Round up to a power of two, or above eight to a multiple of eight."""
    return 1 << (rows - 1).bit_length() if rows <= _ROWS_STEP else -(-rows // _ROWS_STEP) * _ROWS_STEP


class CudaRecorder:
    """Records on one GPU. All graphs share a memory pool, so only one may be replayed at a time."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, compute: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, Replay]:
        """Record what `compute` launches.

        Raises:
            RuntimeError: it does something that cannot be recorded, such as waiting for the device.
        """
        # Libraries initialize themselves in the first passes, which must not be recorded.
        for _ in range(2):
            compute()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            logits = compute()
        return logits, graph.replay
