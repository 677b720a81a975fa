"""Other people's dense decode attention, timed beside ours on the same cache. Each returns a call to time.

A peer that is not installed, or does not run here, raises, and the row says why.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any


def contiguous(cache: Any) -> Any:
    """Keys and values ``[B, Hkv, S, D]``, S the length that all requests share: one copy, which the cache keeps."""

    def copied(pool: Any) -> Any:
        width = cache.page_table.shape[1] * cache.page_size
        whole = pool.new_empty(cache.batch, cache.n_kv_heads, width, cache.head_dim)
        # all at once would take a copy more
        for request, pages in zip(whole, cache.page_table.long(), strict=True):
            request.view(cache.n_kv_heads, -1, *pool.shape[2:]).copy_(pool[pages].transpose(0, 1))
        return whole[:, :, : int(cache.lengths[0])]

    if not hasattr(cache, "contiguous"):
        cache.contiguous = copied(cache.k), copied(cache.v)
    return cache.contiguous


def sdpa(q: Any, cache: Any) -> Callable[[], Any]:
    """PyTorch's attention on contiguous keys and values; the group stands as query rows, so KV is read once."""
    import torch

    k, v = contiguous(cache)
    rows = q.view(cache.batch, cache.n_kv_heads, -1, cache.head_dim)
    return lambda: torch.nn.functional.scaled_dot_product_attention(rows, k, v).view_as(q)


def flashinfer(q: Any, cache: Any) -> Callable[[], Any]:
    """FlashInfer's paged decode on tensor cores, as the paper ran it; its planning on the host is not timed."""
    import torch

    library = importlib.import_module("flashinfer")
    workspace = torch.zeros(2**28, dtype=torch.uint8, device=q.device)
    wrapper = library.BatchDecodeWithPagedKVCacheWrapper(workspace, "HND", use_tensor_cores=True)
    wrapper.plan(*planned(cache), q.shape[1], cache.n_kv_heads, cache.head_dim, cache.page_size, q_data_type=q.dtype,
                 kv_data_type=q.dtype)  # fmt: skip
    return lambda: wrapper.run(q, (cache.k, cache.v))


def planned(cache: Any) -> tuple[Any, Any, Any]:
    """FlashInfer's page table: where each request's pages start, the pages one after the other, tokens in the last."""
    import torch

    page = cache.page_size
    used = -(-cache.lengths // page)  # [B], pages of a request
    start = torch.nn.functional.pad(used.cumsum(0), (1, 0)).int()  # [B + 1]
    mine = torch.arange(cache.page_table.shape[1], device=used.device) < used[:, None]
    return start, cache.page_table[mine], (cache.lengths - (used - 1) * page).int()


def flashinfer_paged(q: Any, cache: Any) -> Callable[[], Any]:
    """The best paged decode that FlashInfer has for this GPU (XQA, or TensorRT-LLM's kernels on sm_100): no plan."""
    import torch

    library = importlib.import_module("flashinfer.decode")
    workspace = torch.zeros(2**28, dtype=torch.uint8, device=q.device)  # XQA counts in it, from 0
    longest, scale = int(cache.lengths.max()), cache.head_dim**-0.5
    return lambda: library.trtllm_batch_decode_with_kv_cache(
        q, (cache.k, cache.v), workspace, cache.page_table, cache.lengths, longest, bmm1_scale=scale, bmm2_scale=1.0,
        kv_layout="HND",
    )  # fmt: skip


def flash_attn(q: Any, cache: Any) -> Callable[[], Any]:
    """FlashAttention 3 on our pages where it is installed, or 2 on a contiguous copy: its pages have 256 tokens."""
    queries, lengths = q.unsqueeze(1), cache.lengths
    if importlib.util.find_spec("flash_attn_interface"):
        attend = importlib.import_module("flash_attn_interface").flash_attn_with_kvcache
        k, v = cache.k.transpose(1, 2), cache.v.transpose(1, 2)  # [page, token, head, D]: views
        return lambda: attend(queries, k, v, cache_seqlens=lengths, page_table=cache.page_table).view_as(q)
    attend = importlib.import_module("flash_attn").flash_attn_with_kvcache
    if int(lengths.min()) < int(lengths.max()):
        raise ValueError("FlashAttention 2 was left out: its pages have 256 tokens, and these lengths differ")
    k, v = (x.transpose(1, 2) for x in contiguous(cache))  # [B, S, Hkv, D]: views
    return lambda: attend(queries, k, v, cache_seqlens=lengths).view_as(q)


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


PEERS: dict[str, Callable[..., Any]] = {
    "sdpa": sdpa, "flex": flex, "flashinfer": flashinfer, "flashinfer_paged": flashinfer_paged, "flash_attn": flash_attn,
}  # fmt: skip
COMPILED = ("flex", "flashinfer_paged")  # anew for every case, or for every group and page size
#: Those that take unequal lengths: SDPA needs one, FlexAttention minutes to compile.
RAGGED_PEERS = ("flashinfer", "flashinfer_paged", "flash_attn")
