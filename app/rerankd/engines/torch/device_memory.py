"""Arrays onto a device; and what torch says when a device is full, in the words of the seam, and with the memory free
for smaller batches.
"""

from collections.abc import Callable
from typing import TypeVar

import torch

from rerankd.domain import IntArray
from rerankd.errors import OutOfMemory

Result = TypeVar("Result")


def within_memory(compute: Callable[[], Result]) -> Result:
    """Run a pass.

    Raises:
        OutOfMemory: the device has no room for so large a batch.
    """
    try:
        return compute()
    except torch.OutOfMemoryError as error:
        reason = str(error)
    # Out here, because the frames of torch's error hold all that the pass had allocated: as the cause of ours they
    # would keep it while halves of the batch are tried.
    torch.cuda.empty_cache()
    raise OutOfMemory(reason)


def to_device(array: IntArray, device: torch.device) -> torch.Tensor:
    """Copies from pinned memory do not hold this thread up."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
