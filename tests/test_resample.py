"""What is drawn anew: problems for winners, levels and advantages; trials for choices judged on other ones."""

from __future__ import annotations

import importlib.util
from math import comb
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm
from scipy.stats import t as student

from kinetics_lab import read_table
from kinetics_lab.cost.hardware import HARDWARE
from kinetics_lab.laws import frontier, resample

B200 = HARDWARE["b200-paper"]


def toy(**columns):
    """A cost table with only what an allocation needs."""
    return pd.DataFrame(columns).assign(task="t")


def test_problem_weights_are_resamples():
    weights = resample.problem_weights(30, 4000, seed=1)
    np.testing.assert_allclose(weights.sum(1), 1)
    np.testing.assert_allclose(weights * 30, np.round(weights * 30))
    score = np.linspace(0, 1, 30)
    assert (weights @ score).std() == pytest.approx(score.std() / 30**0.5, rel=0.05)
    np.testing.assert_array_equal(weights, resample.problem_weights(30, 4000, seed=1))
    for bad, message in (((1, 10), "at least two"), ((30, 0), "n_boot must be")):
        with pytest.raises(ValueError, match=message):
            resample.problem_weights(*bad)


def test_the_interval_of_a_share_is_that_of_a_mean_over_problems():
    solved = np.array([1.0] * 12 + [0.0] * 18)
    low, high = resample.interval(resample.problem_weights(30, 4000) @ solved, 30)
    spread = student.ppf(0.975, 29) * (0.4 * 0.6 / 29) ** 0.5
    assert (low, high) == pytest.approx((0.4 - spread, 0.4 + spread), abs=0.02)


@pytest.mark.parametrize("n", [10, 30])
def test_intervals_cover_their_level_where_units_are_few(n):
    """Plain percentiles hold the mean of ten normal values in 90 % of samples."""
    samples = np.random.default_rng(n).normal(size=(n, 2000))
    low, high = resample.interval(resample.problem_weights(n, 1000) @ samples, n)
    assert ((low < 0) & (high > 0)).mean() == pytest.approx(0.95, abs=0.015)


def test_intervals_leave_out_what_is_unknown():
    low, high = resample.interval(np.r_[np.arange(1001.0), np.nan], 10**6, 0.9)
    assert (low, high) == pytest.approx((50, 950), abs=0.01)
    with pytest.raises(ValueError, match="level"):
        resample.interval([1.0], 30, 1)
    with pytest.raises(ValueError, match="at least two units that were resampled; got 1"):
        resample.interval([1.0], 1)


def test_resamples_are_of_whole_units_and_repeat_with_the_seed():
    values = np.arange(10.0)
    seen = []

    def mean(chosen):
        seen.append(chosen)
        return values[chosen].mean()

    first = resample.bootstrap(mean, 10, n_boot=500, seed=3)
    assert first.value == 4.5
    assert seen[0].tolist() == list(range(10))
    assert all(len(chosen) == 10 for chosen in seen)
    assert first.draws.shape == (500,)
    assert first.draws.std() == pytest.approx(values.std() / np.sqrt(10), rel=0.1)
    tail = norm.cdf(student.ppf(0.025, 9) * (10 / 9) ** 0.5)
    assert [first.low, first.high] == pytest.approx(np.quantile(first.draws, [tail, 1 - tail]))
    assert (resample.bootstrap(mean, 10, n_boot=500, seed=3).draws == first.draws).all()
    assert (resample.bootstrap(mean, 10, n_boot=500, seed=4).draws != first.draws).any()


def test_a_bootstrap_takes_arrays_and_few_failures():
    result = resample.bootstrap(
        lambda chosen: [chosen[0], np.nan if chosen[0] == chosen[1] == 5 else 1.0], 20, 200
    )
    assert result.low.shape == (2,)
    with pytest.raises(ValueError, match="at most a tenth of the resamples may fail"):
        resample.bootstrap(lambda chosen: np.nan if len(set(chosen)) < 5 else 1.0, 5, 200)


