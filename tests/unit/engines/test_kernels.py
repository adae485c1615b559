"""The kernels of encoder layers, compared with the same layer in NumPy."""

import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from math import erf
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
from numpy.typing import NDArray

from rerankd.domain import FloatArray
from tests.requirements import missing

try:
    from rerankd.engines.onnx import kernels
except ImportError:
    missing("the kernels were not compiled; is there a C++ compiler? run: make .venv/.development")

if not kernels.instruction_sets():
    pytest.skip("this CPU has no instruction set of the kernels", allow_module_level=True)


Test = TypeVar("Test", bound=Callable[..., None])


@pytest.fixture(autouse=True)
def _fastest_set() -> Iterator[None]:
    """Whatever a test chooses, the next one starts with the fastest."""
    fastest = kernels.instruction_set()
    yield
    kernels.use_instruction_set(fastest)


@pytest.fixture
def instruction_set(request: pytest.FixtureRequest) -> str:
    """Used by everything that a test makes."""
    name: str = request.param
    kernels.use_instruction_set(name)
    return name


def in_each_set(test: Test) -> Test:
    """Run a test with each instruction set of this CPU. Other tests run with the fastest."""
    every = pytest.mark.parametrize("instruction_set", kernels.instruction_sets(), indirect=True)
    marked: Test = pytest.mark.usefixtures("instruction_set")(every(test))
    return marked


Matrix = NDArray[np.float64]

_EPSILON = 1e-12
_MASKED = -3.4028235e38


class ReferenceLayer:
    """A layer with random weights, as large as those of a trained one."""

    def __init__(self, *, width: int, inner: int, size: int, seed: int = 0) -> None:
        self.width, self.size, self.heads = width, size, width // size
        rng = np.random.default_rng(seed)
        shapes = {"query_key_value": (width, 3 * width), "output": (width, width), "up": (width, inner)}
        shapes["down"] = (inner, width)
        self.weights = {name: rng.integers(-127, 128, shape, dtype=np.int8) for name, shape in shapes.items()}
        self.scales = {
            name: (rng.uniform(0.5, 1.5, shape[1]) / 75 / shape[0] ** 0.5).astype(np.float32)
            for name, shape in shapes.items()
        }
        self.biases = {name: rng.normal(0, 0.1, shape[1]).astype(np.float32) for name, shape in shapes.items()}
        self.norms = {
            name: (rng.normal(1, 0.1, width).astype(np.float32), rng.normal(0, 0.1, width).astype(np.float32))
            for name in ("attention_norm", "output_norm")
        }

    def compiled(self, *, first_row: bool = False) -> kernels.Layer:
        linear: dict[str, Any] = {
            name: kernels.Linear(self.weights[name], scales=self.scales[name], bias=self.biases[name])
            for name in self.weights
        }
        norms: dict[str, Any] = {
            name: kernels.LayerNorm(weight=weight, bias=bias, epsilon=_EPSILON)
            for name, (weight, bias) in self.norms.items()
        }
        settings = {"heads": self.heads, "score_scale": self.size**-0.5, "first_row": first_row, **self.settings()}
        return kernels.Layer(**linear, **norms, **settings)

    def settings(self) -> dict[str, Any]:
        return {}

    def forward(self, hidden: FloatArray, bias: FloatArray, *, exact: bool = False) -> Matrix:
        """The layer on one sequence, [length, width], with a bias of [length, length]. Attention in 16 bits
        as in the kernels, or `exact`.
        """
        return self._feed_forward(hidden, self._attention(hidden, bias, exact=exact))

    def first_row(self, hidden: FloatArray, bias: FloatArray) -> Matrix:
        """The output of the first token only, with a bias of [length]. Attention is not quantized."""
        query = self._linear("query_key_value", hidden[:1])[0, : self.width]
        query_key_value = self._unquantized_linear("query_key_value", hidden)
        _, key, value = np.split(query_key_value, 3, axis=1)
        contexts = []
        for start in range(0, self.width, self.size):
            at = slice(start, start + self.size)
            contexts.append(_softmax(query[None, at] @ key[:, at].T * self.size**-0.5 + bias) @ value[:, at])
        return self._feed_forward(hidden[:1], np.concatenate(contexts, axis=1))

    def _attention(self, hidden: NDArray[Any], bias: NDArray[Any], *, exact: bool) -> Matrix:
        query, key, value = np.split(self._linear("query_key_value", hidden), 3, axis=1)
        most = {32: 8191, 64: 5791}[self.size]
        contexts = []
        for start in range(0, self.width, self.size):
            at = slice(start, start + self.size)
            of_head = self._turned(query[:, at]), self._turned(key[:, at]), value[:, at]
            queries, keys, values = of_head if exact else map(_quantized, of_head, (most, most, 8191))
            weights = _softmax(queries @ keys.T * self.size**-0.5 + bias)
            contexts.append((weights if exact else _quantized_weights(weights)) @ values)
        return np.concatenate(contexts, axis=1)

    def _turned(self, vectors: Matrix) -> Matrix:
        """What positions do to the queries or keys of a head."""
        return vectors

    def _feed_forward(self, hidden: FloatArray, context: Matrix) -> Matrix:
        states = self._layer_norm("attention_norm", hidden + self._linear("output", context))
        inner = _gelu(self._linear("up", states))
        return self._layer_norm("output_norm", states + self._linear("down", inner))

    def _linear(self, name: str, vectors: NDArray[Any]) -> Matrix:
        scales = np.maximum(np.abs(vectors).max(axis=1, keepdims=True).astype(np.float64) / 127, 1e-12)
        integers = np.rint(vectors / scales)
        return np.asarray((integers @ self.weights[name]) * scales * self.scales[name] + self.biases[name])

    def _unquantized_linear(self, name: str, vectors: NDArray[Any]) -> Matrix:
        sums = vectors.astype(np.float64) @ self.weights[name]
        return np.asarray(sums * self.scales[name] + self.biases[name])

    def _layer_norm(self, name: str, vectors: Matrix) -> Matrix:
        weight, bias = self.norms[name]
        apart = vectors - vectors.mean(axis=1, keepdims=True)
        return np.asarray(apart / np.sqrt((apart**2).mean(axis=1, keepdims=True) + _EPSILON) * weight + bias)


