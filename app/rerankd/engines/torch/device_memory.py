"""Replicas arrays to a device, and turns torch's out-of-memory errors into ours, with the memory released."""

from collections.abc import Callable
from typing import TypeVar

import torch

from rerankd.domain import IntArray
from rerankd.errors import OutOfMemory

Result = TypeVar("Result")


def within_memory(compute: Callable[[], Result]) -> Result:
    """Run a pass.

    Raises:
        OutOfMemory: the batch does not fit the device's memory.
    """
    try:
        return compute()
    except torch.OutOfMemoryError as error:
        reason = str(error)
    # Raised outside the handler: the frames of torch's error hold the memory of the pass, and as the cause of ours they
    # would keep it while the batch is retried in halves.
    torch.cuda.empty_cache()
    raise OutOfMemory(reason)


def to_device(array: IntArray, device: torch.device) -> torch.Tensor:
    """Copy an array. Replicas from pinned memory do not block this thread."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