# --- curves on problems drawn anew ---------------------------------------------------------------


def test_winners_and_how_often():
    problems = list(range(10))
    weak = toy(model="weak", policy="dense", problem=problems, eflops=1.0, accuracy=[0.5] * 10, tokens=1)
    odd = toy(
        model="odd", policy="dense", problem=problems, eflops=5.0, accuracy=[1.0] * 6 + [0.0] * 4, tokens=1
    )
    found = resample.winners(frontier.curves(pd.concat([weak, odd]), [0.5, 2, 6]), n_boot=4000)
    assert found.winner.tolist() == ["", "weak", "odd"]
    np.testing.assert_allclose(found.accuracy, [0, 0.5, 0.6])
    assert found.weak[:2].tolist() == [0, 1]
    # The interval is that of the best curve of each resample, which `weak` holds at one half.
    assert found[["low", "high"]].values.tolist()[:2] == [[0, 0], [0.5, 0.5]]
    assert (found.low[2], found.high[2]) == (0.5, 0.9)
    # `odd` wins a resample in which more than half of the ten problems are among its six.
    expected = sum(comb(10, k) * 0.6**k * 0.4 ** (10 - k) for k in range(6, 11))
    assert found.odd[2] == pytest.approx(expected, abs=0.03)
    with pytest.raises(ValueError, match="share problems and costs"):
        resample.winners(
            {"a": frontier.oracle_allocation(weak, [1]), "b": frontier.oracle_allocation(weak, [2])}
        )


def test_the_cheapest_way_to_a_level():
    problems = list(range(10))
    weak = toy(model="weak", policy="dense", problem=problems, eflops=1.0, accuracy=[0.5] * 10, tokens=1)
    odd = toy(
        model="odd", policy="dense", problem=problems, eflops=5.0, accuracy=[1.0] * 6 + [0.0] * 4, tokens=1
    )
    found, winners = resample.cheapest(
        frontier.curves(pd.concat([odd, weak]), [0.5, 2, 6]), [0.4, 0.5, 0.55, 0.9], 4000
    )
    assert found.level.tolist() == [0.4, 0.5, 0.55]  # nobody reaches 0.9
    assert found.winner.tolist() == ["weak", "weak", "odd"]
    assert found.cost.tolist() == [2, 2, 6]
    assert found.sure[:2].tolist() == [1, 1]
    expected = sum(comb(10, k) * 0.6**k * 0.4 ** (10 - k) for k in range(6, 11))
    assert found.sure[2] == pytest.approx(expected, abs=0.03)
    assert (found.low[2], found.high[2]) == (6, 6)
    assert winners.shape == (4000, 3)
    assert (winners[:, :2] == 1).all()  # `weak` stands second
    assert found.sure[2] == (winners[:, 2] == 0).mean()
    assert set(winners[:, 2]) == {-1, 0}


# --- advantages ----------------------------------------------------------------------------------


def sides(base, other, costs):
    """Two one-model curves over the same problems, from (price, scores) of one setting each."""
    made = []
    for price, scores in (base, other):
        table = toy(
            model="m", policy="dense", problem=range(len(scores)), eflops=price, accuracy=scores, tokens=1
        )
        made.append({"m": frontier.oracle_allocation(table, costs).values("accuracy")})
    return made