class RotaryLayer(ReferenceLayer):
    """A layer as in ModernBERT: pre-norm, rotary positions, gated GELU, perhaps attention within a window."""

    def __init__(self, *, width: int, inner: int, size: int, window: int | None = None, seed: int = 0) -> None:
        super().__init__(width=width, inner=inner, size=size, seed=seed)
        rng = np.random.default_rng(seed + 100)
        self.weights["up"] = rng.integers(-127, 128, (width, 2 * inner), dtype=np.int8)
        self.scales["up"], self.biases["up"] = (np.tile(part["up"], 2) for part in (self.scales, self.biases))
        self.window = window
        powers = np.arange(0, size, 2, dtype=np.float32) / size
        self.frequencies = ((100 if window else 10000) ** -powers).astype(np.float32)

    def settings(self) -> dict[str, Any]:
        return {"pre_norm": True, "rotary": kernels.Rotary(self.frequencies), "window": self.window}

    def step(self, residual: Matrix, normalized: Matrix, bias: FloatArray) -> tuple[Matrix, Matrix]:
        """The layer on one sequence: its residual and its normalized states, both before and after it."""
        places = np.arange(len(residual))
        apart = np.abs(places[:, None] - places)
        masked = np.where(apart <= (len(residual) if self.window is None else self.window), bias, -np.inf)
        residual = residual + self._linear("output", self._attention(normalized, masked, exact=False))
        inner, gate = np.split(self._linear("up", self._layer_norm("attention_norm", residual)), 2, axis=1)
        residual = residual + self._linear("down", _gelu(inner) * gate)
        return residual, self._layer_norm("output_norm", residual)

    def _turned(self, vectors: Matrix) -> Matrix:
        angles = np.arange(len(vectors), dtype=np.float32)[:, None] * self.frequencies
        one, other = np.split(vectors, 2, axis=1)
        cosine, sine = np.cos(angles, dtype=np.float64), np.sin(angles, dtype=np.float64)
        return np.concatenate([one * cosine - other * sine, other * cosine + one * sine], axis=1)


class Unquantized(ReferenceLayer):
    """The same layer without quantization of activations."""

    def _linear(self, name: str, vectors: NDArray[Any]) -> Matrix:
        return self._unquantized_linear(name, vectors)


def _gelu(numbers: Matrix) -> Matrix:
    error_function = np.fromiter(map(erf, (numbers / np.sqrt(2)).ravel().tolist()), dtype=float)
    return np.asarray(numbers * 0.5 * (1 + error_function.reshape(numbers.shape)))


