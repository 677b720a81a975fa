"""Kernels against servers: nothing is fitted, and the error is what the book says."""

from __future__ import annotations

import numpy as np
import pytest

from kinetics_lab import MODELS, prefill_cost, read_table
from kinetics_lab.cost.clock import Datasheet, Measured, calibrated
from kinetics_lab.cost.hardware import find_hardware
from kinetics_lab.cost.silicon import Silicon
from kinetics_lab.cost.silicon.serving import (
    SERVED,
    WHY_NOT,
    _attention,
    against_serving,
    kernels_per_output_token,
    prefill_seconds,
)

LLAMA, H200 = MODELS["llama3-8b"], Silicon("h200", "vllm", "fp8", "fp8")


@pytest.fixture(scope="module")
def served():
    return against_serving()


def composed(table, *names):
    """Runs of some models that have a prediction, and its relative error."""
    found = table[(table.why_not == "") & table.model.str.contains("|".join(names))]
    return found, (found.ratio - 1).abs()


def test_kernels_predict_the_time_per_output_token_of_dense_models(served):
    found, off = composed(served, "Llama", "Qwen3-32B")
    long = found.n_out >= found.n_in
    assert (len(found), long.sum()) == (627, 294)
    assert off.median() <= 0.15
    assert off[long].median() <= 0.17
    assert 0.9 < found.ratio.median() < 1.1
    assert 0.2 < off.quantile(0.9) < 0.3


@pytest.mark.parametrize(
    ("model", "runs", "most", "ratio"),
    [("Qwen3-235B", 125, 0.12, (1.0, 1.2)), ("gpt-oss", 164, 0.12, (0.9, 1.05)), ("DeepSeek", 140, 0.35, (1.0, 1.4))],
)  # fmt: skip
def test_kernels_predict_experts_windows_and_latent_attention(served, model, runs, most, ratio):
    found, off = composed(served, model)
    assert len(found) == runs
    assert off.median() <= most
    assert ratio[0] < found.ratio.median() < ratio[1]


def test_the_latent_attention_of_runs_without_speculation_is_within_a_sixth(served):
    found, off = composed(served, "DeepSeek")
    plain = (found.gpu == "h200") & (found.moe_ep == 1)
    assert plain.sum() == 30
    assert off[plain].median() <= 0.13
    assert (found.ratio[plain] > 1).all()


def test_what_cannot_be_composed_names_the_rows_that_lack(served):
    refused = served[served.why_not != ""]
    assert refused.predicted_ms.isna().all()
    assert refused.ratio.isna().all()
    why = set(refused.why_not)
    assert (
        "experts of qwen3-235b-a22b on h100 under trtllm have rows of other settings; got 'fp8_block, tp=2, ep=2, power_law_1.2'"
        in why
    )
    assert "mla_generation_module on h200 was measured under trtllm, vllm; got 'sglang'" in why
    assert "MLA with 32 heads was not measured on b200 under trtllm; cache; got 'fp8'" in why
    assert any(
        text.startswith("experts of gpt-oss-120b on b200 under trtllm have rows of other settings")
        for text in why
    )


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
    assert kernels_per_output_token(LLAMA, H200, 32, 1024, 1024) == pytest.approx(float(steps + prompts))


def test_two_gpus_are_quicker_than_one_but_not_twice():
    one, two = (kernels_per_output_token(LLAMA, H200, 32, 1024, 1024, tp) for tp in (1, 2))
    assert 1 < one / two < 2


def test_clocks_agree_on_the_time_per_output_token():
    """A step in the middle of an answer, and its share of the prompts: by datasheet, by fitted constants, by kernels."""
    fp8 = find_hardware("h200", "fp8")
    seconds = {}
    for clock in (Datasheet(fp8), calibrated(H200), Measured(H200)):
        step = sum(clock.step(LLAMA, 32, 1024 + 512).values())
        seconds[type(clock).__name__] = float(step + 32 * clock.prefill(LLAMA, 1024) / 1024)
    served = kernels_per_output_token(LLAMA, H200, [32, 64], 1024, 1024)
    assert served[0] == pytest.approx(seconds["Measured"])
    assert served[1] > served[0]
    assert seconds["Datasheet"] < seconds["Measured"]
    assert 0.5 < seconds["Calibrated"] / seconds["Measured"] < 1.5
    least = prefill_cost(LLAMA, 1024).flops / fp8.peak_flops
    assert Datasheet(fp8).prefill(LLAMA, 1024) == pytest.approx(float(least))


