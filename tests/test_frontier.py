"""Frontiers: every vectorised function against a loop that says the same in words."""

from __future__ import annotations

from math import comb

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kinetics_lab.cost.clock import Datasheet, parse_clock
from kinetics_lab.cost.hardware import HARDWARE
from kinetics_lab.cost.models import MODELS
from kinetics_lab.cost.policies import BlockTopK, parse_policy
from kinetics_lab.cost.request import decode_cost
from kinetics_lab.data import read_table
from kinetics_lab.laws import frontier

B200 = HARDWARE["b200-paper"]
RELEASED = {"params": {"qwen3-14b": 14.33e9}, "counting": "released"}


def toy(**columns):
    """A cost table with only what an allocation needs."""
    table = pd.DataFrame(columns)
    return (
        table.assign(model="m", policy="dense", task="t") if "model" not in table else table.assign(task="t")
    )


# --- cost_table ----------------------------------------------------------------------------------


def test_a_row_is_priced_and_scored_as_by_hand(summary, priced):
    row = priced[(priced.model == "qwen3-8b") & (priced.policy == "topk:128") & (priced.n_trials == 4)].iloc[
        7
    ]
    cost = decode_cost(
        MODELS["qwen3-8b"],
        parse_policy("topk:128"),
        row.tokens_in,
        row.mean_tokens,
        4,
        n_out_sq=row.mean_sq_tokens,
    )
    assert (row.flops, row.bytes, row.eflops) == (cost.flops, cost.bytes, cost.eflops(B200))
    assert row.accuracy == pytest.approx(1 - comb(32 - row.n_correct, 4) / comb(32, 4))
    assert row.tokens == 4 * row.mean_tokens
    assert len(priced) == sum((summary.n_traces >= n).sum() for n in frontier.TRIALS)


def test_options_reach_the_cost(summary):
    one = summary[(summary.model == "qwen3-14b") & (summary.policy == "topk:512")]
    shape, hopper = MODELS["qwen3-14b"], HARDWARE["h200"]
    table = frontier.cost_table(one, hopper, (2,), combine="max", dense_layers=1, **RELEASED)
    args = (one.tokens_in.to_numpy(), one.mean_tokens.to_numpy(), 2)
    cost = decode_cost(
        shape, parse_policy("topk:512"), *args, n_out_sq=one.mean_sq_tokens.to_numpy(), counting="released",
        params=14.33e9, dense_layers=1,
    )  # fmt: skip
    np.testing.assert_array_equal(table.eflops, cost.eflops(hopper, "max"))


def test_a_cached_element_has_the_size_of_the_hardwares_precision(summary):
    one = summary[(summary.model == "qwen3-8b") & (summary.policy == "dense")]
    fp8 = frontier.cost_table(one, HARDWARE["h200"].at("fp8"), (1,))
    bf16 = frontier.cost_table(one, HARDWARE["h200"].at("bf16"), (1,))
    np.testing.assert_allclose(fp8.bytes, bf16.bytes / 2)
    told = frontier.cost_table(one, HARDWARE["h200"].at("fp8"), (1,), bytes_per_element=2)
    np.testing.assert_array_equal(told.bytes, bf16.bytes)


def test_a_policy_can_be_priced_as_another(summary):
    one = summary[(summary.model == "qwen3-8b") & (summary.policy == "block_topk:256:64")]
    real = BlockTopK(256, 64, sink=4, last_block=True)
    table = frontier.cost_table(one, B200, (1,), price_as=lambda policy: real)
    named = frontier.cost_table(one.assign(policy=str(real)), B200, (1,))
    np.testing.assert_array_equal(table.eflops, named.eflops)
    assert set(table.policy) == {"block_topk:256:64"}


