"""The two kernels that append to a paged cache: one token a request, or a prompt block by block.

Bytes moved by one step, per request and KV head with 2-byte elements: the new key and value are read and
written (8 D bytes), the running sum of the open block is read and written in fp32 (8 D), its mean is written
(2 D). At D = 128 that is 2.3 KB, whatever the context and the block size; recomputing the mean from the block
would read up to 2 D bytes for each of its tokens.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kinetics_kernels.fp8 import to_fp8


@triton.jit
def append_step_kernel(
    k_new, v_new, counts, k, v, k_scale, v_scale, mean, low, high, open_sum, table, lengths, max_blocks, n_kv,
    HEADS: tl.constexpr, D: tl.constexpr, PAGE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    # grid (B,): one program writes one token of all KV heads, so that it alone may move the length on; HEADS at a
    # time, as many as its registers hold. counts: None for one token each; low, high: None without bounds.
    b = tl.program_id(0).to(tl.int64)
    table_len = max_blocks * (BLOCK // PAGE)
    n = tl.load(lengths + b)  # the new token's position
    live = n < table_len * PAGE
    if counts is not None:
        live = live & (tl.load(counts + b) > 0)
    if live:
        page = tl.load(table + b * table_len + n // PAGE).to(tl.int64)
        held = n % BLOCK  # tokens of the block before this one
        for first in range(0, n_kv, HEADS):
            h, d = first + tl.arange(0, HEADS)[:, None], tl.arange(0, D)[None, :]  # (HEADS, 1), (1, D)
            ok = h < n_kv  # (HEADS, 1)
            at = (b * n_kv + h) * D + d  # (HEADS, D)
            slot = ((page * n_kv + h) * PAGE + n % PAGE) * D + d  # (HEADS, D)
            value = tl.load(v_new + at, mask=ok, other=0.0)  # (HEADS, D)
            if v_scale is not None:
                value = to_fp8(value.to(tl.float32) / tl.load(v_scale + h, mask=ok, other=1.0))
            tl.store(v + slot, value, mask=ok)
            key = tl.load(k_new + at, mask=ok, other=0.0)  # (HEADS, D)
            if k_scale is not None:
                unit = tl.load(k_scale + h, mask=ok, other=1.0)  # (HEADS, 1)
                key = to_fp8(key.to(tl.float32) / unit)
            tl.store(k + slot, key, mask=ok)
            if k_scale is not None:
                key *= unit  # search keys are those of the keys as stored

            # the block's mean over the tokens it holds so far: an fp32 sum, rounded once
            old = ok & (held > 0)  # (HEADS, 1)
            key = key.to(tl.float32)
            total = key + tl.load(open_sum + at, mask=old, other=0.0)  # (HEADS, D)
            tl.store(open_sum + at, total, mask=ok)
            at = ((b * n_kv + h) * max_blocks + n // BLOCK) * D + d  # (HEADS, D)
            tl.store(mean + at, (total / (held + 1)).to(mean.dtype.element_ty), mask=ok)
            if low is not None:
                smallest = tl.load(low + at, mask=old, other=float("inf")).to(tl.float32)  # (HEADS, D)
                largest = tl.load(high + at, mask=old, other=float("-inf")).to(tl.float32)  # (HEADS, D)
                tl.store(low + at, tl.minimum(key, smallest).to(low.dtype.element_ty), mask=ok)
                tl.store(high + at, tl.maximum(key, largest).to(high.dtype.element_ty), mask=ok)
        tl.debug_barrier()  # every warp has read the old length
        tl.store(lengths + b, n + 1)


@triton.jit
def _copy_tokens(k_new, v_new, k, v, k_scale, v_scale, source, slot, new, h):
    """Store new keys and values where ``new (TILE,)``; returns the keys ``(TILE, D)`` as they are stored."""
    key = tl.load(k_new + source, mask=new[:, None], other=0.0)  # (TILE, D)
    value = tl.load(v_new + source, mask=new[:, None], other=0.0)  # (TILE, D)
    if k_scale is not None:
        key = to_fp8(key.to(tl.float32) / tl.load(k_scale + h))
        value = to_fp8(value.to(tl.float32) / tl.load(v_scale + h))
    tl.store(k + slot, key, mask=new[:, None])
    tl.store(v + slot, value, mask=new[:, None])
    return key


@triton.jit
def append_prompt_kernel(
    k_new, v_new, counts, k, v, k_scale, v_scale, mean, low, high, open_sum, table, lengths, max_blocks, blocks, T,
    D: tl.constexpr, PAGE: tl.constexpr, BLOCK: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    # grid (B * blocks touched, Hkv): one program finishes one block of one head. It copies the block's new
    # tokens and reads back the ones that were there, so no program waits for another's sum.
    # Without k_new (v_new, counts and T then are None, too) it begins at block 0: all search keys anew from the pages.
    b, h, n_kv = (tl.program_id(0) // blocks).to(tl.int64), tl.program_id(1), tl.num_programs(1)
    table_len = max_blocks * (BLOCK // PAGE)
    start = tl.load(lengths + b)
    stop = start
    block = tl.program_id(0) % blocks
    if k_new is not None:
        stop = tl.minimum(start + tl.load(counts + b), table_len * PAGE)
        block += start // BLOCK
    first = block * BLOCK
    if first < stop:
        d = tl.arange(0, D)  # (D,)
        total = tl.zeros([D], tl.float32)  # (D,)
        smallest = tl.full([D], float("inf"), tl.float32)  # (D,)
        largest = tl.full([D], float("-inf"), tl.float32)  # (D,)
        for step in range(0, BLOCK, TILE):
            c = step + tl.arange(0, TILE)  # (TILE,)
            t = first + c  # (TILE,): positions
            live = (c < BLOCK) & (t < stop)  # (TILE,)
            old, new = live & (t < start), live & (t >= start)  # (TILE,)
            page = tl.load(table + b * table_len + t // PAGE, mask=live, other=0).to(tl.int64)  # (TILE,)
            slot = ((page * n_kv + h) * PAGE + t % PAGE)[:, None] * D + d[None, :]  # (TILE, D)
            key = tl.load(k + slot, mask=old[:, None], other=0.0).to(tl.float32)  # (TILE, D)
            if k_new is not None:
                source = ((b * T + t - start) * n_kv + h)[:, None] * D + d[None, :]  # (TILE, D)
                fresh = _copy_tokens(k_new, v_new, k, v, k_scale, v_scale, source, slot, new, h)  # (TILE, D)
                key = tl.where(new[:, None], fresh.to(tl.float32), key)
            if k_scale is not None:
                key *= tl.load(k_scale + h)
            total += tl.sum(key, 0)
            if low is not None:
                smallest = tl.minimum(smallest, tl.min(tl.where(live[:, None], key, float("inf")), 0))
                largest = tl.maximum(largest, tl.max(tl.where(live[:, None], key, float("-inf")), 0))
        head = b * n_kv + h
        at = (head * max_blocks + block) * D + d  # (D,)
        held = tl.minimum(stop - first, BLOCK)
        tl.store(mean + at, (total / held).to(mean.dtype.element_ty))
        if low is not None:
            tl.store(low + at, smallest.to(low.dtype.element_ty))
            tl.store(high + at, largest.to(high.dtype.element_ty))
        if held < BLOCK:  # still open: the next step adds to this sum
            tl.store(open_sum + head * D + d, total)