def test_experts_are_split_as_they_are_served():
    moe, h100 = MODELS["qwen3-235b-a22b"], Silicon("h100", "trtllm", "fp8", "fp8")
    both = [kernels_per_output_token(moe, h100, 32, 1024, 1024, tp=4, ep=ep) for ep in (1, 4)]
    apart = [94 * h100.experts(moe.name, 32, ep, 4 // ep) for ep in (1, 4)]
    prompts = [94 * 32 * h100.experts(moe.name, 1024, ep, 4 // ep) / 1024 for ep in (1, 4)]
    assert both[0] - both[1] == pytest.approx(float(apart[0] - apart[1] + prompts[0] - prompts[1]))


@pytest.mark.filterwarnings(
    "ignore::UserWarning"
)  # an eighth of a shared expert is narrower than what was timed
def test_a_mixture_has_routed_shared_and_dense_layers():
    h200, m = Silicon("h200", "trtllm", "fp8", "fp8"), np.array(32.0)

    def block(ffn):
        return h200.gemm(m, 2 * ffn / 8, 7168) + h200.gemm(m, 7168, ffn / 8)

    routed = h200.gemm(m, 256, 7168) + h200.experts("deepseek-v3", m, ep=8) + block(2048)
    by_hand = 58 * routed + 3 * block(18432)
    assert h200.products(MODELS["deepseek-v3"], m, tp=8, ep=8) == pytest.approx(float(by_hand))


def test_a_window_makes_half_of_the_layers_cheap():
    h200 = Silicon("h200", "vllm", "bf16", "fp8")
    short, long = (
        _attention(MODELS["gpt-oss-120b"], h200, np.array(16.0), np.array(n), 1) for n in (128.0, 32768.0)
    )
    rows = read_table("silicon_windows").query(
        "gpu == 'h200' and kv == 'fp8' and q_heads == 64 and batch == 16"
    )
    us = rows[rows.engine.str.startswith("vllm") & (rows.context == 32768)].set_index("window").us
    assert long == pytest.approx(18e-6 * (us[0] + us[128]))
    assert long > 3 * short
    start, _, byte = h200._attention_law
    grown = (start + byte * 16 * 131072 * 1024) / (start + byte * 16 * 32768 * 1024)  # 1,024 bytes a token
    with pytest.warns(UserWarning, match="extrapolated"):
        beyond = _attention(MODELS["gpt-oss-120b"], h200, np.array(16.0), np.array(131072.0), 1)
    assert beyond == pytest.approx(18e-6 * (us[0] * grown + us[128]))  # the window does not grow


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_latent_attention_is_the_module_that_was_measured():
    h200, deepseek = Silicon("h200", "trtllm", "fp8", "fp8"), MODELS["deepseek-v3"]
    rows = read_table("silicon_sparse").query(
        "gpu == 'h200' and op == 'mla_generation_module' and kv == 'fp8'"
    )
    rows = rows[rows.engine.str.startswith("trtllm") & (rows.gemm == "fp8_block") & (rows["heads"] == 16)]
    us = rows[(rows.batch == 32) & (rows.context == 4096)].us.item()
    assert _attention(deepseek, h200, np.array(32.0), np.array(4096.0), 8) == pytest.approx(61e-6 * us)
    # its prompt takes at least the arithmetic that an eighth of the model has
    seconds, least = prefill_seconds(deepseek, h200, 8192, 8, 8), prefill_cost(deepseek, 8192).flops / 8
    assert 0.15 < least / h200.matrix_rate / seconds < 1


def test_what_was_not_measured_is_refused():
    with pytest.raises(
        ValueError, match="MLA with 32 heads was not measured on h200 under trtllm; cache; got 'fp8'"
    ):
        kernels_per_output_token(
            MODELS["deepseek-v3"], Silicon("h200", "trtllm", "fp8", "fp8"), 4, 1024, 1024, 4, 4
        )
    with pytest.raises(ValueError, match="query heads must split over tp GPUs; got 3"):
        kernels_per_output_token(LLAMA, H200, 4, 1024, 1024, 3)