def _distance(result: NDArray[Any], expected: Matrix) -> float:
    return float(np.sqrt(np.mean((result - expected) ** 2)))


def _quantized(vectors: Matrix, largest: int) -> Matrix:
    scale = np.abs(vectors).max() / largest
    return np.asarray(np.rint(vectors / scale) * scale)


def _quantized_weights(weights: Matrix) -> Matrix:
    factors = np.minimum(32767 / weights.max(axis=1), 253000 / weights.sum(axis=1))[:, None]
    return np.asarray(np.rint(weights * factors) / factors)


def _softmax(scores: Matrix) -> Matrix:
    exponentials = np.exp(scores - scores.max(axis=1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=1, keepdims=True))


def states(*shape: int, seed: int = 1) -> FloatArray:
    return np.random.default_rng(seed).normal(0, 1, shape).astype(np.float32)


def run(layers: Sequence[ReferenceLayer], hidden: FloatArray, bias: FloatArray) -> FloatArray:
    return kernels.Layers([layer.compiled() for layer in layers]).forward(hidden.copy(), bias)


SMALL = ReferenceLayer(width=64, inner=128, size=32)


@in_each_set
@pytest.mark.parametrize("length", [1, 2, 5, 6, 7, 15, 16, 17, 64, 65, 100, 128, 250])
@pytest.mark.parametrize(("width", "inner", "size"), [(64, 128, 32), (128, 192, 64), (384, 1536, 32)])
def test_a_layer_is_the_one_that_numpy_computes(length: int, width: int, inner: int, size: int) -> None:
    """But for the last digit, and where that digit decides how a number is quantized."""
    layer = ReferenceLayer(width=width, inner=inner, size=size)
    hidden = states(2, length, width)
    bias = np.random.default_rng(2).normal(0, 1, (2, 1, length, length)).astype(np.float32)
    result = run([layer], hidden, bias)
    expected = np.stack([layer.forward(*one) for one in zip(hidden, bias[:, 0], strict=True)])
    difference = np.abs(result - expected)
    assert np.median(difference) < 5e-6
    assert difference.max() < 0.1


@pytest.mark.parametrize(("width", "inner", "size"), [(64, 128, 32), (384, 1536, 32), (384, 1536, 64)])
def test_attention_in_16_bits_adds_little_to_what_8_bits_change(width: int, inner: int, size: int) -> None:
    """Its error, compared with a layer without quantization, is that of a layer with exact attention."""
    layer, unquantized = (kind(width=width, inner=inner, size=size) for kind in (ReferenceLayer, Unquantized))
    hidden, bias = states(1, 300, width), np.zeros((1, 1, 300, 300), dtype=np.float32)
    expected = unquantized.forward(hidden[0], bias[0, 0], exact=True)
    with_8_bits = layer.forward(hidden[0], bias[0, 0], exact=True)
    assert _distance(run([layer], hidden, bias)[0], expected) < 1.05 * _distance(with_8_bits, expected)


@in_each_set
@pytest.mark.parametrize("length", [1, 33, 500, 512, 2000])
@pytest.mark.parametrize("size", [32, 64])
def test_no_sum_of_attention_overflows(length: int, size: int) -> None:
    """All queries, keys and values have the largest magnitude, and all attention weights are equal."""
    layer = ReferenceLayer(width=64, inner=64, size=size)
    layer.weights["query_key_value"][:] = 127
    layer.biases["query_key_value"][:] = 0
    layer.scales["query_key_value"][:] = 1e-3
    hidden, bias = np.ones((1, length, 64), dtype=np.float32), np.zeros((1, 1, 1, length), dtype=np.float32)
    expected = layer.forward(hidden[0], np.zeros((length, length), dtype=np.float32), exact=True)
    np.testing.assert_allclose(run([layer], hidden, bias)[0], expected, atol=0.05)


def test_layers_are_computed_one_after_another() -> None:
    first, second = SMALL, ReferenceLayer(width=64, inner=192, size=64, seed=3)
    hidden, bias = states(3, 20, 64), np.zeros((1, 1, 1, 20), dtype=np.float32)
    expected = run([second], run([first], hidden, bias), bias)
    np.testing.assert_array_equal(run([first, second], hidden, bias), expected)


