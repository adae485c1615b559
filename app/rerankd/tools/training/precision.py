"""The precision that models are trained and asked in."""

import torch


def in_bfloat16(device: torch.device) -> torch.autocast:
    """A context of bfloat16 where the device computes in it, and of float32 where it would be emulated: on CPUs
    without AVX-512, six times as slow.
    """
    computes = device.type != "cpu" or torch.ops.mkldnn._is_mkldnn_bf16_supported()  # noqa: SLF001 - torch asks itself so
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=computes)
