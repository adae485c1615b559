"""The precision that models are trained and asked in."""

import torch


def in_bfloat16(device: torch.device) -> torch.autocast:
    """A context of bfloat16 where the device computes in it, and of float32 where it would be emulated: on CPUs
    without AVX-512, six times as slow.
    """
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=_computes_bfloat16(device))


def fast_dtype(device: torch.device) -> torch.dtype:
    """The type for a model's weights where nothing is trained: it saves the casts that `in_bfloat16` makes."""
    return torch.bfloat16 if _computes_bfloat16(device) else torch.float32


def _computes_bfloat16(device: torch.device) -> bool:
    return device.type != "cpu" or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())  # noqa: SLF001 - torch asks so
