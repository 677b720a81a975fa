"""Appending: contents to the bit, search keys exact over the tokens a block holds, nothing else touched."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from kinetics_kernels import PagedKVCache, configs, reference

SLACK = {
    torch.float16: 2**-11,
    torch.bfloat16: 2**-7,
    torch.float32: 2**-22,
}  # one rounding (bf16 cut, not rounded)


def check_summaries(cache):
    """Search keys against float64 summaries of the cached keys; those of blocks not begun are still NaN."""
    for b in range(cache.batch):
        k, _ = reference.context(cache, b)
        for h in range(cache.n_kv_heads):
            mean, low, high = reference.block_summaries(k[h], cache.block_size)
            n = len(mean)
            got = cache.key_means[b, h, :n].double()
            scale = k[h].abs().max() if n else 1.0
            torch.testing.assert_close(got, mean, atol=float(scale) * SLACK[cache.dtype], rtol=0)
            assert cache.key_means[b, h, n:].isnan().all()
            if cache.key_min is not None:
                assert torch.equal(cache.key_min[b, h, :n].double(), low)
                assert torch.equal(cache.key_max[b, h, :n].double(), high)


chunk = st.one_of(st.just(1), st.integers(1, 40))


@given(
    page_size=st.sampled_from([1, 4, 8, 16]),
    pages_per_block=st.integers(1, 5),
    n_kv=st.integers(1, 3),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32]),
    chunks=st.lists(st.tuples(chunk, st.booleans()), min_size=1, max_size=6),
    seed=st.integers(0, 99),
)
@example(
    4, 5, 2, torch.float16, [(7, False), (1, False), (13, False), (1, True)], 1
)  # a block closed by a step
@example(
    1, 3, 3, torch.float32, [(1, False), (1, True), (1, False), (1, True)], 2
)  # steps alone, heads padded to 4
@example(
    8, 5, 1, torch.bfloat16, [(40, True), (33, False), (1, False), (40, False), (40, False)], 3
)  # too many
@example(
    16, 1, 2, torch.float16, [(2, False), (15, False), (31, True), (17, False)], 4
)  # each touches one block more
def test_any_sequence_of_appends(make, device, page_size, pages_per_block, n_kv, dtype, chunks, seed):
    draw = torch.Generator().manual_seed(seed)
    block = page_size * pages_per_block
    _, cache = make([0, 0, 0], n_kv=n_kv, page_size=page_size, block_size=block, dtype=dtype, seed=seed,
                    bounds=True, max_tokens=120)  # fmt: skip
    told = [([], []) for _ in range(3)]  # what each request was given, and must hold
    for n_new, ragged in chunks:
        shape = (3, n_kv, 16) if n_new == 1 else (3, n_new, n_kv, 16)
        k, v = (torch.randn(shape, generator=draw).to(dtype).to(device) for _ in range(2))
        counts = torch.randint(0, n_new + 1, (3,), generator=draw, dtype=torch.int32) if ragged else None
        cache.append(k, v, None if counts is None else counts.to(device))
        for b in range(3):
            taken = n_new if counts is None else int(counts[b])
            for x, kept in zip((k, v), told[b], strict=True):
                kept.extend(x[b].view(n_new, n_kv, 16)[:taken])
                del kept[cache.max_tokens :]  # what does not fit is dropped
    assert cache.lengths.tolist() == [len(kept) for kept, _ in told]
    for b, kept in enumerate(told):
        for got, want in zip(reference.context(cache, b, dtype), kept, strict=True):
            if want:
                assert torch.equal(got.cpu(), torch.stack(want, 1).cpu())
    written = sum(len(kept) for kept, _ in told) * n_kv * 16
    assert (
        int((~cache.k.isnan()).sum()) == int((~cache.v.isnan()).sum()) == written
    )  # nothing else was touched
    check_summaries(cache)


def test_a_mean_is_a_sum_rounded_once(make, device):
    """128 keys near 1000, one by one. A running fp16 mean would stall: its steps there are 0.5."""
    _, cache = make([0], n_kv=1, page_size=16, block_size=128, dtype=torch.float16, max_tokens=128)
    keys = (1000 + torch.arange(128) % 7).to(torch.float16).to(device)
    for key in keys:
        token = key.expand(1, 1, 16).contiguous()
        cache.append(token, token)
    exact = keys.double().mean().to(torch.float16)
    assert (cache.key_means[0, 0, 0] == exact).all()


@pytest.mark.parametrize("n_tokens", [1, 31, 32, 33, 95])
def test_refresh_makes_the_same_search_keys(make, device, n_tokens):
    _, cache = make(
        [n_tokens, 0], page_size=8, block_size=32, bounds=True, max_tokens=128, dtype=torch.float32
    )
    names = ("key_means", "key_min", "key_max")
    before = {name: getattr(cache, name).clone() for name in names}
    for name in (*names, "open_sum"):
        getattr(cache, name).fill_(float("nan"))
    cache.refresh()
    for name in names:
        torch.testing.assert_close(getattr(cache, name), before[name], atol=1e-6, rtol=0, equal_nan=True)
    token = torch.randn(2, 2, 16, device=device)
    cache.append(token, token)  # and the next step goes on from them
    check_summaries(cache)


def test_an_overflow_leaves_everyone_else_alone(make, device):
    _, cache = make([30, 20], page_size=16, max_tokens=32)
    kept = cache.k.clone()
    for shape in ((2, 9, 2, 16), (2, 2, 16), (2, 2, 16), (2, 2, 16), (2, 2, 16)):
        new = torch.ones(shape, dtype=torch.float16, device=device)
        cache.append(new, new)
    assert cache.lengths.tolist() == [32, 32]
    assert torch.equal(
        reference.context(cache, 0, torch.float16)[0][:, :30], in_order(kept, cache, 0)[:, :30]
    )
    nobodys = [p for p in range(cache.k.shape[0]) if p not in cache.page_table.flatten().tolist()]
    assert cache.k[nobodys].isnan().all()
    check_summaries(cache)


def in_order(k, cache, b):
    return k[cache.page_table[b].long()].transpose(0, 1).reshape(cache.n_kv_heads, -1, cache.head_dim)


def test_two_requests_may_share_pages_of_a_common_prefix(device):
    table = torch.tensor([[0, 1, 2], [0, 1, 3]], dtype=torch.int32, device=device)
    cache = PagedKVCache(
        2, 1, 16, 24, page_size=8, page_table=table, n_pages=4, dtype=torch.float32, device=device
    )
    prefix = torch.randn(1, 16, 1, 16, device=device).expand(2, -1, -1, -1).contiguous()
    cache.append(prefix, prefix)
    own = torch.randn(2, 1, 16, device=device)
    cache.append(own, own)
    for b in range(2):
        assert torch.equal(
            reference.context(cache, b, torch.float32)[0][0], torch.cat([prefix[b, :, 0], own[b]])
        )


def test_more_heads_than_one_turn_takes(make, device, monkeypatch):
    """Two of five heads at a time, where 128 heads of 256 would not fit a program's registers at once."""
    whole, turns = (
        make([3, 0], n_kv=5, bounds=True, block_size=4, page_size=4, max_tokens=8)[1] for _ in range(2)
    )
    steps = torch.randn(2, 3, 2, 5, 16, generator=torch.Generator().manual_seed(1)).half().to(device)
    for cache in (whole, turns):
        for k, v in zip(*steps, strict=True):
            cache.append(k, v, torch.tensor([1, 1], dtype=torch.int32, device=device))
        monkeypatch.setattr(configs, "step_launch", lambda *_: (2, 1))
    for name in ("k", "v", "key_means", "key_min", "key_max", "lengths"):
        torch.testing.assert_close(getattr(turns, name), getattr(whole, name), atol=0, rtol=0, equal_nan=True)
    check_summaries(turns)


@pytest.mark.parametrize("stored", [torch.float16, torch.float32, torch.float8_e4m3fn], ids=str)
@pytest.mark.parametrize("head_dim", [16, 128, 256])
def test_a_step_takes_sixteen_numbers_a_thread_at_most(stored, head_dim):
    for n_kv in (1, 8, 64, 128, 1000):
        heads, warps = configs.step_launch(n_kv, head_dim, stored)
        assert heads * head_dim <= 16 * 32 * warps or warps == 1
        assert warps <= (32 if stored == torch.float16 else 16)
        assert heads & (heads - 1) == 0
