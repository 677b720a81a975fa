"""The law of difficulty against quadrature, simulated answers and itself on other weights."""

from importlib import import_module
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit, logsumexp
from scipy.stats import binom, multivariate_normal, norm

from kinetics_lab import find_hardware, plan, read_table
from kinetics_lab.laws import difficulty
from kinetics_lab.laws.difficulty.laplace import laplace

NAMES = [
    ("qwen3-0.6b", "dense"), ("qwen3-1.7b", "dense"), ("qwen3-1.7b", "topk:128"), ("qwen3-8b", "dense"),
    ("qwen3-8b", "topk:128"), ("qwen3-8b", "block_topk:512:32"), ("qwen3-32b", "dense"),
]  # fmt: skip
KNOWN = difficulty.features(NAMES)


def simulated(n_problems=200, n_traces=64, seed=0, sd=2.5, behind=0.2):
    """Answers by a law with one kind of own effect, difficulty, and a wall in front of the largest model."""
    rng = np.random.default_rng(seed)
    ability = np.array([-2.0, 0.0, -1.0, 2.0, 1.5, 1.0, 3.0])
    chance = expit(ability + sd * rng.standard_normal((n_problems, 1)))
    chance[rng.random(n_problems) < behind, :-1] = 0
    return ability, chance, rng.binomial(n_traces, chance), np.full(chance.shape, n_traces)


@pytest.mark.parametrize("normal", [False, True], ids=["binomial", "normal"])
def test_derivatives_are_those_of_the_evidence(normal):
    rng = np.random.default_rng(1)
    root = rng.normal(size=(4, 4))
    mean, cov = rng.normal(size=4), root @ root.T + 0.1 * np.eye(4)
    n = np.full((3, 4), 8.0)
    y = rng.normal(size=(3, 4)) if normal else rng.integers(0, 9, (3, 4)).astype(float)
    found, e = laplace(mean, cov, y, n, normal), 1e-5
    for s in range(4):
        up, down = (laplace(mean + way * e * np.eye(4)[s], cov, y, n, normal).value for way in (1, -1))
        assert found.d_mean[:, s] == pytest.approx((up - down) / (2 * e), rel=1e-4, abs=1e-5)
    turn = rng.normal(size=(4, 4))
    turn = turn + turn.T
    up, down = (laplace(mean, cov + way * e * turn, y, n, normal).value for way in (1, -1))
    assert (found.d_cov * turn).sum((1, 2)) == pytest.approx((up - down) / (2 * e), rel=1e-4, abs=1e-5)


def test_the_evidence_is_exact_for_normal_noise_and_near_quadrature_for_counts():
    rng = np.random.default_rng(2)
    root = rng.normal(size=(3, 3))
    mean, cov, n = rng.normal(size=3), root @ root.T + 0.1 * np.eye(3), np.array([[2.0, 5.0, 1.0]])
    y = rng.normal(size=(1, 3))
    exact = multivariate_normal(mean, cov + np.diag(1 / n[0])).logpdf(y[0])
    constant = norm(0, 1 / np.sqrt(n)).logpdf(0).sum()  # which the evidence leaves out
    assert laplace(mean, cov, y, n, True).value + constant == pytest.approx(exact)
    f = np.linspace(-12, 12, 4001)
    for right, most in ((3, 0.02), (16, 0.02), (0, 0.15)):  # Laplace is worst where nothing was right
        terms = binom(32, expit(f)).logpmf(right) + norm(0.5, 2).logpdf(f) + np.log(f[1] - f[0])
        found = laplace(np.array([0.5]), np.array([[4.0]]), np.array([[right]]), np.array([[32.0]]), False)
        coefficient = binom(32, 0.5).logpmf(right) + 32 * np.log(2)
        assert found.value[0] + coefficient == pytest.approx(logsumexp(terms), abs=most)


def test_a_known_law_is_found_again():
    ability, chance, y, n = simulated()
    law = difficulty.fit_law(KNOWN, y, n, rounds=4)
    assert law.mean == pytest.approx(ability, abs=0.6)  # 2.5 / sqrt(160): three standard errors
    assert law.mean - law.mean.mean() == pytest.approx(ability - ability.mean(), abs=0.2)
    assert law.sd[0] == pytest.approx(2.5, rel=0.15)
    assert law.sd[1:].max() < 0.5
    assert law.walls[-2] == pytest.approx(0.2, abs=0.06)  # the share behind a wall for all but the largest
    drawn = law.draws(size=200)
    assert np.sqrt(((drawn.mean(0) - chance) ** 2).mean()) < 0.04
    far = (chance[:, 3] == 0).nonzero()[0]
    assert difficulty.expected(drawn, 1000)[far, 3].mean() < 0.25


