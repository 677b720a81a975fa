"""Measuring: the statistics, the limits by hand, and the runner that must never lose, mix or invent a row."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

from kinetics_lab import HARDWARE, cli
from kinetics_lab.measure import bench as bench_module
from kinetics_lab.measure import limits, suites, timers
from kinetics_lab.measure import runner as measure
from kinetics_lab.measure.bench import CPU, Bench, code_state, open_bench
from kinetics_lab.measure.limits import Rates, attention_case, block_topk_case
from kinetics_lab.measure.runner import Suite, read_rows, run_suite
from kinetics_lab.measure.suites import BUDGETS, PAPER, SUITES
from kinetics_lab.measure.suites import attention as attention_suites
from kinetics_lab.measure.timers import WallTimer, summary, time_together

H200 = Rates(4.3e12, 790e12, "by hand")
_spec = importlib.util.spec_from_file_location(
    "synthetic_rows", Path(__file__).with_name("synthetic_rows.py")
)
synthetic_rows = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(synthetic_rows)


# ---- a time ---------------------------------------------------------------------------------------------------


class FakeTimer(WallTimer):
    """Times that a list dictates; ``log`` tells what ran in which order."""

    least, most, target_s = 3, 5, 1.0

    def __init__(self, seconds):
        self.left, self.log = list(seconds), []

    def sample(self, run, reset):
        reset()
        run()
        return self.left.pop(0)


def test_median_and_percentiles():
    found = summary([5e-6, 1e-6, 2e-6, 3e-6, 4e-6, 100e-6], "graph")
    assert found.pop("how") == "graph"
    assert found == pytest.approx({"us": 3.5, "p20_us": 2.0, "p80_us": 5.0, "n": 6})


def test_calls_are_timed_in_alternation_each_after_its_reset():
    log = []
    calls = {name: (lambda name=name: log.append(name)) for name in "ab"}
    resets = {"": lambda: log.append("."), "b": lambda: log.append("-")}
    timer = FakeTimer(
        [9.0, 9.0, 1.0, 10.0, 2.0, 20.0, 3.0, 30.0]
    )  # a trial round too long for more than 3 rounds
    found = time_together(calls, timer, resets)
    assert "".join(log) == ".a-b" * 5  # warm-up, trial, three rounds
    assert (found["a"]["us"], found["b"]["us"]) == (2e6, 20e6)
    assert found["a"]["n"] == found["b"]["n"] == 3


@pytest.mark.parametrize(("round_s", "n"), [(1e-9, 5), (0.25, 4), (10.0, 3)])
def test_rounds_follow_from_the_target(round_s, n):
    assert timers.rounds(round_s, FakeTimer([])) == n


class FakeCuda:
    """Just enough of torch.cuda to see in which order a GPU would be asked; ``breaks``: every capture does."""

    def __init__(self, breaks=False):
        self.log, self.strict, fake = [], False, self

        class Event:
            def __init__(self, enable_timing):
                assert enable_timing

            def record(self):
                fake.log.append("event")

            def synchronize(self):
                fake.log.append("wait")

            def elapsed_time(self, other):
                return 2.5  # milliseconds

        class Graph:
            def replay(self):
                fake.log.append("replay")

        @contextmanager
        def graph(made, stream):
            yield
            if breaks:
                raise RuntimeError("out of memory")

        self.Event, self.CUDAGraph, self.graph = Event, Graph, graph
        self.Stream = lambda: SimpleNamespace(wait_stream=lambda other: None)
        self.stream, self.current_stream, self.synchronize = nullcontext, lambda: "ours", lambda: None

    def set_sync_debug_mode(self, mode):
        self.strict = {"error": True, "default": False}[mode]

    def call(self, name="call", waits=False, fault=None):
        """A call to time: with ``waits`` PyTorch refuses it in strict mode, ``fault`` is raised there."""

        def run():
            self.log.append(name)
            if self.strict and (fault or waits):
                raise fault or RuntimeError("called a synchronizing CUDA operation")

        return run


@pytest.fixture
def gpu_timer(monkeypatch):
    """A function that makes a CudaTimer on a FakeCuda."""
    torch = pytest.importorskip("torch")

    def make(**options):
        cuda = FakeCuda(**options)
        monkeypatch.setattr(torch, "cuda", cuda)
        monkeypatch.setattr(torch, "sum", lambda buffer, dim, out: cuda.log.append("evict"))
        timer = timers.CudaTimer.__new__(timers.CudaTimer)
        timer.buffer = timer.sink = None
        timer.uuid = "GPU-0"
        return cuda, timer

    return make


@pytest.mark.parametrize(("waits", "how", "ran"), [(False, "graph", "replay"), (True, "events", "call")])
def test_the_gpu_timer_replays_graphs_on_a_cold_cache(gpu_timer, waits, how, ran):
    cuda, timer = gpu_timer()
    run, found = timer.prepare(cuda.call(waits=waits))
    assert found == how
    # three to warm up, the last under PyTorch's watch; one to capture
    assert cuda.log == ["call"] * 3 + ([] if waits else ["call", "replay"])
    assert not cuda.strict
    cuda.log.clear()
    assert timer.seconds(timer.sample(run, lambda: cuda.log.append("reset"))) == 2.5e-3
    assert cuda.log == ["reset", "evict", "event", ran, "event", "wait"]


def test_the_gpu_is_busy_before_anything_is_timed(gpu_timer, monkeypatch):
    cuda, timer = gpu_timer()
    monkeypatch.setattr(timers, "WARM_S", 1e-3)
    time_together({"a": cuda.call("a")}, timer)
    assert cuda.log[:5] == ["a"] * 4 + ["replay"]
    busy = cuda.log.index("event") - 5 - 1  # the last of them evicts for the trial round
    assert busy >= 20
    assert set(cuda.log[5 : 6 + busy]) == {"evict"}


def test_the_gpu_is_looked_at_while_it_works(gpu_timer, tmp_path, monkeypatch):
    cuda, timer = gpu_timer()
    smi = tmp_path / "nvidia-smi"
    smi.write_text(
        "#!/bin/sh\nsleep 0.2\necho \"$@\" > $0.asked\necho '1755, 3201, 655.32, 0x0000000000000024'\n"
    )
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(timers, "WARM_S", 0.0)
    time_together({"a": cuda.call("a")}, timer)
    assert timer.seen == {
        "sm_mhz": 1755,
        "mem_mhz": 3201,
        "power_w": 655.32,
        "throttle": "power, temperature",
    }
    last = max(i for i, what in enumerate(cuda.log) if what == "event")
    assert cuda.log[last + 1 : last + 21] == ["evict"] * 20  # busy until the look was taken
    asked = (tmp_path / "nvidia-smi.asked").read_text()
    assert asked.startswith(
        "-i GPU-0 --query-gpu=clocks.sm,clocks.mem,power.draw,clocks_throttle_reasons.active "
    )
    assert Bench("cuda", "A GPU", timer, code={}).provenance()["throttle"] == "power, temperature"
    smi.unlink()
    time_together({"a": cuda.call("a")}, timer)
    assert set(timer.seen.values()) == {None}


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("210, 405, 71.20, 0x0000000000000001\n", [210, 405, 71.2, "nothing"]),  # idle
        ("1980, 2619, [N/A], 0x0000000000000008", [1980, 2619, None, "hardware"]),
        ("Field 'x' is not a valid field to query.", [None] * 4),
        ("", [None] * 4),
    ],
)
def test_a_line_of_nvidia_smi_becomes_columns(line, found):
    assert list(timers.told(line).values()) == found


def test_a_peer_that_fails_leaves_the_others_their_times(gpu_timer):
    cuda, timer = gpu_timer()
    calls = {"ours": cuda.call("ours"), "peer": cuda.call("peer", fault=RuntimeError("misaligned\nand more"))}
    found = time_together(calls, timer, optional=["peer"])
    assert found["ours"]["us"] == 2500
    assert found["peer"] == {"error": "RuntimeError: misaligned"}
    with pytest.raises(RuntimeError, match="misaligned"):
        time_together(calls, timer)


def test_nothing_is_timed_after_a_broken_capture(gpu_timer, tmp_path):
    cuda, timer = gpu_timer(breaks=True)
    bench = Bench(CPU, CPU, timer)

    def run(case, bench):
        return bench.time({"call": cuda.call()}, optional=["call"])

    with pytest.raises(RuntimeError, match=r"nothing more can be measured .* tiny n=1 kind=x: .*CaptureError: the capture of a "
                       r"CUDA graph broke off: RuntimeError: out of memory; the row is kept"):  # fmt: skip
        run_suite(replace(counting()[0], measure=run), tmp_path, bench, say=lambda line: None)
    assert table(tmp_path)["n"].tolist() == [1]


# ---- limits by hand -------------------------------------------------------------------------------------------


def paper(batch, context, budget, window=0):
    block = BUDGETS[budget]
    return attention_case(batch, 1, 4, 128, context, min(block, 16)) | block_topk_case(budget, block, window)


@pytest.mark.parametrize(("batch", "context"), PAPER)
def test_dense_reads_34_gb_at_both_settings(batch, context):
    found = SUITES["dense"].predict(attention_case(batch, 1, 4, 128, context, 16), H200)
    assert found["bytes"] == 4096 * 16384 * 512 == 34_359_738_368
    assert found["limit_us"] == pytest.approx(7990.6, abs=0.1)
    assert found["flops"] == found["bytes"] * 4  # a FLOP a byte for each query head of the group


@pytest.mark.parametrize(
    ("setting", "window", "limits"),
    [
        (PAPER[0], 0, [94, 187, 375, 749, 1498]),
        (PAPER[0], 1, [156, 218, 390, 757, 1502]),
        (PAPER[1], 0, [62, 125, 250, 499, 999]),
        (PAPER[1], 1, [94, 140, 258, 503, 1001]),
    ],
)
def test_block_topk_limits(setting, window, limits):
    found = [SUITES["topk"].predict(paper(*setting, budget, window), H200) for budget in BUDGETS]
    assert [round(x["limit_us"]) for x in found] == limits
    means, tokens = found[0]["score_bytes"], found[0]["attend_bytes"]
    batch, context = setting
    assert means == batch * context // 128 * 256
    assert tokens == batch * (128 + 128 * window) * 512
    assert found[0]["append_bytes"] == batch * 2304


def test_layer_limits():
    case = {**paper(4096, 16384, 128), "hidden": 1024, "ffn": 384, "group": 2}  # Qwen3-0.6B, an eighth of it
    found = SUITES["layer"].predict(case, H200)
    weights = 1024 * (256 + 2 * 128 + 256 + 3 * 384)
    assert found["weight_bytes"] == 2 * weights
    assert found["gemm_flops"] == 2 * 4096 * weights
    assert found["gemm_limit_us"] == pytest.approx(20.4, abs=0.05)
    assert found["speedup_limit"] == pytest.approx(70.3, abs=0.1)
    one = limits.limits({**case, "batch": 1}, H200)
    assert one["gemm_limit_us"] == pytest.approx(
        2 * weights / 4.3e12 * 1e6
    )  # alone, the weights' traffic decides


def test_fp8_halves_keys_and_values_but_not_mean_keys():
    fp8 = SUITES["fp8"]
    dense = fp8.predict(attention_case(4096, 1, 4, 128, 16384, 16) | block_topk_case(0, 16), H200)
    assert dense["bytes"] == 4096 * 16384 * 256
    assert dense["limit_us"] == pytest.approx(3995.3, abs=0.1)
    assert dense["speedup_limit"] == pytest.approx(2.0)
    topk = fp8.predict(paper(4096, 16384, 1024, 1), H200)
    assert topk["score_bytes"] == 4096 * 1024 * 256
    assert topk["attend_bytes"] == 4096 * (1024 + 16) * 256
    assert topk["limit_us"] == pytest.approx(503.3, abs=0.1)
    assert topk["speedup_limit"] == pytest.approx((1024 * 256 + 1040 * 512) / (1024 * 256 + 1040 * 256))
    assert fp8.predict(attention_case(1, 1, 1, 16, 64, 16) | block_topk_case(0, 16), H200)["flops"] == 64 * 64


def test_a_budget_beyond_the_context_reads_the_context():
    found = limits.limits(attention_case(1, 1, 1, 64, 100, 4) | block_topk_case(96, 32, 1), H200)
    assert found["attend_bytes"] == 100 * 256


def test_cases_are_what_they_should_be():
    layer, topk, drawn = (SUITES[name].cases(True) for name in ("layer", "topk", "validate"))
    assert (len(layer), len(topk), len(drawn)) == (6 * 2 * 5, 2 * 5 * 2, 200)
    assert {case["kv_heads"] for case in layer} == {1}
    assert [case["group"] for case in layer[::10]] == [2, 2, 4, 4, 5, 8]
    assert drawn == SUITES["validate"].cases(True)
    assert sum(case["budget"] == 0 for case in drawn) == 100
    for name, suite in SUITES.items():
        for on_gpu in (True, False):
            cases = suite.cases(on_gpu)
            assert all(cases.count(case) == 1 for case in cases), name
        for case in suite.cases(True):
            assert suite.predict(case, H200)["memory_bytes"] < 0.9 * HARDWARE["h200"].memory, (name, case)


@pytest.mark.parametrize("memory", [7e9, 15e9, 23e9, 40e9, 84e9, 150e9])
def test_cases_are_made_to_fit_the_memory_that_is_free(memory):
    for name, suite in SUITES.items():
        cases = suite.cases_on("cuda", memory)
        assert all(cases.count(case) == 1 for case in cases), name
        assert all(suite.needs(case) <= memory for case in cases), name
        if memory > 10e9 or name != "model":
            assert cases, name
    topk, layer, roofline = (SUITES[name].cases_on("cuda", memory) for name in ("topk", "layer", "roofline"))
    assert {case["context"] for case in topk} == {case["context"] for case in layer} == {16384, 32768}
    assert len(topk) == 20
    assert len(layer) == 60
    assert "both" in {case["kind"] for case in roofline}  # the rates that limits are made of


def test_a_large_gpu_has_the_cases_as_they_are():
    for name in set(SUITES) - {"model"}:
        assert SUITES[name].cases_on("cuda", 150e9) == SUITES[name].cases(True)
    sizes = {case["batch"] for case in SUITES["topk"].cases_on("cuda", 15e9)}
    assert sizes == {512, 1024}  # a quarter of the requests: 9 GB, where 36 do not fit


def test_unequal_lengths_are_paid_for_as_they_are():
    case = (
        {"lengths": "straggler", "typical": 4096}
        | attention_case(128, 8, 4, 128, 131072, 16)
        | block_topk_case(0, 64)
    )
    found = SUITES["ragged"].predict(case, H200)
    assert found["bytes"] == found["attend_bytes"] == (127 * 4096 + 131072) * 8 * 512
    assert found["limit_us"] == pytest.approx(found["bytes"] / 4.3e6)
    sparse = SUITES["ragged"].predict(case | {"budget": 1024}, H200)
    assert sparse["score_bytes"] == (127 * 4096 + 131072) // 64 * 8 * 256
    assert sparse["attend_bytes"] == 128 * (1024 + 64) * 8 * 512
    assert found["memory_bytes"] < 5e9  # of its pages, not of 128 times the longest
    for drawn in (case | {"lengths": "lognormal"}, case | {"lengths": "equal"}):
        lengths = limits.lengths_of(drawn)
        assert len(lengths) == 128
        assert all(0 < n <= 131072 and n % 16 == 0 for n in lengths)
        assert SUITES["ragged"].predict(drawn, H200)["bytes"] == sum(lengths) * 8 * 512
    lengths = sorted(limits.lengths_of(case | {"lengths": "lognormal"}))
    assert 3000 < lengths[64] < 5500
    assert lengths[-1] > 5 * lengths[64]


def test_an_h100_holds_all_but_whole_models():
    for name in set(SUITES) - {"model"}:
        for case in SUITES[name].cases(True):
            assert SUITES[name].predict(case, H200)["memory_bytes"] < 80e9, (name, case)


def test_a_peer_without_memory_is_tried_again_one_that_never_runs_is_not(monkeypatch):
    torch = pytest.importorskip("torch")
    out = torch.ones(2)
    monkeypatch.setattr(attention_suites, "filled_cache", lambda case, bench: (out, None, {}))
    monkeypatch.setattr(attention_suites, "attend_of", lambda case, cache: lambda q: q)
    faults = {
        "sdpa": torch.OutOfMemoryError("CUDA out of memory"),
        "flashinfer": ImportError("no flashinfer"),
    }

    def peer(name):
        def make(q, cache):
            if name in faults:
                raise faults[name]
            return lambda: 2 * q

        return make

    monkeypatch.setattr(attention_suites, "PEERS", {name: peer(name) for name in ("sdpa", "flashinfer")})
    bench = Bench(CPU, CPU, WallTimer())
    row = SUITES["dense"].measure({}, bench)
    assert row["sdpa_error"] == "OutOfMemoryError: CUDA out of memory"
    faults.clear()
    row = SUITES["dense"].measure({}, bench)
    assert row["sdpa_distance"] == 1.0
    assert row["flashinfer_error"] == "ImportError: no flashinfer"


@pytest.mark.parametrize(
    ("case", "asked"),
    [
        ({"group": 4, "page": 16}, ["sdpa", "flex", "flashinfer", "flashinfer_paged", "flash_attn"]),
        ({"group": 4, "page": 64}, ["sdpa", "flashinfer", "flash_attn"]),  # the others compile for a minute
        ({"group": 4, "page": 16, "lengths": "straggler"}, ["flashinfer", "flashinfer_paged", "flash_attn"]),
        ({"group": 4, "page": 16, "lengths": "straggler", "budget": 1024}, []),  # they have no such attention
    ],
)
def test_peers_are_asked_where_they_can_answer(monkeypatch, case, asked):
    torch = pytest.importorskip("torch")
    out, seen = torch.ones(2), []
    monkeypatch.setattr(attention_suites, "filled_cache", lambda case, bench: (out, None, {}))
    monkeypatch.setattr(attention_suites, "attend_of", lambda case, cache: lambda q: q)
    peers = {
        name: lambda q, cache, name=name: seen.append(name) or (lambda: q) for name in attention_suites.PEERS
    }
    monkeypatch.setattr(attention_suites, "PEERS", peers)
    row = SUITES["dense"].measure(case, Bench("cuda", "A GPU", WallTimer(), code={}))
    assert seen == asked
    assert {name.removesuffix("_distance") for name in row if name.endswith("_distance")} == set(asked)


# ---- the runner -----------------------------------------------------------------------------------------------


def counting(fail=(), version=1, memory=0.0, stop_at=None):
    """A suite of three cases that counts what it measures and fails where told."""
    measured = []

    def run(case, bench):
        if case["n"] == stop_at:
            raise KeyboardInterrupt
        if case["n"] in fail:
            raise ValueError(f"n={case['n']} is not liked\nand more")
        measured.append(case["n"])
        extra = {"note": "first"} if case["n"] == 1 else {}
        return {"call_us": 2.0 * case["n"], **extra}

    suite = Suite(
        "tiny", version, "call_us", lambda on_gpu: [{"n": n, "kind": "x"} for n in (1, 2, 3)],
        lambda case, rates: {"bytes": 8, "flops": 2, "limit_us": 1.0, "memory_bytes": memory, "round_us": 1.0}, run,
    )  # fmt: skip
    return suite, measured


@pytest.fixture(scope="module")
def code():
    """The code's part of the provenance, which asks git."""
    return code_state()


