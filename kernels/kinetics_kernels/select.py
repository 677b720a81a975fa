"""From scores to pages: an exact, deterministic choice of blocks, and the policies built on it.

Bytes moved, per request and KV head: 4 bytes of score read per live block, 4 bytes written per chosen block
and page. At 512 blocks that is 2 KB beside the 128 KB of mean keys that made the scores: the cost is not
bytes but the search for the k-th largest score. One program holds all scores of its head in registers and
bisects: count the keys at or above a middle, keep the half the k-th lies in. It stops when exactly k are
left, at most 32 rounds (ties) and about half as many on real scores. Nothing is sorted; the chosen blocks
come out in the order of the context. Only then are their pages looked up, by as many threads as there are
chosen blocks.

That order is what lets the attention kernel know nothing of selection. Only the context's last block can be
partly filled, and it comes last, so that a selection is a page table plus a number of tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from kinetics_kernels import checks, configs
from kinetics_kernels.layout import PagedKVCache
from kinetics_kernels.score import score_blocks, score_quest, score_tokens

LOWEST = tl.constexpr(-2147483648)
HIGHEST = tl.constexpr(2147483647)


@triton.jit
def _later(a, b):
    return tl.maximum(a, b)


@triton.jit
def _sort_key(score):
    """fp32 to int32 of the same order: -0 equals 0, and a NaN, which must not hide, stands highest."""
    bits = (score + 0.0).to(tl.int32, bitcast=True)  # (N,); -0 + 0 = 0
    key = bits ^ ((bits >> 31) & HIGHEST)  # (N,); negative floats grow downwards
    return tl.where(score != score, HIGHEST, key)


@triton.jit
def _take_largest(key, ok, total, k):
    """Mask of the k largest keys where ok (k <= total, how many there are); among equals the lowest index."""
    low = tl.min(tl.where(ok, key, HIGHEST), 0)
    key = tl.where(ok, key, LOWEST)  # (N,): which no score has, so that no round need ask who is ok
    high = tl.max(key, 0)
    count = total
    # Always: count keys are >= low, at least k; fewer than k are > high.
    while (low < high) & (count != k):
        middle = (low | high) - ((low ^ high) >> 1)  # rounded up; low + high would overflow
        at_least = tl.sum((key >= middle).to(tl.int32), 0)
        enough = at_least >= k
        low = tl.where(enough, middle, low)
        count = tl.where(enough, at_least, count)
        high = tl.where(enough, high, middle - 1)
    chosen = key >= low  # (N,)
    if count != k:  # the k-th has equals; seldom, and so a branch
        above, equal = key > low, key == low  # (N,)
        wanted = k - tl.sum(above.to(tl.int32), 0)
        chosen = above | (equal & (tl.cumsum(equal.to(tl.int32), 0) <= wanted))
    return chosen


@triton.jit
def _scores_of(score_ptr, i, ok, n, live, SPAN: tl.constexpr, BLOCK: tl.constexpr):
    """Scores of the candidates ``i (N,)``: of blocks, or of windows of SPAN blocks, by the tokens each block holds."""
    if SPAN == 1:
        return tl.load(score_ptr + i, mask=ok, other=0.0)  # (N,)
    rest = n - i * BLOCK  # (N,): tokens from here on
    summed = tl.zeros(i.shape, tl.float32)  # (N,)
    for j in range(SPAN):
        held = tl.maximum(tl.minimum(rest - j * BLOCK, BLOCK), 0).to(tl.float32)  # (N,)
        summed += held * tl.load(score_ptr + i + j, mask=held > 0, other=0.0)
    return summed / tl.maximum(tl.minimum(rest, SPAN * BLOCK), 1).to(tl.float32)


@triton.jit
def _chosen_by_score(
    score_ptr, i, n, live, sink, window, N_BLOCKS: tl.constexpr, SPAN: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Mask ``(N,)`` of the blocks that the N_BLOCKS best candidates cover, and how many candidates were taken.

    A candidate is a window of SPAN blocks from ``i`` on that is not wholly in the sink or the last blocks.
    """
    begin = tl.maximum(sink - SPAN + 1, 0)
    end = tl.minimum(live - window, tl.minimum(live, tl.maximum(live - SPAN, 0) + 1))
    ok = (i >= begin) & (i < end)  # (N,)
    free = tl.maximum(end - begin, 0)
    k = tl.minimum(N_BLOCKS, free)
    chosen = _take_largest(_sort_key(_scores_of(score_ptr, i, ok, n, live, SPAN, BLOCK)), ok, free, k)  # (N,)
    if SPAN > 1:  # a block is read if a chosen window starts less than SPAN blocks before it
        newest = tl.associative_scan(tl.where(chosen, i, -SPAN), 0, _later)  # (N,)
        chosen = i - newest < SPAN
    return chosen, k


