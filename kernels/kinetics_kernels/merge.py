"""Join partial attention outputs by their log-sum-exps.

Attention over a union of token sets is the mean of the outputs over the sets, weighted by exp(lse). Bytes
moved: per query head, S partial outputs in fp32, 4 S D, written and read again. A split is never shorter than
4 tiles, so that this stays below a few per cent of the keys and values.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _merge_kernel(part_ptr, part_lse_ptr, out_ptr, lse_ptr, S, SP: tl.constexpr, D: tl.constexpr):
    # grid (B * Hq,): one program per query head; SP pads the S splits to a power of two
    row = tl.program_id(0).to(tl.int64)
    s, d = tl.arange(0, SP), tl.arange(0, D)
    lse = tl.load(part_lse_ptr + row * S + s, mask=s < S, other=float("-inf"))  # (SP,)
    top = tl.max(lse, 0)
    top = tl.where(top > float("-inf"), top, 0.0)  # all splits empty
    weight = tl.exp(lse - top)
    total = tl.sum(weight, 0)
    safe = tl.where(total > 0, total, 1.0)
    at = (row * S + s)[:, None] * D + d[None, :]  # (SP, D)
    part = tl.load(part_ptr + at, mask=(s < S)[:, None], other=0.0)
    out = tl.sum(part * weight[:, None], 0) / safe
    tl.store(out_ptr + row * D + d, out.to(out_ptr.dtype.element_ty))
    tl.store(lse_ptr + row, tl.where(total > 0, top + tl.log(safe), float("-inf")))


def merge(part_out: Tensor, part_lse: Tensor, out: Tensor, lse: Tensor) -> None:
    """``part_out [B, Hq, S, D]`` and ``part_lse [B, Hq, S]``, fp32, into ``out [B, Hq, D]``, ``lse [B, Hq]``."""
    batch, n_q, splits, head_dim = part_out.shape
    _merge_kernel[(batch * n_q,)](
        part_out, part_lse, out, lse, splits, SP=triton.next_power_of_2(splits), D=head_dim, num_warps=4
    )
