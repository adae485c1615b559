"""An engine that costs nothing: it pads its batches as others do, and makes up scores.

It also runs under older commits, so it uses of the package only what has long been there.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from rerankd.engines import ENGINES, EngineKind
from rerankd.engines.base import BatchLimits, EngineSpec, pad
from rerankd.tasks.encoding import Encoding


class FreeOptions(BaseModel):
    """It has none."""


class FreeEngine:
    """A score is made of the sum of a sequence's ids, so that it is the same in every batch."""

    name = "free"
    workers = 1
    preferred_batch = BatchLimits(tokens=65_536, pairs=512)

    @classmethod
    def load(cls, _spec: EngineSpec) -> "FreeEngine":
        return cls()

    def run(self, encodings: Sequence[Encoding]) -> NDArray[np.float32]:
        """Shape [sequences, 1]."""
        batch = pad(encodings, pad_id=0)
        scores: NDArray[np.float32] = (batch.input_ids.sum(axis=1, keepdims=True) % 997 / 100).astype(np.float32)
        return scores


def check(_spec: EngineSpec) -> None:
    """Nothing can be wrong."""


def register() -> None:
    """Make it known under the name `free`."""
    ENGINES["free"] = EngineKind(  # type: ignore[index] # a dict, which only this changes
        module="loadtest.free_engine", engine="FreeEngine", options="FreeOptions", tasks=("classify",)
    )