def test_an_advantage_by_hand():
    base, other = sides((8.0, [1.0, 1.0, 0.0, 0.0]), (2.0, [1.0, 0.0, 0.0, 0.0]), [1, 2, 4, 8])
    found, gap = resample.advantage(base, other, [1, 2, 4, 8], [0.2, 0.25, 0.5], 500)
    assert found[["level", "ratio"]].values.tolist() == [
        [0.2, 4],
        [0.25, 4],
    ]  # `other` never reaches one half
    assert (found.low == 4).all()
    assert (found.high == 4).all()
    # A resample reaches 0.2 on both sides unless the first problem is not drawn at all.
    assert found.reached[0] == pytest.approx(1 - 0.75**4, abs=0.05)
    assert {name: gap[name] for name in ("gap", "cost", "base", "other")} == {
        "gap": 0.25, "cost": 2, "base": 0, "other": 0.25,
    }  # fmt: skip
    assert (gap["low"], gap["high"]) == (0, 1)  # of four problems a resample can hold one alone


def test_an_advantage_is_that_of_the_best_curves(priced):
    costs = np.geomspace(5e13, 4e16, 60)
    kinds = priced.policy.str.split(":").str[0]
    dense, sparse = (frontier.curves(priced[kinds == kind], costs) for kind in ("dense", "topk"))
    scores = [{name: one.values("accuracy") for name, one in side.items()} for side in (dense, sparse)]
    found, gap = resample.advantage(*scores, costs, [0.3, 0.6, 0.8], 200, seed=3)
    best = [np.max([one.accuracy for one in side.values()], axis=0) for side in (dense, sparse)]
    for row in found.itertuples():
        first = [costs[np.flatnonzero(curve >= row.level - 1e-12)[0]] for curve in best]
        assert row.ratio == pytest.approx(first[0] / first[1])
    place = int(np.argmax(best[1] - best[0]))
    assert (gap["gap"], gap["cost"]) == pytest.approx(((best[1] - best[0])[place], costs[place]))
    # One resample by hand: the first row of the weights, both sides under it.
    weights = resample.problem_weights(30, 200, 3)[0]
    both = [
        np.max([weights @ one.values("accuracy") for one in side.values()], axis=0)
        for side in (dense, sparse)
    ]
    only, once = resample.advantage(*scores, costs, [0.6], 1, seed=3)
    first = [costs[np.flatnonzero(curve >= 0.6 - 1e-12)[0]] for curve in both]
    assert only.low[0] == pytest.approx(first[0] / first[1])
    assert once["low"] == pytest.approx((both[1] - both[0]).max())


def test_an_advantage_takes_the_first_cost_that_reaches_a_level():
    """Judged on other trials a curve may fall again."""
    base, other = {"m": np.array([[0.0, 0.6, 0.4, 0.6]] * 2)}, {"m": np.array([[0.6, 0.2, 0.2, 0.2]] * 2)}
    found, gap = resample.advantage(base, other, [1, 2, 4, 8], [0.5], 10)
    assert found.ratio[0] == 2
    assert (gap["gap"], gap["cost"]) == (0.6, 1)


def test_an_advantage_needs_the_same_problems_and_costs():
    base, other = sides((8.0, [1.0, 1.0]), (2.0, [1.0, 0.0]), [1, 2])
    three = {"m": np.ones((3, 2))}
    for pair in ((base, three), ({"m": np.ones((2, 3))}, other)):
        with pytest.raises(ValueError, match=r"'m' must be \[problem, cost\] like the others"):
            resample.advantage(*pair, [1, 2], [0.5])


# --- trials split into halves --------------------------------------------------------------------


def test_halves_share_out_the_traces(priced):
    rows = priced[(priced.model == "qwen3-8b") & (priced.policy == "dense")]
    for halves in resample.split_trials(rows, 3, seed=2):
        assert halves.n_trials.max() == 16
        ones = halves[halves.n_trials == 1]
        np.testing.assert_allclose(16 * (ones["first"] + ones["second"]), ones.n_correct)
        # One half has one number of correct traces, whatever N: more trials never solve less.
        for side in ("first", "second"):
            assert (halves.sort_values("n_trials").groupby("problem")[side].diff().dropna() >= 0).all()
    whole = rows[rows.n_trials <= 16].set_index(["problem", "n_trials"]).accuracy
    mean = (
        pd.concat(resample.split_trials(rows, 400, seed=2))
        .groupby(["problem", "n_trials"])[["first", "second"]]
        .mean()
    )
    for name in mean:  # both halves are unbiased
        np.testing.assert_allclose(mean[name], whole.loc[mean.index], atol=0.03)


