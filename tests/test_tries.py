"""Tries at equal tokens against counting every order of the answers; the rule against integrals and simulated models."""

from itertools import permutations

import numpy as np
import pandas as pd
import pytest
from scipy import integrate, stats

from kinetics_lab.data import read_table
from kinetics_lab.laws.tries import Rule, duels, fit_rule, halves, stopping, unguessed
from kinetics_lab.planner.strategy import UntilRight


def make_run(n, c, tokens, model="m", effort="low"):
    rows = {"model": model, "effort": effort, "problem": range(len(c)), "n_traces": n, "n_correct": c}
    return pd.DataFrame(rows | {"mean_tokens": np.asarray(tokens, float)})


@pytest.mark.parametrize(
    ("n", "c", "choices", "want"),
    [(8, 8, 4, 8), (8, 5, 4, 4), (8, 2, 4, 0), (8, 1, 4, 0), (8, 7, np.inf, 7), (6, 3, 2, 0), (6, 5, 2, 4)],
)
def test_guesses_are_taken_out_in_proportion_to_the_wrong_answers(n, c, choices, want):
    assert unguessed(n, c, choices) == pytest.approx(want)
    if want > 0:  # back again: those who guess are right once in `choices`
        assert want + (n - want) / choices == pytest.approx(c)


@pytest.mark.parametrize(("n", "c"), [(4, 0), (4, 1), (5, 3), (5, 5)])
def test_stopping_counts_every_order_of_the_answers(n, c):
    solved, used = stopping(make_run(n, [c], [100]), range(1, n + 1))
    orders = list(permutations([1] * c + [0] * (n - c)))
    for k in range(1, n + 1):
        assert solved[k - 1, 0] == pytest.approx(np.mean([any(order[:k]) for order in orders]))
        drawn = [min([*(i + 1 for i in range(k) if order[i]), k]) for order in orders]
        assert used[k - 1, 0] == pytest.approx(100 * np.mean(drawn))


def test_stopping_is_the_planners_strategy():
    run = make_run(9, [0, 1, 4, 9], [1, 1, 1, 1])
    solved, used = stopping(run, [1, 3, 9])
    for i, trials in enumerate((1, 3, 9)):
        told = UntilRight(trials).of(run.n_traces, run.n_correct)
        assert solved[i] == pytest.approx(told.accuracy)
        assert used[i] == pytest.approx(told.draws)


def test_a_count_between_two_whole_ones_lies_between_them():
    # 7 of 8 right among four choices: 6 2/3 that were not guessed
    (guess, _), low, high = (
        stopping(make_run(8, [c], [1]), range(1, 9), choices)
        for c, choices in ((7, 4), (6, np.inf), (7, np.inf))
    )
    assert guess == pytest.approx(low[0] / 3 + 2 * high[0] / 3)


def test_more_tries_than_answers_are_refused():
    with pytest.raises(ValueError, match=r"k \(trials\) must not exceed n=2"):
        stopping(make_run(2, [1], [1]), 3)
    with pytest.raises(ValueError, match="choices must be more than 1"):
        unguessed(4, 2, 1)


@pytest.mark.parametrize(("s", "accuracy", "n"), [(0.36, 0.8, 8), (2.0, 0.3, 5), (0.36, 0.02, 32)])
def test_errors_left_are_those_of_a_beta_distribution(s, accuracy, n):
    rates = stats.beta(s * accuracy, s * (1 - accuracy))
    grid = integrate.quad(lambda u: (1 - rates.ppf(u)) ** n, 0, 1, limit=500)[0]
    assert Rule(s, 1).left(accuracy, n) == pytest.approx(grid / (1 - accuracy), rel=1e-3)
    assert Rule(s, 1).left(accuracy, 1) == pytest.approx(1)


