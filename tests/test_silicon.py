"""Measured kernels: the tables say what they may, interpolation keeps them, a step is the sum of its parts."""

from __future__ import annotations

import importlib.util
import runpy
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kinetics_lab import HARDWARE, MODELS
from kinetics_lab.cost.silicon import (
    BYTES,
    HEAD_DIM,
    L2_BYTES,
    Silicon,
    rows,
)
from kinetics_lab.cost.silicon.grid import Grid, OutsideGridWarning
from kinetics_lab.data import data_dir, read_table

ROOT = Path(__file__).parent.parent
H200 = Silicon("h200")
QWEN = MODELS["qwen3-8b"]


def quiet(call, *arguments):
    """A call that may leave the grid, without its warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", OutsideGridWarning)
        return call(*arguments)


# --- the tables ---------------------------------------------------------------------------------------


def test_no_attention_row_beats_the_memory_but_out_of_the_l2():
    table = read_table("silicon_attention")
    known = table[table.gpu.isin(list(HARDWARE))]
    moved = 2.0 * known.batch * known.kv_heads * known.context * HEAD_DIM * known.kv.map(BYTES).astype(float)
    share = (
        moved
        / (known.us * 1e-6)
        / known.gpu.map({name: hw.bandwidth for name, hw in HARDWARE.items()}).astype(float)
    )
    fits = moved < 1.05 * known.gpu.map(L2_BYTES).astype(float)
    assert len(known) > 50_000
    assert share[~fits].max() < 1.0
    assert (share[fits] > 1).sum() > 100  # warm rows are there, and are what they are called
    assert set(known[(share > 1)].gpu) == {"l40s", "rtx-pro-6000"}


def test_the_impossible_rows_are_left_out():
    assert not read_table("silicon_attention").query("gpu == 'a100'").engine.str.startswith("trtllm").any()


@pytest.mark.parametrize("name", ["attention", "windows", "gemm", "experts", "sparse", "search", "allreduce"])
def test_times_are_times(name):
    table = read_table(f"silicon_{name}")
    assert set(table.gpu) <= set(L2_BYTES)
    assert table.us.between(0.5, 5e6).all()
    assert not table.drop(columns="us").duplicated().any()  # one row a case


def test_products_do_not_beat_the_datasheet():
    table = read_table("silicon_gemm").query("dtype == 'bf16' and m >= 2048 and n >= 4096 and k >= 4096")
    for name in ("h100", "h200", "b200", "l40s"):
        t = table[table.gpu == name]
        share = 2.0 * t.m * t.n * t.k / (t.us * 1e-6) / HARDWARE[name].at("bf16").peak_flops
        assert 0.6 < share.quantile(0.95) < 1, name
        assert share.max() < 1.02, name


def test_serving_runs_are_of_stated_precision_and_not_those_kept_apart():
    table = read_table("silicon_serving")
    assert table.precision.isin(["fp8", "fp4", "bf16", "int4"]).all()
    assert not ((table.model == "openai/gpt-oss-120b") & (table.gpu == "h100")).any()


@pytest.mark.slow  # reads the package's 12 million rows, where it is installed
@pytest.mark.skipif(
    not importlib.util.find_spec("aiconfigurator_core"), reason="needs aiconfigurator-core (extra 'silicon')"
)
def test_the_tables_are_what_the_script_makes(tmp_path):
    script = runpy.run_path(str(ROOT / "benchmarks" / "silicon_tables.py"))
    script["main"](str(tmp_path))
    for path in sorted(tmp_path.glob("*.parquet")):
        pd.testing.assert_frame_equal(
            pd.read_parquet(path), pd.read_parquet(data_dir() / "silicon" / path.name)
        )


# --- interpolation ------------------------------------------------------------------------------------


def test_grid_points_are_given_back():
    t = H200._products.sample(200, random_state=1)
    assert H200.gemm(t.m, t.n, t.k) == pytest.approx(t.us.to_numpy(float) * 1e-6, rel=1e-6)
    a = H200._attention[(H200._attention.q_heads == 32) & (H200._attention.kv_heads == 8)].sample(
        100, random_state=1
    )
    assert H200.attention(32, 8, a.batch, a.context) == pytest.approx(a.us.to_numpy(float) * 1e-6, rel=1e-6)


def test_a_grid_between_and_beyond_its_points():
    x = np.array([1.0, 4.0, 16.0])
    grid = Grid({"x": x}, 3 * x**2, lambda x: x**2)
    assert grid("k", [2.0, 8.0]) == pytest.approx([12.0, 192.0])
    with pytest.warns(
        OutsideGridWarning, match=r"k: 1 of 2 points lie outside what was measured \(x 1 to 16\)"
    ):
        assert grid("k", [16.0, 32.0]) == pytest.approx(
            [768.0, 3072.0]
        )  # the law carries on, at the last ratio
    assert grid.inside([0.5, 1, 16, 17]).tolist() == [False, True, True, False]
    with pytest.raises(ValueError, match="k: x must be positive and finite"):
        grid("k", 0.0)


def test_a_hole_is_filled_and_counts_as_outside():
    x, y = np.array([1.0, 1, 2, 4, 4]), np.array([1.0, 2, 1, 1, 2])  # (2, 2) is missing
    grid = Grid({"x": x, "y": y}, x * y, lambda x, y: x * y)
    with pytest.warns(OutsideGridWarning, match="1 of 1"):
        assert grid("k", 2.0, 2.0) == pytest.approx(4.0)
    assert grid.inside([1.0, 2.0], [2.0, 2.0]).tolist() == [True, False]


@given(st.integers(1, 200), st.floats(512, 30_000), st.floats(1.0, 2.0))
def test_a_longer_context_and_a_larger_batch_never_cost_less(batch, context, more):
    one = quiet(H200.attention, 32, 8, batch, context)
    assert (
        quiet(H200.attention, 32, 8, batch, context * more) >= one * 0.97
    )  # measured rows rise but for their noise
    assert quiet(H200.attention, 32, 8, batch + 100, context) >= one * 0.97


def test_the_law_carries_attention_beyond_its_grid():
    """Rows above an eighth of the largest work, predicted from those below: see data/silicon/accuracy.csv."""
    found = read_table("silicon_accuracy").set_index(["gpu", "engine", "test"])["median"]
    assert found[:, :, "tail"].drop("rtx-pro-6000").max() <= 0.07  # its tail lies at the edge of its large L2
    assert found[:, :, "heads"].max() <= 0.03
    assert found[:, :, "attention"].max() <= 0.08
    assert found[:, :, "gemm"].max() <= 0.07
    script = runpy.run_path(str(ROOT / "benchmarks" / "silicon_accuracy.py"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", OutsideGridWarning)
        assert script["tail"]("h200", "vllm")[1] == pytest.approx(found["h200", "vllm", "tail"], rel=0.02)


# --- a step -------------------------------------------------------------------------------------------


def test_a_step_is_the_sum_of_its_kernels():
    batch, context = 16, 4096
    step = H200.step(QWEN, batch, context)
    products = ((48 * 128, 4096), (4096, 32 * 128), (2 * 12288, 4096), (4096, 12288))
    layers = sum(H200.gemm(batch, n, k) for n, k in products)
    head = quiet(H200.gemm, batch, QWEN.vocab, 4096)
    assert step["parameters"] == pytest.approx(36 * layers + head)
    assert step["attention"] == pytest.approx(36 * H200.attention(32, 8, batch, context))
    assert step["communication"] == 0


def test_steps_broadcast():
    step = quiet(H200.step, QWEN, np.array([[1.0], [8.0]]), np.array([1024.0, 2048.0, 4096.0]))
    assert all(np.shape(part) == (2, 3) for part in step.values())
    assert step["attention"][1, 2] == pytest.approx(H200.step(QWEN, 8, 4096)["attention"])


def test_tensor_parallelism_splits_and_pays_for_it():
    whole, split = H200.step(QWEN, 8, 8192), H200.step(QWEN, 8, 8192, tp=4)
    assert split["parameters"] < whole["parameters"]
    assert split["attention"] < whole["attention"]
    assert split["communication"] == pytest.approx(72 * H200.all_reduce(4, 8 * 4096))
    assert split["communication"] > 0


def test_experts_read_more_of_the_weights_at_larger_batches():
    moe = MODELS["qwen3-30b-a3b"]
    one, many = (H200.step(moe, batch, 1024)["parameters"] for batch in (1, 64))
    assert 3 < many / one < 12


def test_measured_limits_lie_below_the_datasheet():
    for name in ("h100", "h200", "b200", "a100", "l40s"):
        silicon = Silicon(name)
        assert 0.6 < silicon.matrix_rate / HARDWARE[name].at("bf16").peak_flops < 1
        assert 0.8 < silicon.bandwidth / HARDWARE[name].bandwidth < 1
    b200 = Silicon("b200").intensity
    assert 2.2 < HARDWARE["b200-paper"].intensity / b200 < 2.7  # the published intensity mixes two precisions


def test_who_can_be_priced():
    why = {name: H200.why_not(MODELS[name]) for name in ("qwen3-8b", "llama3-1b", "deepseek-v3", "opt-13b")}
    assert why["qwen3-8b"] == ""
    assert why["llama3-1b"] == "heads of 64, measured: 128"
    assert "latent attention" in why["deepseek-v3"]
    assert "KV heads [1, 2, 4, 8]; got 40" in why["opt-13b"]
    with pytest.raises(ValueError, match="deepseek-v3 has no measured kernels: latent attention"):
        H200.step(MODELS["deepseek-v3"], 1, 1024)


def test_beyond_the_grid_it_says_so():
    assert H200.inside(QWEN, 16, 8192)
    assert not H200.inside(QWEN, 256, 32768)
    with pytest.warns(OutsideGridWarning, match="attention: 1 of 1 points lie outside what was measured"):
        H200.step(QWEN, 256, 32768)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("h20",), "gpu with measured kernels 'h20' is not known; did you mean h200, h100"),
        (("h200", "lmdeploy"), "engine 'lmdeploy' is not known"),
        (("a100", "trtllm"), "attention on a100 was measured under sglang, vllm"),
        (("h200", "vllm", "fp4"), "weights on h200 under vllm 'fp4' is not known"),
        (("h200", "vllm", "bf16", "int8"), "kv on h200 under vllm 'int8' is not known"),
    ],
)
def test_what_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        Silicon(*arguments)


def test_rows_are_of_one_version():
    assert rows("attention", "h200", "vllm").engine.nunique() == 1


def test_large_weights_are_read_at_nine_tenths_of_the_datasheet():
    assert 0.85 < H200._weight_bandwidth / HARDWARE["h200"].bandwidth < 0.95
