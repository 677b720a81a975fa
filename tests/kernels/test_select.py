"""Scores against float64, and the choice of blocks: exact, ties to the lowest, in context order."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from kinetics_kernels import (
    PagedKVCache,
    configs,
    reference,
    score_blocks,
    score_quest,
    score_tokens,
    select_local,
    select_strided,
    select_top,
)

SPECIAL = [0.0, -0.0, 1.0, -1.0, 1e-42, -1e-42, 3e38, -3e38, float("inf"), float("-inf"), float("nan")]


def empty_cache(lengths, device, *, n_kv=2, page_size=4, block_size=None, max_tokens=None) -> PagedKVCache:
    """Lengths and a shuffled page table; there is nothing to read in the pages."""
    cache = PagedKVCache(len(lengths), n_kv, 16, max_tokens or max(*lengths, 1), page_size=page_size,
                         block_size=block_size, device=device)  # fmt: skip
    cache.lengths.copy_(torch.tensor(lengths))
    cache.page_table.copy_(cache.page_table.flatten().flip(0).view_as(cache.page_table))
    return cache


def check(selection, scores, cache, n_blocks, sink, window, span=1):
    """Blocks, pages and tokens of every request and head against ``reference.choose``."""
    block, pages_per_block = cache.block_size, cache.pages_per_block
    for b, n in enumerate(cache.lengths.tolist()):
        for h in range(cache.n_kv_heads):
            row = torch.zeros(0) if scores is None else scores[b, h].cpu()
            live = -(-n // block)
            want = reference.choose(
                row if len(row) else torch.zeros(live), n, block, n_blocks, sink, window, span
            )
            got = selection.blocks[b, h].tolist()
            assert got == want + [-1] * (len(got) - len(want))
            table = cache.page_table[b].tolist()
            pages = [table[i * pages_per_block + p] for i in want for p in range(pages_per_block)]
            assert selection.pages[b, h].tolist() == pages + [-1] * (len(got) * pages_per_block - len(pages))
            assert int(selection.tokens[b, h]) == sum(min(block, n - i * block) for i in want)


@given(
    lengths=st.lists(st.integers(0, 150), min_size=1, max_size=2),
    page_size=st.sampled_from([1, 4, 8]),
    pages_per_block=st.integers(1, 3),
    n_blocks=st.integers(1, 20),
    sink=st.integers(0, 3),
    window=st.integers(0, 3),
    span=st.sampled_from([1, 1, 2, 3, 5]),
    kind=st.sampled_from(["random", "few values", "special"]),
    seed=st.integers(0, 999),
)
@example([150, 61], 4, 2, 5, 2, 3, 1, "few values", 1)  # ties at the threshold, between sink and last blocks
@example([149, 0], 1, 3, 7, 1, 0, 1, "special", 2)
@example([150, 40], 4, 1, 4, 2, 1, 3, "random", 3)  # windows that begin in the sink
@example([5], 8, 1, 9, 1, 1, 5, "random", 4)  # a window longer than the context
def test_any_selection(device, lengths, page_size, pages_per_block, n_blocks, sink, window, span, kind, seed):
    cache = empty_cache(lengths, device, page_size=page_size, block_size=page_size * pages_per_block)
    draw = torch.Generator().manual_seed(seed)
    shape = (len(lengths), 2, cache.max_blocks)
    if kind == "special" and span == 1:
        scores = torch.tensor(SPECIAL)[torch.randint(len(SPECIAL), shape, generator=draw)]
    elif kind == "random" and span == 1:
        scores = torch.randn(shape, generator=draw)
    else:  # whole numbers; scaled so that means over a window's tokens are exact, and ties stay ties
        scores = torch.randint(-2, 3, shape, generator=draw).float()
    scores = scores.to(device)
    if span > 1:  # a rounded mean may rank two equal windows either way: compare where it cannot
        lengths = [n // cache.block_size * cache.block_size for n in lengths]
        cache.lengths.copy_(torch.tensor(lengths))
        scores = scores * 60  # divisible by every span
    selection = select_top(scores, cache, n_blocks, sink_blocks=sink, window_blocks=window, span=span)
    check(selection, scores, cache, n_blocks, sink, window, span)


@pytest.mark.parametrize(
    ("n_blocks", "tied"),
    [(17, False), (1000, True)] + [pytest.param(n, tied, marks=pytest.mark.slow)
     for n in (1, 3, 17, 1000, 4096) for tied in (False, True)],
)  # fmt: skip
def test_long_contexts(device, n_blocks, tied):
    cache = empty_cache([8192, 4001], device, page_size=1, block_size=2, n_kv=1)
    scores = torch.randn(2, 1, 4096, generator=torch.Generator().manual_seed(n_blocks)).to(device)
    scores = torch.zeros_like(scores) if tied else scores
    check(select_top(scores, cache, n_blocks, window_blocks=0), scores, cache, n_blocks, 0, 0)


@pytest.mark.parametrize("n_blocks", [3, 11, 30])
def test_long_selections_look_their_pages_up_in_turns(device, monkeypatch, n_blocks):
    monkeypatch.setattr(configs, "SELECT_SLOTS", 4)
    cache = empty_cache([120, 37], device, page_size=2, block_size=4)
    scores = torch.randn(2, 2, cache.max_blocks, generator=torch.Generator().manual_seed(1)).to(device)
    check(select_top(scores, cache, n_blocks, sink_blocks=1), scores, cache, n_blocks, 1, 1)


def test_scores_beyond_the_live_blocks_are_not_read(device):
    cache = empty_cache([9, 0, 21], device, max_tokens=64)
    scores = torch.full((3, 2, 16), float("nan"), device=device)
    for b, n in enumerate([3, 0, 6]):
        scores[b, :, :n] = torch.arange(n, device=device)
    check(select_top(scores, cache, 2, window_blocks=0), scores, cache, 2, 0, 0)


@pytest.mark.parametrize(("last", "chosen", "tokens"), [(8.0, [1, 2], 5), (7.0, [0, 1], 8)])
def test_a_partly_filled_block_weighs_by_its_tokens(device, last, chosen, tokens):
    """Blocks of 4, the third holding one token: window (0, 1) has mean 1.5, window (1, 2) last / 5."""
    cache = empty_cache([9], device, n_kv=1)
    scores = torch.tensor([[[3.0, 0.0, last]]], device=device)
    selection = select_top(scores, cache, 1, span=2, window_blocks=0)
    assert selection.blocks.tolist() == [[chosen]]
    assert selection.tokens.tolist() == [[tokens]]


@pytest.mark.parametrize(
    ("values", "first", "second"),
    [
        ([-0.0, 0.0, -1.0], 0, 1),  # -0 and 0 are a tie
        ([0.0, -0.0, 1e-42], 2, 0),  # the smallest numbers still count
        ([3e38, float("inf"), float("nan")], 2, 1),  # a NaN is chosen, so that it shows
        ([3e38, float("inf"), -float("nan")], 2, 1),  # of negative sign, too
        ([float("-inf"), -3e38, -1e-42], 2, 1),
    ],
)
def test_the_order_of_floats(device, values, first, second):
    cache = empty_cache([12], device, n_kv=1)
    scores = torch.tensor([[values]], device=device)
    for n_blocks, want in ((1, {first}), (2, {first, second})):
        blocks = select_top(scores, cache, n_blocks, window_blocks=0).blocks
        assert blocks.flatten().tolist() == sorted(want)


def check_scores(make, head_dim, group, block_size, page_size, dtype=torch.float16):
    """Mean keys are rounded by 2^-11 of values below 4, and meet head_dim numbers of q * scale. More than 256 tokens
    are scored by more than one program."""
    lengths = [0, 1, 260]
    q, cache = make(lengths, group=group, head_dim=head_dim, page_size=page_size, block_size=block_size,
                    bounds=True, dtype=dtype)  # fmt: skip
    blocks, bounds, tokens = (
        score(q, cache).double().cpu() for score in (score_blocks, score_quest, score_tokens)
    )
    coarse = 8 if dtype == torch.bfloat16 else 1  # 8 bits in place of 11, in q and mean keys
    for b, n in enumerate(lengths):
        k, _ = reference.context(cache, b)
        live = -(-n // block_size)
        for h in range(cache.n_kv_heads):
            q_group = q[b, h * group : (h + 1) * group].double() * head_dim**-0.5
            want = reference.mean_scores(q_group, k[h], block_size).cpu()
            torch.testing.assert_close(blocks[b, h, :live], want, atol=coarse * 8e-3, rtol=0)
            want = reference.quest_scores(q_group, k[h], block_size).cpu()  # low and high are not rounded
            torch.testing.assert_close(bounds[b, h, :live], want, atol=1e-4, rtol=1e-6)
            want = (q_group @ k[h].T).mean(0).cpu()
            torch.testing.assert_close(tokens[b, h, :n], want, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("head_dim", "group", "block_size", "page_size", "dtype"),
    [(16, 5, 24, 8, torch.float32), (128, 1, 128, 128, torch.bfloat16), (256, 16, 16, 16, torch.float16)],
    ids=str,
)
def test_scores(make, head_dim, group, block_size, page_size, dtype):
    check_scores(make, head_dim, group, block_size, page_size, dtype)


@pytest.mark.slow
@pytest.mark.parametrize(("block_size", "page_size"), [(16, 16), (32, 8), (4, 4), (128, 128)])
@pytest.mark.parametrize(("head_dim", "group"), [(16, 5), (128, 1), (256, 16)])
def test_all_scores(make, head_dim, group, block_size, page_size):
    check_scores(make, head_dim, group, block_size, page_size)


def test_more_blocks_than_one_program_scores(device):
    cache = empty_cache([258, 3], device, n_kv=1, page_size=1)
    draw = torch.Generator().manual_seed(0)
    cache.key_means.copy_(torch.randn(cache.key_means.shape, generator=draw))
    q = torch.randn(2, 2, 16, generator=draw).half().to(device)
    scores = score_blocks(q, cache, scale=0.5).double().cpu()
    for b, n in enumerate([258, 3]):
        want = (q[b].double() @ cache.key_means[b, 0, :n].double().T).mean(0) / 2
        torch.testing.assert_close(scores[b, 0, :n], want.cpu(), atol=1e-5, rtol=1e-5)


def test_quest_bounds_every_logit(make):
    q, cache = make([100], group=1, page_size=8, bounds=True, dtype=torch.float32)
    bound, logits = score_quest(q, cache)[0], score_tokens(q, cache)[0, :, :100]  # nothing is written beyond
    best = torch.stack([logits[:, i * 8 : (i + 1) * 8].amax(1) for i in range(13)], 1)
    assert (best <= bound + 1e-5).all()


def test_local_reads_the_sink_and_the_last_blocks(device):
    cache = empty_cache([0, 1, 40, 63], device)
    selection = select_local(cache, 3, sink_blocks=2)
    check(selection, None, cache, 0, 2, 3)
    assert selection.blocks[3, 0].tolist() == [0, 1, 13, 14, 15]
    assert selection.tokens[3, 0] == 4 * 4 + 3


def test_strided_reads_at_most_its_budget(make):
    q, cache = make([400, 3], page_size=8, n_kv=1)
    blocks = select_strided(q, cache, 5, 4, window_blocks=0).blocks
    for chosen in blocks.flatten(0, 1).tolist():
        kept = [i for i in chosen if i >= 0]
        assert len(kept) <= 20
        runs = [i for i in kept if i - 1 not in kept]
        assert len(runs) <= 5  # windows, joined where they overlap


def test_repeat_runs_are_equal_to_the_bit(make):
    q, cache = make([120, 3], page_size=4)
    first, second = (select_strided(q, cache, 5, 2) for _ in range(2))
    assert torch.equal(first.pages, second.pages)
    assert torch.equal(score_blocks(q, cache)[0], score_blocks(q, cache)[0])
