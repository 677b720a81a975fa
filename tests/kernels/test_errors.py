"""Bad input: one sentence, naming the argument, the rule and the value."""

from __future__ import annotations

import re

import pytest
import torch
from kinetics_kernels import (
    PagedKVCache,
    block_topk_decode,
    checks,
    dense_decode,
    layout,
    score_quest,
    select_blocks,
    select_local,
    select_strided,
    select_tokens,
    select_top,
    sparse_decode,
)

CACHE = {
    "batch must be an integer >= 1, got 0": dict(batch=0),
    "n_kv_heads must be an integer >= 1, got 2.0": dict(n_kv_heads=2.0),
    "head_dim must be one of (16, 32, 64, 128, 256), got 80": dict(head_dim=80),
    "max_tokens must be an integer >= 1, got 0": dict(max_tokens=0),
    "page_size must be one of (1, 2, 4, 8, 16, 32, 64, 128), got 24": dict(page_size=24),
    "block_size must be a multiple of page_size=16, got 24": dict(block_size=24),
    "block_size must be an integer >= 1, got 0": dict(block_size=0),
    "dtype must be one of (torch.float16, torch.bfloat16, torch.float32, torch.float8_e4m3fn), "
    "got torch.float64": dict(dtype=torch.float64),
    "n_pages must be at least 8 (batch * pages per request) without a page_table, got 7": dict(n_pages=7),
    "page_table must have shape (2, 4), got (2, 3)": dict(page_table=torch.zeros(2, 3, dtype=torch.int32)),
    "page_table must have dtype torch.int32, got torch.int64": dict(
        page_table=torch.zeros(2, 4, dtype=torch.int64)
    ),
    "page_table must hold page ids 0 to 7, got 0 to 8": dict(
        page_table=torch.arange(1, 9, dtype=torch.int32).view(2, 4) % 9, debug=True, n_pages=8
    ),
}


@pytest.mark.parametrize("message", CACHE)
def test_cache(message, device):
    arguments = dict(batch=2, n_kv_heads=2, head_dim=16, max_tokens=64, device=device) | CACHE[message]
    for name, value in arguments.items():
        if isinstance(value, torch.Tensor):
            arguments[name] = value.to(device)
    if "0 to 8" in message:
        arguments["page_table"][0, 0] = 0
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        PagedKVCache(**arguments)


CALLS = {
    "q must have 3 dimensions (batch, query heads, head_dim), got (4, 16)": lambda q, c: dense_decode(
        q[0], c
    ),
    "q must be a torch.Tensor, got list": lambda q, c: dense_decode(q.tolist(), c),
    "q must have dtype torch.float16, got torch.float32": lambda q, c: dense_decode(q.float(), c),
    "q must have shape (2, 4, 16), got (1, 4, 16)": lambda q, c: dense_decode(q[:1], c),
    "q must have shape (2, 4, 16), got (2, 4, 8)": lambda q, c: dense_decode(q[..., :8].contiguous(), c),
    "q must have a multiple of 2 query heads (the KV heads), got 3": lambda q, c: dense_decode(q[:, :3], c),
    "q must have at most 16 query heads per KV head, got 17": lambda q, c: dense_decode(
        q.repeat(1, 9, 1)[:, :34], c
    ),
    "q must be contiguous (call .contiguous()), got strides": lambda q, c: dense_decode(
        q.flip(1).mT.contiguous().mT, c
    ),
    "q must be on": lambda q, c: dense_decode(q.to("meta"), c),
    "scale must be a positive number, got 0": lambda q, c: dense_decode(q, c, scale=0),
    "scale must be a positive number, got nan": lambda q, c: block_topk_decode(q, c, 1, scale=float("nan")),
    "splits must be an integer >= 1, got 0": lambda q, c: dense_decode(q, c, splits=0),
    "stop must be an integer >= 2, got 1": lambda q, c: c.rows(1, 1),
    "n_blocks must be an integer >= 1, got 0": lambda q, c: block_topk_decode(q, c, 0),
    "n_blocks must be an integer >= 1, got True": lambda q, c: select_blocks(q, c, True),
    "sink_blocks must be an integer >= 0, got -1": lambda q, c: select_blocks(q, c, 1, sink_blocks=-1),
    "window_blocks must be an integer >= 0, got -1": lambda q, c: select_blocks(q, c, 1, window_blocks=-1),
    "window_blocks must be an integer >= 1, got 0": lambda q, c: select_local(c, 0),
    "span must be an integer >= 1, got 0": lambda q, c: select_strided(q, c, 1, 0),
    "n_tokens must be an integer >= 1, got 0": lambda q, c: select_tokens(q, c, 0),
    "cache must be made with bounds=True for Quest, got bounds=False": lambda q, c: score_quest(q, c),
    "scores must have shape (2, 2, 4), got (2, 2, 3)": lambda q, c: select_top(
        torch.zeros(2, 2, 3).to(q.device), c, 1
    ),
    "k must be a tensor of 3 or 4 dimensions, got": lambda q, c: c.append(q[0], q[0]),
    "k must have shape (2, 2, 16), got (2, 4, 16)": lambda q, c: c.append(q, q),
    "k.shape[1] (tokens) must be an integer >= 1, got 0": lambda q, c: c.append(q[:, None, :0][:, :0], q),
    "v must have dtype torch.float16, got torch.float32": lambda q, c: c.append(new(q), new(q).float()),
    "counts must have shape (2,), got (1,)": lambda q, c: c.append(new(q), new(q), c.lengths[:1]),
    "counts must have dtype torch.int32, got torch.int64": lambda q, c: c.append(
        new(q), new(q), c.lengths.long()
    ),
}


