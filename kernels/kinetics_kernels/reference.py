"""The kernels in plain PyTorch: one request, one head at a time, in any precision (fp64 unless told).

Slow and short. Tests hold the kernels to it; read it first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from kinetics_kernels.layout import PagedKVCache


def context(cache: PagedKVCache, b: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """All keys and values of request ``b`` in order, gathered from its pages: two of ``[Hkv, n, D]``.

    Those of an fp8 cache are what its numbers stand for, each times the scale of its head.
    """
    n = int(cache.lengths[b])
    pages = cache.page_table[b, : -(-n // cache.page_size)].long()

    def in_order(x: Tensor, scale: Tensor | None) -> Tensor:
        x = x[pages].transpose(0, 1).reshape(cache.n_kv_heads, -1, cache.head_dim)[:, :n].to(dtype)
        return x if scale is None else x * scale[:, None, None]

    return in_order(cache.k, cache.k_scale), in_order(cache.v, cache.v_scale)


def attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Softmax attention of ``q [G, D]`` over ``k, v [n, D]``: output ``[G, D]``, log-sum-exp ``[G]``.

    Without tokens, or where every logit is -inf, nothing has weight: the output is 0 and its log-sum-exp -inf.
    """
    scores = scale * (q @ k.T)  # [G, n]
    lse = scores.logsumexp(-1)
    weight = (scores - lse[:, None]).exp().masked_fill(lse[:, None] == float("-inf"), 0)
    return weight @ v, lse


def _each_head(
    q: Tensor, cache: PagedKVCache, scale: float | None, dtype: torch.dtype, keep: Callable[..., Any]
) -> tuple[Tensor, Tensor]:
    """Attention over the tokens ``keep(b, h, q [G, D], k [n, D])`` names, for every request and KV head."""
    scale = cache.head_dim**-0.5 if scale is None else scale
    out = torch.zeros(q.shape, dtype=dtype)
    lse = torch.full(q.shape[:2], float("-inf"), dtype=dtype)
    group = q.shape[1] // cache.n_kv_heads
    for b in range(cache.batch):
        k, v = context(cache, b, dtype)
        for h in range(cache.n_kv_heads):
            heads = slice(h * group, (h + 1) * group)
            q_group = q[b, heads].to(dtype)
            chosen = keep(b, h, q_group, k[h])
            out[b, heads], lse[b, heads] = attention(q_group, k[h, chosen], v[h, chosen], scale)
    return out, lse


def dense_decode(
    q: Tensor, cache: PagedKVCache, scale: float | None = None, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor]:
    """Attention over every cached token: output ``[B, Hq, D]`` and log-sum-exp ``[B, Hq]``."""
    return _each_head(q, cache, scale, dtype, lambda b, h, q_group, k: slice(None))


def block_summaries(k: Tensor, block_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, smallest and largest key of each block of ``k [n, D]``; the last block has the tokens it has."""
    blocks = k.split(block_size) if len(k) else ()
    empty = k.new_empty(0, k.shape[1])
    mean = torch.stack([block.mean(0) for block in blocks]) if blocks else empty
    low = torch.stack([block.amin(0) for block in blocks]) if blocks else empty
    high = torch.stack([block.amax(0) for block in blocks]) if blocks else empty
    return mean, low, high


def mean_scores(q: Tensor, k: Tensor, block_size: int) -> Tensor:
    """Block top-k's scores: logits of the mean keys, averaged over the group, one per block."""
    mean, _, _ = block_summaries(k, block_size)
    return (q @ mean.T).mean(0)


def quest_scores(q: Tensor, k: Tensor, block_size: int) -> Tensor:
    """Quest's scores: the largest logit any key between low and high could have, averaged over the group."""
    _, low, high = block_summaries(k, block_size)
    bound = torch.maximum(q[:, None] * low, q[:, None] * high).sum(-1)  # [G, blocks]
    return bound.mean(0)


def window_scores(scores: Tensor, n: int, block_size: int, span: int) -> Tensor:
    """Scores of the overlapping windows of ``span`` blocks: the mean of their blocks', weighted by tokens."""
    blocks = len(scores)
    before = block_size * torch.arange(blocks, device=scores.device)
    held = (n - before).clamp(max=block_size).to(scores.dtype)
    starts = range(max(blocks - span, 0) + 1)
    mean = [(scores * held)[i : i + span].sum() / held[i : i + span].sum() for i in starts]
    return torch.stack(mean) if blocks else scores


def choose(
    scores: Tensor, n: int, block_size: int, n_blocks: int, sink: int = 0, window: int = 0, span: int = 1
) -> list[int]:
    """The blocks one head reads: first ``sink``, last ``window``, and ``n_blocks`` more by score, in order.

    Ties go to the lower index. ``span > 1`` chooses windows of that many blocks, which may overlap.
    """
    blocks = -(-n // block_size)
    taken = {i for i in range(blocks) if i < sink or i >= blocks - window}
    ranked = scores[:blocks] if span == 1 else window_scores(scores[:blocks], n, block_size, span)
    order = torch.sort(ranked, descending=True, stable=True).indices.tolist()
    free = [i for i in order if i + span > sink and i < blocks - window]
    for i in free[:n_blocks]:
        taken |= set(range(i, min(i + span, blocks)))
    return sorted(taken)


def _tokens_of(blocks: list[int], block_size: int, n: int) -> list[int]:
    return [t for i in blocks for t in range(i * block_size, min((i + 1) * block_size, n))]


def block_topk_decode(
    q: Tensor, cache: PagedKVCache, n_blocks: int, *, sink_blocks: int = 0, window_blocks: int = 1,
    span: int = 1, scores: Callable[[Tensor, Tensor, int], Tensor] = mean_scores, scale: float | None = None,
    dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Attention over each KV head's chosen blocks: output ``[B, Hq, D]`` and log-sum-exp ``[B, Hq]``."""

    def keep(b: int, h: int, q_group: Tensor, k: Tensor) -> list[int]:
        blocks = choose(scores(q_group, k, cache.block_size), len(k), cache.block_size, n_blocks, sink_blocks,
                        window_blocks, span)  # fmt: skip
        return _tokens_of(blocks, cache.block_size, len(k))

    return _each_head(q, cache, scale, dtype, keep)


def sparse_decode(
    q: Tensor,
    cache: PagedKVCache,
    blocks: Tensor,
    scale: float | None = None,
    dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, Tensor]:
    """Attention over given blocks, ``[B, Hkv, K]`` with -1 as padding."""

    def keep(b: int, h: int, q_group: Tensor, k: Tensor) -> list[int]:
        return _tokens_of([i for i in blocks[b, h].tolist() if i >= 0], cache.block_size, len(k))

    return _each_head(q, cache, scale, dtype, keep)


def token_topk_decode(
    q: Tensor,
    cache: PagedKVCache,
    n_tokens: int,
    scale: float | None = None,
    dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, Tensor]:
    """Oracle top-k: attention over the ``n_tokens`` tokens of highest logit, averaged over the group."""

    def keep(b: int, h: int, q_group: Tensor, k: Tensor) -> list[int]:
        return choose((q_group @ k.T).mean(0), len(k), 1, n_tokens)

    return _each_head(q, cache, scale, dtype, keep)