@pytest.mark.parametrize("lengths", [[1] * 5, [20, 3, 1, 20, 64], [5] * 40, [300, 150, 128, 129, 299]])
@pytest.mark.parametrize("of_query", [True, False])
@pytest.mark.parametrize(("width", "size"), [(64, 32), (64, 64), (1088, 64)])
def test_the_first_row_alone_is_the_one_that_numpy_computes(
    lengths: Sequence[int], of_query: bool, width: int, size: int
) -> None:
    """Also with more than 16 heads. As above, the last digit may decide how a number is quantized."""
    longest = max(lengths) + 2
    hidden = states(len(lengths), longest, width)
    bias = states(len(lengths), 1, longest if of_query else 1, longest, seed=2)
    for row, length in enumerate(lengths):
        bias[row, ..., length:] = _MASKED
    first, last = (ReferenceLayer(width=width, inner=128, size=size, seed=seed) for seed in range(2))
    result, before = _first_rows([first, last], hidden, bias), run([first], hidden, bias)
    assert result.shape == (len(lengths), 1, width)
    expected = [
        last.first_row(states_before[:length], of_keys[:length])
        for states_before, of_keys, length in zip(before, bias[:, 0, 0], lengths, strict=True)
    ]
    difference = np.abs(result - np.stack(expected))
    assert np.median(difference) < 5e-6
    assert difference.max() < 0.1


@in_each_set
@pytest.mark.parametrize("size", [32, 64])
def test_the_first_row_is_the_one_that_numpy_computes_in_each_set(size: int) -> None:
    """With more heads than a register has floats."""
    layer = ReferenceLayer(width=576, inner=128, size=size)
    hidden, bias = states(7, 33, 576), states(7, 1, 1, 33, seed=2)
    expected = [layer.first_row(*one) for one in zip(hidden, bias[:, 0, 0], strict=True)]
    difference = np.abs(_first_rows([layer], hidden, bias) - np.stack(expected))
    assert np.median(difference) < 5e-6
    assert difference.max() < 0.1


def test_instruction_sets_with_registers_of_one_size_agree_to_the_bit() -> None:
    """Their integer sums are exact, and their float sums have the same order."""
    hidden, bias = states(3, 50, 64), states(3, 1, 1, 50, seed=2)
    results: dict[int, list[FloatArray]] = {}
    for name in kernels.instruction_sets():
        kernels.use_instruction_set(name)
        results.setdefault(kernels.lanes(), []).append(run([SMALL, SMALL], hidden, bias))
    for first, *others in results.values():
        for other in others:
            np.testing.assert_array_equal(other, first)


def test_every_instruction_set_of_this_cpu_was_compiled() -> None:
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text(encoding="utf-8").split() if cpuinfo.exists() else []
    if not flags:
        pytest.skip("only Linux lists what a CPU has")
    of_flag = {"avx2": "avx2", "avx_vnni": "avx_vnni", "avx512_vnni": "avx512_vnni"}
    of_flag |= {"amx_int8": "amx", "asimddp": "neon_dot", "i8mm": "neon_i8mm"}
    assert {name for flag, name in of_flag.items() if flag in flags} <= {*kernels.instruction_sets(), "amx"}


def test_an_instruction_set_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match="no instruction set mmx"):
        kernels.use_instruction_set("mmx")


@in_each_set
def test_layers_of_different_instruction_sets_are_refused(instruction_set: str) -> None:
    compiled = [SMALL.compiled()]
    other = next((name for name in kernels.instruction_sets() if name != instruction_set), None)
    if other is None:
        pytest.skip("this CPU has one instruction set")
    kernels.use_instruction_set(other)
    compiled.append(SMALL.compiled())
    with pytest.raises(ValueError, match="the layers are for different instruction sets"):
        kernels.Layers(compiled)


@in_each_set
def test_the_peak_counts_what_it_multiplies() -> None:
    assert kernels.peak(20) == 2 * kernels.peak(10) > 0


def _first_rows(layers: Sequence[ReferenceLayer], hidden: FloatArray, bias: FloatArray) -> FloatArray:
    compiled = [layer.compiled(first_row=layer is layers[-1]) for layer in layers]
    return kernels.Layers(compiled).forward(hidden.copy(), bias)


@in_each_set
def test_what_the_first_row_never_goes_back_to_is_padding() -> None:
    """Also where it sees itself, and the others' bias is no more than -64."""
    layers = [ReferenceLayer(width=64, inner=128, size=32, seed=seed) for seed in range(3)]
    hidden, bias = states(1, 30, 64), np.zeros((1, 1, 30, 30), dtype=np.float32)
    bias[..., :20, 20:] = -64
    alone = _first_rows(layers, hidden[:, :20], np.zeros((1, 1, 1, 20), dtype=np.float32))
    np.testing.assert_array_equal(_first_rows(layers, hidden, bias), alone)


