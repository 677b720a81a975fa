"""Other people's dense decode attention, timed beside ours on the same cache. Each returns a call to time."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any


def sdpa(q: Any, cache: Any) -> Callable[[], Any]:
    """PyTorch's attention on contiguous keys and values; the group stands as query rows, so KV is read once."""
    import torch

    def contiguous(pool: Any) -> Any:  # [B, Hkv, S, D], S the length that all requests share
        width = cache.page_table.shape[1] * cache.page_size
        whole = q.new_empty(cache.batch, cache.n_kv_heads, width, cache.head_dim)
        # all at once would take a copy more
        for request, pages in zip(whole, cache.page_table.long(), strict=True):
            request.view(cache.n_kv_heads, -1, *pool.shape[2:]).copy_(pool[pages].transpose(0, 1))
        return whole[:, :, : int(cache.lengths[0])]

    k, v = contiguous(cache.k), contiguous(cache.v)
    rows = q.view(cache.batch, cache.n_kv_heads, -1, cache.head_dim)
    return lambda: torch.nn.functional.scaled_dot_product_attention(rows, k, v).view_as(q)


def flashinfer(q: Any, cache: Any) -> Callable[[], Any]:
    """FlashInfer's paged decode on tensor cores, as the paper ran it; its planning on the host is not timed."""
    import torch

    library = importlib.import_module("flashinfer")
    workspace = torch.zeros(2**28, dtype=torch.uint8, device=q.device)
    wrapper = library.BatchDecodeWithPagedKVCacheWrapper(workspace, "HND", use_tensor_cores=True)
    length, page = int(cache.lengths[0]), cache.page_size
    used = -(-length // page)  # pages a request
    start = torch.arange(cache.batch + 1, dtype=torch.int32, device=q.device) * used
    in_last = torch.full((cache.batch,), length - (used - 1) * page, dtype=torch.int32, device=q.device)
    wrapper.plan(start, cache.page_table[:, :used].flatten(), in_last, q.shape[1], cache.n_kv_heads, cache.head_dim,
                 page, q_data_type=q.dtype, kv_data_type=q.dtype)  # fmt: skip
    return lambda: wrapper.run(q, (cache.k, cache.v))


def flex(q: Any, cache: Any) -> Callable[[], Any]:
    """PyTorch's FlexAttention, compiled, on our pages as they lie: a page is a block of its mask.

    A page of one head is contiguous, and so a page of a pool with a single head: every (request, KV head) becomes
    a request of its own, its group the query rows, and KV is read once and in place. PyTorch's own PagedAttention
    maps pages back to positions by a table of requests x pages; here no page has two owners, and one row serves.
    """
    import torch
    from torch.nn.attention.flex_attention import BlockMask, flex_attention

    rows, page = cache.batch * cache.n_kv_heads, cache.page_size
    pages = cache.page_table.long()[:, None] * cache.n_kv_heads  # [B, 1, P], then [B * Hkv, P]
    pages = (pages + torch.arange(cache.n_kv_heads, device=q.device)[None, :, None]).flatten(0, 1)
    end = pages.shape[1] * page  # positions a request may reach
    # Where a page stands when the contexts of all rows are laid end to end; nobody's pages stand before the first.
    place = torch.full((cache.k.shape[0] * cache.n_kv_heads,), -page, device=q.device)
    place[pages.flatten()] = page * torch.arange(pages.numel(), device=q.device)
    lengths = cache.lengths.long().repeat_interleave(cache.n_kv_heads)

    def visible(b: Any, h: Any, row: Any, token: Any) -> Any:
        position = place[token // page] + token % page - b * end
        return (position >= 0) & (position < lengths[b])

    queries = q.view(rows, 1, -1, cache.head_dim)
    keys, values = (pool.view(1, 1, -1, cache.head_dim) for pool in (cache.k, cache.v))
    # No block is told to be full: the kernel would then split the pool's length and not the request's.
    mask = BlockMask.from_kv_blocks(
        (-(-lengths // page)).int().view(rows, 1, 1), pages.int().view(rows, 1, 1, -1), BLOCK_SIZE=(128, page), mask_mod=visible,
        seq_lengths=(queries.shape[2], keys.shape[2]), compute_q_blocks=False,
    )  # fmt: skip
    attend: Any = flex_attention
    if q.device.type == "cuda":
        torch.compiler.reset()  # a new shape is a new kernel: the number kept for one function is limited
        attend = torch.compile(flex_attention, dynamic=False, fullgraph=True)
    return lambda: attend(queries, keys, values, block_mask=mask).view_as(q)


PEERS: dict[str, Callable[..., Any]] = {"sdpa": sdpa, "flex": flex, "flashinfer": flashinfer}
