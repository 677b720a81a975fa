"""Dense decode attention over a paged KV cache: flash decoding with grouped query heads.

Bytes moved, per request and KV head: each of the n cached tokens is read once, key and value, 2 n D elements,
and serves all G query heads of the group at once; q, the output and the page table (4 bytes a page) are noise
beside it. With 2-byte elements and D = 128 that is 512 bytes a token for 4 G D = 512 G FLOP: at G = 8 eight
FLOP a byte, where an H200 has about 180 to spend. The kernel is a memory stream with a little arithmetic hung
on it, and its limit is n * 512 bytes over the bandwidth.

The kernel knows nothing of sparsity. It attends to the first ``tokens`` tokens of the pages a table names;
`sparse.py` hands it a shorter table per KV head. Nor does it share out work: each program takes one part of
`work.py`'s list.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kinetics_kernels import checks, configs
from kinetics_kernels.layout import PagedKVCache
from kinetics_kernels.work import LOG2_E, join_parts, list_parts, log_sum_exp, softmax_step


@triton.jit
def _take_item(item_ptr, tokens_ptr, item, h, n_kv, PER_HEAD: tl.constexpr):
    """Request, row of the page table, first token and end of an item."""
    item_ptr += (1 + item) * 4
    b = tl.load(item_ptr).to(tl.int64)
    row = b * n_kv + h if PER_HEAD else b  # a selection differs from head to head, a page table does not
    return b, row, tl.load(item_ptr + 1), tl.minimum(tl.load(item_ptr + 2), tl.load(tokens_ptr + row))


@triton.jit
def _rows(table_ptr, t, live, h, page_stride, head_stride, PAGE: tl.constexpr, W: tl.constexpr):
    """Where the rows of ``W`` numbers of tokens ``t (TILE,)`` lie, ``(TILE, W)``."""
    page = tl.load(table_ptr + t // PAGE, mask=live, other=0).to(tl.int64)  # (TILE,); offsets pass 2^31
    return (page * page_stride + h * head_stride + (t % PAGE) * W)[:, None] + tl.arange(0, W)[None, :]


@triton.jit
def _store(
    out, peak, total, item_ptr, out_ptr, lse_ptr, part_ptr, part_lse_ptr, item, h, n_kv, G: tl.constexpr
):
    """A whole request's output ``(GP, D)`` and log-sum-exp ``(GP,)``, or a part's in fp32 among the others.

    Without tokens they are 0 and -inf, which merges as nothing.
    """
    item_ptr += (1 + item) * 4
    g, d = tl.arange(0, out.shape[0]), tl.arange(0, out.shape[1])  # (GP,), (D,)
    head, ok, n_q = h * G + g, g < G, n_kv * G  # (GP,), (GP,)
    lse = log_sum_exp(peak, total)  # (GP,)
    out = out / tl.where(total == 0, 1.0, total)[:, None]  # (GP, D)
    if tl.load(item_ptr + 3) == 1:
        row = tl.load(item_ptr).to(tl.int64) * n_q + head  # (GP,)
        out_at = out_ptr + row[:, None] * out.shape[1] + d[None, :]  # (GP, D)
        tl.store(out_at, out.to(out_ptr.dtype.element_ty), mask=ok[:, None])
        tl.store(lse_ptr + row, lse, mask=ok)
    else:
        row = item.to(tl.int64) * n_q + head  # (GP,)
        tl.store(part_ptr + row[:, None] * out.shape[1] + d[None, :], out, mask=ok[:, None])
        tl.store(part_lse_ptr + row, lse, mask=ok)


@triton.jit(do_not_specialize=["n_kv"])
def _attend_kernel(
    q_ptr, k_ptr, v_ptr, k_scale_ptr, v_scale_ptr, table_ptr, tokens_ptr, item_ptr, out_ptr, lse_ptr, part_ptr,
    part_lse_ptr, scale, n_kv, table_len, page_stride, head_stride,
    G: tl.constexpr, GP: tl.constexpr, D: tl.constexpr, PAGE: tl.constexpr, TILE: tl.constexpr,
    PER_HEAD: tl.constexpr, UPCAST: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    # grid (items at most * Hkv,): one program serves the G query heads of one KV head over one part of the tokens
    item, h = tl.program_id(0) // n_kv, tl.program_id(0) % n_kv
    if item >= tl.load(item_ptr):
        return
    b, table_row, start, stop = _take_item(item_ptr, tokens_ptr, item, h, n_kv, PER_HEAD)
    table_ptr += table_row * table_len
    g, d, c = tl.arange(0, GP), tl.arange(0, D), tl.arange(0, TILE)  # (GP,), (D,), (TILE,)
    q_at = ((b * n_kv + h) * G + g)[:, None] * D + d[None, :]  # (GP, D); GP pads G to the rows of a matrix
    q = tl.load(q_ptr + q_at, mask=(g < G)[:, None], other=0.0)  # (GP, D)
    if UPCAST:
        q = q.to(tl.float32)
    if k_scale_ptr is not None:  # fp8: true keys are k * k_scale, true values v * v_scale
        scale *= tl.load(k_scale_ptr + h)
        if q.dtype == tl.bfloat16:
            q = q.to(tl.float16)  # holds fp8 exactly, one instruction for two numbers; to bf16 it is five
    peak = tl.full([GP], float("-inf"), tl.float32)  # (GP,): running maximum of the scores, in powers of two
    total = tl.zeros([GP], tl.float32)  # (GP,): running sum of 2^(score - peak)
    acc = tl.zeros([GP, D], tl.float32)  # (GP, D): running sum of 2^(score - peak) * value
    for first in tl.range(start, stop, TILE, num_stages=STAGES):
        t = first + c  # (TILE,)
        live = t < stop  # (TILE,)
        at = _rows(table_ptr, t, live, h, page_stride, head_stride, PAGE, D)  # (TILE, D)
        k = tl.load(k_ptr + at, mask=live[:, None], other=0.0).to(q.dtype)  # (TILE, D); exact from fp8
        v = tl.load(v_ptr + at, mask=live[:, None], other=0.0).to(q.dtype)  # 0 where not live: 0 * NaN is NaN
        s = tl.dot(q, tl.trans(k), input_precision="ieee") * (scale * LOG2_E)  # (GP, TILE)
        s = tl.where(live[None, :], s, float("-inf"))
        p, shrink, peak, total = softmax_step(s, peak, total)  # (GP, TILE), (GP,), (GP,), (GP,)
        acc = tl.dot(p.to(v.dtype), v, acc * shrink[:, None], input_precision="ieee")
    if v_scale_ptr is not None:
        acc *= tl.load(v_scale_ptr + h)
    _store(acc, peak, total, item_ptr, out_ptr, lse_ptr, part_ptr, part_lse_ptr, item, h, n_kv, G)


@triton.jit
def _low_byte(x):
    """The fp8 number in the low byte of each word, as fp16, which holds it exactly."""
    return x.to(tl.uint8).to(tl.float8e4nv, bitcast=True).to(tl.float16)


@triton.jit(do_not_specialize=["n_kv"])
def _attend_pairs_kernel(
    q_ptr, k_ptr, v_ptr, k_scale_ptr, v_scale_ptr, table_ptr, tokens_ptr, item_ptr, out_ptr, lse_ptr, part_ptr,
    part_lse_ptr, scale, n_kv, table_len, page_stride, head_stride,
    G: tl.constexpr, GP: tl.constexpr, D: tl.constexpr, PAGE: tl.constexpr, TILE: tl.constexpr,
    PER_HEAD: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    # The same over k and v in fp8, seen as 16-bit words: dimensions 2 i and 2 i + 1. The hardware transposes 16-bit
    # words only, and values need it; even and odd dimensions are unpacked and multiplied apart.
    item, h = tl.program_id(0) // n_kv, tl.program_id(0) % n_kv
    if item >= tl.load(item_ptr):
        return
    b, table_row, start, stop = _take_item(item_ptr, tokens_ptr, item, h, n_kv, PER_HEAD)
    table_ptr += table_row * table_len
    W: tl.constexpr = D // 2  # words a row
    g, d, c = tl.arange(0, GP), tl.arange(0, D), tl.arange(0, TILE)  # (GP,), (D,), (TILE,)
    q_at = ((b * n_kv + h) * G + g)[:, None] * D + d[None, :]  # (GP, D)
    q = tl.load(q_ptr + q_at, mask=(g < G)[:, None], other=0.0).to(tl.float16)  # (GP, D)
    q_even, q_odd = tl.split(tl.reshape(q, [GP, W, 2]))  # (GP, W)
    scale *= tl.load(k_scale_ptr + h)
    peak = tl.full([GP], float("-inf"), tl.float32)  # (GP,)
    total = tl.zeros([GP], tl.float32)  # (GP,)
    even, odd = tl.zeros([GP, W], tl.float32), tl.zeros([GP, W], tl.float32)  # (GP, W)
    for first in tl.range(start, stop, TILE, num_stages=STAGES):
        t = first + c  # (TILE,)
        live = t < stop  # (TILE,)
        at = _rows(table_ptr, t, live, h, page_stride, head_stride, PAGE, W)  # (TILE, W)
        k = tl.load(k_ptr + at, mask=live[:, None], other=0)  # (TILE, W) words
        v = tl.load(v_ptr + at, mask=live[:, None], other=0)  # (TILE, W) words
        s = tl.dot(q_even, tl.trans(_low_byte(k)))  # (GP, TILE)
        s = tl.dot(q_odd, tl.trans(_low_byte(k >> 8)), s) * (scale * LOG2_E)
        s = tl.where(live[None, :], s, float("-inf"))
        p, shrink, peak, total = softmax_step(s, peak, total)  # (GP, TILE), (GP,), (GP,), (GP,)
        even = tl.dot(p.to(tl.float16), _low_byte(v), even * shrink[:, None])  # (GP, W)
        odd = tl.dot(p.to(tl.float16), _low_byte(v >> 8), odd * shrink[:, None])
    acc = tl.interleave(even, odd) * tl.load(v_scale_ptr + h)  # (GP, D)
    _store(acc, peak, total, item_ptr, out_ptr, lse_ptr, part_ptr, part_lse_ptr, item, h, n_kv, G)


def attend(
    q: Tensor, cache: PagedKVCache, table: Tensor, tokens: Tensor, *, page_size: int, page_stride: int,
    head_stride: int, scale: float, splits: int | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Output and log-sum-exp of ``q [B, Hq, D]`` over the first ``tokens`` tokens of the pages in ``table``.

    ``table [B, P]`` with ``tokens [B]`` serves all heads; ``table [B, Hkv, P]`` with ``tokens [B, Hkv]`` each
    its own, and no more of them than the request has. Strides count elements. The checks are the callers'.
    """
    batch, n_q, head_dim = q.shape
    n_kv, fp8 = cache.n_kv_heads, cache.dtype == checks.FP8
    tile, warps, stages = configs.attend_launch(head_dim, q.dtype, fp8=fp8)
    kernel, k, v = _attend_kernel, cache.k, cache.v
    how: dict[str, Any] = dict(G=n_q // n_kv, GP=checks.MAX_GROUP, D=head_dim, PAGE=page_size, TILE=tile,
                               PER_HEAD=table.dim() == 3, STAGES=stages, num_warps=warps, num_stages=stages)  # fmt: skip
    if configs.in_pairs(head_dim, q.dtype, fp8=fp8):
        kernel, k, v = _attend_pairs_kernel, k.view(torch.int16), v.view(torch.int16)
        page_stride, head_stride = page_stride // 2, head_stride // 2
    else:
        how["UPCAST"] = configs.interpreted() and q.dtype == torch.bfloat16 and not fp8

    def empty(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=q.device)

    given = (q, k, v, cache.k_scale, cache.v_scale, table, tokens)
    numbers = (scale, n_kv, table.shape[-1], page_stride, head_stride)
    made = (torch.int32, q.dtype, *[torch.float32] * 3)
    resident = configs.resident(kernel, (*given, *made, *numbers), how, q.device)
    room = table.shape[-1] * page_size
    items, cuts = list_parts(cache.lengths, room, tile, n_kv, resident, splits)
    most = len(items) - 1
    out, lse = torch.empty_like(q), empty(batch, n_q)
    part_out, part_lse = empty(most, n_q, head_dim), empty(most, n_q)
    kernel[(most * n_kv,)](*given, items, out, lse, part_out, part_lse, *numbers, **how)
    if most > batch:  # else none can be cut
        join_parts(items, cuts, part_out, part_lse, out, lse)
    return out, lse


def dense_decode(
    q: Tensor, cache: PagedKVCache, *, scale: float | None = None, splits: int | None = None,
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:  # fmt: skip
    """One decode step of exact attention over everything in the cache.

    ``q [B, Hq, D]``, Hq a multiple (up to 16) of the cache's KV heads. ``scale``: 1 / sqrt(D) unless given.
    ``splits``: programs that share one request and KV head; unless given they share the work evenly, by the lengths
    that the GPU finds. (Given, a request's result is the same to the bit in any company.) Returns
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
