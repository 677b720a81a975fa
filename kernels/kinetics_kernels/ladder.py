"""From a loop to a kernel: dense decode attention written four times, each time for one more reason.

For teaching and for tests; nothing that is timed calls it. Of n cached tokens in 2-byte elements a program reads 4 n D
bytes: for one query head, then for a whole group, then a part of them, then those in pages (and their page numbers).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kinetics_kernels import checks

TILE = tl.constexpr(64)  # tokens a turn of the loop
ROWS = tl.constexpr(checks.MAX_GROUP)  # of one matrix instruction: a group of query heads is padded to them


@triton.jit
def one_query_kernel(q_ptr, k_ptr, v_ptr, out_ptr, scale, n, G: tl.constexpr, D: tl.constexpr):
    # grid (B * Hq,): one program a query head
    head = tl.program_id(0).to(tl.int64)
    d, c = tl.arange(0, D), tl.arange(0, TILE)  # (D,), (TILE,)
    q = tl.load(q_ptr + head * D + d).to(tl.float32)  # (D,)
    peak, total = tl.full([1], float("-inf"), tl.float32), tl.zeros([1], tl.float32)  # (1,), (1,)
    acc = tl.zeros([D], tl.float32)  # (D,)
    for first in range(0, n, TILE):
        t = first + c  # (TILE,), tokens
        at = (head // G * n + t)[:, None] * D + d[None, :]  # (TILE, D)
        k = tl.load(k_ptr + at, mask=(t < n)[:, None], other=0.0).to(tl.float32)  # (TILE, D)
        v = tl.load(v_ptr + at, mask=(t < n)[:, None], other=0.0).to(tl.float32)  # (TILE, D)
        s = tl.where(t < n, tl.sum(q[None, :] * k, 1) * scale, float("-inf"))  # (TILE,)
        top = tl.maximum(peak, tl.max(s, 0))  # (1,), the largest score so far
        p, fix = tl.exp(s - top), tl.exp(peak - top)  # (TILE,), (1,)
        peak, total = top, total * fix + tl.sum(p, 0)  # (1,), (1,)
        acc = acc * fix + tl.sum(p[:, None] * v, 0)  # (D,)
    tl.store(out_ptr + head * D + d, (acc / total).to(out_ptr.dtype.element_ty))


@triton.jit
def begin(q_ptr, row, G: tl.constexpr, D: tl.constexpr):
    # the query heads of a group as the rows of one matrix, and a softmax of nothing yet
    g, d = tl.arange(0, ROWS)[:, None], tl.arange(0, D)[None, :]  # (ROWS, 1), (1, D)
    q = tl.load(q_ptr + (row * G + g) * D + d, mask=g < G, other=0.0)  # (ROWS, D), 0 in the rows of padding
    nothing = tl.zeros([ROWS, 1], tl.float32)  # (ROWS, 1)
    return g, q, nothing - float("inf"), nothing, tl.zeros([ROWS, D], tl.float32)


@triton.jit
def fold(q, k_ptr, v_ptr, place, live, scale, peak, total, acc):
    # the tokens at `place` (TILE,), of which `live` (TILE,) exist, into the softmax of all rows
    D: tl.constexpr = q.shape[1]
    at = place[:, None] * D + tl.arange(0, D)[None, :]  # (TILE, D)
    k = tl.load(k_ptr + at, mask=live[:, None], other=0.0)  # (TILE, D)
    v = tl.load(v_ptr + at, mask=live[:, None], other=0.0)  # (TILE, D)
    s = tl.dot(q, tl.trans(k), input_precision="ieee") * scale  # (ROWS, TILE)
    s = tl.where(live[None, :], s, float("-inf"))  # (ROWS, TILE)
    top = tl.maximum(peak, tl.max(s, 1)[:, None])  # (ROWS, 1)
    p, fix = tl.exp(s - top), tl.exp(peak - top)  # (ROWS, TILE), (ROWS, 1)
    acc = tl.dot(p.to(v.dtype), v, acc * fix, input_precision="ieee")  # (ROWS, D)
    return top, total * fix + tl.sum(p, 1)[:, None], acc


@triton.jit
def grouped_kernel(q_ptr, k_ptr, v_ptr, out_ptr, scale, n, G: tl.constexpr, D: tl.constexpr):
    # grid (B * Hkv,): one program a KV head
    row = tl.program_id(0).to(tl.int64)
    g, q, peak, total, acc = begin(q_ptr, row, G, D)
    for first in range(0, n, TILE):
        t = first + tl.arange(0, TILE)  # (TILE,)
        peak, total, acc = fold(q, k_ptr, v_ptr, row * n + t, t < n, scale, peak, total, acc)
    to = (row * G + g) * D + tl.arange(0, D)[None, :]  # (ROWS, D)
    tl.store(out_ptr + to, (acc / total).to(out_ptr.dtype.element_ty), mask=g < G)


@triton.jit
def split_kernel(q_ptr, k_ptr, v_ptr, part_ptr, lse_ptr, scale, n, G: tl.constexpr, D: tl.constexpr):
    # grid (B * Hkv, parts): one program a part of the tokens, in whole tiles
    row, part, parts = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.num_programs(1)
    g, q, peak, total, acc = begin(q_ptr, row, G, D)
    size = tl.cdiv(tl.cdiv(n, TILE), parts) * TILE
    stop = tl.minimum((part + 1) * size, n)
    for first in range(part * size, stop, TILE):
        t = first + tl.arange(0, TILE)  # (TILE,)
        peak, total, acc = fold(q, k_ptr, v_ptr, row * n + t, t < stop, scale, peak, total, acc)
    total = tl.where(total > 0, total, 1.0)  # no tokens left for this part: its log-sum-exp is -inf
    to = (row * G + g) * parts + part  # (ROWS, 1)
    tl.store(part_ptr + to * D + tl.arange(0, D)[None, :], acc / total, mask=g < G)
    tl.store(lse_ptr + to, peak + tl.log(total), mask=g < G)


@triton.jit
def merge_kernel(part_ptr, lse_ptr, out_ptr, parts, PP: tl.constexpr, D: tl.constexpr):
    # grid (B * Hq,): one program a query head; PP pads its parts to a power of two
    head = tl.program_id(0).to(tl.int64)
    i, d = tl.arange(0, PP)[:, None], tl.arange(0, D)[None, :]  # (PP, 1), (1, D)
    lse = tl.load(lse_ptr + head * parts + i, mask=i < parts, other=float("-inf"))  # (PP, 1)
    weight = tl.exp(lse - tl.max(lse))  # (PP, 1)
    part = tl.load(part_ptr + (head * parts + i) * D + d, mask=i < parts, other=0.0)  # (PP, D)
    out = tl.sum(part * weight, 0) / tl.sum(weight)  # (D,)
    tl.store(out_ptr + head * D + tl.arange(0, D), out.to(out_ptr.dtype.element_ty))


@triton.jit
def paged_kernel(
    q_ptr, k_ptr, v_ptr, out_ptr, table_ptr, lengths_ptr, scale, n_kv, width,
    G: tl.constexpr, D: tl.constexpr, PAGE: tl.constexpr,
):  # fmt: skip
    # grid (B * Hkv,): as `grouped_kernel`, for requests of any length, `width` page numbers each
    row = tl.program_id(0).to(tl.int64)
    g, q, peak, total, acc = begin(q_ptr, row, G, D)
    n = tl.load(lengths_ptr + row // n_kv)
    for first in range(0, n, TILE):
        t = first + tl.arange(0, TILE)  # (TILE,)
        page = tl.load(table_ptr + row // n_kv * width + t // PAGE, mask=t < n, other=0)  # (TILE,)
        place = (page.to(tl.int64) * n_kv + row % n_kv) * PAGE + t % PAGE  # (TILE,)
        peak, total, acc = fold(q, k_ptr, v_ptr, place, t < n, scale, peak, total, acc)
    acc /= tl.where(total > 0, total, 1.0)  # a request without tokens gives 0
    to = (row * G + g) * D + tl.arange(0, D)[None, :]  # (ROWS, D)
    tl.store(out_ptr + to, acc.to(out_ptr.dtype.element_ty), mask=g < G)


def attend(rung: str, q: Tensor, k: Tensor, v: Tensor, table: Tensor | None = None, lengths: Tensor | None = None,
           parts: int = 4) -> Tensor:  # fmt: skip
    """Attention ``[B, Hq, D]`` of ``q [B, Hq, D]`` by a rung: "one query", "grouped", "split" or "paged".

    ``k, v [B, Hkv, n, D]`` hold n >= 1 tokens of each request; for "paged" ``[pages, Hkv, page, D]``, with int32
    ``table [B, pages]`` and ``lengths [B]``. ``parts``: of a split. ValueError for another dtype than fp16 and fp32.
    """
    checks.require(q.dtype in (torch.float16, torch.float32), "q must be of fp16 or fp32", q.dtype)
    (batch, n_q, dim), (n_kv, n), scale, out = q.shape, k.shape[1:3], q.shape[2] ** -0.5, torch.empty_like(q)
    group = {"G": checks.query(q, n_kv), "D": dim}
    if rung == "one query":
        one_query_kernel[(batch * n_q,)](q, k, v, out, scale, n, **group)
    elif rung == "grouped":
        grouped_kernel[(batch * n_kv,)](q, k, v, out, scale, n, **group)
    elif rung == "split":
        part, lse = (q.new_empty(batch, n_q, parts, width, dtype=torch.float32) for width in (dim, 1))
        split_kernel[(batch * n_kv, parts)](q, k, v, part, lse, scale, n, **group)
        merge_kernel[(batch * n_q,)](part, lse, out, parts, PP=triton.next_power_of_2(parts), D=dim)
    else:
        checks.require(rung == "paged", "rung must be one query, grouped, split or paged", rung)
        paged_kernel[(batch * n_kv,)](
            q, k, v, out, table, lengths, scale, n_kv, table.shape[1], PAGE=n, **group
        )
    return out
