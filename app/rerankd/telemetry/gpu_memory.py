"""Reads the memory usage of NVIDIA GPUs, with NVIDIA's management library."""

from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

try:
    import pynvml as _library
except ModuleNotFoundError:  # the extra `gpu` brings it
    _library = None


@dataclass(frozen=True, slots=True)
class GpuMemory:
    """Bytes in use by all processes, and in total."""

    used: int
    total: int


class GpuMemoryReader:
    """The GPUs that the driver reports at construction; none if the driver or the library is missing."""

    def __init__(self, library: ModuleType | Any = _library) -> None:  # noqa: ANN401 - a module has no narrower type
        self._library = library
        self._handles: list[Any] = []
        if library is None:
            return
        try:
            library.nvmlInit()
            self._handles = [library.nvmlDeviceGetHandleByIndex(index) for index in range(library.nvmlDeviceGetCount())]
        except library.NVMLError:
            self._handles = []

    def read(self) -> Iterator[tuple[int, GpuMemory]]:
        """Each GPU's index and memory. GPUs that do not report it are left out."""
        for index, handle in enumerate(self._handles):
            try:
                memory = self._library.nvmlDeviceGetMemoryInfo(handle)
            except self._library.NVMLError:
                continue
            yield index, GpuMemory(used=int(memory.used), total=int(memory.total))
