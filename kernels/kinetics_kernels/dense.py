"""Dense decode attention over a paged KV cache: flash decoding with grouped query heads.

Bytes moved, per request and KV head: each of the n cached tokens is read once, key and value, 2 n D elements,
and serves all G query heads of the group at once; q, the output and the page table (4 bytes a page) are noise
beside it. With 2-byte elements and D = 128 that is 512 bytes a token for 4 G D = 512 G FLOP: at G = 8 eight
FLOP a byte, where an H200 has about 180 to spend. The kernel is a memory stream with a little arithmetic hung
on it, and its limit is n * 512 bytes over the bandwidth.

The kernel knows nothing of sparsity. It attends to the first ``tokens`` tokens of the pages a table names;
`sparse.py` hands it a shorter table per KV head.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kinetics_kernels import checks, configs
from kinetics_kernels.layout import PagedKVCache
from kinetics_kernels.merge import merge

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _fp8_to_fp16(x):
    """The low byte of ``x``."""
    return x.to(tl.uint8).to(tl.float8e4nv, bitcast=True).to(tl.float16)


@triton.jit
def _attend_kernel(
    q_ptr, k_ptr, v_ptr, k_scale_ptr, v_scale_ptr, table_ptr, tokens_ptr, out_ptr, lse_ptr, scale, table_len,
    page_stride, head_stride,
    G: tl.constexpr, GP: tl.constexpr, D: tl.constexpr, PAGE: tl.constexpr, TILE: tl.constexpr,
    PER_HEAD: tl.constexpr, UPCAST: tl.constexpr, PAIRS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    # PAIRS: k and v are fp8 seen as 16-bit words, dimensions 2 i and 2 i + 1. The hardware transposes 16-bit words
    # only, and values need it; even and odd dimensions are unpacked and multiplied apart.
    # grid (B, Hkv, splits): one program serves the G query heads of one KV head over its part of the tokens
    b, h, split = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    row = b * tl.num_programs(1) + h
    table_row = row if PER_HEAD else b  # a selection differs from head to head, a page table does not
    n = tl.load(tokens_ptr + table_row)
    table_ptr += table_row * table_len

    # whole tiles for every split, decided here by the live length: the host never sees it
    part = tl.cdiv(tl.cdiv(n, tl.num_programs(2)), TILE) * TILE
    start = split * part
    stop = tl.minimum(start + part, n)

    W: tl.constexpr = D // 2 if PAIRS else D  # words a row
    g, d, w, c = tl.arange(0, GP), tl.arange(0, D), tl.arange(0, W), tl.arange(0, TILE)
    head = row * G + g  # query heads, (GP,); GP pads the group to the 16 rows of a matrix instruction
    q = tl.load(q_ptr + head[:, None] * D + d[None, :], mask=(g < G)[:, None], other=0.0)  # (GP, D)
    if UPCAST:
        q = q.to(tl.float32)
    if k_scale_ptr is not None:  # fp8: true keys are k * k_scale, true values v * v_scale
        scale *= tl.load(k_scale_ptr + h)
        if q.dtype == tl.bfloat16:
            q = q.to(tl.float16)  # holds fp8 exactly, one instruction for two numbers; to bf16 it is five
    if PAIRS:
        q, q_odd = tl.split(tl.reshape(q, [GP, W, 2]))
        acc_odd = tl.zeros([GP, W], tl.float32)
    peak = tl.full([GP], float("-inf"), tl.float32)  # running maximum of the scores, in powers of two
    total = tl.zeros([GP], tl.float32)  # running sum of 2^(score - peak)
    acc = tl.zeros([GP, W], tl.float32)  # running sum of 2^(score - peak) * value
    for first in tl.range(start, stop, TILE, num_stages=STAGES):
        t = first + c  # (TILE,)
        live = t < stop
        page = tl.load(table_ptr + t // PAGE, mask=live, other=0).to(tl.int64)  # offsets pass 2^31
        at = (page * page_stride + h * head_stride + (t % PAGE) * W)[:, None] + w[None, :]  # (TILE, W)
        k = tl.load(k_ptr + at, mask=live[:, None], other=0.0)
        v = tl.load(v_ptr + at, mask=live[:, None], other=0.0)  # 0 where not live: 0 * NaN would be NaN
        if PAIRS:
            k_odd, v_odd = _fp8_to_fp16(k >> 8), _fp8_to_fp16(v >> 8)
            k, v = _fp8_to_fp16(k), _fp8_to_fp16(v)
        k, v = k.to(q.dtype), v.to(q.dtype)  # exact: from fp8 to 16 bits, or nothing at all
        s = tl.dot(q, tl.trans(k), input_precision="ieee")
        if PAIRS:
            s = tl.dot(q_odd, tl.trans(k_odd), s)
        s *= scale * LOG2_E
        s = tl.where(live[None, :], s, float("-inf"))  # (GP, TILE)
        new_peak = tl.maximum(peak, tl.max(s, 1))
        p, fix = tl.exp2(s - new_peak[:, None]), tl.exp2(peak - new_peak)
        total, peak = total * fix + tl.sum(p, 1), new_peak
        acc = tl.dot(p.to(v.dtype), v, acc * fix[:, None], input_precision="ieee")
        if PAIRS:
            acc_odd = tl.dot(p.to(v.dtype), v_odd, acc_odd * fix[:, None])

    # no tokens: the output is 0 and its log-sum-exp -inf, which merges as nothing
    safe = tl.where(total > 0, total, 1.0)
    part_of = head * tl.num_programs(2) + split
    if PAIRS:
        acc = tl.interleave(acc, acc_odd)
    out = acc / safe[:, None]
    if v_scale_ptr is not None:
        out *= tl.load(v_scale_ptr + h)
    out = out.to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + part_of[:, None] * D + d[None, :], out, mask=(g < G)[:, None])
    tl.store(lse_ptr + part_of, (peak + tl.log2(safe)) / LOG2_E, mask=g < G)


def attend(
    q: Tensor, cache: PagedKVCache, table: Tensor, tokens: Tensor, *, page_size: int, page_stride: int,
    head_stride: int, scale: float, splits: int | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Output and log-sum-exp of ``q [B, Hq, D]`` over the first ``tokens`` tokens of the pages in ``table``.

    ``table [B, P]`` with ``tokens [B]`` serves all heads; ``table [B, Hkv, P]`` with ``tokens [B, Hkv]`` each
    its own. Strides count elements. The checks are the callers'.
    """
    batch, n_q, head_dim = q.shape
    n_kv, fp8 = cache.n_kv_heads, cache.dtype == checks.FP8
    launch = configs.attend_launch(head_dim, q.dtype, fp8=fp8)
    if splits is None:
        splits = configs.choose_splits(batch * n_kv, table.shape[-1] * page_size, launch.tile, q.device)
    out = torch.empty_like(q)
    lse = torch.empty(batch, n_q, dtype=torch.float32, device=q.device)
    part_out, part_lse = out, lse
    if splits > 1:
        part_out = torch.empty(batch, n_q, splits, head_dim, dtype=torch.float32, device=q.device)
        part_lse = torch.empty(batch, n_q, splits, dtype=torch.float32, device=q.device)
    k, v, pairs = cache.k, cache.v, configs.in_pairs(head_dim, q.dtype, fp8=fp8)
    if pairs:
        k, v = k.view(torch.int16), v.view(torch.int16)
        page_stride, head_stride = page_stride // 2, head_stride // 2
    _attend_kernel[(batch, n_kv, splits)](
        q, k, v, cache.k_scale, cache.v_scale, table, tokens, part_out, part_lse, scale,
        table.shape[-1], page_stride, head_stride, G=n_q // n_kv, GP=checks.MAX_GROUP, D=head_dim,
        PAGE=page_size, TILE=launch.tile, PER_HEAD=table.dim() == 3,
        UPCAST=configs.interpreted() and q.dtype == torch.bfloat16 and not fp8, PAIRS=pairs, STAGES=launch.stages,
        num_warps=launch.warps, num_stages=launch.stages,
    )  # fmt: skip
    if splits > 1:
        merge(part_out, part_lse, out, lse)
    return out, lse


def dense_decode(
    q: Tensor, cache: PagedKVCache, *, scale: float | None = None, splits: int | None = None,
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:  # fmt: skip
    """One decode step of exact attention over everything in the cache.

    ``q [B, Hq, D]``, Hq a multiple (up to 16) of the cache's KV heads. ``scale``: 1 / sqrt(D) unless given.
    ``splits``: programs that share one request and KV head; chosen from the shapes unless given. Returns
    ``[B, Hq, D]``, zero for a request of length 0; with ``return_lse`` also the natural log-sum-exp of the
    scaled scores, fp32 ``[B, Hq]``, ``-inf`` there.
    """
    cache.check_query(q)
    if splits is not None:
        checks.whole("splits", splits, 1)
    if cache.debug:
        cache.check()
    out, lse = attend(
        q, cache, cache.page_table, cache.lengths, page_size=cache.page_size,
        page_stride=cache.k.stride(0), head_stride=cache.k.stride(1),
        scale=checks.softmax_scale(scale, cache.head_dim), splits=splits,
    )  # fmt: skip
    return (out, lse) if return_lse else out
