"""Work shared out by live lengths: every token once, longest part first, and attention over it against float64."""

from __future__ import annotations

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from kinetics_kernels import block_topk_decode, configs, dense_decode, reference
from kinetics_kernels.work import list_parts

TILE = 16  # of fp32 queries

# Lengths at which something ends: none, a token, a page, a tile, the least part; or any; and one straggler.
EDGES = [0, 1, 7, 8, 9, 15, 16, 17, 63, 64, 65, 128]
ragged = st.lists(st.one_of(st.sampled_from(EDGES), st.integers(0, 130)), min_size=1, max_size=5)
straggler = st.sampled_from([0, 0, 300, 520])


def listed(lengths, device, *, n_kv=1, resident=8, room=None, splits=None):
    """Items ``[(request, start, stop, parts)]``, cut requests ``{request: (first item, parts)}``."""
    held = torch.tensor(lengths, dtype=torch.int32, device=device)
    items, cuts = (
        x.tolist() for x in list_parts(held, room or max(*lengths, 1), TILE, n_kv, resident, splits)
    )
    count, n_cuts = items[0][:2]
    assert count < len(items)  # what the host made room for
    assert n_cuts <= len(cuts)
    return items[1 : 1 + count], {b: (first, parts) for b, first, parts in cuts[:n_cuts]}


