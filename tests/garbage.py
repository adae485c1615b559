"""What only the garbage collector would free: it comes rarely, and until then memory grows."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def kept_garbage() -> Iterator[list[object]]:
    """What the garbage collector finds, once the context is left."""
    found: list[object] = []
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        yield found
        gc.collect()
        found += gc.garbage
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


def of_ours(garbage: list[object]) -> set[str]:
    """The functions and types of this package in it."""
    frames = {
        found.f_code.co_qualname
        for found in garbage
        if isinstance(found, FrameType) and "/rerankd/" in found.f_code.co_filename
    }
    return frames | {type(found).__qualname__ for found in garbage if type(found).__module__.startswith("rerankd")}