def test_a_clock_gives_seconds_and_what_the_hardware_could_have_done_meanwhile(summary):
    one = summary[(summary.model == "qwen3-8b") & summary.policy.isin(["dense", "topk:512"])]
    law, hopper = {"batch": 16, "bytes_per_element": 2}, HARDWARE["h200"]
    plain = frontier.cost_table(one, hopper, (2,), share_prompt=False, **law)
    timed = frontier.cost_table(one, hopper, (2,), clock=Datasheet(hopper, "add"), **law)
    assert timed.eflops.to_numpy() == pytest.approx((timed.seconds * hopper.peak_flops).to_numpy())
    dense = (timed.policy == "dense").to_numpy()
    assert timed.eflops.to_numpy()[dense] == pytest.approx(
        plain.eflops.to_numpy()[dense], rel=2e-4
    )  # moments and batch are those of the law
    assert timed.eflops.to_numpy()[~dense] == pytest.approx(
        plain.eflops[~dense], rel=0.02
    )  # a budget bends the step's time
    assert timed.inside.all()
    first = frontier.cost_table(one, hopper, (2,), clock=Datasheet(hopper, "add"), dense_layers=36, **law)
    assert first.eflops.to_numpy()[~dense] == pytest.approx(plain_dense(one, hopper, law), rel=2e-4)
    with pytest.raises(ValueError, match=r"a clock needs batch \(answers decoded together\)"):
        frontier.cost_table(one, hopper, (2,), clock=Datasheet(hopper))


def plain_dense(rows, hardware, law):
    """Sparse rows priced as if attention were dense."""
    rows = rows[rows.policy != "dense"].assign(policy="dense")
    return frontier.cost_table(rows, hardware, (2,), share_prompt=False, **law).eflops.to_numpy()


def test_measured_kernels_say_where_they_were_measured(summary):
    one = summary[(summary.model == "qwen3-8b") & (summary.policy == "dense")]
    with pytest.warns(UserWarning, match="outside what was measured"):
        many = frontier.cost_table(one, HARDWARE["h200"], (1,), clock=parse_clock("h200:vllm"), batch=64)
    few = frontier.cost_table(one, HARDWARE["h200"], (1,), clock=parse_clock("h200:vllm"), batch=4)
    assert few.inside.all()
    assert not many.inside.all()
    assert (many.seconds < few.seconds).all()  # the weights are shared


def test_length_caps_are_kept_as_settings(summary):
    one = summary[(summary.model == "qwen3-8b") & (summary.policy == "dense")]
    table = frontier.cost_table(pd.concat([one.assign(cap=2048), one.assign(cap=4096)]), B200, (1,))
    assert table.groupby("cap").size().to_dict() == {2048: 30, 4096: 30}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.drop(columns="n_correct"), "lacks a column: column 'n_correct'"),
        (lambda s: s.iloc[:0], "at least one row"),
        (lambda s: s.assign(model="qwen3-9b"), "model 'qwen3-9b' is not known"),
        (lambda s: s.assign(policy="topk"), "topk needs budget"),
        (lambda s: s.assign(n_traces=0, n_correct=0), "as many traces as trials="),
    ],
)
def test_wrong_summaries(summary, change, message):
    with pytest.raises(ValueError, match=message):
        frontier.cost_table(change(summary.iloc[:3]), B200)


def test_wrong_trials(summary):
    for trials in ((), (0, 1)):
        with pytest.raises(ValueError, match="trials must be numbers >= 1"):
            frontier.cost_table(summary, B200, trials)


# --- the published curves ------------------------------------------------------------------------


def test_released_pricing_gives_the_published_best_of_n_curves(summary):
    published = read_table("best_of_n_curves")
    table = frontier.cost_table(summary[~summary.policy.isin(["topk:32", "topk:64"])], B200, **RELEASED)
    sparse = table.policy.str.startswith("topk")
    worst = {}
    for (family, model), curve in published[published.model != "frontier"].groupby(["policy", "model"]):
        rows = table[(table.model == model) & (sparse if family == "topk" else table.policy == "dense")]
        ours = frontier.oracle_allocation(rows, curve.tera_eflops.to_numpy() * 1e12).accuracy
        worst[family, model] = np.abs(ours - curve.accuracy.to_numpy()).max()
    assert len(worst) == 10
    assert worst.pop(("topk", "qwen3-32b")) > 0.1  # its B = 128 file was priced as dense
    assert max(worst.values()) < 2e-6


