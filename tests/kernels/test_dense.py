"""Dense decode against the float64 reference, and what must not change its result."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kinetics_kernels import PagedKVCache, dense_decode, reference

RAGGED = [0, 1, 37, 100]


def check(make, close, lengths, splits=1, **shape):
    q, cache = make(lengths, **shape)
    out, lse = dense_decode(q, cache, splits=splits, return_lse=True)
    want, want_lse = reference.dense_decode(q, cache)
    close(out, want)
    torch.testing.assert_close(lse.double().cpu(), want_lse, atol=1e-5, rtol=1e-5)  # the same -inf, too


@pytest.mark.pairs(
    group=[1, 5, 16], splits=[1, 3], head_dim=[16, 128, 256], page_size=[1, 8, 128],
    dtype=[torch.float16, torch.bfloat16, torch.float32],
)  # fmt: skip
def test_shapes(make, close, group, splits, head_dim, page_size, dtype):
    """Ends on a page and one token beyond, in the first token of a tile, and in a split that has no token."""
    check(make, close, [page_size, 129], splits, group=group, head_dim=head_dim, page_size=page_size,
          block_size=128, dtype=dtype)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("group", [1, 2, 4, 5, 7, 8, 16])
@pytest.mark.parametrize("splits", [1, 3])
def test_groups(make, close, group, splits):
    check(make, close, RAGGED, splits, group=group)


@pytest.mark.slow
@pytest.mark.parametrize("head_dim", [16, 32, 64, 128, 256])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_head_dims_and_dtypes(make, close, head_dim, dtype):
    check(make, close, [150, 3], head_dim=head_dim, dtype=dtype, group=5)


@pytest.mark.slow
@pytest.mark.parametrize("page_size", [1, 2, 4, 8, 16, 32, 64, 128])
def test_page_sizes(make, close, page_size):
    check(make, close, [page_size, page_size + 1, 130], splits=2, page_size=page_size)


@given(
    lengths=st.lists(st.integers(0, 90), min_size=1, max_size=3),
    n_kv=st.integers(1, 3),
    group=st.integers(1, 16),
    page_size=st.sampled_from([1, 4, 16, 64]),
    splits=st.integers(1, 9),
    dtype=st.sampled_from([torch.float16, torch.float32]),
    seed=st.integers(0, 99),
)
def test_any_shape(make, close, lengths, n_kv, group, page_size, splits, dtype, seed):
    check(make, close, lengths, splits, n_kv=n_kv, group=group, page_size=page_size, block_size=64, dtype=dtype,
          seed=seed)  # fmt: skip


def test_an_empty_request_gives_zero_and_minus_infinity(make):
    q, cache = make([0, 5])
    for splits in (1, 4):
        out, lse = dense_decode(q, cache, splits=splits, return_lse=True)
        assert not out[0].any()
        assert (lse[0] == float("-inf")).all()


def test_splits_agree(make):
    """Tiles are of 16 tokens: 33 leaves one for a second split, 100 leaves two of nine splits without any."""
    q, cache = make([100, 33, 32, 31], dtype=torch.float32, block_size=32)
    whole, lse = dense_decode(q, cache, splits=1, return_lse=True)
    for splits in (2, 3, 9):
        part, part_lse = dense_decode(q, cache, splits=splits, return_lse=True)
        torch.testing.assert_close(part, whole, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(part_lse, lse, atol=1e-6, rtol=1e-6)


def test_where_pages_lie_changes_no_bit(make):
    q, cache = make([1, 37, 130])
    first = dense_decode(q, cache, splits=2)
    assert torch.equal(dense_decode(q, cache, splits=2), first)  # nor does a second run
    order = torch.randperm(cache.k.shape[0])
    moved = torch.empty_like(order)
    moved[order] = torch.arange(len(order))  # page p now lies where order is p
    order, moved = order.to(cache.device), moved.to(cache.device)
    cache.k, cache.v = cache.k[order].contiguous(), cache.v[order].contiguous()
    cache.page_table.copy_(moved[cache.page_table.long()])
    assert torch.equal(dense_decode(q, cache, splits=2), first)


def test_lengths_are_read_when_the_kernel_runs(make, close):
    q, cache = make([100, 90, 80], max_tokens=256)
    cache.lengths.copy_(torch.tensor([7, 0, 64]))
    close(dense_decode(q, cache, splits=2), reference.dense_decode(q, cache)[0])


def test_scale_and_large_logits(make, close):
    q, cache = make([120], dtype=torch.float32)
    for scale in (1e-3, 100.0):  # logits up to about 2000: exp would overflow without the running maximum
        want, want_lse = reference.dense_decode(q, cache, scale)
        out, lse = dense_decode(q, cache, scale=scale, return_lse=True)
        close(out, want, scale=max(1.0, 2 * scale))  # fp32 rounds logits of 2000 by 1e-4
        torch.testing.assert_close(lse.double().cpu(), want_lse, atol=1e-3, rtol=1e-6)


@pytest.mark.parametrize("at", [0, 15, 40, 99], ids=lambda at: f"token {at}")  # first, middle and last tile
@pytest.mark.parametrize("splits", [1, 2, 7, None])
@pytest.mark.filterwarnings("ignore:All-NaN slice", "ignore:invalid value")  # of NumPy, in the interpreter
def test_a_nan_key_shows_in_the_output_and_its_log_sum_exp(make, at, splits):
    q, cache = make([100, 100], dtype=torch.float32, page_size=4, n_kv=1)
    want, want_lse = reference.dense_decode(q, cache)
    cache.k[cache.page_table[0, at // 4].long(), 0, at % 4, 3] = float("nan")
    out, lse = dense_decode(q, cache, splits=splits, return_lse=True)
    assert out[0].isnan().all()
    assert lse[0].isnan().all()
    torch.testing.assert_close(out[1].double().cpu(), want[1], atol=1e-5, rtol=0)  # nobody else's
    torch.testing.assert_close(lse[1].double().cpu(), want_lse[1], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "none", [slice(0, 16), slice(0, 40), slice(48, 100), slice(3, 97), slice(0, 100)], ids=str
)
@pytest.mark.parametrize("splits", [1, 3, None])
@pytest.mark.filterwarnings("ignore:invalid value")
def test_keys_of_infinite_distance_weigh_nothing(make, close, none, splits):
    """Whole tiles and splits of logits that are -inf, at the beginning, inside, at the end, and nothing else."""
    q, cache = make([100], dtype=torch.float32, page_size=1, block_size=4, n_kv=1)
    q.abs_()
    cache.k[cache.page_table[0, none].long()] = float("-inf")
    out, lse = dense_decode(q, cache, splits=splits, return_lse=True)
    want, want_lse = reference.dense_decode(q, cache)
    assert want_lse.isinf().all() == (none == slice(0, 100))
    close(out, want)
    torch.testing.assert_close(lse.double().cpu(), want_lse, atol=1e-5, rtol=1e-5)


def test_pages_beyond_two_to_the_31_elements(device):
    """The last page starts at element 2^31 + 32768. Nothing else is touched, so it costs no memory."""
    n_pages, page_size, n_kv, head_dim = 2**17 + 3, 128, 1, 128
    table = torch.tensor([[n_pages - 1]], dtype=torch.int32, device=device)
    small = PagedKVCache(1, n_kv, head_dim, 128, page_size=page_size, device=device)
    large = PagedKVCache(1, n_kv, head_dim, 128, page_size=page_size, n_pages=1, device=device)
    large.k = torch.empty(n_pages, n_kv, page_size, head_dim, dtype=torch.float16, device=device)
    large.v, large.page_table = large.k, table  # one tensor for both: half the address space
    assert (n_pages - 1) * page_size * head_dim > 2**31
    k = torch.randn(1, 70, n_kv, head_dim, dtype=torch.float16, device=device)
    q = torch.randn(1, 2, head_dim, dtype=torch.float16, device=device)
    for cache in (small, large):
        cache.append(k, k)
        cache.append(k[:, 0], k[:, 0])
        assert torch.equal(cache.k[-1, 0, :71], torch.cat([k[0, :, 0], k[0, :1, 0]]))
    assert torch.equal(dense_decode(q, large), dense_decode(q, small))
