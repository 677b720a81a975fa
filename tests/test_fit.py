"""What fits on how many devices, and what one step moves on each of them, against sums by hand."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kinetics_lab import HARDWARE, MODELS, BlockTopK, Dense, cost_parts
from kinetics_lab.cost.fit import COUNTS, Layout, cache_bytes, fit, parse_layout, weight_bytes
from kinetics_lab.cost.precision import Precision
from kinetics_lab.cost.step import prefill_seconds, step_parts, step_seconds

ROOT = Path(__file__).parent.parent
LLAMA, V3, QWEN = MODELS["llama3-70b"], MODELS["deepseek-v3"], MODELS["qwen3-32b"]
H200 = HARDWARE["h200"]


def test_a_70b_llama_over_one_to_eight_devices():
    """By hand: 80 layers, 8192 wide, 8 KV heads of 128; two norms a layer and a last one are copied."""
    norms = 2 * 161 * 8192
    for tensor in COUNTS:
        way = Layout(tensor)
        held = weight_bytes(LLAMA, Precision(), way)
        assert held == pytest.approx((2 * LLAMA.n_params - norms) / tensor + norms)
        assert cache_bytes(LLAMA, 1000, Precision(), way) == 80 * 2 * 8 * 128 * 2 * 1000 / tensor
    assert fit(LLAMA, H200, context=8192).devices == 2  # 141 GB of weights, 136 GB beside the reserve
    assert fit(LLAMA, H200, Precision("fp8"), 8192).devices == 1
    assert fit(LLAMA, H200, context=8192, batch=64).devices == 4


def test_more_devices_than_kv_heads_copy_heads():
    shape = MODELS["qwen3-235b-a22b"]  # 4 KV heads
    four, eight = (cache_bytes(shape, 1000, Precision(), Layout(tensor)) for tensor in (4, 8))
    assert four == eight == 94 * 2 * 128 * 2 * 1000
    whole = cache_bytes(shape, 1000)
    assert whole == 4 * four
    copied = 94 * 4096 * 2 * 4 * 128 * 2  # key and value projections, bytes, once more
    split = 8 * weight_bytes(shape, Precision(), Layout(8)) - 7 * 2 * (
        shape.parameters["router"] + shape.parameters["vectors"]
    )
    assert split == pytest.approx(2 * shape.n_params + copied)


def test_states_are_held_and_left_out_of_what_a_cache_is_read():
    shape, way = MODELS["kimi-linear-48b-a3b"], Layout(4)
    held, read = (float(cache_bytes(shape, 1000, Precision(), way, read=one)) for one in (False, True))
    states = sum(Precision().bytes(kind) * shape.stored(1000)[kind] for kind in ("state", "conv"))
    assert states > 0
    assert held - read == pytest.approx(float(states) / 4)


def test_a_latent_cache_is_on_every_device_unless_attention_is_data_parallel():
    """DeepSeek-V3 in FP8 on eight H200: 61 layers of 512 + 64 elements a token."""
    fp8, each = Precision("fp8"), 61 * 576 * 2 * 16384
    assert cache_bytes(V3, 16384, fp8, Layout(8)) == cache_bytes(V3, 16384, fp8, Layout(1, 8)) == each
    tensor, data = (fit(V3, H200, fp8, 16384, layout=way) for way in (Layout(8), Layout(1, 8)))
    assert tensor.batch == (0.9 * H200.memory - tensor.weights) // each
    assert data.batch == 8 * ((0.9 * H200.memory - data.weights) // each)
    assert tensor.weights < data.weights  # attention and shared experts are copied eight times
    assert data.batch > 4 * tensor.batch
    assert fit(V3, H200, fp8, 16384).layout == Layout(1, 8)
    read = {
        way: step_parts(V3, 64, 16384, precision=fp8, layout=way)["attention"].bytes
        for way in (Layout(8), Layout(1, 8))
    }
    assert read[Layout(8)] == pytest.approx(64 * each, rel=1e-4)
    assert read[Layout(1, 8)] == pytest.approx(8 * each, rel=1e-4)


@pytest.mark.parametrize("name", ["qwen3-8b", "qwen3-30b-a3b", "deepseek-v3", "opt-350m"])
@pytest.mark.parametrize("policy", [Dense(), BlockTopK(512, 32)])
def test_one_device_is_the_law_itself(name, policy):
    shape, context = MODELS[name], np.array([100.0, 5000, 60000])
    found = step_parts(shape, 7, context, policy)
    law = cost_parts(shape, policy, context, 1, batch=7)
    for part, cost in law.items():
        np.testing.assert_allclose(found[part].flops, 7 * cost.flops, rtol=1e-12)
        np.testing.assert_allclose(found[part].bytes, 7 * cost.bytes, rtol=1e-12)
    assert found["communication"].bytes == 0


@given(
    st.sampled_from(["qwen3-8b", "qwen3-32b", "qwen3-30b-a3b", "deepseek-v3", "llama3-405b"]),
    st.sampled_from(sorted(HARDWARE)), st.sampled_from(["bf16", "fp8", "nvfp4"]),
    st.floats(100, 2e5), st.one_of(st.none(), st.integers(1, 300)), st.sampled_from([0.0, 0.1, 0.3]),
)  # fmt: skip
def test_what_fits_fits_and_nothing_smaller_does(name, device, stored, context, batch, reserve):
    shape, hardware, precision = MODELS[name], HARDWARE[device], Precision(stored)
    found = fit(shape, hardware, precision, context, batch, reserve=reserve)
    ways = [Layout(n // d, d) for n in COUNTS for d in {1, n} if not Layout(n // d, d).why_not(shape)]

    def room(way):
        here = hardware.memory * (1 - reserve) - weight_bytes(shape, precision, way)
        return max(way.data * (here // float(cache_bytes(shape, context, precision, way))), 0)

    enough = [way.devices for way in ways if room(way) >= (batch or 1)]
    if not enough:
        assert found.batch == 0
        assert found.reason
        return
    assert not found.reason
    assert found.devices == min(enough)
    used = found.weights + np.ceil(found.batch / found.layout.data) * found.sequence
    assert used <= hardware.memory * (1 - reserve)
    assert found.batch == max(room(way) for way in ways if way.devices == found.devices)


def test_devices_together_do_the_work_once_and_read_at_least_once():
    for way in (Layout(2), Layout(8), Layout(1, 8)):
        one, many = (step_parts(V3, 64, 16384, layout=w) for w in (Layout(), way))
        for part in ("parameters", "attention"):
            assert way.devices * many[part].flops == pytest.approx(one[part].flops)
            assert way.devices * many[part].bytes >= one[part].bytes * (1 - 1e-12)
        assert many["communication"].bytes > 0


def test_what_goes_over_the_link_by_hand():
    sent = step_parts(LLAMA, 16, 8192, layout=Layout(4))["communication"].bytes
    assert sent == 160 * 16 * 8192 * 2 * 2 * 3 / 4  # two all-reduces in each of 80 layers, 2-byte activations
    seconds = step_seconds(H200, Precision(), step_parts(LLAMA, 16, 8192, layout=Layout(4)))
    assert seconds["communication"] == sent / 450e9
    routed = step_parts(V3, 64, 8192, layout=Layout(1, 8))["communication"].bytes
    assert routed == 58 * 8 * (64 / 8) * 7168 * 2 * 2 * 7 / 8  # to eight experts and back, in 58 layers


def test_matrices_run_at_their_own_peak():
    parts = step_parts(QWEN, 4096, 1, precision=Precision("fp8"))
    fast, slow = (step_seconds(H200, Precision(name), parts)["parameters"] for name in ("fp8", "bf16"))
    assert slow == pytest.approx(2 * fast)
    prompt = [float(prefill_seconds(QWEN, H200, 8192, precision=Precision(name))) for name in ("fp8", "bf16")]
    assert 1.5 < prompt[1] / prompt[0] < 2  # attention stays as it is
    halves = [float(prefill_seconds(QWEN, H200, 8192, cached=share)) for share in (0.0, 0.5)]
    assert 1.8 < halves[0] / halves[1] < 2.0  # the second half of the prompt attends to more


@pytest.mark.parametrize(
    ("model", "hardware", "options", "reason"),
    [
        ("qwen3-32b", "l40s", {"devices": 1}, "qwen3-32b: 65.5 GB of weights; 1 × L40S has 43.5 GB beside the reserve, 2 would hold them"),
        ("llama3-405b", "tpu-v5e", {}, "811.7 GB of weights; 8 × TPU v5e have 121.8 GB beside the reserve, 54 would hold them"),
        ("qwen3-8b", "h200", {"devices": 1, "batch": 100}, "room for 49 sequences"),
        ("qwen3-8b", "h200", {"devices": 3}, "32 query heads do not split over 3 devices"),
    ],
)  # fmt: skip
def test_what_does_not_fit_says_why(model, hardware, options, reason):
    found = fit(MODELS[model], HARDWARE[hardware], context=16384, **options)
    assert found.batch == 0
    assert reason in str(found)


def test_a_layout_is_read_from_text():
    assert parse_layout("tensor:8") == Layout(8)
    assert parse_layout("tensor:2,data:4") == Layout(2, 4)
    for text in (
        "",
        "8",
        "data:8",
        "tensor:0",
        "tensor:8,",
        "tensor:8,data:0",
        "tensor:-1",
        "tensor:9999999",
    ):
        with pytest.raises(ValueError, match=f"a layout reads tensor:N or tensor:N,data:M; got {text!r}"):
            parse_layout(text)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"context": 0}, "context must be positive"),
        ({"context": np.inf}, "context must be positive and finite"),
        ({"batch": 0}, "batch must be at least 1"),
        ({"reserve": 1}, r"reserve must be in \[0, 1\)"),
        (
            {"devices": 4, "layout": Layout(8)},
            "devices must be those of the layout .tensor parallel 8.; got 4",
        ),
        ({"devices": 1_000_001}, "devices must be at least 1, at most a million; got 1000001"),
        (
            {"hardware": H200.times(2)},
            "hardware must be one device; give devices= or layout=; got '2 x h200'",
        ),
    ],
)
def test_bad_questions_say_what_would_be_right(options, message):
    with pytest.raises(ValueError, match=message):
        fit(**({"shape": QWEN, "hardware": H200} | options))
    with pytest.raises(ValueError, match="tensor and data >= 1"):
        Layout(0)


def test_another_tools_bound_is_the_same():
    """AIConfigurator's bound of the same steps (``benchmarks/peers.py`` says how): within 1 %, activations apart."""
    table = pd.read_csv(ROOT / "benchmarks" / "peers.csv")
    device = replace(H200, peaks={"bf16": 989e12})  # as they have it
    assert len(table) == 24
    for row in table.itertuples():
        parts = step_parts(MODELS[row.model], row.batch, row.context, layout=Layout(row.tensor))
        bound = 1e3 * float(sum(step_seconds(device, Precision(), parts).values()))
        assert bound == pytest.approx(row.theirs, rel=0.01)
        assert bound == pytest.approx(row.their_whole_step, rel=0.03)