def test_choosing_among_equals_is_optimistic_and_scoring_on_the_other_half_is_not():
    """Ten settings that all solve half of their trials (synthetic): the best of them only looks better."""
    rng = np.random.default_rng(0)
    rows = [
        ("qwen3-8b", "t", f"topk:{2**b}", p, 100, 32, rng.binomial(32, 0.5), 1000.0, 1.1e6)
        for b in range(5, 15)
        for p in range(200)
    ]
    table = frontier.cost_table(pd.DataFrame(rows, columns=frontier.SUMMARY), B200, (1,))
    seen, unseen, spent = resample.out_of_sample(resample.split_trials(table, 20), [1e20])
    assert (spent > 0).all()
    assert seen.shape == unseen.shape == (200, 1)
    # The larger of ten means of 16 coin tosses lies 1.54 standard deviations of 1/8 above one half.
    assert seen.mean() == pytest.approx(0.5 + 1.54 / 8, abs=0.015)
    assert unseen.mean() == pytest.approx(0.5, abs=0.015)


def test_length_caps_cannot_be_split_from_counts(summary):
    table = frontier.cost_table(summary.iloc[:30].assign(cap=2048), B200, (1,))
    with pytest.raises(ValueError, match="split the traces instead"):
        next(resample.split_trials(table, 1))
    with pytest.raises(ValueError, match="n_splits must be"):
        next(resample.split_trials(table.assign(cap=np.nan), 0))
    with pytest.raises(ValueError, match="at least two traces"):
        next(resample.split_trials(table.assign(cap=np.nan, n_traces=1, n_correct=1), 1))


def test_trials_that_share_random_numbers_go_to_the_same_half():
    """Ten settings that answer alike, trial by trial: there is nothing to choose, so nothing may be lost by choosing."""
    rng = np.random.default_rng(4)
    alike = rng.random((40, 16)) < 0.5  # [problem, trial]
    keys = [(f"m{k}", p, t) for k in range(10) for p in range(40) for t in range(16)]
    traces = pd.DataFrame(keys, columns=["model", "problem", "trial"]).assign(policy="dense")
    traces["correct"] = alike[traces.problem, traces.trial]
    rows = [(f"m{k}", p, alike[p].sum()) for k in range(10) for p in range(40)]
    table = pd.DataFrame(rows, columns=["model", "problem", "n_correct"]).assign(policy="dense", n_traces=16)
    table = table.assign(n_trials=1, eflops=1.0, tokens=1.0, task="t", accuracy=table.n_correct / 16)
    by_index = resample.out_of_sample(resample.split_trials(table, 20, 0, traces), [1.0])
    by_count = resample.out_of_sample(resample.split_trials(table, 20, 0), [1.0])
    assert by_index[0].mean() == pytest.approx(alike.mean())
    assert by_index[1].mean() == pytest.approx(alike.mean())
    assert by_count[1].mean() < alike.mean() - 0.05
    for one in resample.split_trials(table, 3, 1, traces):
        halves = one.pivot(index="problem", columns="model", values="first")
        assert (halves.nunique(axis=1) == 1).all()
        assert ((one["first"] + one["second"]) / 2 == one.accuracy).all()
    with pytest.raises(ValueError, match="traces must be those behind the table"):
        next(resample.split_trials(table, 1, 0, traces[traces.trial > 0]))


# --- what a mutation of the resampling would change ------------------------------------------------


