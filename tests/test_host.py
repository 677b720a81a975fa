"""A computer's own processor as a device to measure: its cache against the plain one, its suites, its rows."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
import pytest

from kinetics_lab.cost.policies import BlockTopK, Dense
from kinetics_lab.measure import rows as measured
from kinetics_lab.measure import timelaw, timers
from kinetics_lab.measure.bench import HOST, kernels_digest, open_bench
from kinetics_lab.measure.limits import Rates
from kinetics_lab.measure.runner import read_rows, run_suite
from kinetics_lab.measure.suites import SUITES, chosen_suites
from kinetics_lab.measure.suites import model as model_suite

torch = pytest.importorskip("torch", reason="needs PyTorch (the extra 'kernels')")

from kinetics_lab.decode import host  # noqa: E402
from kinetics_lab.decode.caches import PlainCache  # noqa: E402

BLOCK, TOKENS = 16, 160
POLICIES = [
    Dense(),
    BlockTopK(32, BLOCK),
    BlockTopK(32, BLOCK, last_block=True),
    BlockTopK(144, BLOCK, last_block=True),  # with the last block, all there is
    BlockTopK(512, BLOCK),
]
each_policy = pytest.mark.parametrize("policy", POLICIES, ids=str)


@each_policy
@pytest.mark.parametrize("group", [1, 3])
def test_a_step_reads_what_the_plain_cache_reads(policy, group):
    torch.manual_seed(0)
    ours = host.HostCache(policy, 2, 3, 8, TOKENS, BLOCK)
    plain = PlainCache(policy, 2, 3, 8, TOKENS)
    plain.k.copy_(ours.k), plain.v.copy_(ours.v), plain.lengths.fill_(TOKENS - 1)
    for _ in range(2):  # a step overwrites the last token, and so does the next
        k, v = torch.randn(2, 3, 8), torch.randn(2, 3, 8)
        plain.lengths.fill_(TOKENS - 1)
        ours.append(k, v), plain.append(k, v)
        q = torch.randn(2, 3 * group, 8)
        torch.testing.assert_close(ours.attend(q), plain.attend(q), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(ours.attend(q, 0.1), plain.attend(q, 0.1), rtol=1e-5, atol=1e-6)


def test_what_is_not_chosen_is_not_read():
    torch.manual_seed(1)
    cache = host.HostCache(BlockTopK(32, BLOCK, last_block=True), 1, 2, 8, TOKENS, BLOCK)
    q = torch.randn(1, 4, 8)
    chosen = cache.select(q.unflatten(1, (2, 2)))
    assert chosen.shape == (1, 2, 3)
    assert (chosen == TOKENS // BLOCK - 1).any(-1).all()  # the last block, whatever its score
    before = cache.attend(q)
    for head in range(2):
        for block in set(range(TOKENS // BLOCK)) - set(chosen[0, head].tolist()):
            cache.v[0, head, block * BLOCK : (block + 1) * BLOCK] = torch.nan
    torch.testing.assert_close(cache.attend(q), before, rtol=0, atol=0)
    assert cache.under(Dense()).attend(q).isnan().all()
    assert cache.under(Dense()).k is cache.k


def test_a_cache_of_broken_blocks_is_refused():
    with pytest.raises(ValueError, match="tokens must be a multiple of block=16; got 100"):
        host.HostCache(Dense(), 1, 1, 8, 100, 16)


# ---- suites and rows ------------------------------------------------------------------------------------------


def test_only_suites_without_our_kernels_run_on_a_host():
    assert [suite.name for suite in chosen_suites("all", HOST)] == ["roofline", "model"]
    assert chosen_suites("all") == list(SUITES.values())
    with pytest.raises(ValueError, match="suite on a host 'dense' is not known; known: model, roofline"):
        chosen_suites("dense", HOST)


def test_cases_of_a_host_count_numbers_of_four_bytes():
    rates = Rates(1e10, 1e11, "to count with")
    for suite in chosen_suites("all", HOST):
        for case in suite.cases_on(HOST):
            assert case["element_bytes"] == 4
            four, two = suite.predict(case, rates), suite.predict(case | {"element_bytes": 2}, rates)
            counts = 1 if case.get("kind") in ("copy", "read") else 2  # whose size is in bytes
            assert four["bytes"] == counts * two["bytes"]
            assert four["flops"] == two["flops"]
    cases = SUITES["model"].cases_on(HOST)
    caches = {
        name: model_suite.shape_named(name).kv_bytes_per_token() for name in {c["model"] for c in cases}
    }
    assert len(set(caches.values())) == 1 < len(caches)  # the comparison that the chapter draws
    assert max(SUITES["model"].predict(case, rates)["memory_bytes"] for case in cases) < 17e9


def small(suite):
    """The suite with cases that take no time."""
    tiny = [{"model": "tiny", "batch": 1, "context": 64, "page": 16, "budget": 32, "block": 16}]
    rates = [{"kind": kind, "size": 256} for kind in ("copy", "read", "matmul", "both")]
    cases = [case | {"element_bytes": 4} for case in (tiny if suite.name == "model" else rates)]
    return replace(suite, host=lambda: cases)


@pytest.fixture(scope="module")
def timed(tmp_path_factory):
    """Rows of small cases, timed here."""
    pytest.importorskip("transformers")
    out = tmp_path_factory.mktemp("host") / "rows"
    bench = open_bench(HOST, out)
    bench.timer.target_s = 0.0
    for suite in chosen_suites("all", HOST):
        assert run_suite(small(suite), out, bench, say=lambda line: None)
    return out, bench


def test_rows_of_a_host_say_so(timed):
    out, bench = timed
    assert bench.gpu.endswith(f", {torch.get_num_threads()} threads")
    rows = read_rows(out, bench.folder, "model")
    assert rows["error"].isna().all()
    assert rows["current"].all()
    assert set(rows["kernels_digest"]) == {kernels_digest(HOST)} != {kernels_digest()}
    assert set(rows["device"]) == {HOST}
    assert rows["driver"].isna().all()
    assert rows[["dense_us", "sparse_us", "first_dense_us", "rest_us", "peer_us"]].notna().all(axis=None)
    assert (rows["dense_n"] == bench.timer.least).all()
    rates = read_rows(out, bench.folder, "roofline").set_index("kind").loc["both"]
    assert rates["bandwidth"] == pytest.approx(64 * 4 * 256**2 / rates["copy_us"] * 1e6)
    assert rates["matrix_rate"] == pytest.approx(2 * 256**3 / rates["time_us"] * 1e6)


def test_a_chapter_can_show_them_and_takes_them_for_no_gpu(timed):
    out, bench = timed
    found = measured.rows(bench.folder, "model", out, device=HOST)
    assert found.measured
    assert found.title == f"Measured on {bench.gpu}"
    assert found.rates.source == "measured"
    assert found.said["Versions"].startswith("torch ")
    assert "driver" not in found.said["Versions"]
    with pytest.raises(ValueError, match="rows must be of device cuda"):
        measured.rows(bench.folder, "model", out)
    (out / "other").mkdir(exist_ok=True)
    missing = measured.rows(bench.folder, "roofline", out, device=HOST).said
    assert "make gpu" not in str(missing)
    with pytest.raises(ValueError, match="'dense' is not known"):
        measured.rows(bench.folder, "dense", out, device=HOST)


def test_the_timer_runs_a_call_once_after_its_reset():
    told = []
    timer = timers.HostTimer()
    run, how = timer.prepare(lambda: told.append("run"))
    assert how == "clock"
    told.clear()
    assert timer.sample(run, lambda: told.append("reset")) > 0
    assert told == ["reset", "run"]
    assert timer.buffer.numel() * 4 > 1e8
    assert timer.buffer.min() == 1  # written, and so not the one page of zeros that all of it might share


def test_a_case_beyond_the_memory_is_not_begun(timed):
    _, bench = timed
    assert timers.free_memory() > 1e8
    assert not bench.has_memory(1e15)
    assert bench.has_memory(1e3)


def test_steps_are_counted_as_they_are_timed(timed):
    out, bench = timed
    row = read_rows(out, bench.folder, "model").iloc[0]
    steps = model_suite.timed_steps(read_rows(out, bench.folder, "model")).set_index("kind")
    assert list(steps["us"]) == [row["dense_us"], row["sparse_us"], row["rest_us"]]
    assert (steps["low_us"] <= steps["us"]).all()
    assert (steps["us"] <= steps["high_us"]).all()
    assert list(steps["limit_us"]) == [row["dense_limit_us"], row["limit_us"], row["rest_limit_us"]]
    token = 2 * 2 * 16 * 2 * 4  # bytes: layers, KV heads, head_dim, keys and values of four bytes
    read = steps["bytes"] - steps.loc["without attention", "bytes"]
    # the law integrates over the step, from 63 tokens in the cache to 64
    assert read["dense"] == 63.5 * token
    assert read["block top-k"] == (32 + 16) * token + 63.5 / 16 * token / 2
    matrices = 32 * (4 + 2 * 2) * 16 + 4 * 16 * 32 + 3 * 32 * 64
    norms = 2 * 32 + 2 * 16
    weights = 2 * (matrices + norms) + 32 + 64 * 32  # two layers, the last norm and the head
    assert steps["gemm_flops"].tolist() == [2 * weights] * 3
    assert steps["weight_bytes"].tolist() == [4 * weights] * 3


def test_a_known_matrix_rate_is_not_fitted(timed):
    out, bench = timed
    step = model_suite.timed_steps(read_rows(out, bench.folder, "model"))
    steps = pd.concat([step.assign(bytes=step["bytes"] * n, flops=step["flops"] * n) for n in (1, 10, 100)])
    known = timelaw.TimeLaw(5e9, 4e10, 100.0, "add")
    found = timelaw.fit_time_law(steps, known.us(steps), "add", matrix_rate=4e10)
    assert found.matrix_rate == 4e10
    assert found.bandwidth == pytest.approx(5e9, rel=1e-3)
    assert found.overhead_us == pytest.approx(100.0, rel=1e-3)
