"""Runs another load test as on a CPU without AMX, so that what it compares uses the same instructions.

    python -m loadtest.without_amx loadtest.kernels --modernbert

ONNX Runtime multiplies int8 by AMX where it can, and has no setting against that. Linux lets a process use AMX only if
it asks for permission. Here a seccomp filter refuses, for this process and all that it starts. x86-64 Linux only.
"""

import ctypes
import errno
import os
import runpy
import struct
import sys
from typing import Final

_NO_NEW_PRIVILEGES, _SET_SECCOMP, _FILTER = 38, 22, 2  # prctl
_ARCH_PRCTL, _REQUEST_PERMISSION = 158, 0x1023
_LOAD, _SKIP_UNLESS_EQUAL, _RETURN = 0x20, 0x15, 0x06
_NUMBER, _FIRST_ARGUMENT = 0, 16  # places in what a filter is given
_ALLOW, _FAIL = 0x7FFF0000, 0x00050000
# Each step of the program: what it does, how many steps it skips if equal and if not, and its operand.
_PROGRAM: Final = (
    (_LOAD, 0, 0, _NUMBER),
    (_SKIP_UNLESS_EQUAL, 0, 3, _ARCH_PRCTL),
    (_LOAD, 0, 0, _FIRST_ARGUMENT),
    (_SKIP_UNLESS_EQUAL, 0, 1, _REQUEST_PERMISSION),
    (_RETURN, 0, 0, _FAIL | errno.EPERM),
    (_RETURN, 0, 0, _ALLOW),
)


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("steps", ctypes.c_void_p))


def refuse_amx() -> None:
    """Refuse AMX to this process from now on. What has it already keeps it.

    Raises:
        OSError: the kernel has no seccomp filters.
    """
    steps = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in _PROGRAM))
    program = _Program(len(_PROGRAM), ctypes.addressof(steps))
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    if prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0) or prctl(_SET_SECCOMP, _FILTER, ctypes.byref(program), 0, 0):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


if __name__ == "__main__":
    refuse_amx()
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