def test_without_walls_many_trials_are_promised_too_much():
    _, chance, y, n = simulated(n_traces=16)
    law = difficulty.fit_law(KNOWN, y, n, rounds=4)
    true = (1 - (1 - chance[:, 3]) ** 1000).mean()
    open_field = np.zeros_like(law.walls)
    open_field[0] = 1
    free = difficulty.Law(**(vars(law) | {"walls": np.maximum(open_field, 1e-12)}))
    with_walls, without = (difficulty.expected(one.draws(), 1000)[:, 3].mean() for one in (law, free))
    assert abs(with_walls - true) < 0.05
    assert without - true > abs(with_walls - true) + 0.03


def test_a_problem_that_weighs_twice_is_a_problem_that_came_twice():
    _, _, y, n = simulated(n_problems=20)
    twice = difficulty.fit_law(KNOWN, np.r_[y, y[:5]], np.r_[n, n[:5]])
    weighed = difficulty.fit_law(KNOWN, y, n, weights=np.r_[np.full(5, 2.0), np.ones(15)])
    # the walls' prior of one problem weighs 1 in 26 in both only if weights keep their sum
    assert weighed.mean == pytest.approx(twice.mean, abs=0.05)
    assert weighed.sd[0] == pytest.approx(twice.sd[0], rel=0.05)
    assert abs(difficulty.fit_law(KNOWN, y, n).mean - twice.mean).max() > 0.06


def test_what_was_not_run_is_less_sure_and_intervals_hold_it():
    _, chance, y, n = simulated(n_problems=40, behind=0)
    held, seen = [], []
    for s in range(len(NAMES)):
        left = n * (np.arange(len(NAMES)) != s)
        drawn = difficulty.fit_law(KNOWN, np.where(left, y, 0), left, rounds=3).draws(size=300)
        low, high = np.quantile(drawn[:, :, s].mean(1), [0.025, 0.975])
        held.append(low <= chance[:, s].mean() <= high)
        seen.append(high - low)
    whole = difficulty.fit_law(KNOWN, y, n, rounds=4).draws(size=300).mean(1)
    low, high = np.quantile(whole, [0.025, 0.975], axis=0)
    assert np.mean(held) >= 6 / 7
    assert np.all(np.array(seen) > 2 * (high - low))


def test_other_problems_are_placed_by_few_answers():
    _, chance, y, n = simulated(behind=0)
    law = difficulty.fit_law(KNOWN, y[:100], n[:100], rounds=2)
    few = np.zeros_like(n[100:])
    few[:, 1] = 8  # eight answers of one small model
    right = np.random.default_rng(3).binomial(few, chance[100:])
    told, blind = (law.draws(right * tried, few * tried, size=100).mean(0)[:, 3] for tried in (1, 0))
    errors = [((guess - chance[100:, 3]) ** 2).mean() for guess in (told, blind)]
    assert errors[0] < 0.5 * errors[1]
    assert blind.mean() == pytest.approx(chance[:, 3].mean(), abs=0.1)


def test_expected_is_pass_at_n_of_the_draws():
    chance = np.random.default_rng(0).random((5, 3, 2))
    loop = np.mean([1 - (1 - one) ** np.array([1, 4]) for one in chance], axis=0)
    assert difficulty.expected(chance, [1, 4]) == pytest.approx(loop)
    assert difficulty.expected(np.ones((2, 1, 1)), 3) == pytest.approx(1)


@pytest.fixture
def script(monkeypatch):
    """The scripts that choose, score and use the law, by name."""
    monkeypatch.syspath_prepend(Path(__file__).parent.parent / "benchmarks")
    return import_module


def test_lengths_and_their_precision(script):
    summary = read_table("aime24_qwen3_best_of_n")
    names = [("qwen3-8b", "dense"), ("qwen3-8b", "topk:9999")]
    own = summary[(summary.model == "qwen3-8b") & (summary.policy == "dense")].sort_values("problem")
    for power, column in ((1, "mean_tokens"), (2, "mean_sq_tokens")):
        logs, precision = script("difficulty").log_lengths(summary, names, power)
        assert np.exp(logs[:, 0]) == pytest.approx(own[column].to_numpy())
        spread = (own.mean_sq_tokens / own.mean_tokens**2 - 1).clip(lower=0.01)
        assert precision[:, 0] == pytest.approx((own.n_traces / spread / power**2).to_numpy())
        assert not precision[:, 1].any()


