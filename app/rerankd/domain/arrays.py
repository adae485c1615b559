"""The element types of the arrays that go through the service."""

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]
NameArray = NDArray[np.object_]
SpanArray = NDArray[np.object_]
