"""Clocks: the datasheet's equals the cost law, the measured one its kernels, an answer is the sum of its steps."""

from __future__ import annotations

import numpy as np
import pytest

from kinetics_lab import MODELS, BlockTopK, Dense, decode_cost, find_hardware
from kinetics_lab.cost.clock import Datasheet, Measured, answer_seconds, parse_clock
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