def new(q):
    return q[:, :2].contiguous()


@pytest.mark.parametrize("message", CALLS)
def test_calls(make, message):
    q, cache = make([20, 64])
    with pytest.raises(ValueError, match=re.escape(message)):
        CALLS[message](q, cache)


def test_a_selection_of_another_cache(make):
    q, cache = make([20, 64])
    _, other = make([20, 64, 3])
    with pytest.raises(
        ValueError, match=re.escape("selection must be for (batch, KV heads) = (2, 2), got (3, 2)")
    ):
        sparse_decode(q, cache, select_local(other, 1))


@pytest.mark.parametrize(
    ("other", "told"),
    [
        (dict(page_size=8, block_size=32), "(8, 32, 19)"),
        (dict(block_size=64), "(16, 64, 11)"),
        (dict(max_tokens=128), "(16, 32, 19)"),  # more pages than there are here
    ],
    ids=str,
)
def test_a_selection_knows_its_cache(make, other, told):
    q, cache = make([20, 64], block_size=32)
    message = f"selection must be for a cache of (page size, block size, pages) = (16, 32, 11), got {told}"
    theirs = make([20, 64], **dict(block_size=32) | other)[1]
    for chosen in (select_local(theirs, 1), select_blocks(q, theirs, 1), select_tokens(q, theirs, 2)):
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            sparse_decode(q, cache, chosen)
    same = make([3, 9], block_size=32, max_tokens=64)[1]  # the next layer's cache, say
    sparse_decode(q, cache, select_local(same, 1))


@pytest.mark.parametrize(
    ("capability", "dtype", "message"),
    [
        (
            (8, 6),
            torch.float8_e4m3fn,
            "an fp8 cache must be on a GPU of compute capability 8.9 or newer, got 8.6",
        ),
        ((7, 5), torch.float16, "the cache must be on a GPU of compute capability 8.0 or newer, got 7.5"),
    ],
)
def test_a_gpu_too_old(monkeypatch, capability, dtype, message):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        PagedKVCache(1, 1, 16, 16, dtype=dtype, device="cuda")
    for newer, fp8 in (((8, 9), True), ((12, 0), True), ((8, 0), False)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, found=newer: found)
        checks.gpu(torch.device("cuda"), fp8=fp8)


def test_grids_of_any_number_of_blocks(monkeypatch, device):
    """CUDA takes 2^31 - 1 programs along a grid's first axis and 65,535 along the others."""
    grids = []

    class Recorder:
        def __getitem__(self, grid):
            grids.append(grid)
            return lambda *_, **__: None

    monkeypatch.setattr(layout, "append_prompt_kernel", Recorder())
    cache = PagedKVCache(2, 3, 16, 70_000, page_size=1, device=device)
    new = torch.zeros(2, 70_000, 3, 16, dtype=torch.float16, device=device)
    cache.append(new, new)
    cache.refresh()
    assert grids == [(140_000, 3)] * 2


def test_too_many_blocks_to_select_from(device):
    cache = PagedKVCache(1, 1, 16, 8193, page_size=1, device=device)
    with pytest.raises(
        ValueError, match="max_tokens / block_size must be at most 8192 for selection, got 8193"
    ):
        select_local(cache, 1)


def test_debug_mode_reads_back_what_the_gpu_holds(make):
    q, cache = make([20, 64], debug=True)
    dense_decode(q, cache)
    with pytest.raises(
        ValueError, match=re.escape("lengths must stay within 0 and max_tokens=64, got 20 to 65")
    ):
        cache.append(new(q), new(q))
    assert cache.lengths.tolist() == [20, 64]  # and nothing was written
    cache.page_table[1, 2] = -1
    last = cache.k.shape[0] - 1
    for call in (dense_decode, lambda q, c: block_topk_decode(q, c, 1), lambda q, c: c.refresh()):
        with pytest.raises(ValueError, match=f"page_table must hold page ids 0 to {last}, got -1 to"):
            call(q, cache)
