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
    k_new, v_new, counts, k, v, k_scale, v_scale, mean, low, high, open_sum, table, lengths, table_len,
    max_blocks, n_kv,
    HEADS: tl.constexpr, D: tl.constexpr, PAGE: tl.constexpr, BLOCK: tl.constexpr,
    COUNTS: tl.constexpr, BOUNDS: tl.constexpr,
):  # fmt: skip
    # grid (B,): one program writes one token of all KV heads, so that it alone may move the length on.
    b = tl.program_id(0).to(tl.int64)
    n = tl.load(lengths + b)  # the new token's position
    live = n < table_len * PAGE
    if COUNTS:
        live = live & (tl.load(counts + b) > 0)
    if live:
        h, d = tl.arange(0, HEADS)[:, None], tl.arange(0, D)[None, :]  # (HEADS, 1), (1, D)
        ok = h < n_kv
        head = b * n_kv + h
        page = tl.load(table + b * table_len + n // PAGE).to(tl.int64)
        slot = ((page * n_kv + h) * PAGE + n % PAGE) * D + d
        value = tl.load(v_new + head * D + d, mask=ok, other=0.0)  # (HEADS, D)
        if v_scale is not None:
            value = to_fp8(value.to(tl.float32) / tl.load(v_scale + h, mask=ok, other=1.0))
        tl.store(v + slot, value, mask=ok)
        key = tl.load(k_new + head * D + d, mask=ok, other=0.0)
        if k_scale is not None:
            unit = tl.load(k_scale + h, mask=ok, other=1.0)  # (HEADS, 1)
            key = to_fp8(key.to(tl.float32) / unit)
        tl.store(k + slot, key, mask=ok)
        if k_scale is not None:
            key *= unit  # search keys are those of the keys as stored

        # the block's mean over the tokens it holds so far: an fp32 sum, rounded once
        held = n % BLOCK  # tokens before this one
        old = ok & (held > 0)
        total = key.to(tl.float32) + tl.load(open_sum + head * D + d, mask=old, other=0.0)
        tl.store(open_sum + head * D + d, total, mask=ok)
        at = (head * max_blocks + n // BLOCK) * D + d
        tl.store(mean + at, (total / (held + 1)).to(mean.dtype.element_ty), mask=ok)
        if BOUNDS:
            key = key.to(tl.float32)
            smallest = tl.load(low + at, mask=old, other=float("inf")).to(tl.float32)
            largest = tl.load(high + at, mask=old, other=float("-inf")).to(tl.float32)
            tl.store(low + at, tl.minimum(key, smallest).to(low.dtype.element_ty), mask=ok)
            tl.store(high + at, tl.maximum(key, largest).to(high.dtype.element_ty), mask=ok)
        tl.debug_barrier()  # every warp has read the old length
        tl.store(lengths + b, n + 1)


@triton.jit
def append_prompt_kernel(
    k_new, v_new, counts, k, v, k_scale, v_scale, mean, low, high, open_sum, table, lengths, table_len,
    max_blocks, T,
    D: tl.constexpr, PAGE: tl.constexpr, BLOCK: tl.constexpr, TILE: tl.constexpr,
    BOUNDS: tl.constexpr, REFRESH: tl.constexpr,
):  # fmt: skip
    # grid (B, Hkv, blocks touched): one program finishes one block of one head. It copies the block's new
    # tokens and reads back the ones that were there, so no program waits for another's sum.
    # REFRESH starts at block 0 and copies nothing: all search keys anew from the pages.
    b, h = tl.program_id(0).to(tl.int64), tl.program_id(1)
    n_kv = tl.num_programs(1)
    start = tl.load(lengths + b)
    stop = start
    block = tl.program_id(2)
    if not REFRESH:
        stop = tl.minimum(start + tl.load(counts + b), table_len * PAGE)
        block += start // BLOCK
    first = block * BLOCK
    if first < stop:
        d = tl.arange(0, D)
        if k_scale is not None:
            unit = tl.load(k_scale + h)
        total = tl.zeros([D], tl.float32)
        smallest = tl.full([D], float("inf"), tl.float32)
        largest = tl.full([D], float("-inf"), tl.float32)
        for step in range(0, BLOCK, TILE):
            c = step + tl.arange(0, TILE)
            t = first + c  # positions, (TILE,)
            live = (c < BLOCK) & (t < stop)
            old, new = live & (t < start), live & (t >= start)
            page = tl.load(table + b * table_len + t // PAGE, mask=live, other=0).to(tl.int64)
            slot = ((page * n_kv + h) * PAGE + t % PAGE)[:, None] * D + d[None, :]
            key = tl.load(k + slot, mask=old[:, None], other=0.0)  # (TILE, D)
            if k_scale is not None:
                key = key.to(tl.float32)
            if not REFRESH:
                source = ((b * T + t - start) * n_kv + h)[:, None] * D + d[None, :]
                fresh = tl.load(k_new + source, mask=new[:, None], other=0.0)
                value = tl.load(v_new + source, mask=new[:, None], other=0.0)
                if k_scale is not None:
                    fresh = to_fp8(fresh.to(tl.float32) / unit)
                    value = to_fp8(value.to(tl.float32) / tl.load(v_scale + h))
                tl.store(k + slot, fresh, mask=new[:, None])
                tl.store(v + slot, value, mask=new[:, None])
                key = tl.where(new[:, None], fresh, key)
            key = key.to(tl.float32)
            if k_scale is not None:
                key *= unit
            total += tl.sum(key, 0)
            if BOUNDS:
                smallest = tl.minimum(smallest, tl.min(tl.where(live[:, None], key, float("inf")), 0))
                largest = tl.maximum(largest, tl.max(tl.where(live[:, None], key, float("-inf")), 0))
        head = b * n_kv + h
        at = (head * max_blocks + block) * D + d
        held = tl.minimum(stop - first, BLOCK)
        tl.store(mean + at, (total / held).to(mean.dtype.element_ty))
        if BOUNDS:
            tl.store(low + at, smallest.to(low.dtype.element_ty))
            tl.store(high + at, largest.to(high.dtype.element_ty))
        if held < BLOCK:  # still open: the next step adds to this sum
            tl.store(open_sum + head * D + d, total)
