"""Forward passes as CUDA graphs: the kernels of a batch's shape are recorded once, and replayed as one launch.

A small model's kernels take a GPU less time than Python takes to launch them one by one, so its passes are as fast as
Python is. Shapes are rounded up, so that there are few. Passes that are large enough to keep a GPU busy are not
recorded.
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

# From sequences and a length: arrays of shape [sequences, length], `attention_mask` among them.
LayOut = Callable[[Sequence[Encoding], int], Mapping[str, IntArray]]
Compute = Callable[[Mapping[str, torch.Tensor]], torch.Tensor]
Replay = Callable[[], None]
# Computes once, and gives the tensor that every replay writes anew.
Record = Callable[[Callable[[], torch.Tensor]], tuple[torch.Tensor, Replay]]

# Beyond so many tokens the kernels take longer than their launch.
_MOST_TOKENS: Final = 16_384
_MOST_SHAPES: Final = 256
_LENGTH_STEP: Final = 32
_ROWS_STEP: Final = 8

# torch records one graph at a time in a process.
_recording = Lock()


@dataclass(frozen=True, slots=True)
class _Recorded:
    """A pass of one shape: the tensors that it reads, on the device, and the one that it writes."""

    inputs: Mapping[str, torch.Tensor]
    logits: torch.Tensor
    replay: Replay


class Graphs:
    """The recorded passes of one model on one device, one of which is replayed at a time: they share their memory."""

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
        """Logits of a batch, shape [sequences, outputs], on the processor. None: it is not for a graph, because it is
        large, or of one shape too many, or because this model cannot be recorded.
        """
        rows, longest = len(encodings), max(len(encoding.ids) for encoding in encodings)
        shape = _rounded_rows(rows), self._rounded_length(longest)
        if shape[0] * shape[1] > _MOST_TOKENS:
            return None
        inputs = self._lay_out(encodings, shape[1])
        with self._lock:
            recorded = self._recorded.get(shape) or self._record_pass(shape, list(inputs))
            if recorded is None:
                return None
            # The rows behind them keep a former batch's, and nobody reads what becomes of those.
            for name, array in inputs.items():
                recorded.inputs[name][:rows].copy_(to_device(array, self._device), non_blocking=True)
            recorded.replay()
            # Waits for the device, so that nothing is overwritten that is still read.
            return recorded.logits[:rows].to("cpu", copy=True)

    def _rounded_length(self, length: int) -> int:
        rounded = -(-length // _LENGTH_STEP) * _LENGTH_STEP
        return rounded if rounded <= self._max_length else length

    def _record_pass(self, shape: tuple[int, int], names: list[str]) -> _Recorded | None:
        if not self._usable or len(self._recorded) >= _MOST_SHAPES:
            return None
        # A row without anything to attend to would be a division by zero.
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
            logger.exception("the model's passes cannot be recorded as CUDA graphs and are computed without")
            self._usable = False
            return None
        recorded = _Recorded(inputs, logits, replay)
        self._recorded[shape] = recorded
        return recorded


def _rounded_rows(rows: int) -> int:
    """A power of two for few, and a multiple of eight for more."""
    return 1 << (rows - 1).bit_length() if rows <= _ROWS_STEP else -(-rows // _ROWS_STEP) * _ROWS_STEP


class CudaRecorder:
    """Records on one GPU; all of its graphs share a pool of memory, so only one of them may be replayed at a time."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, compute: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, Replay]:
        """Record what `compute` launches.

        Raises:
            RuntimeError: it does something that cannot be recorded, such as waiting for the device.
        """
        # Libraries set themselves up in the first passes, which must not be recorded.
        for _ in range(2):
            compute()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            logits = compute()
        return logits, graph.replay
