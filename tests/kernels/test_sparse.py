"""Sparse decode: the chosen tokens, all of them, and no others."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kinetics_kernels import (
    block_topk_decode,
    dense_decode,
    reference,
    select_blocks,
    select_local,
    select_quest,
    select_strided,
    select_tokens,
    sparse_decode,
    token_topk_decode,
)

RAGGED = [0, 1, 70, 200]
SHORT = [0, 1, 70]
DTYPES = [torch.float16, torch.bfloat16, torch.float32]


def check_block_topk(make, close, lengths, group, splits, page_size, block_size):
    """fp32 throughout, so that kernel and float64 reference rank the same blocks the same way."""
    q, cache = make(lengths, group=group, page_size=page_size, block_size=block_size, dtype=torch.float32)
    out, lse = block_topk_decode(q, cache, 3, sink_blocks=1, splits=splits, return_lse=True)
    want, want_lse = reference.block_topk_decode(q, cache, 3, sink_blocks=1)
    close(out, want)
    torch.testing.assert_close(lse.double().cpu(), want_lse, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("group", "splits", "page_size", "block_size"), [(1, 3, 4, 4), (5, 1, 8, 16), (16, 2, 1, 12)]
)
def test_block_topk(make, close, group, splits, page_size, block_size):
    check_block_topk(make, close, SHORT, group, splits, page_size, block_size)


@pytest.mark.slow
@pytest.mark.parametrize("group", [1, 2, 4, 5, 7, 8, 16])
@pytest.mark.parametrize("splits", [1, 3])
def test_block_topk_from_end_to_end(make, close, group, splits):
    check_block_topk(make, close, RAGGED, group, splits, 8, 16)


POLICIES = {
    "block_topk": lambda q, cache: select_blocks(q, cache, 3, sink_blocks=1, window_blocks=2),
    "no window": lambda q, cache: select_blocks(q, cache, 1, window_blocks=0),
    "strided": lambda q, cache: select_strided(q, cache, 2, 3),
    "quest": lambda q, cache: select_quest(q, cache, 4),
    "local": lambda q, cache: select_local(cache, 2, sink_blocks=1),
}


# Every policy with one dtype; the others take long.
EACH = [
    pytest.param(policy, dtype, marks=[] if j == i % 3 else pytest.mark.slow)
    for i, policy in enumerate(POLICIES)
    for j, dtype in enumerate(DTYPES)
]


@pytest.mark.parametrize(("policy", "dtype"), EACH, ids=str)
def test_only_the_selected_pages_are_read(make, close, policy, dtype):
    q, cache = make(SHORT, page_size=4, block_size=12, bounds=True, dtype=dtype, group=3)
    selection = POLICIES[policy](q, cache)
    want, _ = reference.sparse_decode(q, cache, selection.blocks)
    pages = selection.pages.cpu()
    for h in range(cache.n_kv_heads):  # NaN in every page a head did not choose
        unread = torch.ones(cache.k.shape[0], dtype=torch.bool)
        unread[pages[:, h][pages[:, h] >= 0].long()] = False
        cache.k[unread.to(cache.device), h] = float("nan")
        cache.v[unread.to(cache.device), h] = float("nan")
    for splits in (1, 2):
        close(sparse_decode(q, cache, selection, splits=splits), want)


@given(
    lengths=st.lists(st.integers(0, 80), min_size=1, max_size=2),
    group=st.integers(1, 16),
    page_size=st.sampled_from([1, 4, 16]),
    pages_per_block=st.integers(1, 4),
    n_blocks=st.integers(1, 9),
    sink=st.integers(0, 2),
    window=st.integers(0, 2),
    dtype=st.sampled_from([torch.float16, torch.float32]),
    seed=st.integers(0, 99),
)
def test_any_shape(
    make, close, lengths, group, page_size, pages_per_block, n_blocks, sink, window, dtype, seed
):
    q, cache = make(lengths, group=group, page_size=page_size, block_size=page_size * pages_per_block, dtype=dtype,
                    seed=seed)  # fmt: skip
    chosen = select_blocks(q, cache, n_blocks, sink_blocks=sink, window_blocks=window)
    close(sparse_decode(q, cache, chosen), reference.sparse_decode(q, cache, chosen.blocks)[0])


@pytest.mark.parametrize(("page_size", "block_size", "splits"), [(16, 16, 1), (8, 24, 2), (128, 128, 2)])
def test_a_budget_of_the_whole_context_is_dense(make, page_size, block_size, splits):
    q, cache = make([0, 1, 140], page_size=page_size, block_size=block_size)
    dense = dense_decode(q, cache, splits=splits)
    assert torch.equal(block_topk_decode(q, cache, cache.max_blocks, splits=splits), dense)
    assert torch.equal(token_topk_decode(q, cache, cache.max_tokens, splits=splits), dense)


def test_a_new_query_reads_other_pages(make, device):
    """Block i's keys are the i-th unit vector, its values i: the query decides which block answers."""
    _, cache = make([0, 0], n_kv=1, head_dim=16, page_size=4, max_tokens=64, dtype=torch.float32)
    unit = (
        torch.eye(16, device=device).repeat_interleave(4, 0)[None, :, None].expand(2, -1, -1, -1).contiguous()
    )
    values = torch.arange(16.0, device=device).repeat_interleave(4)[None, :, None, None].expand_as(unit)
    cache.append(unit, values.contiguous())
    seen = []
    for i, j in ((3, 9), (11, 0)):
        q = torch.stack([unit[0, 4 * i], unit[0, 4 * j]])  # (2, 1, 16): each request asks for its own block
        chosen = select_blocks(q, cache, 1, window_blocks=0)
        assert chosen.blocks.flatten().tolist() == [i, j]
        assert chosen.pages.flatten().tolist() == [int(cache.page_table[0, i]), int(cache.page_table[1, j])]
        out = sparse_decode(q, cache, chosen)
        assert out[0].unique().tolist() == [i]
        assert out[1].unique().tolist() == [j]
        seen.append(chosen.pages)
    assert not torch.equal(*seen)


