"""The figure values are what their sources say: complete, sorted, on the stated grids, exact where they claim it."""

import numpy as np
import pytest

from kinetics_lab.cost.models import MODELS
from kinetics_lab.cost.policies import parse_policy
from kinetics_lab.data import data_dir, manifest, read_table

QWEN3 = [f"qwen3-{size}" for size in ("0.6b", "1.7b", "4b", "8b", "14b", "32b")]
# name: columns that tell curves apart, then the column that ascends within each
TABLES = {
    "longcot_curves": (["policy", "model"], "tera_eflops"),
    "best_of_n_curves": (["policy", "model"], "tera_eflops"),
    "frontier_by_rule": (["chosen_by"], "accuracy"),
    "bitmap_curves": (["figure", "curve"], "tera_eflops"),
    "longcot_flops_eflops": (["axis", "model"], "tera"),
    "longcot_optimal_tokens": (["axis", "model"], "tera"),
    "r1_0528_pass_rate_by_cap": (["problem"], "cap"),
}
FRONTIER_ONLY = {"longcot_curves": ["winner"]}
MODEL_ONLY = {"longcot_curves": ["accuracy"], "best_of_n_curves": ["accuracy"]}


@pytest.mark.parametrize("name", TABLES)
def test_every_table_is_complete_and_sorted(name):
    table, (by, ascending) = read_table(name), TABLES[name]
    optional = FRONTIER_ONLY.get(name, []) + MODEL_ONLY.get(name, [])
    assert not table.drop(columns=optional).isna().any().any()
    for _, curve in table.groupby(by):
        assert (np.diff(curve[ascending]) > 0).all()
    for columns, frontier in ((MODEL_ONLY, False), (FRONTIER_ONLY, True)):
        for column in columns.get(name, []):
            assert (table[column].notna() == ((table.model == "frontier") == frontier)).all()
    for column in ("accuracy", "as_plotted"):
        if column in table:  # bitmaps are read to a few thousandths, and may fall below zero
            assert table[column].min() >= (-0.002 if name == "bitmap_curves" else 0)
            assert table[column].max() <= 1


def test_all_of_it_stays_small():
    files = {entry["file"] for entry in manifest().values() if entry["file"].startswith("published/")}
    assert sum((data_dir() / file).stat().st_size for file in files) < 1_000_000


@pytest.mark.parametrize("name", ["longcot_curves", "best_of_n_curves", "bitmap_curves"])
def test_policies_and_models_have_the_books_names(name):
    table = read_table(name)
    if "model" in table:
        assert set(table.model) <= {*QWEN3, "frontier"} <= {*MODELS, "frontier"}
    numbers = {"topk": ":512", "block_topk": ":512:32", "local": ":512"}
    for policy in table["policy" if "policy" in table else "curve"].unique():
        assert parse_policy(policy + numbers.get(policy, "")).key == policy


def test_longcot_accuracies_are_whole_counts_of_samples():
    table = read_table("longcot_curves")
    curves = table[table.model != "frontier"]
    samples = np.where(curves.model == "qwen3-32b", 30 * 8, 30 * 32)
    counts = curves.accuracy * samples
    assert np.abs(counts - counts.round()).max() < 1e-4
    for _, curve in curves.groupby(["policy", "model"]):
        assert (np.diff(curve.accuracy) >= 0).all()  # more money never solves less
        assert len(curve) == 100
        assert curve.tera_eflops.to_numpy() == pytest.approx(np.geomspace(20, 2e4, 100), rel=1e-7)
        # The last point stands on the edge of the figure, where the average has no right neighbour.
        smoothed = np.convolve(np.pad(curve.accuracy, 1, mode="edge"), np.ones(3) / 3, "valid")
        assert curve.as_plotted.to_numpy() == pytest.approx(smoothed, abs=3e-6)


def test_longcot_frontier_is_the_highest_curve_as_plotted():
    table = read_table("longcot_curves")
    for policy in ("dense", "topk"):
        part = table[table.policy == policy]
        plotted = part.pivot(index="tera_eflops", columns="model", values="as_plotted")
        frontier, models = plotted.pop("frontier"), plotted
        assert frontier.to_numpy() == pytest.approx(models.max(axis=1).to_numpy(), abs=2e-6)
        winner = part[part.model == "frontier"].set_index("tera_eflops").winner
        assert all(models.loc[cost, name] > frontier[cost] - 2e-6 for cost, name in winner.items())


def test_best_of_n_costs_lie_on_the_grids_of_the_figure():
    table = read_table("best_of_n_curves")
    models = table[table.model != "frontier"]
    assert sorted(models.model.unique()) == sorted(QWEN3[1:])
    for _, curve in models.groupby(["policy", "model"]):
        assert curve.tera_eflops.to_numpy() == pytest.approx(np.geomspace(45, 1e5, 100)[:97], rel=1e-7)
        assert (np.diff(curve.accuracy) > -3e-6).all()
    for _, curve in table[table.model == "frontier"].groupby("policy"):
        assert curve.tera_eflops.to_numpy() == pytest.approx(np.geomspace(20, 4e4, 100)[11:], rel=1e-7)


def test_flops_panels_hold_six_models_each():
    table = read_table("longcot_flops_eflops")
    for _, panel in table.groupby("axis"):
        assert set(panel.model) == set(QWEN3)
    final = table.groupby(["axis", "model"]).accuracy.max().unstack("axis")
    assert (final.flops - final.eflops).abs().max() < 0.008  # two readings of one number


def test_r1_counts_are_counts():
    table = read_table("r1_0528_pass_rate_by_cap")
    assert len(table) == 7 * 16
    assert (table.n_traces == 512).all()
    assert table.n_correct.between(0, table.n_traces).all()
    assert sorted(table.cap.unique()) == list(range(2048, 32769, 2048))


def test_public_counts_are_whole_and_their_moments_possible():
    runs = read_table("epoch_runs")
    assert runs.n_correct.between(0, runs.n_traces).all()
    assert (runs.mean_sq_tokens >= runs.mean_tokens**2 * (1 - 1e-9)).all()  # Jensen; equal for one answer
    one = runs[runs.n_traces == 1]
    assert one.mean_sq_tokens.to_numpy() == pytest.approx(one.mean_tokens.to_numpy() ** 2)
    assert not runs.duplicated(["model", "effort", "task", "problem"]).any()
    sizes = runs.groupby("task").problem.nunique()
    assert sizes.to_dict() == {"gpqa_diamond": 198, "otis_mock_aime_2024_2025": 45}
    by_run = runs.groupby("run")
    asked = by_run.task.first().map(sizes) * by_run.n_traces.max()
    assert (by_run.n_traces.sum() >= 0.95 * asked).all()  # the rule of benchmarks/public_results.py


def test_pythia_counts_agree_with_the_paper_they_come_from():
    counts = read_table("pythia_math")
    assert (counts.n_traces == 10_000).all()
    assert counts.groupby("model").problem.nunique().eq(128).all()
    never = counts[counts.n_correct == 0].groupby("model", sort=False).size()
    assert never.is_monotonic_decreasing  # a larger model solves what a smaller one never did, in number
    assert len(never) == 7


def test_forced_answers_cut_one_trace_at_every_tenth():
    rows = read_table("gemma_forced")
    assert rows.groupby("problem").percent.agg(list).map(lambda x: x == [*range(0, 101, 10)]).all()
    assert rows.groupby("problem").trace_tokens.nunique().eq(1).all()
    assert (rows.tokens - rows.trace_tokens * rows.percent / 100).abs().max() <= 1
    assert rows.prob_right.between(0, 1).all()