# --- allocations ---------------------------------------------------------------------------------


def brute_force(table, costs, score="accuracy"):
    accuracy = np.zeros(len(costs))
    tokens = np.full(len(costs), np.nan)
    for j, cap in enumerate(costs):
        for _, rows in table.groupby("problem"):
            fits = rows[rows.eflops <= cap]
            if len(fits):
                best = fits[fits[score] == fits[score].max()].sort_values("eflops").iloc[0]
                accuracy[j] += best[score]
                tokens[j] = np.nanmax([tokens[j], best.tokens])
    return accuracy / table.problem.nunique(), tokens


def test_the_oracle_is_the_loop_on_real_data(priced):
    costs = np.geomspace(2e13, 2e16, 12)
    table = priced[priced.model.isin(["qwen3-4b", "qwen3-14b"])]
    found = frontier.oracle_allocation(table, costs)
    accuracy, tokens = brute_force(table, costs)
    np.testing.assert_allclose(found.accuracy, accuracy, rtol=0, atol=1e-12)
    np.testing.assert_array_equal(found.tokens, tokens)


cell = st.tuples(st.integers(0, 3), st.integers(1, 6), st.integers(0, 4), st.integers(1, 9))


@given(st.lists(cell, min_size=1, max_size=25))
def test_the_oracle_is_the_loop_on_anything(cells):
    problem, price, score, tokens = (list(x) for x in zip(*cells, strict=True))
    table = toy(problem=problem, eflops=price, accuracy=np.array(score) / 4, tokens=tokens)
    # ties of score and price have no order: make prices unique, keep ties of score
    table["eflops"] += np.arange(len(table)) / 1000
    costs = np.array([0.5, 1.5, 3, 5.001, 20])
    found = frontier.oracle_allocation(table, costs)
    accuracy, most = brute_force(table, costs)
    np.testing.assert_allclose(found.accuracy, accuracy, atol=1e-12)
    np.testing.assert_array_equal(found.tokens, most)


def test_what_costs_exactly_the_cap_fits_and_nothing_below_does():
    table = toy(problem=["a", "b"], eflops=[2.0, 4.0], accuracy=[0.5, 1.0], tokens=[10, 20])
    found = frontier.oracle_allocation(table, [1, 2, 4])
    np.testing.assert_array_equal(found.rows, [[-1, 0, 0], [-1, -1, 1]])
    np.testing.assert_array_equal(found.accuracy, [0, 0.25, 0.75])
    np.testing.assert_array_equal(found.tokens, [np.nan, 10, 20])


def test_ties_go_to_the_cheapest_or_the_dearest():
    table = toy(
        problem=["a"] * 4 + ["b"], eflops=[1.0, 2, 3, 4, 1], accuracy=[0.5, 0.2, 0.5, 0.5, 0.1], tokens=1
    )
    for ties, expected in (("cheapest", [0, 0, 0]), ("dearest", [0, 2, 3])):
        found = frontier.oracle_allocation(table, [1.5, 3, 9], ties=ties)
        np.testing.assert_array_equal(found.rows, [expected, [4, 4, 4]])
    with pytest.raises(ValueError, match="ties 'cheap' is not known; did you mean cheapest"):
        frontier.oracle_allocation(table, [1], ties="cheap")


def test_one_setting_for_all_problems():
    table = toy(
        problem=list("ababab"), n_trials=[1, 1, 2, 2, 4, 4], eflops=[1.0, 3, 4, 4, 8, 8], tokens=[1] * 6,
        accuracy=[0.2, 0.4, 0.1, 0.3, 0.9, 0.7], cap=np.nan,
    )  # fmt: skip
    found = frontier.uniform_allocation(table, [1.9, 2, 5, 8])
    np.testing.assert_allclose(
        found.accuracy, [0, 0.3, 0.3, 0.8]
    )  # N = 2 costs more and scores less than N = 1
    np.testing.assert_array_equal(found.values("n_trials"), [[0, 1, 1, 4]] * 2)
    with pytest.raises(ValueError, match="one row per problem"):
        frontier.uniform_allocation(pd.concat([table, table.iloc[:1]]), [1])
    with pytest.raises(ValueError, match="no setting covers every problem"):
        frontier.uniform_allocation(table.iloc[[0, 3]], [1])