@pytest.fixture
def bench(code):
    return Bench(CPU, CPU, WallTimer(), code=code)


def table(out):
    return pd.read_parquet(out / CPU / "tiny.parquet")


def test_rows_say_where_they_come_from(tmp_path, bench):
    said = []
    assert run_suite(counting()[0], tmp_path, bench, say=said.append)
    rows = table(tmp_path)
    assert rows["n"].tolist() == [1, 2, 3]
    assert rows["share_of_limit"].tolist() == pytest.approx([1 / 2, 1 / 4, 1 / 6])
    assert rows["bytes_per_s"].tolist() == pytest.approx([4e6, 2e6, 8 / 6e-6])
    wanted = {"kind", "call_us", "bytes", "flops", "limit_us", "memory_bytes", "rates_from", "rate_bytes_per_s", "rate_flops_per_s",
              "error", "suite", "suite_version", "device", "gpu", "driver", "torch", "triton", "flashinfer", "commit", "dirty",
              "kernels_digest", "date", "sm_mhz", "mem_mhz", "power_w", "throttle", "flash_attn", "timer_floor_us"}  # fmt: skip
    assert wanted <= set(rows)
    assert "round_us" not in rows
    assert set(rows["device"]) == {"cpu-interpreter"}
    assert set(rows["kernels_digest"]) == {bench.code["kernels_digest"]}
    assert rows["date"].str.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00").all()
    assert rows["error"].isna().all()
    assert str(rows["error"].dtype).startswith("str")
    assert [line.split(":")[0] for line in said] == ["tiny", *(f"tiny {n}/3 n={n} kind=x" for n in (1, 2, 3))]