def test_what_the_first_row_goes_back_to_through_others_is_no_padding() -> None:
    """Each token sees itself and the next two."""
    layers = [ReferenceLayer(width=64, inner=128, size=32, seed=seed) for seed in range(3)]
    places = np.arange(30)
    apart = places[None, :] - places[:, None]
    bias = np.where((apart >= 0) & (apart <= 2), 0, _MASKED).astype(np.float32)[None, None]
    hidden = states(1, 30, 64)
    expected = layers[-1].first_row(run(layers[:-1], hidden, bias)[0], bias[0, 0, 0])
    assert np.median(np.abs(_first_rows(layers, hidden, bias)[0] - expected)) < 5e-6


@pytest.mark.parametrize("shape", [(1, 1, 1, 40), (4, 1, 1, 40), (1, 1, 40, 40), (4, 1, 40, 40)])
def test_a_bias_holds_for_all_that_it_does_not_tell_apart(shape: tuple[int, ...]) -> None:
    hidden, bias = states(4, 40, 64), states(*shape, seed=5)
    everywhere = np.ascontiguousarray(np.broadcast_to(bias, (4, 1, 40, 40)))
    np.testing.assert_array_equal(run([SMALL], hidden, bias), run([SMALL], hidden, everywhere))


@in_each_set
def test_a_sequence_is_the_same_to_the_bit_in_every_batch_and_behind_it_is_nothing() -> None:
    layers = [ReferenceLayer(width=64, inner=128, size=32, seed=seed) for seed in range(3)]
    lengths = [1, 2, 13, 31, 32, 33, 50, 64]
    sequences = [states(length, 64, seed=length) for length in lengths]
    alone = [run(layers, one[None], np.zeros((1, 1, 1, len(one)), dtype=np.float32))[0] for one in sequences]
    rng = np.random.default_rng(0)
    for size in (2, 5, 8):
        chosen = rng.permutation(len(lengths))[:size]
        longest = max(lengths[index] for index in chosen) + int(rng.integers(0, 9))
        hidden, bias = states(size, longest, 64, seed=99), np.full((size, 1, longest, longest), _MASKED, np.float32)
        for row, index in enumerate(chosen):
            hidden[row, : lengths[index]] = sequences[index]
            bias[row, :, :, : lengths[index]] = 0
        result = run(layers, hidden, bias)
        for row, index in enumerate(chosen):
            np.testing.assert_array_equal(result[row, : lengths[index]], alone[index])
            assert not result[row, lengths[index] :].any()


def rotary_layers(size: int = 32, window: int = 5) -> list[RotaryLayer]:
    """With global and local attention in turns."""
    windows = (None, window, None)
    return [
        RotaryLayer(width=64, inner=128, size=size, window=within, seed=seed) for seed, within in enumerate(windows)
    ]


def run_rotary(layers: Sequence[RotaryLayer], hidden: FloatArray, bias: FloatArray, *, first_row: bool) -> FloatArray:
    *others, last = layers
    compiled = [*(layer.compiled() for layer in others), last.compiled(first_row=first_row)]
    return kernels.Layers(compiled).forward(hidden.copy(), bias)


@in_each_set
@pytest.mark.parametrize("length", [1, 17, 150])
@pytest.mark.parametrize(("width", "size"), [(64, 32), (128, 64)])
@pytest.mark.parametrize("window", [None, 1, 64])
def test_a_layer_with_rotary_positions_is_the_one_that_numpy_computes(
    length: int, width: int, size: int, window: int | None
) -> None:
    layer = RotaryLayer(width=width, inner=128, size=size, window=window)
    hidden, bias = states(2, length, width), states(2, 1, 1, length, seed=2)
    result = run([layer], hidden, bias)
    expected = [layer.step(one, one, of_keys)[1] for one, of_keys in zip(hidden, bias[:, 0], strict=True)]
    difference = np.abs(result - np.stack(expected))
    assert np.median(difference) < 5e-6
    assert difference.max() < 0.2


