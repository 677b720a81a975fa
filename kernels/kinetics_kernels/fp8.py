"""Keys and values in fp8 (e4m3): 1 + 4 + 3 bits, from 2^-9 to 448, with one scale per KV head.

A page stores k / k_scale and v / v_scale. The scale of a head multiplies every logit of that head, and every
number of its output, alike: attention folds one into the softmax scale, the other into the output, and its
loop over the context knows of neither. Bytes moved, per token and KV head: 2 D in place of 4 D.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kinetics_kernels import checks

MAX_SCALE = 128  # 448 * 128 is in the range of fp16, which search keys have


@triton.jit
def to_fp8(x):
    """fp32 ``x`` rounded to a number that fp8 has, still in fp32, so that storing it changes nothing.

    Halfway to even; beyond +-448 the largest; NaN stays. Adding and taking away 1.5 * 2^23 steps rounds to
    whole steps, and a step is an eighth of the power of two below ``x``, at least 2^-9. The interpreter's own
    conversion is wrong next to a power of two.
    """
    x = tl.where(x > 448.0, 448.0, tl.where(x < -448.0, -448.0, x))
    exponent = x.to(tl.int32, bitcast=True) & 0x7F800000
    power = tl.maximum(exponent.to(tl.float32, bitcast=True), 0.015625)
    return (x + power * 1572864.0) - power * 1572864.0


def check_scale(name: str, scale: Tensor, n_kv_heads: int, device: torch.device) -> None:
    """``scale`` must be fp32 ``[Hkv]`` above 0 and at most 128. Reads it back: this waits for the GPU."""
    checks.tensor(name, scale, (n_kv_heads,), torch.float32, device)
    least, most = float(scale.min()), float(scale.max())
    rule = f"{name} must be above 0 and at most {MAX_SCALE}"
    checks.require(least > 0 and most <= MAX_SCALE, rule, f"{least:g} to {most:g}")


def find_scale(name: str, x: Tensor, counts: Tensor | None) -> Tensor:
    """One power of two per head of ``x [B, T, Hkv, D]`` that leaves twice its largest value in range.

    A power of two makes scaling exact and costs a floating-point format no precision; a head of zeros has 1.
    """
    largest = x.float().abs().amax(3)  # [B, T, Hkv]
    if counts is not None:
        beyond = torch.arange(x.shape[1], device=x.device) >= counts[:, None]
        largest = largest.masked_fill(beyond[..., None], 0.0)
    largest = largest.amax((0, 1))
    checks.require(bool(largest.isfinite().all()), f"{name} must be finite to calibrate on", largest.tolist())
    exponent = torch.frexp(largest / 224.0).exponent
    return torch.where(largest > 0, torch.exp2(exponent.double()), 1.0).float()
