"""Sparse decode attention: the dense kernel over the page table a selection makes.

Bytes moved, per request and KV head, 2-byte elements: 2 D for the mean key of each of the n / block_size
blocks, then 4 D for each token of the chosen blocks (and of the sink and the window). With D = 128, n =
16384, blocks of 32 and 16 of them chosen: 131 KB of means and 262 KB of tokens, against 8.4 MB dense; the two
are balanced when block_size = n / (2 * budget). A step is three kernels: score, select, attend. They hand
over small tensors (scores, page ids) that stay in the L2 cache, and none of them needs the host.
"""

from __future__ import annotations

from torch import Tensor

from kinetics_kernels import checks
from kinetics_kernels.dense import attend
from kinetics_kernels.layout import PagedKVCache
from kinetics_kernels.select import Selection, select_blocks, select_tokens


def sparse_decode(
    q: Tensor, cache: PagedKVCache, selection: Selection, *, scale: float | None = None,
    splits: int | None = None, return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:  # fmt: skip
    """One decode step over what ``selection`` names. Arguments and results as in ``dense_decode``."""
    cache.check_query(q)
    if splits is not None:
        checks.whole("splits", splits, 1)
    heads = (cache.batch, cache.n_kv_heads)
    got = tuple(selection.pages.shape[:2])
    checks.require(got == heads, f"selection must be for (batch, KV heads) = {heads}", got)
    rule = f"selection must be for a cache of (page size, block size, pages) = {cache.paging}"
    checks.require(selection.made_for == cache.paging, rule, selection.made_for)
    if selection.is_tokens:  # pages of one token each: rows of [pages * Hkv * page_size, D]
        page_size, page_stride, head_stride = 1, cache.head_dim, 0
    else:
        page_size, page_stride, head_stride = cache.page_size, cache.k.stride(0), cache.k.stride(1)
    out, lse = attend(
        q, cache, selection.pages, selection.tokens, page_size=page_size, page_stride=page_stride,
        head_stride=head_stride, scale=checks.softmax_scale(scale, cache.head_dim), splits=splits,
    )  # fmt: skip
    return (out, lse) if return_lse else out


def block_topk_decode(
    q: Tensor, cache: PagedKVCache, n_blocks: int, *, sink_blocks: int = 0, window_blocks: int = 1,
    scale: float | None = None, splits: int | None = None, return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:  # fmt: skip
    """One decode step of block top-k attention: ``n_blocks`` by score, first and last ones on top."""
    selection = select_blocks(q, cache, n_blocks, sink_blocks=sink_blocks, window_blocks=window_blocks)
    return sparse_decode(q, cache, selection, scale=scale, splits=splits, return_lse=return_lse)


def token_topk_decode(
    q: Tensor, cache: PagedKVCache, n_tokens: int, *, scale: float | None = None, splits: int | None = None,
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:  # fmt: skip
    """One decode step of oracle top-k attention: the ``n_tokens`` tokens of highest logit."""
    selection = select_tokens(q, cache, n_tokens)
    return sparse_decode(q, cache, selection, scale=scale, splits=splits, return_lse=return_lse)
