"""Closed forms against sums over steps, the published rows, and the limits where costs must agree."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kinetics_lab.cost.countings import attended
from kinetics_lab.cost.hardware import find_hardware
from kinetics_lab.cost.models import MODELS
from kinetics_lab.cost.policies import BlockTopK, Dense, Local, Quest, StridedBlockTopK, TopK
from kinetics_lab.cost.request import Cost, cost_parts, decode_cost, max_batch, prefill_cost
from kinetics_lab.data import read_table

QWEN, MOE, MLA = MODELS["qwen3-8b"], MODELS["qwen3-30b-a3b"], MODELS["deepseek-v3"]
B200 = find_hardware("b200-paper")
FINE = 8  # substeps per token: the midpoint rule then is exact but for the one cell in which the budget binds


def steps(n_out):
    return (np.arange(n_out * FINE) + 0.5) / FINE


def brute_force(shape, policy, n_in, n_out, n_trials, *, e, share_prompt):
    """FLOP and bytes added up step by step from what each step computes and reads."""
    context = n_in + steps(n_out)
    own = steps(n_out)
    matrices = 2 * shape.n_matmul_params * n_trials * n_out
    read = np.minimum(context, policy.tokens_read)
    flops = shape.attention_flops_per_token * n_trials * read.sum() / FINE
    if isinstance(policy, Dense) and share_prompt:
        moved = (n_in * np.ones_like(own) + n_trials * own).sum() / FINE
    else:
        moved = n_trials * read.sum() / FINE
    scored = policy.keys_scored_per_token * n_trials * context.sum() / FINE
    shared = (
        policy.keys_scored_per_token * (n_in * n_out + n_trials * own.sum() / FINE)
        if share_prompt
        else scored
    )
    heads = {
        name: shape.n_layers * getattr(shape, name) * shape.head_dim for name in ("n_q_heads", "n_kv_heads")
    }
    search_flops = 2 * heads["n_q_heads"] * scored
    return (
        matrices + flops + search_flops,
        e * (shape.kv_elements_per_token * moved + heads["n_kv_heads"] * shared),
    )


POLICIES = st.one_of(
    st.just(Dense()),
    st.builds(TopK, st.integers(1, 6000), st.booleans()),
    st.builds(Local, st.integers(1, 6000), st.integers(0, 64)),
    st.builds(lambda k, b: BlockTopK(k * b, b), st.integers(1, 40), st.integers(1, 256)),
    st.builds(
        lambda k, b, s: BlockTopK(k * b, b, sink=s, last_block=True),
        st.integers(1, 9),
        st.integers(1, 256),
        st.integers(0, 8),
    ),
    st.builds(lambda k, b: Quest(k * b, b), st.integers(1, 40), st.integers(1, 64)),
    st.builds(
        lambda k, b: StridedBlockTopK(k * b, b, stride=max(1, b // 2)), st.integers(1, 9), st.integers(1, 64)
    ),
)


@given(
    policy=POLICIES,
    shape=st.sampled_from([QWEN, MOE, MLA]),
    n_in=st.integers(0, 5000),
    n_out=st.integers(0, 3000),
    n_trials=st.integers(1, 64),
    e=st.sampled_from([1, 2]),
    share=st.booleans(),
)
def test_exact_counting_is_the_sum_over_steps(policy, shape, n_in, n_out, n_trials, e, share):
    got = decode_cost(shape, policy, n_in, n_out, n_trials, bytes_per_element=e, share_prompt=share)
    flops, moved = brute_force(shape, policy, n_in, n_out, n_trials, e=e, share_prompt=share)
    # the cell in which the budget binds: at most 1/8 of a token read off by half
    cell = n_trials / FINE**2
    assert got.flops == pytest.approx(flops, rel=1e-9, abs=cell * shape.attention_flops_per_token)
    assert got.bytes == pytest.approx(moved, rel=1e-9, abs=cell * shape.kv_elements_per_token * e)


@pytest.mark.parametrize("n_in", [0, 7, 100, 4096])
@pytest.mark.parametrize("n_out", [0, 1, 100, 5000])
@pytest.mark.parametrize("budget", [1, 64, 512, 10**6])
def test_attended_is_within_half_a_token_a_step_of_the_discrete_sum(n_in, n_out, budget):
    discrete = np.minimum(n_in + np.arange(1, n_out + 1), budget).sum()
    assert 0 <= discrete - attended(n_in, n_out, budget) <= n_out / 2


@given(
    lengths=st.lists(st.integers(0, 30000), min_size=1, max_size=20),
    n_in=st.integers(0, 4000),
    budget=st.one_of(st.just(np.inf), st.integers(1, 6000)),
)
def test_moments_are_exact_on_one_side_of_the_budget(lengths, n_in, budget):
    lengths = np.array(lengths, float)
    mean, square = lengths.mean(), (lengths**2).mean()
    truth = attended(n_in, lengths, budget).mean()
    got = attended(n_in, mean, budget, square)
    spread = np.sqrt(max(square - mean**2, 0))
    binds = budget - n_in
    low, high = min(lengths.min(), mean - spread), max(lengths.max(), mean + spread)
    if binds >= high or (binds <= low and spread <= mean):
        assert got == pytest.approx(truth, rel=1e-6, abs=1e-3)
    # bounds that hold for any lengths with these moments
    dense = n_in * mean + square / 2
    most = min(dense, budget * mean) if np.isfinite(budget) else dense
    assert got <= most * (1 + 1e-9) + 1e-6
    assert got >= attended(n_in, mean, budget) * (1 - 1e-9) - 1e-6


def test_dense_moments_replace_both_powers():
    lengths = np.array([100.0, 5000, 30000])
    one_by_one = decode_cost(QWEN, Dense(), 300, lengths, 8)
    moments = decode_cost(QWEN, Dense(), 300, lengths.mean(), 8, n_out_sq=(lengths**2).mean())
    assert moments.flops == pytest.approx(one_by_one.flops.mean())
    assert moments.bytes == pytest.approx(one_by_one.bytes.mean())


def test_sparse_moments_count_answers_that_end_before_the_budget_binds():
    lengths = np.array([100.0, 700])  # the whole spread lies below the budget: reading grows with the square
    one_by_one = decode_cost(QWEN, TopK(2000), 300, lengths)
    moments = decode_cost(QWEN, TopK(2000), 300, lengths.mean(), n_out_sq=(lengths**2).mean())
    assert moments.bytes == pytest.approx(one_by_one.bytes.mean())
    assert moments.bytes > decode_cost(QWEN, TopK(2000), 300, lengths.mean()).bytes


# --- the equations as printed -------------------------------------------------------------------


@pytest.mark.parametrize(("L_in", "L_out", "N"), [(200, 10000, 1), (1000, 4096, 32), (0, 1, 1)])
def test_paper_counting_is_equations_1_and_2(L_in, L_out, N):
    P, D, r = 8.19e9, QWEN.kv_elements_per_token, 4
    got = decode_cost(QWEN, Dense(), L_in, L_out, N, counting="paper")
    assert got.flops == pytest.approx(2 * P * N * L_out + 2 * r * N * L_in * L_out * D + r * N * L_out**2 * D)
    assert got.bytes == pytest.approx(2 * L_in * L_out * D + N * L_out**2 * D)


@pytest.mark.parametrize(("L_in", "L_out", "N"), [(2000, 10000, 1), (100, 4096, 32)])
def test_paper_counting_is_equations_8_and_9(L_in, L_out, N):
    P, D, r, B, b, intensity = 8.19e9, QWEN.kv_elements_per_token, 4, 512, 32, 562.5
    sparse = 2 * N * P * L_out + 2 * r * N * D * B * L_out + 2 * intensity * N * D * B * L_out
    search = (2 * N * L_in * D * L_out + r * N * D * L_out**2) / (2 * b)  # the first term lacks r, as printed
    search += intensity * (2 * L_in * D * L_out + N * D * L_out**2) / (2 * b)
    assert decode_cost(QWEN, TopK(B), L_in, L_out, N, counting="paper").eflops(B200) == pytest.approx(sparse)
    block = decode_cost(QWEN, BlockTopK(B, b), L_in, L_out, N, counting="paper")
    assert block.eflops(B200) == pytest.approx(sparse + search)


@pytest.mark.parametrize(
    "row", list(read_table("printed_rows").itertuples()), ids=lambda row: f"B{row.budget}-N{row.n_trials}"
)
def test_released_counting_reproduces_the_printed_rows_to_the_last_digit(row):
    prompt = row.budget if np.isnan(row.tokens_in) else row.tokens_in
    got = decode_cost(QWEN, TopK(row.budget), prompt, row.mean_tokens_out, row.n_trials, counting="released")
    assert got.flops / 1e12 == pytest.approx(row.compute_tera_flops, abs=6e-7)
    assert got.bytes * 562.5 / 1e12 == pytest.approx(row.memory_tera_eflops, abs=6e-7)
    assert got.eflops(B200) / 1e12 == pytest.approx(row.total_tera_eflops, abs=2e-6)


@pytest.mark.parametrize(
    ("c", "g", "N", "B", "b"), [(200, 10000, 4, 1024, 16), (200, 777, 1, 1024, 16), (5, 31, 3, 64, 64)]
)
def test_released_counting_has_its_sign_and_its_floors(c, g, N, B, b):
    heads, kv_heads, width, P = 32, 8, 128 * 36, 8.19e9
    kv = B * g + 0.5 * max(0, B - c) ** 2
    topk = decode_cost(QWEN, TopK(B), c, g, N, counting="released")
    assert (topk.flops, topk.bytes) == pytest.approx(
        ((2 * P * g + 4 * kv * heads * width) * N, 4 * kv * kv_heads * width * N)
    )
    assert decode_cost(QWEN, Local(B - 4, 4), c, g, N, counting="released") == topk
    kv = B * g - 0.5 * max(0, B - c) ** 2
    block = decode_cost(QWEN, BlockTopK(B, b), c, g, N, counting="released")
    scan_flops = (2 * c + g) // b * g * heads * width
    scan_bytes = (2 * c + g * N) // b * g * kv_heads * width
    assert block.flops == pytest.approx((2 * P * g + 4 * kv * heads * width + scan_flops) * N)
    assert block.bytes == pytest.approx(4 * kv * kv_heads * width * N + scan_bytes)


def test_the_released_sign_makes_a_short_answer_dearer_than_dense():
    exact = decode_cost(QWEN, TopK(1024), 200, 2000)
    released = decode_cost(QWEN, TopK(1024), 200, 2000, counting="released")
    assert released.bytes / exact.bytes == pytest.approx(1.40, abs=0.005)
    short = decode_cost(QWEN, TopK(1024), 200, 500, counting="released")
    assert short.bytes / decode_cost(QWEN, Dense(), 200, 500).bytes == pytest.approx(3.8, abs=0.05)


@pytest.mark.parametrize("counting", ["paper", "released"])
@pytest.mark.parametrize(
    "policy",
    [
        TopK(64, oracle=False),
        Quest(64, 16),
        BlockTopK(64, 16, sink=4),
        StridedBlockTopK(64, 16),
    ],
    ids=str,
)
def test_published_countings_price_only_what_was_published(counting, policy):
    with pytest.raises(ValueError, match=f"counting '{counting}' has no price for {policy}"):
        decode_cost(QWEN, policy, 100, 100, counting=counting)


def test_default_parameters_of_each_counting():
    for counting, count in (("exact", QWEN.n_matmul_params), ("paper", 8.19e9), ("released", 8.19e9)):
        part = cost_parts(QWEN, Dense(), 0, 1, counting=counting)["parameters"]
        assert part.flops == 2 * count
    assert cost_parts(QWEN, Dense(), 0, 1, params=14.33e9)["parameters"].flops == 2 * 14.33e9
    llama = MODELS["llama3-8b"]  # not in the released table: all active parameters
    assert cost_parts(llama, Dense(), 0, 1, counting="paper")["parameters"].flops == 2 * llama.n_active_params


# --- limits and order ---------------------------------------------------------------------------


@given(
    n_in=st.integers(0, 20000),
    n_out=st.integers(1, 32768),
    budget=st.integers(1, 70000),
    shape=st.sampled_from([QWEN, MLA]),
)
def test_one_sparse_trial_without_search_never_exceeds_dense(n_in, n_out, budget, shape):
    dense, sparse = decode_cost(shape, Dense(), n_in, n_out), decode_cost(shape, TopK(budget), n_in, n_out)
    assert sparse.flops <= dense.flops * (1 + 1e-12)
    assert sparse.bytes <= dense.bytes * (1 + 1e-12)
    if budget >= n_in + n_out:
        assert (sparse.flops, sparse.bytes) == pytest.approx((dense.flops, dense.bytes))


@given(policy=POLICIES, n_in=st.integers(0, 9000), n_out=st.integers(1, 9000), n_trials=st.integers(1, 64))
def test_costs_rise_with_every_argument(policy, n_in, n_out, n_trials):
    def total(*arguments):
        return decode_cost(QWEN, policy, *arguments).eflops(B200)

    here = total(n_in, n_out, n_trials)
    assert total(n_in + 10, n_out, n_trials) >= here
    assert total(n_in, n_out + 10, n_trials) > here
    assert total(n_in, n_out, n_trials + 1) > here


def test_an_empty_answer_costs_nothing():
    nothing = decode_cost(QWEN, BlockTopK(512, 32), 1000, 0, 4, batch=8)
    assert (nothing.flops, nothing.bytes) == (0, 0)


def test_sharing_the_prompt_saves_all_but_one_reading_of_it():
    shared = decode_cost(QWEN, Dense(), 1000, 500, 8)
    alone = decode_cost(QWEN, Dense(), 1000, 500, 8, share_prompt=False)
    assert alone.flops == shared.flops
    assert alone.bytes - shared.bytes == pytest.approx(7 * 1000 * 500 * QWEN.kv_bytes_per_token())
    one = decode_cost(QWEN, Dense(), 1000, 500, 1)
    assert one == decode_cost(QWEN, Dense(), 1000, 500, 1, share_prompt=False)


def test_dense_layers_are_a_share_of_the_layers():
    dense, sparse = (cost_parts(QWEN, policy, 500, 9000)["attention"] for policy in (Dense(), TopK(128)))
    mixed = cost_parts(QWEN, TopK(128), 500, 9000, dense_layers=1)["attention"]
    assert mixed.bytes == pytest.approx(dense.bytes / 36 + sparse.bytes * 35 / 36)
    assert mixed.flops == pytest.approx(dense.flops / 36 + sparse.flops * 35 / 36)
    every = cost_parts(QWEN, BlockTopK(512, 32), 500, 9000, dense_layers=36)
    assert every["attention"].bytes == pytest.approx(dense.bytes)
    assert every["search"].bytes == 0
    assert decode_cost(QWEN, Dense(), 5, 9, dense_layers=3) == decode_cost(QWEN, Dense(), 5, 9)


def test_a_batch_shares_the_weights():
    plain = decode_cost(QWEN, Dense(), 100, 1000, 2)
    batched = decode_cost(QWEN, Dense(), 100, 1000, 2, batch=16, bytes_per_element=1)
    added = batched.bytes - plain.bytes / 2
    assert added == pytest.approx(QWEN.n_matmul_params * 2 * 1000 / 16)
    assert batched.flops == plain.flops


def test_parts_add_up():
    parts = cost_parts(QWEN, BlockTopK(512, 32), 100, 5000, 3, batch=64)
    total = decode_cost(QWEN, BlockTopK(512, 32), 100, 5000, 3, batch=64)
    assert total.flops == pytest.approx(sum(part.flops for part in parts.values()))
    assert total.bytes == pytest.approx(sum(part.bytes for part in parts.values()))


def test_everything_broadcasts():
    n_in, n_out = np.array([[100.0], [2000.0]]), np.array([50.0, 500.0, 5000.0])
    for options in ({}, {"batch": np.array([4, 8, 16])}, {"dense_layers": 1}, {"counting": "released"}):
        got = decode_cost(QWEN, BlockTopK(512, 32), n_in, n_out, 4, **options)
        assert got.flops.shape == got.bytes.shape == (2, 3)
        one = dict(options, batch=8) if "batch" in options else options
        single = decode_cost(QWEN, BlockTopK(512, 32), 2000, 500, 4, **one)
        assert (got.flops[1, 1], got.bytes[1, 1]) == pytest.approx((single.flops, single.bytes))


# --- units and currencies -----------------------------------------------------------------------


def test_eflops_and_seconds_by_both_combinations():
    work = Cost(flops=9e15, bytes=8e12)
    assert work.eflops(B200) == 9e15 + 8e12 * 562.5
    assert work.eflops(B200, "max") == 9e15
    assert work.seconds(B200) == 2 + 1
    assert work.seconds(B200, "max") == 2
    assert (2 * work + work).seconds(B200) == 9
    assert (np.array([1.0, 2.0]) * work).flops.tolist() == [9e15, 18e15]
    with pytest.raises(ValueError, match="combine 'sum' is not known"):
        work.eflops(B200, "sum")


def test_prefill_counts_the_causal_triangle():
    got = prefill_cost(QWEN, 1000)
    triangle = sum(t + 0.5 for t in range(1000))
    head = QWEN.vocab * QWEN.hidden  # for the last token only
    matrices = 2 * (QWEN.n_matmul_params - head) * 1000 + 2 * head
    assert got.flops == matrices + QWEN.attention_flops_per_token * triangle
    assert prefill_cost(QWEN, 0).flops == 0
    with pytest.raises(ValueError, match="n_in must be >= 0"):
        prefill_cost(QWEN, -1)


def test_max_batch_fills_the_memory_and_no_more():
    shape, hw = MODELS["qwen3-32b"], find_hardware("b200-paper", n_devices=8)
    fits = max_batch(shape, hw, 16384)
    assert fits == 342
    sequence = shape.kv_bytes_per_token() * 16384
    used = shape.n_params * 2 + fits * sequence
    assert used <= hw.memory < used + sequence
    assert max_batch(shape, hw, 16384, reserve=0.1) < fits < max_batch(shape, hw, 16384, bytes_per_element=1)
    assert max_batch(shape, find_hardware("tpu-v5e"), 16384) == 0
    one = find_hardware("h200")  # all experts are stored, whichever are active
    beside_all_experts = (one.memory - 2 * MOE.n_params) // (MOE.kv_bytes_per_token() * 16384)
    assert max_batch(MOE, one, 16384) == beside_all_experts > 0
    with pytest.raises(ValueError, match=r"reserve must be in \[0, 1\)"):
        max_batch(shape, hw, 16384, reserve=1.5)
    with pytest.raises(ValueError, match="context must be positive"):
        max_batch(shape, hw, 0)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((-1, 10), {}, "n_in must be >= 0 and finite"),
        ((1, [5, -2]), {}, "n_out must be >= 0 and finite"),
        ((1, np.nan), {}, "n_out must be >= 0 and finite"),
        ((1, 10, 0), {}, "n_trials must be >= 1 and finite, at most 1e[+]15; got"),
        ((1, 10), {"n_out_sq": 99}, r"n_out_sq must be >= n_out\*\*2"),
        ((1, 10), {"counting": "extact"}, "counting 'extact' is not known; did you mean exact"),
        ((1, 10), {"bytes_per_element": 0}, "bytes_per_element must be positive"),
        ((1, 10), {"dense_layers": 37}, r"dense_layers must be 0..36 for qwen3-8b; got 37"),
        ((1, 10), {"params": -1}, "params must be positive"),
        ((1, 10), {"batch": 0}, "batch must be positive"),
    ],
)
def test_bad_arguments_are_named(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        decode_cost(QWEN, Dense(), *arguments, **options)