def test_a_killed_run_goes_on_where_it_was(tmp_path, bench):
    with pytest.raises(KeyboardInterrupt):
        run_suite(counting(stop_at=3)[0], tmp_path, bench)
    assert table(tmp_path)["n"].tolist() == [1, 2]
    (tmp_path / CPU / "tiny.parquet.0a1b.part").write_text("half a file")
    suite, measured = counting()
    assert run_suite(suite, tmp_path, bench)
    assert measured == [3]
    rows = table(tmp_path)
    assert rows["n"].tolist() == [1, 2, 3]
    assert rows["note"].fillna("-").tolist() == ["first", "-", "-"]
    assert [path.name for path in (tmp_path / CPU).glob("*.parquet")] == [
        "tiny.parquet"
    ]  # half a file is never read
    suite, measured = counting()
    assert run_suite(suite, tmp_path, bench)
    assert not measured


def test_a_failure_is_a_row_and_is_tried_again_after_the_others(tmp_path, bench):
    said = []
    assert run_suite(counting(fail=(1,))[0], tmp_path, bench, say=said.append)
    rows = table(tmp_path).set_index("n")
    assert rows.loc[1, "error"] == "ValueError: n=1 is not liked"
    assert pd.isna(rows.loc[1, "call_us"])
    assert rows.loc[2, "call_us"] == 4.0
    assert "error: ValueError: n=1 is not liked" in said[1]
    written = table(tmp_path)
    written[written["n"] != 3].to_parquet(tmp_path / CPU / "tiny.parquet")
    suite, measured = counting()
    run_suite(suite, tmp_path, bench)
    assert measured == [3, 1]
    assert table(tmp_path)["error"].isna().all()
    assert sorted(table(tmp_path)["n"]) == [1, 2, 3]


