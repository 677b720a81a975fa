"""Clocks: the datasheet's equals the cost law, the measured one its kernels, an answer is the sum of its steps."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from kinetics_lab import MODELS, BlockTopK, Dense, decode_cost, find_hardware
from kinetics_lab.cost.clock import (
    HELD,
    Calibrated,
    Datasheet,
    Measured,
    answer_seconds,
    calibrated,
    measured_steps,
    parse_clock,
)
from kinetics_lab.cost.fit import Layout
from kinetics_lab.cost.silicon import Silicon

QWEN, H200 = MODELS["qwen3-8b"], find_hardware("h200")
KERNELS = Measured(Silicon("h200"))


def test_the_datasheet_is_the_cost_law():
    for combine in ("add", "max"):
        steps = answer_seconds(Datasheet(H200, combine), QWEN, 512, 8192, batch=16)
        if combine == "add":
            law = 16 * decode_cost(QWEN, Dense(), 512, 8192, batch=16).seconds(H200, "add")
            assert sum(steps.values()) == pytest.approx(float(law), rel=1e-4)
        assert all(part >= 0 for part in steps.values())


def test_an_answer_is_the_sum_of_its_steps():
    n_in, n_out, batch = 500, 2000, 8
    steps = KERNELS.step(QWEN, batch, n_in + np.arange(n_out) + 0.5)
    found = answer_seconds(KERNELS, QWEN, n_in, n_out, batch)
    for name, part in found.items():
        assert part == pytest.approx(steps[name].sum(), rel=5e-3, abs=1e-9), name


def test_answers_broadcast():
    found = answer_seconds(KERNELS, QWEN, 512, np.array([1024.0, 4096.0]), np.array([[1.0], [8.0]]))
    assert {part.shape for part in found.values()} == {(2, 2)}
    alone = answer_seconds(KERNELS, QWEN, 512, 4096, 8)
    assert found["attention"][1, 1] == pytest.approx(float(alone["attention"]))


def test_measured_time_exceeds_the_bound_of_the_datasheet():
    for batch, context in ((1, 1024), (16, 8192), (64, 4096)):
        bound = sum(Datasheet(H200).step(QWEN, batch, context).values())
        measured = sum(KERNELS.step(QWEN, batch, context).values())
        assert 1.0 < measured / bound < 2.5


def test_a_sparse_policy_takes_the_bytes_it_reads():
    policy = BlockTopK(1024, 32)
    dense, sparse = (KERNELS.step(QWEN, 16, 16384, one) for one in (Dense(), policy))
    assert sparse["attention"] / dense["attention"] == pytest.approx(1024 / 16384.5, rel=1e-6)
    assert sparse["search"] / dense["attention"] == pytest.approx(1 / 64, rel=1e-6)
    assert sparse["parameters"] == dense["parameters"]


def test_a_clock_from_text():
    assert parse_clock("h200") == Datasheet(H200)
    assert not parse_clock("h200").measured
    fp8 = parse_clock("h200:trtllm:fp8:fp8")
    assert fp8.measured
    assert fp8.label == "h200:trtllm, weights fp8, KV cache fp8, measured by NVIDIA's collector"
    for text, message in (
        ("h20", "hardware 'h20' is not known"),
        ("h200:lmdeploy", "engine 'lmdeploy' is not known"),
        ("h200:vllm:bf16:bf16:x", "a clock reads DEVICE, or DEVICE:ENGINE:WEIGHTS:KV"),
    ):
        with pytest.raises(ValueError, match=message):
            parse_clock(text)


def test_the_price_of_a_smaller_model_moves_with_the_batch():
    """Tokens of 4B that take as long as 8192 of 14B: near 20K alone, near 10K together. The law says 23.9K and 9.6K."""

    def equal(batch: float) -> float:
        large = sum(answer_seconds(KERNELS, MODELS["qwen3-14b"], 0, 8192, batch).values())
        lengths = np.geomspace(8192, 32768, 60)
        small = sum(answer_seconds(KERNELS, MODELS["qwen3-4b"], 0, lengths, batch).values())
        return float(np.interp(large, small, lengths))

    assert equal(1) == pytest.approx(19_700, rel=0.02)
    with pytest.warns(UserWarning, match="outside what was measured"):
        assert equal(64) == pytest.approx(10_500, rel=0.03)


# --- four constants -----------------------------------------------------------------------------------

KNOWN = Calibrated("made up", 20e-6, 4e12, 3e12, 6e14)


def test_a_fit_finds_constants_that_are_known():
    rows = measured_steps(KERNELS.silicon)
    noise = np.exp(np.random.default_rng(0).normal(0, 0.02, len(rows)))
    found = Calibrated.fit("made up", rows, KNOWN.times(rows) * noise, rows.model.isin(HELD))
    for name, tolerance in (("layer", 0.05), ("weights", 0.03), ("cache", 0.03), ("matrix", 0.1)):
        assert getattr(found, name) == pytest.approx(getattr(KNOWN, name), rel=tolerance), name
    assert found.error == pytest.approx(0.02 * 0.6745, rel=0.2)  # what noise leaves
    with pytest.raises(ValueError, match="a fit needs at least 6 rows; got 5"):
        Calibrated.fit("few", rows[:5], np.ones(5))
    with pytest.raises(ValueError, match="seconds must be positive and finite"):
        Calibrated.fit("no time", rows, rows.seconds * 0)


def test_what_is_held_back_judges_and_does_not_fit():
    rows = measured_steps(KERNELS.silicon)
    held = rows.model.isin(HELD).to_numpy()
    seconds = KNOWN.times(rows)
    found = Calibrated.fit("made up", rows, np.where(held, 3 * seconds, seconds), held)
    assert found.layer == pytest.approx(KNOWN.layer, rel=1e-3)
    assert found.error == pytest.approx(2 / 3, rel=1e-3)


def test_rows_and_steps_are_priced_alike():
    rows = measured_steps(KERNELS.silicon)
    one = rows[(rows.model == "qwen3-8b") & (rows.batch == 16) & (rows.context == 8192)]
    parts = KNOWN.step(QWEN, 16, 8192)
    assert KNOWN.times(one) == pytest.approx(float(sum(parts.values())))
    weights = 36 * 20e-6 + max(2 * QWEN.n_matmul_params / 4e12, 2 * 16 * QWEN.n_matmul_params / 6e14)
    assert parts["parameters"] == pytest.approx(weights)
    assert parts["attention"] == pytest.approx(16 * 8192.5 * QWEN.kv_bytes_per_token() / 3e12)
    many = KNOWN.step(QWEN, 4096, 8192)["parameters"]  # bound by arithmetic
    assert many == pytest.approx(36 * 20e-6 + 2 * 4096 * QWEN.n_matmul_params / 6e14)
    sparse = KNOWN.step(QWEN, 16, 8192, BlockTopK(1024, 32))
    assert sparse["attention"] == pytest.approx(parts["attention"] / 8192.5 * 1024)
    assert sparse["search"] > 0


@pytest.mark.parametrize(("gpu", "engine"), [("a100", "vllm"), ("h200", "trtllm"), ("b200", "sglang")])
def test_four_constants_predict_models_that_the_fit_has_not_seen(gpu, engine):
    found = calibrated(Silicon(gpu, engine))
    assert found.error < 0.05
    assert found.p90 < 0.12
    assert 0.6 < found.weights / find_hardware(gpu).bandwidth < 1
    assert parse_clock(f"fitted:{gpu}:{engine}") == found
    assert found.inside(QWEN, [1, 2], 1e6).all()


def test_four_constants_price_what_no_kernel_was_measured_for():
    found = parse_clock("fitted:h200:vllm")
    assert sum(found.step(MODELS["llama3-1b"], 1, 1024).values()) > 0  # heads of 64
    with pytest.raises(ValueError, match="a fitted clock reads fitted:DEVICE:ENGINE"):
        parse_clock("fitted:h200")


def test_four_constants_count_what_goes_over_the_link_and_what_devices_copy():
    """On several devices as the datasheet's clock counts: the same layout, the same bytes, the same link."""
    found, shape = parse_clock("fitted:h200:vllm"), MODELS["qwen3-32b"]
    for layout in (Layout(4), Layout(1, 4)):
        step = replace(found, layout=layout).step(shape, 64, 8192)
        bound = Datasheet(H200, layout=layout).step(shape, 64, 8192)
        assert step["communication"] == pytest.approx(bound["communication"]), layout
        assert step["attention"] == pytest.approx(bound["attention"] * H200.bandwidth / found.cache), layout
    assert found.step(shape, 64, 8192)["communication"] == 0
    assert found.step(shape, 64, 8192, tp=4)["communication"] > 0
    eight = replace(found, layout=Layout(8))  # KV heads are there for each, none is copied
    assert eight.step(shape, 64, 8192)["attention"] == pytest.approx(
        found.step(shape, 64, 8192)["attention"] / 8
    )
    latent = MODELS["deepseek-v3"]  # a latent cache is on every device, its heads are not
    one, many = (replace(found, layout=Layout(n)).step(latent, 64, 8192)["attention"] for n in (1, 8))
    assert one / 8 < many < one
    alone, spread = (replace(found, layout=Layout(n)).prefill(shape, 1e5) for n in (1, 8))
    assert alone / 8 < spread < alone
    assert np.isnan(
        replace(found, silicon=None).step(shape, 64, 8192, tp=4)["communication"]
    )  # a link nobody knows


def test_longer_answers_are_under_way_for_longer():
    lengths = np.array([1000.0, 5000.0])
    mixed = answer_seconds(KNOWN, QWEN, 512, 3000, 8, n_out_sq=(lengths**2).mean())
    each = answer_seconds(KNOWN, QWEN, 512, lengths, 8)
    for name, part in mixed.items():
        assert part == pytest.approx(each[name].mean(), rel=1e-9), name