def test_a_plan_may_use_what_was_never_run(script):
    impute, log_lengths = script("unseen").impute, script("difficulty").log_lengths
    summary = read_table("aime24_qwen3_best_of_n").query("model != 'qwen3-4b'")
    summary = summary[summary.policy.isin(["dense", "topk:512", "topk:1024", "topk:128"])]
    wanted = [("qwen3-14b", "topk:128")]
    run = list(summary[["model", "policy"]].drop_duplicates().itertuples(index=False, name=None))
    known = difficulty.features([*run, *wanted])
    _, y, n = difficulty.counts(summary, known.names)
    laws = [difficulty.fit_law(known, y, n, rounds=3)]
    for power in (1, 2):
        laws.append(
            difficulty.fit_law(known, *log_lengths(summary, known.names, power), normal=True, rounds=3)
        )
    made = impute(summary, wanted, laws)
    assert made.predicted.all()
    assert len(made) == 30
    assert 0.55 < (made.n_correct / made.n_traces).mean() < 0.85  # between 8B and 32B at 128, roughly
    assert (made.mean_tokens <= 30767).all()
    assert (made.mean_sq_tokens >= made.mean_tokens**2).all()
    assert 10_000 < made.mean_tokens.mean() < 22_000
    other = impute(summary, wanted, laws, seed=9)
    assert (made.n_correct != other.n_correct).any()
    both = plan(
        pd.concat([summary, made.drop(columns="predicted")]),
        find_hardware("b200", "bf16"),
        [3.0],
        n_boot=10,
        n_splits=1,
        topk="free",
    )
    assert both.setting.iloc[0] != ""
    with pytest.raises(ValueError, match=r"the laws must know the setting; got \('qwen3-14b', 'topk:64'\)"):
        impute(summary, [("qwen3-14b", "topk:64")], laws)


@pytest.mark.parametrize(
    ("y", "n", "what"),
    [
        (np.zeros((3, 2)), np.ones((3, 2)), r"with 7 settings; got \(\(3, 2\), \(3, 2\)\)"),
        (np.full((2, 7), 5), np.full((2, 7), 4), "y must be right answers out of n"),
        (np.full((2, 7), -1), np.full((2, 7), 4), "y must be right answers out of n"),
    ],
    ids=["shape", "more right than tried", "negative"],
)
def test_bad_counts_are_refused(y, n, what):
    with pytest.raises(ValueError, match=what):
        difficulty.fit_law(KNOWN, y, n)


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="at least one setting"):
        difficulty.features([])
    with pytest.raises(ValueError, match=r"sizes must be one for each setting; got \(1,\)"):
        difficulty.features(NAMES, [1e9])
    with pytest.raises(ValueError, match="qwen3-9b"):
        difficulty.features([("qwen3-9b", "dense")])


def test_the_law_beats_its_simple_rivals_where_it_was_not_fitted():
    """The committed scores, which `python benchmarks/difficulty.py score` makes."""
    scores = read_table("difficulty_scores").query("task == 'aime24' and statistic == 'nats a trial'")
    for what, own in scores[scores.held_out != "nothing"].groupby("held_out"):
        found = own.set_index("method").value
        assert (found.drop("law") > found["law"]).all(), what


def test_outcomes_are_those_of_answers_drawn_one_by_one():
    """Of eight traces, in any order: how many are drawn until the first right one, or all eight."""
    device = find_hardware("b200", "bf16")
    row = read_table("aime24_qwen3_best_of_n").query("model == 'qwen3-8b' and policy == 'dense'").head(4)
    found = difficulty.outcomes(row.assign(n_traces=8, n_correct=[0, 1, 3, 8]), device)
    rng, drawn = np.random.default_rng(0), []
    for right in (0, 1, 3, 8):
        orders = rng.permuted(np.tile(np.arange(8) < right, (20_000, 1)), axis=1)
        drawn.append(np.where(orders.any(1), orders.argmax(1) + 1, 8).mean())
    assert found["Pass@1"].tolist() == [0, 1 / 8, 3 / 8, 1]
    assert found["Pass@8"].tolist() == [0, 1, 1, 1]
    ratio = found["seconds until right, at most 8"] / found["seconds of one answer"]
    assert ratio.tolist() == pytest.approx(drawn, rel=0.02)
    assert ratio.iloc[[0, 3]].tolist() == [8, 1]
    with pytest.raises(ValueError, match=r"k \(trials\) must not exceed n=4"):
        difficulty.outcomes(row.assign(n_traces=4, n_correct=1), device)


def test_the_frozen_table_says_when_it_was_made_and_what_was_fitted():
    table = read_table("frozen_predictions")
    assert set(table.date) == {"2026-11-30"}
    fitted = table[table.kind == "fitted to what was published"]
    assert set(fitted.policy) == {"dense"}
    assert set(fitted.quantity) == {"Pass@1"}
    assert ((table.low <= table.value) & (table.value <= table.high)).mean() > 0.97
    assert set(table[table.share.notna()].quantity.str.split().str[0]) == {"cheapest"}