def by_hand(base, other, costs, level, n_boot, seed):
    """Ratios and largest gaps of every resample, in plain loops: both sides on the same problems, the best chosen anew."""
    n_problems, ratios, gaps = len(next(iter(base.values()))), [], []
    for weights in resample.problem_weights(n_problems, n_boot, seed):
        best = [np.max([weights @ one for one in side.values()], axis=0) for side in (base, other)]
        first = [
            next((c for c, a in zip(costs, one, strict=True) if a >= level - 1e-12), np.nan) for one in best
        ]
        ratios.append(first[0] / first[1])
        gaps.append((best[1] - best[0]).max())
    return np.array(ratios), np.array(gaps)


def test_an_advantage_pairs_its_sides_and_chooses_anew_in_every_resample():
    rng = np.random.default_rng(5)
    costs = np.array([1.0, 2.0, 4.0, 8.0, 16.0])

    def side(shift):
        """Two curves that are good at different problems, so that the best one changes with the resample."""
        rise = np.sort(rng.random((2, 12, 5)), axis=2)
        rise[0, :6] *= 0.3
        rise[1, 6:] *= 0.3
        hard = np.linspace(0.4, 1.0, 12)[:, None]  # problems differ alike on both sides
        return {"a": rise[0] * hard + shift, "b": rise[1] * hard + shift}

    base, other = side(0.0), side(0.15)
    found, gap = resample.advantage(base, other, costs, [0.3], 300, seed=2)
    ratios, gaps = by_hand(base, other, costs, 0.3, 300, 2)
    finite = ratios[np.isfinite(ratios)]
    assert (found.low[0], found.high[0]) == pytest.approx(resample.interval(finite, 12))
    assert found.reached[0] == np.isfinite(ratios).mean()
    assert (gap["low"], gap["high"]) == pytest.approx(resample.interval(gaps, 12))
    # the test can tell: a curve fixed beforehand, and sides resampled apart, give other intervals
    fixed = {name: {max(s, key=lambda k: s[k].mean(0).max()): s[max(s, key=lambda k: s[k].mean(0).max())]} for name, s in (("base", base), ("other", other))}  # fmt: skip
    assert resample.interval(
        by_hand(fixed["base"], fixed["other"], costs, 0.3, 300, 2)[1], 12
    ) != pytest.approx((gap["low"], gap["high"]))
    weights = [resample.problem_weights(12, 300, s) for s in (2, 3)]
    apart = [
        np.max([w @ one for one in s.values()], axis=0) for w, s in zip(weights, (base, other), strict=True)
    ]
    assert resample.interval((apart[1] - apart[0]).max(1), 12) != pytest.approx((gap["low"], gap["high"]))


def test_the_largest_gap_is_too_large_and_the_split_one_is_not():
    """Two sides that are equal in the population: any gap is luck."""
    costs, gaps, splits = np.arange(1.0, 21.0), [], []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        base, other = ({"m": (rng.random((20, 20)) < 0.5).astype(float)} for _ in range(2))
        _, gap = resample.advantage(base, other, costs, [0.5], 50, seed)
        gaps.append(gap["gap"])
        splits.append(gap["split"])
        assert gap["split_high"] - gap["split_low"] == pytest.approx(gap["high"] - gap["low"])
        assert gap["split_low"] < gap["low"]
    assert np.mean(gaps) > 0.2
    assert abs(np.mean(splits)) < 0.03


def test_the_cheapest_leaves_out_resamples_that_never_reach_the_level_and_says_how_many():
    problems = list(range(10))
    costs = np.array([1.0, 2.0, 4.0, 100.0])  # the last is the largest, and nobody needs it
    odd = toy(
        model="odd", policy="dense", problem=problems, eflops=2.0, accuracy=[1.0] * 6 + [0.0] * 4, tokens=1
    )
    found, winners = resample.cheapest({"odd": frontier.oracle_allocation(odd, costs)}, [0.55], 2000)
    assert (found.low[0], found.high[0]) == (2, 2)
    lost = sum(comb(10, k) * 0.6**k * 0.4 ** (10 - k) for k in range(6))
    assert found.reached[0] == pytest.approx(1 - lost, abs=0.03)
    assert found.reached[0] == (winners[:, 0] >= 0).mean()