def check_list(lengths, items, cuts, room):
    """Every tile of a request in one of its parts, which lie side by side in order, the longest requests' parts first."""
    sizes = []
    for b, n in enumerate(lengths):
        tiles = -(-min(n, room) // TILE)
        own = [
            (i, start, stop, parts) for i, (request, start, stop, parts) in enumerate(items) if request == b
        ]
        assert {parts for *_, parts in own} == {len(own)}
        assert [i for i, *_ in own] == list(range(own[0][0], own[0][0] + len(own)))
        assert own[0][1] == 0
        assert own[-1][2] == tiles * TILE
        assert [start for _, start, *_ in own[1:]] == [stop for _, _, stop, _ in own[:-1]]
        lengths_of = [(stop - start) // TILE for _, start, stop, _ in own]
        assert max(lengths_of) - min(lengths_of) <= 1
        assert min(lengths_of) > 0 or n == 0
        sizes += [(i, max(lengths_of)) for i, *_ in own]
        assert cuts.get(b) == ((own[0][0], len(own)) if len(own) > 1 else None)
    told = [size for _, size in sorted(sizes)]
    assert told == sorted(told, reverse=True)
    return told


@given(lengths=st.lists(st.integers(0, 900), min_size=1, max_size=9), n_kv=st.integers(1, 3),
       resident=st.integers(1, 90), splits=st.sampled_from([None, None, None, 1, 3]),
       room=st.sampled_from([1000, 100]))  # fmt: skip
@example([0], 1, 8, None, 1000)
@example([900] + [64] * 40, 1, 8, None, 1000)  # more requests than one program lists
@example([0] * 8 + [900], 2, 60, None, 1000)
def test_any_list(device, lengths, n_kv, resident, splits, room):
    items, cuts = listed(lengths, device, n_kv=n_kv, resident=resident, splits=splits, room=room)
    longest = check_list(lengths, items, cuts, room)[0]
    tiles = [-(-min(n, room) // TILE) for n in lengths]
    if (
        splits is None
    ):  # no part is longer than a share of the work, of which there are as many as run at once
        few = 2 * len(lengths) * n_kv <= resident
        shares = resident // n_kv - len(lengths) if few else max(2 * resident // n_kv, 1)
        assert longest <= max(configs.LEAST_TILES, -(-sum(tiles) // shares))
        if few:
            assert len(items) * n_kv <= resident
    else:
        assert all(parts == max(min(splits, tiles[b]), 1) for b, _, _, parts in items)


def test_many_requests_are_listed_in_pieces(device, monkeypatch):
    monkeypatch.setattr(configs, "LIST_CHUNK", 16)  # and compared 16 at a time
    lengths = [(37 * i) % 700 for i in range(50)]
    check_list(lengths, *listed(lengths, device, resident=60), max(lengths))


def test_a_straggler_is_cut_and_its_fellows_are_not(device):
    items, cuts = listed([64] * 30 + [1600], device, resident=20)
    assert list(cuts) == [30]
    assert cuts[30][1] >= 10
    assert all(stop - start <= 160 for _, start, stop, _ in items)


def test_finished_requests_are_no_work(device):
    items, _ = listed([0] * 60 + [1280], device, resident=20)
    assert sum(stop > start for _, start, stop, _ in items) == 20  # 80 tiles in the least parts of 4
    assert items[20:] == [[b, 0, 0, 1] for b in range(60)]


def make_ragged(make, lengths, **shape):
    return make(lengths, dtype=torch.float32, page_size=8, **shape)


@given(lengths=ragged, straggler=straggler, resident=st.sampled_from([1, 4, 30]), group=st.sampled_from([1, 5]),
       n_kv=st.integers(1, 2), seed=st.integers(0, 99))  # fmt: skip
@example([64, 1, 0, 9], 520, 4, 5, 2, 1)
def test_any_ragged_batch(make, close, lengths, straggler, resident, group, n_kv, seed):
    lengths = [*lengths, straggler]
    q, cache = make_ragged(make, lengths, group=group, n_kv=n_kv, seed=seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(configs, "resident", lambda *_: resident)
        out, lse = dense_decode(q, cache, return_lse=True)
        sparse, sparse_lse = block_topk_decode(q, cache, 12, sink_blocks=1, return_lse=True)
    for got, got_lse, (want, want_lse) in (
        (out, lse, reference.dense_decode(q, cache)),
        (sparse, sparse_lse, reference.block_topk_decode(q, cache, 12, sink_blocks=1)),
    ):
        close(got, want)
        torch.testing.assert_close(got_lse.double().cpu(), want_lse, atol=1e-5, rtol=1e-5)


def test_more_parts_than_one_turn_joins(make, close, monkeypatch):
    """Two at a time: large logits, so that a later turn has the larger ones and the sums before must shrink."""
    monkeypatch.setattr(configs, "JOIN_PARTS", 2)
    q, cache = make_ragged(make, [100, 33], n_kv=1)
    for cut in ({"splits": 6}, {"splits": None}):
        out, lse = dense_decode(q, cache, scale=3.0, return_lse=True, **cut)
        want, want_lse = reference.dense_decode(q, cache, 3.0)
        close(out, want, scale=10)
        torch.testing.assert_close(lse.double().cpu(), want_lse, atol=1e-4, rtol=1e-5)


def test_the_order_of_requests_changes_no_bit(make, monkeypatch):
    """How work is cut depends on the lengths alone, and parts are joined in the order of the context."""
    monkeypatch.setattr(configs, "resident", lambda *_: 6)
    q, cache = make_ragged(make, [70, 400, 0, 130])
    out = dense_decode(q, cache)
    assert torch.equal(dense_decode(q, cache), out)
    order = torch.tensor([3, 0, 1, 2])
    for name in ("page_table", "lengths"):
        getattr(cache, name).copy_(getattr(cache, name)[order])
    assert torch.equal(dense_decode(q[order].contiguous(), cache), out[order])


@pytest.mark.gpu
def test_a_captured_graph_shares_the_work_out_anew(make, close):
    q, cache = make([100] * 7 + [3000], dtype=torch.float16, max_tokens=4096)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        dense_decode(q, cache)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        out = dense_decode(q, cache)
    for lengths in ([100] * 7 + [3000], [0] * 7 + [2999], [1, 100, 99, 3, 0, 0, 100, 1500]):
        cache.lengths.copy_(torch.tensor(lengths))
        graph.replay()
        torch.cuda.synchronize()
        close(out, reference.dense_decode(q, cache)[0])


@pytest.mark.gpu
def test_programs_that_run_at_once_are_the_compiled_kernels(make):
    q, cache = make([100], head_dim=128, dtype=torch.float16)
    dense_decode(q, cache)
    assert set(configs._resident.values()) <= {
        n * configs.multiprocessors(cache.device) for n in range(1, 17)
    }


def test_programs_that_run_at_once_come_from_the_compiled_kernel_and_are_asked_for_once(monkeypatch, device):
    """A stand-in for a kernel compiled with 96 registers and 39,424 bytes: two fit an L4's multiprocessor, of which it has 58."""
    asked = []

    class Kernel:
        def warmup(self, *arguments, grid, **how):
            asked.append(how)
            return SimpleNamespace(run=None, n_regs=96, metadata=SimpleNamespace(shared=39424))

    gpu, kernel, x = torch.device("cuda", 0), Kernel(), torch.zeros(1)
    monkeypatch.setattr(configs, "_resident", {})
    monkeypatch.setattr(configs, "interpreted", lambda: False)
    monkeypatch.setattr(configs, "multiprocessors", lambda device: 58)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 9))
    for _ in range(2):
        assert configs.resident(kernel, (x, torch.int32, 3), dict(D=64, num_warps=4), gpu) == 2 * 58
    assert configs.resident(kernel, (x.half(), torch.int32, 3), dict(D=64, num_warps=8), gpu) == 2 * 58
    assert asked == [dict(D=64, num_warps=4), dict(D=64, num_warps=8)]
    monkeypatch.undo()
    if device == "cpu":
        assert configs.resident(kernel, (x,), dict(num_warps=4), torch.device("cpu")) == 3 * 132


def test_programs_of_an_architecture_by_its_multiprocessor():
    attend = (118, 72192, 4)  # registers, bytes of shared memory, warps
    fits = {sm: configs.programs_per_sm(*attend, sm) for sm in (80, 86, 89, 90, 100, 103, 120, 121)}
    assert fits == {80: 2, 86: 1, 89: 1, 90: 3, 100: 3, 103: 3, 120: 1, 121: 1}
    assert configs.programs_per_sm(65, 0, 16, 90) == 1  # registers are given out in eights: 72 each
    assert [configs.programs_per_sm(16, 0, 1, sm) for sm in (80, 86, 89)] == [32, 16, 24]


# ---- the model of shared bandwidth ----------------------------------------------------------------------------

tail = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "tail.py"))


def test_the_models_rule():
    duration = tail["duration"]
    assert duration([6, 6], resident=2, k=2) == 12
    assert duration([6], resident=2, k=2) == 12  # alone it has half the bandwidth
    assert duration([6, 6], resident=1, k=1) == 12
    assert duration([2, 4, 4], resident=2, k=1) == 10  # whoever runs shares all of it
    assert duration([2, 10, 2], resident=2, k=2) == 20  # the last 6 of the 10 alone, at half the bandwidth
    assert duration([10, 2, 2], resident=2, k=2) == 20
    assert duration([], resident=2, k=2) == 0


def test_ragged_batches_reach_the_limit_and_equal_ones_lose_nothing():
    """By the model: the straggler from 41 % to 95 % and more, log-normal lengths from 90 % to 97 % and more."""
    shares, cases = tail["shares"], tail["CASES"]
    before, after = shares(*cases["127 x 4K and 1 x 128K, 8 KV heads"])
    assert before == pytest.approx(0.41, abs=0.01)
    assert after >= 0.95
    assert shares(*cases["511 x 4K and 1 x 128K, 1 KV head"])[1] >= 0.95
    drawn = [shares(tail["log_normal"](seed), 8) for seed in range(2)]
    assert sum(one for one, _ in drawn) / 2 == pytest.approx(0.90, abs=0.02)
    assert min(other for _, other in drawn) >= 0.97
    for batch, tokens, n_kv in ((128, 8192, 8), (800, 2048, 1)):  # at least two requests and heads a program
        before, after = shares([tokens] * batch, n_kv)
        assert after == before  # not cut at all
    for batch, tokens, n_kv in ((8, 32768, 8), (1, 32768, 8), (32, 8192, 8), (50, 16384, 8)):
        before, after = shares([tokens] * batch, n_kv)
        assert after >= before - 0.005  # fewer: at most the bytes of partial outputs