@pytest.mark.parametrize("n_tokens", [1, 64])
def test_token_topk(make, close, n_tokens):
    q, cache = make(SHORT, group=5, page_size=8, n_kv=3, dtype=torch.float32)
    want, want_lse = reference.token_topk_decode(q, cache, n_tokens)
    out, lse = token_topk_decode(q, cache, n_tokens, return_lse=True)
    close(out, want)
    torch.testing.assert_close(lse.double().cpu(), want_lse, atol=1e-5, rtol=1e-5)
    assert select_tokens(q, cache, n_tokens).tokens[:, 0].tolist() == [min(n, n_tokens) for n in SHORT]


def test_where_pages_lie_changes_no_bit(make):
    q, cache = make([1, 70], page_size=8)
    first = block_topk_decode(q, cache, 3, splits=2)
    assert torch.equal(block_topk_decode(q, cache, 3, splits=2), first)
    back = torch.arange(cache.k.shape[0] - 1, -1, -1, device=cache.device)
    cache.k, cache.v = cache.k[back].contiguous(), cache.v[back].contiguous()
    cache.page_table.copy_(back[cache.page_table.long()])
    assert torch.equal(block_topk_decode(q, cache, 3, splits=2), first)


def test_lengths_are_read_when_the_kernels_run(make, close, device):
    q, cache = make([30, 70], page_size=8, max_tokens=80, dtype=torch.float32)
    for _ in range(3):  # to 33 and 73: each opens a block
        token = torch.randn(2, 2, 16, device=device)
        cache.append(token, token)
        close(block_topk_decode(q, cache, 2), reference.block_topk_decode(q, cache, 2)[0])
