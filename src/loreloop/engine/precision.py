"""On which device and in which numbers an engine computes where the settings leave it open."""

from __future__ import annotations

from typing import Literal

import torch

from loreloop.kernels import bf16_products, isa

Precision = Literal["bf16", "fp32"]
Wanted = Literal["auto", "bf16", "fp32"]


def chosen_device(wanted: str) -> torch.device:
    """`wanted`, or by `auto` a GPU where there is one."""
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(wanted)


def chosen_precision(wanted: Wanted, device: torch.device) -> Precision:
    """`wanted`, or by `auto` bf16 where its products are fast on the device, and fp32 elsewhere."""
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    # Without kernels or tiles the library's products in bf16 can be ten times slower than those in fp32.
    fast = isa.has_tiles() or bf16_products.supports(torch.empty(0, dtype=torch.bfloat16, device=device))
    return "bf16" if fast else "fp32"