def test_layers_with_pre_norm_hand_on_their_residuals() -> None:
    layers, hidden, bias = rotary_layers(), states(1, 40, 64), np.zeros((1, 1, 1, 40), dtype=np.float32)
    residual = normalized = hidden[0].astype(np.float64)
    for layer in layers:
        residual, normalized = layer.step(residual, normalized, bias[0, 0])
    # What one layer rounds to another number changes all that follow.
    assert _distance(run(layers, hidden, bias)[0], normalized) < 0.02


@in_each_set
@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize("window", [None, 9])
def test_the_first_row_of_rotary_positions_is_that_of_all_rows(size: int, window: int | None) -> None:
    """Its query alone gets a scale of its own, which may decide how a number is quantized."""
    layers = [*rotary_layers(size)[:2], RotaryLayer(width=64, inner=128, size=size, window=window, seed=7)]
    lengths = (33, 1, 20, 70)
    hidden, bias = states(4, 70, 64), np.full((4, 1, 1, 70), _MASKED, dtype=np.float32)
    for row, length in enumerate(lengths):
        bias[row, ..., :length] = 0
    result = run_rotary(layers, hidden, bias, first_row=True)
    expected = run_rotary(layers, hidden, bias, first_row=False)[:, :1]
    assert _distance(result, expected.astype(np.float64)) < 0.01


@in_each_set
@pytest.mark.parametrize("first_row", [False, True])
def test_a_sequence_with_rotary_positions_is_the_same_to_the_bit_in_every_batch(first_row: bool) -> None:
    layers, lengths = rotary_layers(64), (1, 2, 13, 31, 33, 70, 150)
    sequences = [states(length, 64, seed=length) for length in lengths]
    longest = max(lengths) + 3
    hidden = states(len(lengths), longest, 64, seed=99)
    bias = np.full((len(lengths), 1, 1, longest), _MASKED, np.float32)
    for row, sequence in enumerate(sequences):
        hidden[row, : len(sequence)] = sequence
        bias[row, ..., : len(sequence)] = 0
    together = run_rotary(layers, hidden, bias, first_row=first_row)
    for row, sequence in enumerate(sequences):
        count = len(sequence)
        alone = run_rotary(layers, sequence[None], np.zeros((1, 1, 1, count), np.float32), first_row=first_row)[0]
        np.testing.assert_array_equal(together[row, : len(alone)], alone)


@in_each_set
@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize("length", [512, 513, 1100])
def test_more_keys_than_a_block_holds_are_one_softmax(size: int, length: int) -> None:
    """Also where a later block has the largest scores, and where all that a query sees lies in one block."""
    layer = ReferenceLayer(width=64, inner=64, size=size)
    hidden, bias = states(1, length, 64), np.zeros((1, 1, length, length), dtype=np.float32)
    bias[..., length - 40 :] = 8
    bias[:, :, 5:100, 520:] = _MASKED
    bias[:, :, 200:300, :515] = -np.inf
    bias[:, :, 200:300, 510] = 0
    difference = np.abs(run([layer], hidden, bias)[0] - layer.forward(hidden[0], bias[0, 0], exact=True))
    assert np.median(difference) < 2e-3
    assert difference.max() < 0.1


def test_a_window_wider_than_a_block_of_keys_is_kept() -> None:
    layer, length = RotaryLayer(width=64, inner=64, size=64, window=700), 1600
    hidden, bias = states(1, length, 64), np.zeros((1, 1, 1, length), dtype=np.float32)
    expected = layer.step(hidden[0], hidden[0], bias[0, 0])[1]
    difference = np.abs(run([layer], hidden, bias)[0] - expected)
    assert np.median(difference) < 1e-2
    assert difference.max() < 0.2


