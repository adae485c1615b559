"""GPU memory in the metrics: with a library that answers like NVIDIA's, and with the real one, driver or not."""

from rerankd.telemetry.gpu_memory import GpuMemory, GpuMemoryReader
from rerankd.telemetry.metrics import PrometheusObserver
from tests.fakes import NvidiaLibrary


def test_each_gpu_that_answers_is_read() -> None:
    assert list(GpuMemoryReader(NvidiaLibrary()).read()) == [(0, GpuMemory(used=3 * 2**30, total=80 * 2**30))]


def test_without_driver_or_library_there_are_no_gpus() -> None:
    assert list(GpuMemoryReader(NvidiaLibrary(driver=False)).read()) == []
    assert list(GpuMemoryReader(None).read()) == []


def test_the_real_library_is_asked_without_harm() -> None:
    assert all(0 <= memory.used <= memory.total for _, memory in GpuMemoryReader().read())


def test_scrapes_show_the_memory_of_each_gpu() -> None:
    registry = PrometheusObserver(GpuMemoryReader(NvidiaLibrary())).registry
    assert registry.get_sample_value("rerank_gpu_memory_used_bytes", {"gpu": "0"}) == 3 * 2**30
    assert registry.get_sample_value("rerank_gpu_memory_bytes", {"gpu": "0"}) == 80 * 2**30
    assert registry.get_sample_value("rerank_gpu_memory_bytes", {"gpu": "1"}) is None
