"""Reads how much memory of the machine's NVIDIA GPUs is in use, by NVIDIA's management library."""

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
    """Bytes in use, by everybody, and in all."""

    used: int
    total: int


class GpuMemoryReader:
    """The GPUs that the driver shows when it is made; none where driver or library are missing."""

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
        """Each GPU's index and memory; a GPU that does not answer, or does not tell, is left out."""
        for index, handle in enumerate(self._handles):
            try:
                memory = self._library.nvmlDeviceGetMemoryInfo(handle)
            except self._library.NVMLError:
                continue
            yield index, GpuMemory(used=int(memory.used), total=int(memory.total))
