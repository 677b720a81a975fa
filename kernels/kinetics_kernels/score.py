"""One score for every block (or token) of the context and every KV head.

The score is the mean over the group of raw logits. That is linear in q, mean_g(q_g . k) = (mean_g q_g) . k, so
that one dot product a search key would do. The tensor cores make all of the group's at no price: they multiply
16 rows at a time, and sum along D inside. (One dot product on the other cores spends a third to a half
of its instructions on that sum: NOTES.md.) Quest's upper bound, the largest logit any key inside the block's box could
have, is linear too once q is split by sign: sum_d max(q_d low_d, q_d high_d) = max(q, 0) . high + min(q, 0) . low.
(A mean of softmaxed scores is not linear; none is taken here.)

Bytes moved, per request and KV head: one mean key per block, 2 D bytes each in a 2-byte dtype, n / block_size
of them (Quest: two), and 4 bytes of score written. Scoring all n tokens reads every key: half of dense
attention.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kinetics_kernels import checks, configs
from kinetics_kernels.layout import PagedKVCache


@triton.jit
def _score_kernel(
    q_ptr, key_ptr, low_ptr, k_scale_ptr, table_ptr, lengths_ptr, score_ptr, scale, table_len, rows,
    G: tl.constexpr, GP: tl.constexpr, D: tl.constexpr, PAGE: tl.constexpr, BLOCK: tl.constexpr,
    TILE: tl.constexpr, CHUNK: tl.constexpr, UPCAST: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    # grid (B, Hkv, rows / CHUNK); rows: search keys a request may reach
    # low_ptr: for Quest, the smallest keys of each block; key_ptr then has the largest
    # table_ptr: the search keys are the cached keys themselves, found through the page table
    b, h = tl.program_id(0).to(tl.int64), tl.program_id(1)
    n_kv = tl.num_programs(1)
    live = tl.cdiv(tl.load(lengths_ptr + b), BLOCK)
    start = tl.program_id(2) * CHUNK
    stop = tl.minimum(start + CHUNK, live)
    if start < stop:
        g, d, c = tl.arange(0, GP), tl.arange(0, D), tl.arange(0, TILE)  # (GP,), (D,), (TILE,)
        q_at = ((b * n_kv + h) * G + g[:, None]) * D + d[None, :]  # (GP, D)
        q = tl.load(q_ptr + q_at, mask=(g < G)[:, None], other=0.0)  # (GP, D)
        if UPCAST:
            q = q.to(tl.float32)
        elif q.dtype == tl.bfloat16 and key_ptr.dtype.element_ty != tl.bfloat16:
            q = q.to(tl.float16)  # an fp8 cache: its search keys are fp16, its tokens exact in it
        if k_scale_ptr is not None:  # the tokens of an fp8 cache; search keys are not scaled
            scale *= tl.load(k_scale_ptr + h)
        if low_ptr is not None:
            q_low = tl.minimum(q, 0.0).to(q.dtype)  # (GP, D)
            q = tl.maximum(q, 0.0).to(q.dtype)  # (GP, D)
        for first in tl.range(start, stop, TILE, num_stages=STAGES):
            i = first + c  # (TILE,)
            ok = i < stop  # (TILE,)
            if table_ptr is not None:
                page = tl.load(table_ptr + b * table_len + i // PAGE, mask=ok, other=0).to(
                    tl.int64
                )  # (TILE,)
                at = ((page * n_kv + h) * PAGE + i % PAGE)[:, None] * D + d[None, :]  # (TILE, D)
            else:
                at = ((b * n_kv + h) * rows + i)[:, None] * D + d[None, :]  # (TILE, D)
            key = tl.load(key_ptr + at, mask=ok[:, None], other=0.0).to(q.dtype)  # (TILE, D)
            s = tl.dot(q, tl.trans(key), input_precision="ieee")  # (GP, TILE), 0 in the rows of padding
            if low_ptr is not None:
                low = tl.load(low_ptr + at, mask=ok[:, None], other=0.0).to(q.dtype)  # (TILE, D)
                s = tl.dot(q_low, tl.trans(low), s, input_precision="ieee")
            score = tl.sum(s, 0) * (scale / G)  # (TILE,)
            tl.store(score_ptr + (b * n_kv + h) * rows + i, score, mask=ok)


def _score(
    q: Tensor, cache: PagedKVCache, key: Tensor, scale: float | None, *, low: Tensor | None = None, tokens: bool = False
) -> Tensor:  # fmt: skip
    group = cache.check_query(q)
    rows = cache.max_tokens if tokens else cache.max_blocks
    out = torch.empty(cache.batch, cache.n_kv_heads, rows, dtype=torch.float32, device=cache.device)
    tile, warps, stages = configs.score_launch(cache.head_dim, quest=low is not None)
    grid = (cache.batch, cache.n_kv_heads, triton.cdiv(rows, configs.SCORE_CHUNK))
    _score_kernel[grid](
        q, key, low, cache.k_scale if tokens else None, cache.page_table if tokens else None, cache.lengths, out,
        checks.softmax_scale(scale, cache.head_dim), cache.page_table.shape[1], rows, G=group, GP=checks.MAX_GROUP,
        D=cache.head_dim, PAGE=cache.page_size, BLOCK=1 if tokens else cache.block_size, TILE=tile,
        CHUNK=configs.SCORE_CHUNK, UPCAST=configs.interpreted() and key.dtype == torch.bfloat16,
        STAGES=stages, num_warps=warps, num_stages=stages,
    )  # fmt: skip
    return out


def score_blocks(q: Tensor, cache: PagedKVCache, *, scale: float | None = None) -> Tensor:
    """Logits of the blocks' mean keys, averaged over the group: fp32 ``[B, Hkv, max_blocks]``.

    Entries beyond a request's live blocks are left unwritten, here and in the other scores.
    """
    return _score(q, cache, cache.key_means, scale)


def score_quest(q: Tensor, cache: PagedKVCache, *, scale: float | None = None) -> Tensor:
    """Quest's upper bounds on the blocks' logits, averaged over the group: fp32 ``[B, Hkv, max_blocks]``."""
    if cache.key_max is None or cache.key_min is None:
        raise ValueError("cache must be made with bounds=True for Quest, got bounds=False")
    return _score(q, cache, cache.key_max, scale, low=cache.key_min)


def score_tokens(q: Tensor, cache: PagedKVCache, *, scale: float | None = None) -> Tensor:
    """Logits of all cached tokens, averaged over the group: fp32 ``[B, Hkv, max_tokens]``."""
    return _score(q, cache, cache.k, scale, tokens=True)
