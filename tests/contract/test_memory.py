"""Resident memory does not grow with the number of different shapes: in a process of its own for each engine."""

import subprocess
import sys
from pathlib import Path

import pytest

_SHIPPED = Path(__file__).parents[2] / "models" / "minilm-qa"
_LARGEST_BYTES = 1e9

# A service of two workers: batches of random lengths and sizes, all within one token budget, as the planner cuts them.
_SCRIPT = """
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil

from rerankd.tasks.encoding import Encoding
from rerankd.engines import load_engine
from rerankd.engines.base import EngineSpec

engine_name, folder, shapes, most_tokens = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
engine = load_engine(engine_name, EngineSpec(folder=folder, pad_id=0, workers=2))
random = np.random.default_rng(0)
process = psutil.Process()
peak = 0


def score(_):
    global peak
    length = int(random.integers(8, 512))
    pairs = int(random.integers(1, max(1, most_tokens // length) + 1))
    engine.run([Encoding(random.integers(1000, 2000, length), length // 4)] * pairs)
    peak = max(peak, process.memory_info().rss)


with ThreadPoolExecutor(2) as workers:
    for half in (shapes // 2, shapes - shapes // 2):
        list(workers.map(score, range(half)))
        print(peak)
"""


def peaks(engine: str, folder: Path, *, shapes: int, most_tokens: int) -> tuple[int, int]:
    """The largest resident memory in bytes: over the first half of the shapes, and over all of them."""
    arguments = [engine, str(folder), str(shapes), str(most_tokens)]
    done = subprocess.run([sys.executable, "-c", _SCRIPT, *arguments], capture_output=True, text=True, check=True)
    first, whole = map(int, done.stdout.split())
    return first, whole


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("engine", "runtime"), [("onnx", "onnxruntime"), ("openvino", "openvino")])
def test_hundreds_of_shapes_stay_within_one_gigabyte(engine: str, runtime: str) -> None:
    pytest.importorskip(runtime)
    first, whole = peaks(engine, _SHIPPED, shapes=300, most_tokens=512)
    assert whole < _LARGEST_BYTES
    assert whole < 1.25 * first
