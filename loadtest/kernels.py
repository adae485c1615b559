"""Measures our own kernels with each instruction set of this CPU: the share of its int8 multiply-adds that a pass uses.

    python -m loadtest.kernels [--rounds 40] [--sequences 4] [--tokens 128] [--modernbert]

The peak is a loop of int8 multiply-adds on registers and nothing else, in the same run and on the same thread. The pass
is that of MiniLM-L6's six layers. It counts the matmuls with weights only, but its time includes attention, GELU,
normalization and quantization. Times are the CPU's, the shortest of all rounds, and the instruction sets take turns.

A set that is slower than the CPU's best runs here as it does on this CPU, not as on a CPU that has nothing better.

With `--modernbert` it compares ONNX Runtime and our kernels, from token ids to scores, on an int8 graph with three
layers of ModernBERT-base's shape. ONNX Runtime always uses the best that the CPU has; `python -m loadtest.without_amx`
keeps it from AMX.
"""

import argparse
import sys
from collections.abc import Callable, Mapping
from time import thread_time
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from rerankd.engines.onnx import kernels

_WIDTH, _INNER, _LAYERS, _HEAD = 384, 1536, 6, 32
_MACS_PER_TOKEN = _LAYERS * (4 * _WIDTH**2 + 2 * _WIDTH * _INNER)
_PEAK_STEPS = 20_000


def layers() -> kernels.Layers:
    """MiniLM-L6's layers with random weights, for the instruction set in use."""
    rng = np.random.default_rng(0)

    def linear(rows: int, columns: int) -> kernels.Linear:
        weights = rng.integers(-127, 128, (rows, columns), dtype=np.int8)
        scales = np.full(columns, 1 / 75 / rows**0.5, dtype=np.float32)
        return kernels.Linear(weights, scales=scales, bias=np.zeros(columns, dtype=np.float32))

    ones, zeros = np.ones(_WIDTH, dtype=np.float32), np.zeros(_WIDTH, dtype=np.float32)
    norm = kernels.LayerNorm(weight=ones, bias=zeros, epsilon=1e-12)
    shapes: dict[str, tuple[int, int]] = {"query_key_value": (_WIDTH, 3 * _WIDTH), "output": (_WIDTH, _WIDTH)}
    shapes |= {"up": (_WIDTH, _INNER), "down": (_INNER, _WIDTH)}
    parts: dict[str, Any] = {name: linear(*shape) for name, shape in shapes.items()}
    layer = kernels.Layer(
        **parts, attention_norm=norm, output_norm=norm, heads=_WIDTH // _HEAD, score_scale=_HEAD**-0.5
    )
    return kernels.Layers([layer] * _LAYERS)


def shortest(calls: Mapping[str, Callable[[], object]], *, rounds: int) -> dict[str, float]:
    """Seconds of CPU time of each call, the least of all rounds, after one that does not count."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds + 1):
        for name, call in calls.items():
            started = thread_time()
            call()
            times[name].append(thread_time() - started)
    return {name: min(taken[1:]) for name, taken in times.items()}


def _peak(name: str) -> int:
    """Multiply-adds on registers by an instruction set."""
    kernels.use_instruction_set(name)
    return kernels.peak(_PEAK_STEPS)


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, default=40)
    options.add_argument("--sequences", type=int, default=4)
    options.add_argument("--tokens", type=int, default=128)
    options.add_argument("--modernbert", action="store_true")
    arguments = options.parse_args()
    if arguments.modernbert:
        return _compare_modernbert(arguments)
    return _measure_shares(arguments)


def _compare_modernbert(arguments: argparse.Namespace) -> int:
    from loadtest import modernbert  # noqa: PLC0415 - needs torch

    made = modernbert.passes(sequences=arguments.sequences, tokens=arguments.tokens)
    pass_s = shortest(made, rounds=arguments.rounds)
    table = Table("computed by", f"a pass of {modernbert.LAYERS} layers, ms", "times ONNX Runtime's speed")
    for name, seconds in pass_s.items():
        table.add_row(name, f"{seconds * 1e3:.1f}", f"{pass_s['ONNX Runtime'] / seconds:.2f}")
    Console().print(table)
    return 0


def _measure_shares(arguments: argparse.Namespace) -> int:
    shape = (arguments.sequences, arguments.tokens, _WIDTH)
    hidden = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    bias = np.zeros((1, 1, 1, arguments.tokens), dtype=np.float32)
    passes: dict[str, Callable[[], object]] = {}
    counts: dict[str, int] = {}
    for name in kernels.instruction_sets():
        kernels.use_instruction_set(name)
        made = layers()
        passes[name] = lambda made=made: made.forward(hidden.copy(), bias)  # type: ignore[misc]
        counts[name] = _peak(name)
    peaks = {name: lambda name=name: _peak(name) for name in counts}
    fastest, pass_s = shortest(peaks, rounds=arguments.rounds), shortest(passes, rounds=arguments.rounds)
    macs = arguments.sequences * arguments.tokens * _MACS_PER_TOKEN
    table = Table("instruction set", "peak, GMAC/s", "a pass, GMAC/s", "share", "a pass, ms")
    for name, seconds in pass_s.items():
        peak, rate = counts[name] / fastest[name], macs / seconds
        table.add_row(name, f"{peak / 1e9:.0f}", f"{rate / 1e9:.0f}", f"{rate / peak:.0%}", f"{seconds * 1e3:.1f}")
    Console().print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