def test_one_setting_never_beats_the_oracle_nor_what_it_says(priced):
    costs = np.geomspace(2e13, 2e16, 40)
    table = priced[priced.model == "qwen3-8b"]
    oracle, uniform = (f(table, costs) for f in (frontier.oracle_allocation, frontier.uniform_allocation))
    assert (uniform.values("eflops").mean(0) <= costs).all()
    # The oracle keeps every PROBLEM under the cap, one setting for all only their mean: dear problems may exceed it.
    within = (uniform.values("eflops") <= costs).all(0)
    assert within.any()
    assert (uniform.accuracy[within] <= oracle.accuracy[within] + 1e-12).all()


def test_curves_split_the_table(priced):
    found = frontier.curves(priced[priced.policy == "dense"], [1e15, 1e16])
    assert list(found) == ["qwen3-0.6b", "qwen3-1.7b", "qwen3-14b", "qwen3-32b", "qwen3-4b", "qwen3-8b"]
    assert set(found["qwen3-4b"].table.model) == {"qwen3-4b"}


@pytest.mark.parametrize(
    ("table", "costs", "message"),
    [
        (toy(problem=[1], eflops=[1.0], accuracy=[1.0]), [2, 1], "ascending"),
        (toy(problem=[1], eflops=[1.0], accuracy=[1.0]), [0, 1], "positive"),
        (toy(problem=[1], eflops=[1.0], accuracy=[1.0]), [], "list of eFLOPs"),
        (toy(problem=[1], eflops=[1.0]), [1], "lacks a column: column 'accuracy'"),
        (toy(problem=[1], eflops=[1.0], accuracy=[1.0]).iloc[:0], [1], "at least one row"),
        (
            pd.concat([toy(problem=[1], eflops=[1.0], accuracy=[1.0]), pd.DataFrame({"task": ["u"], "problem": 1, "eflops": 1.0, "accuracy": 1.0})]),
            [1],
            "for one task",
        ),
    ],
)  # fmt: skip
def test_wrong_questions_to_an_allocation(table, costs, message):
    for allocate in (frontier.oracle_allocation, frontier.uniform_allocation):
        with pytest.raises(ValueError, match=message):
            allocate(table, costs)


def test_unknown_columns():
    table = toy(problem=[1], eflops=[1.0], accuracy=[1.0])
    with pytest.raises(ValueError, match="column 'acuracy' is not known; did you mean accuracy"):
        frontier.oracle_allocation(table, [1]).values("acuracy")
    with pytest.raises(ValueError, match="column 'models'"):
        frontier.curves(table, [1], by="models")


# --- reading curves ------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=20))
def test_the_frontier_is_what_nothing_beats(points):
    cost, value = (np.array(x, float) for x in zip(*points, strict=True))
    front = frontier.pareto_frontier(cost, value)
    assert (np.diff(cost[front]) > 0).all()
    assert (np.diff(value[front]) > 0).all()
    for c, v in points:
        assert any(cost[i] <= c and value[i] >= v for i in front)
    for i in front:
        assert not any((c <= cost[i] and v >= value[i]) and (c, v) != (cost[i], value[i]) for c, v in points)


def test_cost_to_reach_a_level():
    found = frontier.cost_to_reach([1, 2, 3], [0, 0.5, 0.5], [0, 0.2, 0.5, 0.6])
    np.testing.assert_array_equal(found, [1, 2, 2, np.nan])
    with pytest.raises(ValueError, match="must not fall"):
        frontier.cost_to_reach([1, 2], [0.5, 0.2], [0.1])


def test_reigns_are_unbroken_runs():
    found = frontier.reigns([1, 2, 3, 4, 5], ["", "a", "a", "b", "a"])
    assert found.values.tolist() == [["a", 2, 3], ["b", 4, 4], ["a", 5, 5]]
