"""Kernels against servers: nothing is fitted, and the error is what the book says."""

from __future__ import annotations

import numpy as np
import pytest

from kinetics_lab import MODELS, prefill_cost, read_table
from kinetics_lab.cost.silicon import Silicon
from kinetics_lab.cost.silicon.serving import (
    SERVED,
    WHY_NOT,
    against_serving,
    prefill_seconds,
    time_per_output_token,
)

LLAMA, H200 = MODELS["llama3-8b"], Silicon("h200", "vllm", "fp8", "fp8")


def test_kernels_predict_the_time_per_output_token():
    found = against_serving()
    off = (found.ratio - 1).abs()
    long = found.n_out >= found.n_in
    assert (len(found), long.sum()) == (627, 294)
    assert off.median() <= 0.15
    assert off[long].median() <= 0.17
    assert 0.9 < found.ratio.median() < 1.1
    assert 0.2 < off.quantile(0.9) < 0.3


def test_every_model_is_served_or_says_why_not():
    for model in set(read_table("silicon_serving").model):
        assert model in SERVED or any(part in model for part in WHY_NOT), model


def test_prefill_takes_at_least_what_the_arithmetic_takes():
    n = np.array([512.0, 4096.0, 8192.0, 32768.0])
    seconds = prefill_seconds(LLAMA, H200, n)
    least = prefill_cost(LLAMA, n).flops / H200.matrix_rate
    assert (seconds > 0.9 * least).all()
    assert (seconds < 2.5 * least).all()
    assert prefill_seconds(LLAMA, H200, 8192) == pytest.approx(seconds[2])


def test_parts_add_up():
    steps = sum(H200.step(LLAMA, 32, 1024 + 512).values())
    prompts = 32 * prefill_seconds(LLAMA, H200, 1024) / 1024
    assert time_per_output_token(LLAMA, H200, 32, 1024, 1024) == pytest.approx(float(steps + prompts))


def test_two_gpus_are_quicker_than_one_but_not_twice():
    one, two = (time_per_output_token(LLAMA, H200, 32, 1024, 1024, tp) for tp in (1, 2))
    assert 1 < one / two < 2


def test_models_with_experts_are_refused():
    bf16 = Silicon("h200")
    with pytest.raises(ValueError, match="the prefill of qwen3-30b-a3b needs measured experts"):
        prefill_seconds(MODELS["qwen3-30b-a3b"], bf16, 1024)
    with pytest.raises(ValueError, match="deepseek-v3 has no measured kernels: latent attention"):
        prefill_seconds(MODELS["deepseek-v3"], bf16, 1024)
