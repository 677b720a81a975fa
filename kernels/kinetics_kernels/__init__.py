"""Paged decode attention in Triton: dense, and over selected blocks.

>>> cache = PagedKVCache(batch, n_kv_heads, head_dim, max_tokens, page_size=16, block_size=32)
>>> cache.append(k, v)                            # prompt [B, T, Hkv, D], then one step [B, Hkv, D] at a time
>>> out = dense_decode(q, cache)                  # q [B, Hq, D]
>>> out = block_topk_decode(q, cache, n_blocks=16, sink_blocks=1)
>>> out = sparse_decode(q, cache, select_quest(q, cache, n_blocks=16))

All of it can be captured in a CUDA graph: no call waits for the GPU or plans on the host (``debug=True``
apart), and scratch memory comes from PyTorch's allocator, which gives a captured graph a pool of its own.
"""

from kinetics_kernels.dense import dense_decode
from kinetics_kernels.layout import PagedKVCache
from kinetics_kernels.score import score_blocks, score_quest, score_tokens
from kinetics_kernels.select import (
    Selection,
    select_blocks,
    select_local,
    select_quest,
    select_strided,
    select_tokens,
    select_top,
)
from kinetics_kernels.sparse import block_topk_decode, sparse_decode, token_topk_decode

__all__ = [
    "PagedKVCache",
    "Selection",
    "block_topk_decode",
    "dense_decode",
    "score_blocks",
    "score_quest",
    "score_tokens",
    "select_blocks",
    "select_local",
    "select_quest",
    "select_strided",
    "select_tokens",
    "select_top",
    "sparse_decode",
    "token_topk_decode",
]