def test_what_failed_before_comes_after_all_suites(tmp_path, monkeypatch):
    order, fail = [], {("a", 1), ("b", 2)}

    def named(name):
        def run(case, bench):
            order.append((name, case["n"]))
            if order[-1] in fail:
                raise ValueError("not yet")
            return {"call_us": 1.0}

        return replace(counting()[0], name=name, measure=run)

    monkeypatch.setattr(suites, "SUITES", {name: named(name) for name in "ab"})
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    out, said = tmp_path / "rows", []
    suites.measure("all", out, device="cpu", say=said.append)
    assert order == [(name, n) for name in "ab" for n in (1, 2, 3)]  # a failure is not tried twice in a run
    b = pd.read_parquet(out / CPU / "b.parquet")
    b[b["n"] != 3].to_parquet(out / CPU / "b.parquet")
    order.clear()
    fail.clear()
    assert len(suites.measure("all", out, device="cpu", say=said.append)) == 2
    assert order == [("b", 3), ("a", 1), ("b", 2)]
    order.clear()
    suites.measure("all", out, device="cpu", say=said.append)
    assert not order
    assert said[-2:] == [f"{name}: 0 of 3 cases to measure, limits from rates: none" for name in "ab"]


@pytest.mark.parametrize("change", ["digest", "version"])
def test_rows_of_other_code_stay_and_are_labelled(tmp_path, bench, change):
    run_suite(counting()[0], tmp_path, bench)
    if change == "digest":
        bench = replace(bench, code=bench.code | {"kernels_digest": "0" * 12})
    suite, measured = counting(version=2 if change == "version" else 1)
    run_suite(suite, tmp_path, bench)
    assert measured == [1, 2, 3]
    rows = read_rows(tmp_path, CPU, "tiny")
    assert len(rows) == 6
    column = "kernels_digest" if change == "digest" else "suite_version"
    assert rows.groupby(column).size().tolist() == [3, 3]
    if change == "digest":  # the files are what they were: only the first rows are of today's source
        assert rows["current"].tolist() == [True] * 3 + [False] * 3