@pytest.mark.parametrize(("lost", "refused"), [(0.05, False), (0.2, True), (0.5, True)])
def test_a_bootstrap_stops_where_more_than_a_tenth_of_its_resamples_fail(lost, refused):
    calls = iter(np.random.default_rng(1).random(401) < lost)
    next_value = lambda problems: np.nan if next(calls) and len(set(problems)) < 20 else problems.mean()  # noqa: E731
    if refused:
        with pytest.raises(ValueError, match="at most a tenth of the resamples may fail"):
            resample.bootstrap(next_value, 20, 400)
    else:
        assert np.isfinite(resample.bootstrap(next_value, 20, 400).low)


@pytest.fixture(scope="module")
def benchmark():
    path = Path(__file__).parent.parent / "benchmarks" / "coverage.py"
    spec = importlib.util.spec_from_file_location("coverage_benchmark", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_an_interval_of_what_is_known_leaves_out_the_rest_and_says_how_much():
    draws = np.r_[np.arange(1001.0), [np.inf] * 300, [np.nan] * 129]
    low, high, share = resample.known_interval(draws, 30)
    assert (low, high) == pytest.approx(resample.interval(np.arange(1001.0), 30))
    assert share == pytest.approx(0.7)
    assert np.isnan(resample.known_interval(np.full(9, np.inf), 30)[:2]).all()
    assert resample.known_interval(np.full(9, np.nan), 30)[2] == 0


def test_the_interval_of_what_stopping_costs_holds_the_truth_where_the_accuracy_is_reached(benchmark):
    """Chapter 36, dense attention: of 300 samples 235 reach 90 %, and 85 % of their intervals hold the truth; the others lie above it."""
    one, chance = benchmark.single_answers()
    one, chance = one[dense := one.policy == "dense"].reset_index(drop=True), chance[dense]

    def ratio(own, seed, rate=None):
        weights, ways = resample.problem_weights(30, 300, seed), (benchmark.UntilRight, benchmark.BestOf)
        stopped, paid = (
            resample.cost_to_solve(benchmark.several(own, way, rate), [0.9], weights) for way in ways
        )
        with np.errstate(invalid="ignore"):  # neither gets there
            return stopped[0][0] / paid[0][0], *resample.known_interval(stopped[1] / paid[1], 30)

    true, held, shares, reached = ratio(one, 0, chance)[0], [], [], []
    for run in range(30):
        taken = np.random.default_rng([5, run]).integers(0, 30, 30)
        value, low, high, share = ratio(benchmark.another_thirty(one, chance, taken, 6, run), run)
        shares.append(share)
        reached.append(np.isfinite(value))
        held += [low <= true <= high] if reached[-1] else []
    assert true == pytest.approx(0.415, abs=0.001)
    assert 0.8 <= np.mean(held) < 1
    assert 0.6 < np.mean(reached) < 0.95
    assert np.mean(shares) == pytest.approx(np.mean(reached), abs=0.15)


@pytest.mark.slow  # thirty runs of a simulation; the committed table has three hundred
def test_the_committed_coverage_of_headline_statistics_comes_out_again(benchmark):
    committed = read_table("coverage").set_index("statistic")
    rows = pd.DataFrame(
        [row for run in range(30) for row in benchmark.headline_run(run)], columns=["statistic", "share"]
    )
    for name, own in rows.astype({"share": float}).groupby("statistic"):
        if ": mean" in name or name.startswith("winners"):
            continue  # no shares of runs
        share, runs = committed.loc[name, ["share", "runs"]]
        spread = np.sqrt(max(share * (1 - share), 0.03) * (1 / len(own) + 1 / runs))
        assert abs(own.share.mean() - share) < 4 * spread, name