def test_what_tries_buy_is_counted_in_tokens():
    rule = Rule(0.5, 0.5)
    assert rule.tries(0.6, 100, 100) == pytest.approx(0.6)
    assert rule.tries(0.6, 100, 50) == pytest.approx(0.3)  # half of the problems are tried at all
    # one more try at the 40 % that were missed; right ones 100 / 1.4 tokens, wrong ones twice that: the mean is 100
    two = 1 - 0.4 * float(rule.left(0.6, 2))
    assert rule.tries(0.6, 100, 100 + 0.4 * 100 / 0.7) == pytest.approx(two)
    assert rule.tries(0.6, 100, 1e9, most=2) == pytest.approx(two)
    assert rule.tries(0.6, 100, 1e9) == pytest.approx(1 - 0.4 * float(rule.left(0.6, 8)))
    assert rule.thinks((0.6, 100), (two + 0.01, 157))
    assert not rule.thinks((0.6, 100), (two - 0.01, 158))


def test_constants_are_found_again_in_simulated_models():
    rng, runs = np.random.default_rng(0), []
    for accuracy in (0.2, 0.5, 0.8, 0.9):
        rates = rng.beta(0.4 * accuracy, 0.4 * (1 - accuracy), 4000)
        # A problem's answers are as long as its difficulty says, twice as long where it is never solved.
        runs.append((make_run(8, rng.binomial(8, rates), 1000 / (1 + rates)), np.inf))
    rule = fit_rule(runs)
    assert rule.concentration == pytest.approx(0.4, abs=0.03)
    assert 0.5 < rule.shorter < 0.65
    base = make_run(8, [0, 2, 8], [100, 100, 100])
    assert fit_rule([(base, np.inf)]).shorter == pytest.approx(1)


def test_a_duel_gives_the_lower_effort_the_tokens_of_the_higher():
    low = make_run(4, [0, 2, 4, 2], [10, 10, 10, 10])
    high = make_run(4, [4, 4, 4, 0], [25, 25, 25, 25], effort="high")
    few = make_run(1, [1, 1, 1, 1], [5, 5, 5, 5], effort="few")
    (found,) = duels(pd.concat([high, few, low]), n_boot=200).to_dict("records")
    assert (found["low"], found["high"], found["tries"]) == ("low", "high", 4)
    solved, used = stopping(low, [1, 2, 3, 4])
    want = np.interp(25, np.r_[0, used.mean(1)], np.r_[0, solved.mean(1)])
    assert found["accuracy_tries"] == pytest.approx(want)
    assert found["gain"] == pytest.approx(0.75 - want)
    assert found["gain_from"] < found["gain"] < found["gain_to"]
    assert found["used"] == pytest.approx(used[-1].mean() / 25)
    assert found["used"] < 1
    assert duels(pd.concat([low, high.assign(problem=[7, 8, 9, 10])])).empty  # no problem in common
    with pytest.raises(ValueError, match=r"m, low: each problem must have one row; got \[0\]"):
        duels(pd.concat([low, low, high]))
    same = duels(pd.concat([low, low.assign(effort="same")]), n_boot=200).iloc[0]
    assert same.gain == same.gain_from == same.gain_to == 0  # paired: nothing to tell apart


def test_halves_part_the_models_by_the_digest_of_their_names():
    # Digests begin a: ca, b: 3e, c: 2e, d: 18, e: 3f. All in one row they would go d, c, b, e, a.
    table = pd.concat(
        make_run(1, [1], [1], model, effort)
        for model, efforts in (("a", "xy"), ("b", "xy"), ("c", "xy"), ("d", "x"), ("e", "x"))
        for effort in efforts
    )
    assert halves(table) == halves(table.iloc[::-1]) == (["c", "a", "d"], ["b", "e"])


def test_the_embedded_runs_are_parted_as_when_the_rule_was_written():
    first, second = halves(read_table("epoch_runs"))
    several = "claude-haiku-4-5-20251001 gpt-5.2-2025-12-11 claude-opus-4-5-20251101 gpt-5-2025-08-07"
    assert set(several.split()) < set(first)
    assert {"claude-opus-4-6", "gpt-5-nano-2025-08-07", "gpt-5-mini-2025-08-07"} < set(second)
    assert (len(first), len(second)) == (17, 15)