def test_a_case_that_does_not_fit_is_a_row_too(tmp_path, bench, monkeypatch):
    monkeypatch.setattr(Bench, "has_memory", lambda self, needed: needed < 140e9)
    suite, measured = counting(memory=150e9)
    assert run_suite(suite, tmp_path, bench)
    assert not measured
    assert set(table(tmp_path)["error"]) == {"needs 150.0 GB of memory, more than is free"}


def test_a_gpu_that_no_longer_answers_ends_the_run_with_its_row(tmp_path, bench, monkeypatch):
    monkeypatch.setattr(Bench, "works", lambda self: False)
    suite, measured = counting(fail=(2,))
    with pytest.raises(RuntimeError, match="after tiny n=2 kind=x: ValueError: n=2 is not liked"):
        run_suite(suite, tmp_path, bench)
    assert measured == [1]
    assert table(tmp_path)["n"].tolist() == [1, 2]


def test_no_case_starts_beyond_the_deadline(tmp_path, bench):
    said = []
    suite, measured = counting()
    assert not run_suite(suite, tmp_path, bench, deadline=0.0, say=said.append)
    assert not measured
    assert said[-1] == "tiny: the time is up, 3 cases are left; the same command goes on from here"


def test_limits_use_the_newest_measured_rates(tmp_path, bench):
    assert measure.measured_rates(tmp_path, "nvidia-h200") == Rates(4.8e12, 989.5e12, "datasheet H200 SXM")
    assert measure.measured_rates(tmp_path, "unheard-of").source == "none"
    rows = [
        {"bandwidth": 4e12, "matrix_rate": 7e14, "date": "2026-01-02"},
        {"bandwidth": 5e12, "matrix_rate": 8e14, "date": "2026-01-01"},
        {"bandwidth": None, "matrix_rate": None, "date": "2026-01-03"},
    ]
    names = {
        "kind": "both",
        **dict.fromkeys(("size", "bytes", "time_us"), 1.0),
        "device": "cuda",
        "error": None,
        "driver": None,
        "flashinfer": None,
        "kernels_digest": "x",
        "gpu": "NVIDIA H200",
        "suite_version": 1,
    }

    def written(device, *more):
        file = tmp_path / "nvidia-h200" / "roofline.parquet"
        measure.write_rows(file, [names | row | {"device": device} for row in (*rows, *more)])
        return measure.measured_rates(tmp_path, "nvidia-h200")

    assert written("cuda") == Rates(4e12, 7e14, "measured")
    reads = [  # bytes of a size, microseconds
        {
            "kind": "read",
            "size": 2,
            "bytes": 9e6,
            "time_us": 2.0,
            "date": "2026-01-01",
        },  # an older time of a size
        {"kind": "read", "size": 2, "bytes": 9e6, "time_us": 2.25, "date": "2026-01-02"},
        {"kind": "read", "size": 1, "bytes": 4e6, "time_us": 1.6, "date": "2026-01-02"},
        {"kind": "copy", "size": 4, "bytes": 9e6, "time_us": 1.0, "date": "2026-01-02"},
    ]
    assert written("cuda", *reads) == Rates(4e12, 7e14, "measured")  # no faster than the copy
    reads[1]["time_us"] = 2.0
    assert written("cuda", *reads) == Rates(4.5e12, 7e14, "measured")
    assert written("host", *reads) == Rates(4e12, 7e14, "measured")