_PEAKS = """
from resource import RUSAGE_SELF, getrusage
import numpy as np
from tests.unit.engines.test_kernels import ReferenceLayer, RotaryLayer, states
kinds = ReferenceLayer(width=64, inner=64, size=64), RotaryLayer(width=64, inner=64, size=64, window=64)
for layer in kinds:
    compiled = layer.compiled()
    for length in (1024, 8192):
        hidden, bias = states(1, length, 64), np.zeros((1, 1, 1, length), dtype=np.float32)
        assert np.isfinite(kernels.Layers([compiled]).forward(hidden, bias)).all()
        print(getrusage(RUSAGE_SELF).ru_maxrss * 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux counts the peak in KiB")
def test_attention_of_8192_tokens_needs_no_memory_for_their_square() -> None:
    """Scores of all queries and keys would take 256 MiB."""
    script = f"from rerankd.engines.onnx import kernels{_PEAKS}"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=300)
    at_1024, *others = map(int, ran.stdout.split())
    assert max(others) - at_1024 < 8192 * 8192


def test_threads_share_rotary_positions_of_any_length() -> None:
    layers = [layer.compiled() for layer in rotary_layers()]
    inputs = [states(1, length, 64, seed=length) for length in (300, 5, 120, 600, 40, 900)]
    biases = [np.zeros((1, 1, 1, one.shape[1]), dtype=np.float32) for one in inputs]
    expected = [run(rotary_layers(), *given) for given in zip(inputs, biases, strict=True)]
    compiled = kernels.Layers(layers)
    with ThreadPoolExecutor(6) as pool:
        results = pool.map(lambda given: compiled.forward(given[0].copy(), given[1]), zip(inputs, biases, strict=True))
        for result, wanted in zip(results, expected, strict=True):
            np.testing.assert_array_equal(result, wanted)


def test_what_rotary_positions_and_windows_do_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="frequencies: expected one for each pair"):
        kernels.Rotary(np.ones(15, dtype=np.float32))
    layer = RotaryLayer(width=64, inner=64, size=64)
    layer.frequencies = np.ones(16, dtype=np.float32)
    with pytest.raises(ValueError, match="another head size"):
        layer.compiled()
    with pytest.raises(ValueError, match="different kinds of norms"):
        kernels.Layers([SMALL.compiled(), RotaryLayer(width=64, inner=64, size=64).compiled()])
    for settings, message in (({"window": 3}, "a window only with rotary"), ({"pre_norm": True}, "pre-norm only")):
        plain = ReferenceLayer(width=64, inner=64, size=64)
        plain.settings = lambda settings=settings: settings  # type: ignore[method-assign,misc]
        with pytest.raises(ValueError, match=message):
            plain.compiled(first_row=True)


def test_what_no_other_token_sees_is_no_padding_as_long_as_it_sees_itself() -> None:
    """As the last token of a text that is read from left to right."""
    bias = np.where(np.tri(24, dtype=bool), 0, _MASKED).astype(np.float32)
    hidden = states(1, 24, 64)
    expected = SMALL.forward(hidden[0], bias)
    assert np.median(np.abs(run([SMALL], hidden, bias[None, None])[0] - expected)) < 5e-6


@in_each_set
def test_a_token_that_may_see_nothing_gets_numbers_all_the_same() -> None:
    bias = np.full((1, 1, 9, 9), _MASKED, dtype=np.float32)
    assert np.isfinite(run([SMALL], states(1, 9, 64), bias)).all()


def test_threads_do_not_disturb_each_other() -> None:
    compiled = kernels.Layers([SMALL.compiled()])
    inputs = [states(3, length, 64, seed=length) for length in range(1, 60)]
    biases = [np.zeros((1, 1, 1, one.shape[1]), dtype=np.float32) for one in inputs]
    expected = [run([SMALL], *given) for given in zip(inputs, biases, strict=True)]

    def forward(given: tuple[FloatArray, FloatArray]) -> FloatArray:
        return compiled.forward(given[0].copy(), given[1])

    with ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            for result, wanted in zip(pool.map(forward, zip(inputs, biases, strict=True)), expected, strict=True):
                np.testing.assert_array_equal(result, wanted)


@pytest.mark.parametrize(
    ("hidden", "bias", "message"),
    [
        ((2, 8), (1, 1, 1, 8), r"hidden: expected shape \[sequences, length, width\]"),
        ((2, 8, 32), (1, 1, 1, 8), "hidden: expected shape"),
        ((0, 8, 64), (1, 1, 1, 8), "hidden: expected shape"),
        ((1, 16385, 64), (1, 1, 1, 16385), "at most 16384 tokens per sequence"),
        ((2, 8, 64), (1, 1, 8), r"bias: expected shape \[sequences or 1, 1, length or 1, length\]"),
        ((2, 8, 64), (3, 1, 1, 8), "bias: expected shape"),
        ((2, 8, 64), (1, 2, 1, 8), "bias: expected shape"),
        ((2, 8, 64), (1, 1, 7, 8), "bias: expected shape"),
        ((2, 8, 64), (1, 1, 1, 1), "bias: expected shape"),
    ],
)
def test_states_of_another_shape_are_refused(hidden: tuple[int, ...], bias: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run([SMALL], np.zeros(hidden, dtype=np.float32), np.zeros(bias, dtype=np.float32))


def tables(*rows: int, width: int = 64) -> list[tuple[NDArray[np.int8], FloatArray]]:
    rng = np.random.default_rng(7)
    return [
        (rng.integers(-127, 128, (count, width), dtype=np.int8), rng.uniform(0.001, 0.01, count).astype(np.float32))
        for count in rows
    ]


def layer_norm(width: int = 64) -> kernels.LayerNorm:
    weight, bias = states(width, seed=8), states(width, seed=9)
    return kernels.LayerNorm(weight=weight, bias=bias, epsilon=_EPSILON)


@in_each_set
@pytest.mark.parametrize("width", [64, 384])
@pytest.mark.parametrize(("sequences", "length"), [(1, 1), (1, 3), (3, 7), (4, 128)])
def test_embeddings_are_the_layer_norm_sums_of_rows(width: int, sequences: int, length: int) -> None:
    rng, given = np.random.default_rng(length), tables(1000, 200, 2, width=width)
    rows = [
        rng.integers(0, 1000, (sequences, length)),
        np.arange(length)[None],
        rng.integers(0, 2, (sequences, length)),
    ]
    result = kernels.Embeddings(given, norm=layer_norm(width)).forward(rows)
    sums = sum(
        vectors[at].astype(np.float64) * scales[at][..., None]
        for (vectors, scales), at in zip(given, rows, strict=True)
    )
    apart = sums - sums.mean(axis=-1, keepdims=True)
    deviation = np.sqrt((apart**2).mean(axis=-1, keepdims=True) + _EPSILON)
    expected = apart / deviation * states(width, seed=8) + states(width, seed=9)
    np.testing.assert_allclose(result, expected, atol=1e-5)


@pytest.mark.parametrize("row", [-1, 10])
def test_a_row_that_a_table_has_not_is_refused(row: int) -> None:
    embeddings = kernels.Embeddings(tables(10), norm=layer_norm())
    with pytest.raises(IndexError, match=f"row {row} of a table of 10"):
        embeddings.forward([np.array([[0, row, 1]])])


def test_tables_and_rows_that_do_not_fit_each_other_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one table"):
        kernels.Embeddings([], norm=layer_norm())
    with pytest.raises(ValueError, match=r"expected tables of shape \[rows, 128\]"):
        kernels.Embeddings(tables(10), norm=layer_norm(128))
    embeddings = kernels.Embeddings(tables(10, 10), norm=layer_norm())
    one, two = np.zeros((1, 4), dtype=np.int64), np.zeros((2, 5), dtype=np.int64)
    with pytest.raises(ValueError, match="indices for each table"):
        embeddings.forward([one])
    with pytest.raises(ValueError, match="the same for all tables"):
        embeddings.forward([one, two])
    with pytest.raises(ValueError, match=r"indices: expected shape \[sequences, length\]"):
        embeddings.forward([one, one[0]])


@pytest.mark.parametrize("shape", [(64, 60), (60, 64), (0, 64), (64,)])
def test_weights_of_other_sizes_are_refused(shape: tuple[int, ...]) -> None:
    sizes = np.ones(shape[-1], dtype=np.float32)
    with pytest.raises(ValueError, match="multiples of 64"):
        kernels.Linear(np.zeros(shape, dtype=np.int8), scales=sizes, bias=sizes)


def test_parts_that_do_not_fit_each_other_are_refused() -> None:
    ones = np.ones(64, dtype=np.float32)
    with pytest.raises(ValueError, match="scales: expected a vector of 64"):
        kernels.Linear(np.zeros((64, 64), dtype=np.int8), scales=ones[:-1], bias=ones)
    odd = ReferenceLayer(width=64, inner=128, size=32)
    odd.weights["down"], odd.scales["down"], odd.biases["down"] = np.zeros((192, 64), dtype=np.int8), ones, ones
    with pytest.raises(ValueError, match="do not match"):
        odd.compiled()
    with pytest.raises(ValueError, match="head size must be 32 or 64"):
        ReferenceLayer(width=64, inner=128, size=16).compiled()
    with pytest.raises(ValueError, match="at least one layer"):
        kernels.Layers([])
    with pytest.raises(ValueError, match="only the last layer"):
        kernels.Layers([SMALL.compiled(first_row=True), SMALL.compiled()])
    with pytest.raises(ValueError, match="different widths"):
        kernels.Layers([SMALL.compiled(), ReferenceLayer(width=128, inner=128, size=32).compiled()])
