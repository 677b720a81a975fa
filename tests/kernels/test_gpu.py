"""What only a GPU can show: compiled bf16, offsets beyond 2^31 in a full pool, replayed CUDA graphs.

The other tests of this folder run compiled there, too: ``make gpu-check`` runs them all but those of any shape.
"""

from __future__ import annotations

import pytest
import torch
from kinetics_kernels import (
    PagedKVCache,
    block_topk_decode,
    dense_decode,
    reference,
    select_quest,
    select_strided,
    sparse_decode,
    token_topk_decode,
)

pytestmark = pytest.mark.gpu

HALF, BRAIN, FULL = torch.float16, torch.bfloat16, torch.float32
# Every head_dim in every dtype, the usual one on all pages, and the corners; each is a second or so of compiling.
CASES = [(head_dim, dtype, 16) for head_dim in (16, 32, 64, 128, 256) for dtype in (HALF, BRAIN, FULL)]
CASES += [(128, BRAIN, page_size) for page_size in (1, 8, 64, 128)]
CASES += [(256, HALF, 128), (64, FULL, 8), (32, BRAIN, 1), (16, HALF, 64)]


@pytest.mark.parametrize(("head_dim", "dtype", "page_size"), CASES, ids=str)
def test_compiled_kernels(make, close, head_dim, dtype, page_size):
    q, cache = make(
        [0, 1, 1000, 4097], group=7, head_dim=head_dim, page_size=page_size, dtype=dtype, bounds=True
    )
    for splits in (1, 5, None):
        close(dense_decode(q, cache, splits=splits), reference.dense_decode(q, cache)[0])
    for chosen in (
        select_strided(q, cache, 5, 2),
        select_quest(q, cache, 5),
    ):
        close(sparse_decode(q, cache, chosen), reference.sparse_decode(q, cache, chosen.blocks)[0])


def test_a_pool_beyond_two_to_the_31_elements(close):
    """17 GB of pages, every one of them written."""
    batch, tokens = 512, 16384
    cache = PagedKVCache(batch, 4, 128, tokens, page_size=16, block_size=32, dtype=torch.bfloat16)
    assert cache.k.numel() > 2**31
    cache.k.normal_()
    cache.v.normal_()
    cache.lengths.fill_(tokens)
    cache.refresh()
    q = torch.randn(batch, 32, 128, dtype=torch.bfloat16, device="cuda")
    for b in (0, batch - 1):
        one = PagedKVCache(1, 4, 128, tokens, page_size=16, block_size=32, dtype=torch.bfloat16, n_pages=1024)
        one.k, one.v = (x[cache.page_table[b].long()].contiguous() for x in (cache.k, cache.v))
        one.lengths.fill_(tokens)
        one.refresh()
        assert torch.equal(one.key_means[0], cache.key_means[b])
        at = slice(b, b + 1)
        close(dense_decode(q, cache)[at], reference.dense_decode(q[at].contiguous(), one)[0])
        alone = block_topk_decode(q[at].contiguous(), one, 16, splits=1)
        assert torch.equal(block_topk_decode(q, cache, 16, splits=1)[at], alone)


def test_a_captured_graph_follows_the_lengths(make, close):
    q, cache = make([100, 1, 0, 700], page_size=8, max_tokens=1024, bounds=True, dtype=torch.float16)
    k, v = torch.randn(2, 4, 2, 16, device="cuda", dtype=torch.float16)

    def step():
        cache.append(k, v)
        chosen = (select_strided(q, cache, 3, 2), select_quest(q, cache, 3))
        return [dense_decode(q, cache), block_topk_decode(q, cache, 3), token_topk_decode(q, cache, 20)] + [
            x for c in chosen for x in (c.blocks, sparse_decode(q, cache, c))
        ]

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()  # compiles
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        out = step()
    for _ in range(20):  # fills whole blocks and opens new ones
        q.normal_()
        k.normal_()
        v.normal_()
        before = cache.lengths.clone()
        graph.replay()
        torch.cuda.synchronize()
        assert torch.equal(cache.lengths, before + 1)
        close(out[0], reference.dense_decode(q, cache)[0])
        close(out[2], reference.token_topk_decode(q, cache, 20)[0])
        for blocks, got in zip(out[3::2], out[4::2], strict=True):
            close(got, reference.sparse_decode(q, cache, blocks)[0])