def test_the_commit_of_a_copy_without_git_can_be_told(monkeypatch):
    monkeypatch.setattr(bench_module, "_output", lambda *command: None)
    assert (code_state()["commit"], code_state()["dirty"]) == ("unknown", None)
    monkeypatch.setenv("KINETICS_COMMIT", "abc123")
    assert code_state()["commit"] == "abc123"


def test_the_digest_follows_the_kernels_source(tmp_path, monkeypatch):
    package = tmp_path / "kinetics_kernels"
    package.mkdir()
    (package / "__init__.py").write_text("")
    monkeypatch.delitem(sys.modules, "kinetics_kernels", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    first = bench_module.kernels_digest()
    (package / "dense.py").write_text("x = 1\n")
    second = bench_module.kernels_digest()
    (package / "dense.py").write_text("x = 2\n")
    third = bench_module.kernels_digest()
    assert len({first, second, third}) == 3
    (package / "ladder.py").write_text("x = 3\n")  # kernels to learn from, which nothing times
    assert bench_module.kernels_digest() == third


# ---- the command ----------------------------------------------------------------------------------------------


def test_a_dry_run_prints_the_plan_and_needs_no_torch(tmp_path):
    code = (
        "import sys; sys.modules['torch'] = None; from kinetics_lab import cli; "
        f"sys.exit(cli.main(['measure', '--dry-run', '--suite', 'topk,roofline', '--out', {str(tmp_path)!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert lines[0].startswith("limits of nvidia-h200 at 4.80 TB/s and 990 TFLOP/s (datasheet H200 SXM)")
    heads = [line for line in lines if not line.startswith("  ")]
    assert [line.split(":")[0] for line in heads[1:]] == ["roofline", "topk", "all"]
    assert "  kind=copy size=4294967296: limit 1789.6 us, " in done.stdout
    assert len(lines) == 4 + 12 + 20
    assert not list(tmp_path.iterdir())


def test_a_dry_run_is_of_the_gpu_that_is_asked_for(tmp_path):
    suite = [SUITES["topk"]]
    assert measure.dry_run(suite, tmp_path, "nvidia-l40s")[0].startswith("limits of nvidia-l40s at 0.86 TB/s")
    small = measure.dry_run(suite, tmp_path, "nvidia-l40s")
    assert all("batch=4096" in line or "batch=2048" in line for line in small[2:-1])
    assert limits.listed("nvidia-a100-sxm4-80gb") == "a100"
    assert limits.listed("nvidia-geforce-rtx-3090") is None
    assert limits.memory_of("nvidia-a100-sxm4-80gb") == 80 * 2**30


def test_all_suites_are_planned_within_a_quarter_of_an_hour(tmp_path):
    lines = measure.dry_run(SUITES.values(), tmp_path)
    seconds = float(lines[-1].split()[1])
    assert 60 < seconds < 900  # PyTorch's compiler takes more than half of it, for the suite of whole models


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--suite", "topkk"], 2, "suite 'topkk' is not known; did you mean topk?"),
        (["--dry-run", "--gpu", "nvidia-h20"], 2, "gpu 'nvidia-h20' is not known; did you mean nvidia-h200"),
        (["--budget-seconds", "0"], 2, "budget_s must be positive (seconds); got 0.0"),
        (["--device", "cpu", "--out", "data/measurements"], 2, "rows of --device cpu are no measurements"),
        (["--device", "cpu", "--out", "/srv/rows"], 2, "--out must be a folder under"),
        ([], 1, "measuring needs a CUDA GPU, and PyTorch sees none"),
    ],
)
def test_wrong_input_is_one_sentence(tmp_path, monkeypatch, capsys, arguments, code, message):
    monkeypatch.setattr(pytest.importorskip("torch").cuda, "is_available", lambda: False)
    monkeypatch.chdir(tmp_path)
    assert cli.main(["measure", *arguments]) == code
    out, err = capsys.readouterr()
    assert not out
    assert message in err
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def fake_gpu(monkeypatch, name, capability):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: name)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability)


