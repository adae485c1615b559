"""The extension module that module.cpp defines."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rerankd.domain import FloatArray

# A bias at or below this masks a key.
MASKED: float

def instruction_sets() -> list[str]:
    """Those that were compiled and that this CPU has, the fastest last. Empty if it has none."""

def instruction_set() -> str:
    """The one of everything that is made from now on; the fastest if none was chosen.

    Raises:
        ValueError: this CPU has none.
    """

def use_instruction_set(name: str) -> None:
    """Choose the one of everything that is made from now on, in this process.

    Raises:
        ValueError: it was not compiled, or this CPU does not have it.
    """

def lanes() -> int:
    """Floats per register of the chosen instruction set. Sets with as many give the same results to the bit."""

def peak(steps: int) -> int:
    """Run int8 multiply-adds on registers and nothing else. Returns their number."""

class Linear:
    """A linear layer: int8 weights of shape [in, out], both multiples of 64, and a scale and a bias per column."""

    def __init__(self, weights: NDArray[np.int8], *, scales: FloatArray, bias: FloatArray) -> None: ...

class LayerNorm:
    def __init__(self, *, weight: FloatArray, bias: FloatArray, epsilon: float) -> None: ...

class Embeddings:
    """Layer norm of the sum of one vector from each table: int8 vectors of shape [rows, width], and a scale per row.

    Raises:
        ValueError: sizes that do not match, or a CPU that has no instruction set of the kernels.
    """

    def __init__(self, tables: Sequence[tuple[NDArray[np.int8], FloatArray]], *, norm: LayerNorm) -> None: ...
    def forward(self, indices: Sequence[NDArray[np.int64]]) -> FloatArray:
        """Hidden states of shape [sequences, length, width]. `indices` are row numbers for each table, of shape
        [sequences or 1, length]. Runs on the calling thread without the GIL.

        Raises:
            IndexError: a table has no such row.
        """

class Rotary:
    """Rotary positions (Su et al., arXiv:2104.09864): the angle per token of number i and the one half a head further.
    Layers may share them.
    """

    def __init__(self, frequencies: FloatArray) -> None: ...

class Layer:
    """An encoder layer with heads of 32 or 64. `score_scale` is the factor of QK^T. With `first_row` the output is the
    first token of each sequence only, which is allowed for the last layer. The feed-forward network is gated where `up`
    has twice as many columns as `down` has rows: GELU of the first half, times the second.

    With `pre_norm` residuals skip the norms. `attention_norm` still is the one before the feed-forward network, and
    `output_norm` the one before the next layer's attention, or of the result. The first layer's input is normalized
    already. A query sees keys that are at most `window` tokens away. With `first_row` these two need rotary positions.
    """

    def __init__(
        self,
        *,
        query_key_value: Linear,
        output: Linear,
        up: Linear,
        down: Linear,
        attention_norm: LayerNorm,
        output_norm: LayerNorm,
        heads: int,
        score_scale: float,
        first_row: bool = False,
        pre_norm: bool = False,
        rotary: Rotary | None = None,
        window: int | None = None,
    ) -> None: ...

class Layers:
    """Consecutive layers.

    Raises:
        ValueError: sizes or instruction sets that do not match.
    """

    def __init__(self, layers: Sequence[Layer]) -> None: ...
    def forward(self, hidden: FloatArray, bias: FloatArray) -> FloatArray:
        """Apply the layers to hidden states of shape [sequences, length, width], which are overwritten. The result has
        the same shape, or [sequences, 1, width]. `bias` of shape [sequences or 1, 1, length or 1, length] is added to
        the attention scores. Runs on the calling thread without the GIL.
        """
