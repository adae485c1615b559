"""In what precision vectors are compared and kept."""

from collections.abc import Mapping
from typing import Final, Literal

Stored = Literal["float32", "float16"]
# As NumPy writes them, little-endian.
STORED: Final[Mapping[Stored, str]] = {"float32": "<f4", "float16": "<f2"}