def test_an_old_gpu_is_refused_before_anything_starts(tmp_path, monkeypatch, capsys):
    fake_gpu(monkeypatch, "Tesla T4", (7, 5))
    monkeypatch.chdir(tmp_path)
    assert cli.main(["measure"]) == 1
    out, err = capsys.readouterr()
    assert not out
    assert "measuring needs a GPU of sm_80 or newer (A100, A10, RTX 30 and later); got Tesla T4, sm_75" in err
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("capability", "runs"), [((8, 6), ["tiny"]), ((8, 9), ["tiny", "fp8"])])
def test_a_run_says_first_how_long_it_takes(tmp_path, monkeypatch, code, capability, runs):
    from kinetics_lab.measure import ahead

    said, run = [], []
    tiny, fp8 = (replace(counting()[0], name=name) for name in ("tiny", "fp8"))
    monkeypatch.setattr(suites, "SUITES", {"tiny": tiny, "fp8": fp8})
    monkeypatch.setattr(suites, "FP8", fp8)
    bench = Bench("cuda", "A GPU", WallTimer(), code=code, capability=capability)
    monkeypatch.setattr(suites, "open_bench", lambda device, out: bench)
    monkeypatch.setattr(ahead, "compile_ahead", lambda cases, deadline, say: say(f"{len(cases)} compiled"))
    monkeypatch.setattr(suites, "run_suite", lambda suite, *rest: run.append(suite.name))
    monkeypatch.setattr(Suite, "cases_on", lambda self, device: self.cases(True))
    suites.measure("all", tmp_path, say=said.append)
    number = 3 * len(runs)
    left_out = ["fp8: left out, A GPU has no conversion from fp8; sm_89 or newer has (RTX 40, L4, H100)"]
    assert said == left_out * (len(runs) == 1) + [
        f"A GPU: {number} cases, at least 0 minutes once kernels are compiled; a stopped run goes on with the same command",
        f"{number} compiled",
    ]
    assert run[:1] == ["tiny"]


def test_measuring_without_torch_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(bench_module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="measuring needs torch: run `make torch`"):
        open_bench("cuda", tmp_path)


once = pytest.mark.xdist_group("rehearsal")  # all of them where it is run


