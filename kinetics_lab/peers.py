"""Other people's dense decode attention, timed beside ours on the same cache. Each returns a call to time."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any


def sdpa(q: Any, cache: Any) -> Callable[[], Any]:
    """PyTorch's attention on contiguous keys and values; the group stands as query rows, so KV is read once."""
    import torch

    def contiguous(pool: Any) -> Any:  # [B, Hkv, S, D], S the length that all requests share
        pages = pool[cache.page_table.long()].transpose(1, 2)
        whole = pages.reshape(cache.batch, cache.n_kv_heads, -1, cache.head_dim)
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


PEERS: dict[str, Callable[[Any, Any], Callable[[], Any]]] = {"sdpa": sdpa, "flashinfer": flashinfer}