@triton.jit
def _write_pages(
    block_ptr, page_ptr, table_ptr, total, K, n_kv, h,
    BLOCK: tl.constexpr, PAGE: tl.constexpr, TOKENS: tl.constexpr, KP: tl.constexpr, SLOTS: tl.constexpr,
):  # fmt: skip
    """Where the first ``total`` of K chosen blocks lie; -1 in what is left over, of the blocks, too."""
    PAGES: tl.constexpr = (BLOCK + PAGE - 1) // PAGE  # per block
    for first in range(0, KP, SLOTS):
        j = first + tl.arange(0, SLOTS)  # (SLOTS,)
        block = tl.load(block_ptr + j, mask=j < total, other=-1)  # (SLOTS,)
        tl.store(block_ptr + j, block, mask=(j >= total) & (j < K))
        for p in range(PAGES):
            page = tl.load(table_ptr + block * BLOCK // PAGE + p, mask=j < total, other=-1)  # (SLOTS,)
            if TOKENS:  # not a page but a row of the cache seen as [pages * Hkv * PAGE, D]
                page = tl.where(j < total, (page * n_kv + h) * PAGE + block % PAGE, -1)
            tl.store(page_ptr + j * PAGES + p, page, mask=j < K)


@triton.jit
def _select_kernel(
    score_ptr, lengths_ptr, table_ptr, block_ptr, page_ptr, tokens_ptr, table_len, rows, sink, window, K,
    N_BLOCKS: tl.constexpr, SPAN: tl.constexpr, BLOCK: tl.constexpr, PAGE: tl.constexpr, TOKENS: tl.constexpr,
    N: tl.constexpr, KP: tl.constexpr, SLOTS: tl.constexpr,
):  # fmt: skip
    # grid (B, Hkv); N pads the rows (search keys a request may reach) to a power of two, KP the K slots
    b, h = tl.program_id(0).to(tl.int64), tl.program_id(1)
    row = b * tl.num_programs(1) + h
    n = tl.load(lengths_ptr + b)
    live = tl.cdiv(n, BLOCK)
    i = tl.arange(0, N)  # (N,)
    chosen, k = i < 0, 0  # (N,)
    if N_BLOCKS > 0:
        chosen, k = _chosen_by_score(score_ptr + row * rows, i, n, live, sink, window, N_BLOCKS, SPAN, BLOCK)
    take = ((i < sink) | (i >= live - window) | chosen) & (i < live)  # (N,)
    taken = take.to(tl.int32)  # (N,)
    total = tl.minimum(live, sink + window) + k if SPAN == 1 else tl.sum(taken, 0)
    block_ptr += row * K
    tl.store(block_ptr + tl.cumsum(taken, 0) - 1, i, mask=take)

    tl.debug_barrier()  # what other threads stored is read: from here on, a slot each
    last = tl.load(block_ptr + total - 1, mask=total > 0, other=0)
    rest = live * BLOCK - n  # of the request's last block, if it is among the taken
    tl.store(tokens_ptr + row, total * BLOCK - tl.where((total > 0) & (last == live - 1), rest, 0))
    page_ptr += row * K * ((BLOCK + PAGE - 1) // PAGE)
    _write_pages(block_ptr, page_ptr, table_ptr + b * table_len, total, K, tl.num_programs(1), h, BLOCK, PAGE, TOKENS,
                 KP, SLOTS)  # fmt: skip


@dataclass(frozen=True)
class Selection:
    """What each KV head reads: the first ``tokens`` tokens of ``pages``.

    ``blocks`` int32 ``[B, Hkv, K]``: block numbers in the request, ascending, -1 pads (tokens, if
    ``is_tokens``). ``pages`` int32 ``[B, Hkv, K * pages per block]``: their physical pages (rows of the flat
    cache, if tokens). ``tokens`` int32 ``[B, Hkv]``: how many tokens those hold. ``made_for``: page size, block
    size and pages of the cache, without which page ids mean nothing.
    """

    blocks: Tensor
    pages: Tensor
    tokens: Tensor
    made_for: tuple[int, int, int]
    is_tokens: bool = False


def select_top(
    scores: Tensor | None, cache: PagedKVCache, n_blocks: int, *, sink_blocks: int = 0,
    window_blocks: int = 1, span: int = 1,
) -> Selection:  # fmt: skip
    """The ``n_blocks`` best blocks by any fp32 ``scores [B, Hkv, max_blocks]``, and the first and last.

    ``sink_blocks`` first and ``window_blocks`` last blocks are always read, on top of ``n_blocks``; scores
    choose among the others, ties to the lowest block. ``span > 1`` chooses overlapping windows of ``span``
    blocks, scored by their mean, and reads their union. ``scores=None`` goes with ``n_blocks=0``: nothing is
    chosen by score. (Random scores, ``torch.rand``, are the floor that a policy has to beat.)
    """
    checks.whole("n_blocks", n_blocks, 0 if scores is None else 1)
    return _select(scores, cache, n_blocks, sink_blocks, window_blocks, span, is_tokens=False)


def _select(
    scores: Tensor | None, cache: PagedKVCache, n_chosen: int, sink: int, window: int, span: int, *,
    is_tokens: bool,
) -> Selection:  # fmt: skip
    unit = "tokens" if is_tokens else "blocks"
    checks.whole(f"sink_{unit}", sink, 0)
    checks.whole(f"window_{unit}", window, 0)
    checks.whole("span", span, 1)
    block = 1 if is_tokens else cache.block_size
    rows = cache.max_tokens if is_tokens else cache.max_blocks
    rule = f"max_tokens / block_size must be at most {configs.MAX_SELECT} for selection"
    checks.require(rows <= configs.MAX_SELECT, rule, rows)
    heads = (cache.batch, cache.n_kv_heads)
    if scores is not None:
        checks.tensor("scores", scores, (*heads, rows), torch.float32, cache.device)
    if cache.debug:
        cache.check()

    slots = max(1, min(n_chosen * span + sink + window, rows))
    pages_per_block = triton.cdiv(block, cache.page_size)
    blocks = torch.empty(*heads, slots, dtype=torch.int32, device=cache.device)
    pages = torch.empty(*heads, slots * pages_per_block, dtype=torch.int32, device=cache.device)
    tokens = torch.empty(heads, dtype=torch.int32, device=cache.device)
    n, padded = triton.next_power_of_2(rows), triton.next_power_of_2(slots)
    _select_kernel[heads](
        tokens if scores is None else scores, cache.lengths, cache.page_table, blocks, pages, tokens,
        cache.page_table.shape[1], rows, sink, window, slots, N_BLOCKS=n_chosen, SPAN=span, BLOCK=block,
        PAGE=cache.page_size, TOKENS=is_tokens, N=n, KP=padded, SLOTS=min(padded, configs.SELECT_SLOTS),
        num_warps=configs.select_warps(n, span),
    )  # fmt: skip
    return Selection(blocks, pages, tokens, cache.paging, is_tokens)


def select_blocks(
    q: Tensor, cache: PagedKVCache, n_blocks: int, *, sink_blocks: int = 0, window_blocks: int = 1
) -> Selection:
    """Block top-k: the ``n_blocks`` blocks whose mean key scores highest, and the first and last."""
    return select_top(
        score_blocks(q, cache), cache, n_blocks, sink_blocks=sink_blocks, window_blocks=window_blocks
    )


def select_strided(
    q: Tensor, cache: PagedKVCache, n_blocks: int, span: int, *, sink_blocks: int = 0, window_blocks: int = 1
) -> Selection:
    """Strided block top-k: windows of ``span`` cache blocks, one starting at every block.

    A policy of block size b and stride s is a cache of ``block_size=s`` and ``span = b / s``. Chosen windows
    may overlap, so that at most ``n_blocks * span`` blocks are read.
    """
    return select_top(score_blocks(q, cache), cache, n_blocks, sink_blocks=sink_blocks, window_blocks=window_blocks,
                      span=span)  # fmt: skip


def select_quest(
    q: Tensor, cache: PagedKVCache, n_blocks: int, *, sink_blocks: int = 0, window_blocks: int = 1
) -> Selection:
    """Quest: the ``n_blocks`` with the highest upper bound on a logit. The cache needs ``bounds=True``."""
    return select_top(
        score_quest(q, cache), cache, n_blocks, sink_blocks=sink_blocks, window_blocks=window_blocks
    )


def select_local(cache: PagedKVCache, window_blocks: int, *, sink_blocks: int = 0) -> Selection:
    """The last ``window_blocks`` blocks, the open one included, and the first ``sink_blocks``."""
    checks.whole("window_blocks", window_blocks, 1)
    return select_top(None, cache, 0, sink_blocks=sink_blocks, window_blocks=window_blocks)


def select_tokens(q: Tensor, cache: PagedKVCache, n_tokens: int) -> Selection:
    """Oracle top-k: the ``n_tokens`` tokens of highest logit, at the price of scoring every one.

    For contexts of up to 8192 tokens, to judge the others by.
    """
    checks.whole("n_tokens", n_tokens, 1)
    return _select(score_tokens(q, cache), cache, n_tokens, 0, 0, 1, is_tokens=True)