@pytest.fixture(scope="session")
def rehearsal(tmp_path_factory):
    """The folder of all suites run once, tiny, in Triton's interpreter, by a process of their own."""
    pytest.importorskip("torch")
    pytest.importorskip("triton")
    out = tmp_path_factory.mktemp("rehearsal") / "rows"
    command = [sys.executable, "-m", "kinetics_lab.cli", "measure", "--device", "cpu", "--out", str(out)]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [str(out / CPU / f"{name}.parquet") for name in SUITES]
    return out


@once
@pytest.mark.parametrize("name", SUITES)
def test_every_suite_runs_from_end_to_end_on_a_cpu(rehearsal, name):
    rows = read_rows(rehearsal, CPU, name)
    suite = SUITES[name]
    assert rows["error"].isna().all(), rows["error"].tolist()
    keys = list(suite.cases(False)[0])
    assert rows[keys].to_dict("records") == suite.cases(False)
    assert rows["current"].all()
    assert set(rows["device"]) == {"cpu-interpreter"}
    assert set(rows["rates_from"]) == {"none" if name == "roofline" else "measured"}
    assert (rows[suite.headline] > 0).all()
    timed = [column.removesuffix("_p20_us") for column in rows if column.endswith("_p20_us")]
    for call in timed:
        low, middle, high = (rows[f"{call}_{part}"].dropna() for part in ("p20_us", "us", "p80_us"))
        assert (low <= middle).all()
        assert (middle <= high).all()
    expected = {
        "roofline": {"time", "copy"},
        "dense": {"ours", "sdpa", "flex"},
        "topk": {"append", "score", "score_select", "select", "torch_topk", "attend", "step"},
        "layer": {"gemm", "attention", "layer", "dense", "dense_layer"},
        "ragged": {"ours"},
        "validate": {"gemm", "attention", "layer"},
        "fp8": {"fp8", "bf16"},
        "model": {"dense", "sparse", "first_dense", "rest", "peer"},
    }
    assert set(timed) - {"flashinfer", "flashinfer_paged", "flash_attn"} == expected[name]


@once
def test_the_rehearsal_times_the_right_results(rehearsal):
    dense, topk, layer, ragged, fp8 = (
        read_rows(rehearsal, CPU, name) for name in ("dense", "topk", "layer", "ragged", "fp8")
    )
    assert (dense["sdpa_distance"] < 2e-3).all()  # fp16: two roundings of 2^-11
    assert (dense["sdpa_distance"] > 0).any()
    assert (dense["flex_distance"] < 2e-3).all()
    if importlib.util.find_spec("flashinfer") is None:
        for rows, name in (
            (dense, "flashinfer"),
            (dense, "flashinfer_paged"),
            (ragged[ragged["budget"] == 0], "flashinfer"),
        ):
            assert (rows[f"{name}_error"] == "ModuleNotFoundError: No module named 'flashinfer'").all()
    assert (topk["torch_topk_agrees"] == 1).all()
    assert fp8["fp8_distance"].between(0.005, 0.1).all()  # a number is off by 2.7 % at random, 6 % at most
    assert layer["speedup"].to_numpy() == pytest.approx(
        (layer["dense_layer_us"] / layer["layer_us"]).to_numpy()
    )


@once
def test_the_made_up_rows_have_the_columns_of_real_ones(rehearsal, tmp_path, monkeypatch):
    """Those that chapters are tested with."""
    for name, suite in SUITES.items():
        few = suite.cases(True)[:: max(1, len(suite.cases(True)) // 4)]
        few += [case for case in suite.cases(True)[-1:] if case not in few]
        monkeypatch.setitem(SUITES, name, replace(suite, cases=lambda on_gpu, few=few: few))
    synthetic_rows.write(tmp_path, *SUITES)
    for name in SUITES:
        real, made = read_rows(rehearsal, CPU, name), read_rows(tmp_path, synthetic_rows.GPU, name)
        assert {c for c in set(real) ^ set(made) if not c.startswith("flash")} == set(), name


@once
def test_the_rehearsed_step_of_a_model(rehearsal):
    row = read_rows(rehearsal, CPU, "model").iloc[0]
    read_by_the_chapter = {f"{name}_us" for name in ("dense", "sparse", "first_dense", "rest", "peer")}
    read_by_the_chapter |= {f"{name}_how" for name in ("dense", "sparse", "first_dense")}
    read_by_the_chapter |= {"speedup", "first_dense_speedup", "peer_over_dense", "gpu_memory_bytes"}
    assert set(row.index) >= read_by_the_chapter
    assert "peer_error" not in row
    assert (row["model"], row["batch"], row["gpu_memory_bytes"]) == ("tiny", 2, None)
    assert row["speedup"] == pytest.approx(row["dense_us"] / row["sparse_us"])
    assert row["first_dense_speedup"] == pytest.approx(row["dense_us"] / row["first_dense_us"])
    assert row["tokens_per_s"] == pytest.approx(2e6 / row["sparse_us"])
    assert row["rest_us"] > 0
