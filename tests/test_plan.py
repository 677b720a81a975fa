"""The planner against loops that say the same in words. All traces here are made up, for small tables."""

from __future__ import annotations

import json
from dataclasses import replace
from math import comb

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scipy.stats import norm
from scipy.stats import t as student

from kinetics_lab.cli.shared import public
from kinetics_lab.cost.hardware import HARDWARE
from kinetics_lab.cost.models import MODELS
from kinetics_lab.cost.policies import parse_policy
from kinetics_lab.cost.precision import Precision
from kinetics_lab.cost.request import decode_cost
from kinetics_lab.data import read_table
from kinetics_lab.laws.frontier import TRIALS, cost_table
from kinetics_lab.laws.resample import out_of_sample, problem_weights, split_trials
from kinetics_lab.planner import judge
from kinetics_lab.planner import price as plan_price
from kinetics_lab.planner.judge import split_traces
from kinetics_lab.planner.offers import EMBEDDED, by_reason, load, name_models, own_models, with_predicted
from kinetics_lab.planner.plan import ALLOCATIONS
from kinetics_lab.planner.plan import plan as full_plan
from kinetics_lab.planner.strategy import UntilRight
from kinetics_lab.planner.text import left_out, often, percent, text
from kinetics_lab.traces.table import COLUMNS, pass_at_k, summarize, write_traces

H200 = HARDWARE["h200"]
DEPLOYED = [
    ("qwen3-0.6b", "dense"),
    ("qwen3-8b", "dense"),
    ("qwen3-8b", "topk:256"),
    ("qwen3-4b", "block_topk:128:32"),
]
NO_TEXT = [
    "task",
    "setting",
    "model",
    "policy",
    "runner_up",
    "rivals",
    "frugal",
    "dense_setting",
    "note",
    "shape",
]
#: The paper's terms, in which costs are said by one line of the law: all N are paid for, weights and prompts cost nothing.
PAPER = {
    "strategy": "best-of",
    "batch": "endless",
    "prefill": False,
    "share_prompt": True,
    "topk": "scan",
    "trials": TRIALS,
}


def plan(data, hardware, budgets, **options):
    """A plan in the paper's terms with few resamples unless told; nothing here depends on how many there are."""
    return full_plan(data, hardware, budgets, **PAPER | {"n_boot": 100, "n_splits": 2} | options)


def price(*given, **options):
    """The table of prices in the paper's terms."""
    terms = {name: PAPER[name] for name in ("batch", "prefill", "share_prompt")}
    return plan_price.price(*given, **terms | options)[0]


def lacking(found):
    """What was left out of what was run."""
    return {who: why for who, why in found.attrs["left_out"].items() if why != "never run"}


def made_up(seed=0, n_problems=5, n_traces=8, deployed=DEPLOYED, task="sums"):
    """A trace table: who is right how often differs by problem, lengths scatter."""
    rng = np.random.default_rng(seed)
    rows = []
    for model, policy in deployed:
        for problem in range(n_problems):
            skill = {"qwen3-0.6b": 0.1, "qwen3-4b": 0.2, "qwen3-8b": 0.25}[model] + rng.uniform(-0.25, 0.4)
            for trial in range(n_traces):
                length, right = int(rng.integers(200, 9_000 * (problem + 1))), bool(rng.random() < skill)
                rows.append((model, task, f"p{problem}", trial, policy, 100 + problem, length, right, False))
    return pd.DataFrame(rows, columns=COLUMNS)


@pytest.fixture(scope="module")
def traces():
    return made_up()


@pytest.fixture(scope="module")
def embedded():
    """The embedded table with four of its policies, which a plan takes less time for."""
    table = load()
    few = ("dense", "topk:512", "block_topk:512:32", "block_topk:1024:16")
    return table[table.policy.isin(few)].reset_index(drop=True)


def by_hand(summary, trials=(1, 2, 4, 8), topk="scan", hardware=H200, **options):
    """Setting -> ([cost in device seconds], [accuracy], [tokens]) per problem, in plain loops."""
    table = {}
    for row in summary.itertuples():
        policy = parse_policy(row.policy)
        if row.policy.startswith("topk") and topk == "scan":
            policy = parse_policy(row.policy + ":false")
        for n in (n for n in trials if n <= row.n_traces):
            cost = decode_cost(
                MODELS[row.model],
                policy,
                row.tokens_in,
                row.mean_tokens,
                n,
                n_out_sq=row.mean_sq_tokens,
                **options,
            )
            missed = comb(row.n_traces - row.n_correct, n) / comb(row.n_traces, n)
            cap = f", cap {row.cap:.0f}" if not np.isnan(getattr(row, "cap", np.nan)) else ""
            found = table.setdefault(f"{n} x {row.model}, {policy}{cap}", ([], [], []))
            for values, value in zip(
                found, (cost.seconds(hardware), 1 - missed, n * row.mean_tokens), strict=True
            ):
                values.append(float(value))
    return {name: tuple(map(np.array, values)) for name, values in table.items()}


def best_of(table, budget):
    """The name of the most accurate setting whose mean cost fits; of equal ones the cheapest."""
    fits = [name for name, (cost, *_) in table.items() if cost.mean() <= budget]
    return min(fits, key=lambda n: (-table[n][1].mean().round(12), table[n][0].mean()), default="")


def deployed(name):
    return name.split(" x ")[1].split(", cap")[0]


# --- the choice ----------------------------------------------------------------------------------


@given(seed=st.integers(0, 10_000), spread=st.floats(0.5, 8))
def test_one_setting_for_all_is_the_best_that_fits(seed, spread):
    summary = summarize(made_up(seed, n_problems=3, n_traces=4))
    table = by_hand(summary)
    budgets = np.geomspace(0.02, spread, 6)
    found = plan(summary, H200, budgets, n_boot=5, n_splits=1)
    assert list(found.budget_s) == list(budgets)
    for row in found.itertuples():
        name = best_of(table, row.budget_s)
        assert row.setting == name
        if name:
            cost, accuracy, tokens = (values.mean() for values in table[name])
            assert (row.cost_s, row.accuracy, row.tokens) == pytest.approx(
                (cost, accuracy, tokens), rel=1e-12
            )
            assert row.share == 1


@given(seed=st.integers(0, 10_000), scale=st.floats(-5, 3))
@example(seed=0, scale=-4.2)  # some problems have room for nothing
def test_an_oracle_chooses_for_each_problem(seed, scale):
    budget = 2**scale
    summary = summarize(made_up(seed, n_problems=4, n_traces=4))
    table = by_hand(summary)
    accuracy, cost, tokens, names = [], [], [], []
    for problem in range(4):
        fits = [name for name, (cost, *_) in table.items() if cost[problem] <= budget]
        name = min(fits, key=lambda n: (-table[n][1][problem].round(12), table[n][0][problem]), default="")
        names.append(name)
        for values, i in ((cost, 0), (accuracy, 1), (tokens, 2)):
            values.append(table[name][i][problem] if name else 0.0)
    [row] = plan(summary, H200, [budget], allocation="oracle", n_boot=5, n_splits=1).to_dict("records")
    lost = names.count("")
    if lost == 4:
        assert (row["setting"], row["share"]) == ("", 0)
        assert row["note"].startswith("nothing fits; the cheapest, 1 x ")
        return
    assert (row["accuracy"], row["cost_s"], row["tokens"]) == pytest.approx(
        (np.mean(accuracy), np.mean(cost), np.mean(tokens)), rel=1e-12
    )
    counts = [names.count(name) for name in names if name]
    assert row["share"] == max(counts) / 4
    assert names.count(row["setting"]) == max(counts)
    assert row["runner_up"] == ""
    assert (f"nothing fits {lost} problems" in row["note"]) == (lost > 0)


@pytest.mark.parametrize("budget", [5, 8])
def test_the_interval_and_the_rivals_are_resampled_over_problems(traces, budget):
    summary = summarize(traces)
    table = by_hand(summary)
    weights = problem_weights(5, 400, seed=3)
    [row] = plan(summary, H200, [budget], n_boot=400, seed=3, level=0.8).to_dict("records")
    mine = best_of(table, budget)
    draws = {name: (weights @ accuracy).round(12) for name, (_, accuracy, _) in table.items()}
    tail = norm.cdf(student.ppf(0.1, 4) * (5 / 4) ** 0.5)
    ends = np.quantile(weights @ table[mine][1], [tail, 1 - tail])
    assert [row["low"], row["high"]] == pytest.approx(ends)
    rivals = {}
    for who in {deployed(name) for name in table}:
        if name := best_of({n: v for n, v in table.items() if deployed(n) == who}, budget):
            rivals[who] = name
    assert len(rivals) == 4
    cheapest_first = sorted(rivals.values(), key=lambda n: table[n][0].mean())
    winner = np.array([draws[n] for n in cheapest_first]).argmax(0)
    won = {name: (winner == i).mean() for i, name in enumerate(cheapest_first)}
    others = [name for name in rivals.values() if deployed(name) != deployed(mine)]
    other = max(others, key=lambda n: (won[n], table[n][1].mean()))
    assert row["runner_up"] == other
    assert row["runner_up_accuracy"] == pytest.approx(table[other][1].mean())
    assert row["runner_up_cost"] == pytest.approx(table[other][0].mean())
    near = [n for n, (_, right, _) in table.items() if right.mean() >= table[mine][1].mean() - 0.02 - 1e-9]
    least = min(near, key=lambda n: table[n][0].mean())
    assert row["frugal"] == ("" if least == mine else least)
    cheaper = table[mine][0].mean() < table[other][0].mean()
    beats = draws[mine] >= draws[other] if cheaper else draws[mine] > draws[other]
    assert row["beats"] == beats.mean()
    assert row["again"] == won[mine]
    assert 0.1 < row["again"] < row["beats"] < 1  # or the test would tell little


def test_equal_settings_go_to_the_cheaper(traces):
    both = traces[(traces.model == "qwen3-8b") & (traces.policy == "dense")]
    copy = both.assign(model="qwen3-14b")  # the same answers at a higher price
    for order in ([both, copy], [copy, both]):
        [row] = plan(pd.concat(order), H200, [50], trials=[1], n_splits=1).to_dict("records")
        assert (row["model"], row["runner_up"]) == ("qwen3-8b", "1 x qwen3-14b, dense")
        assert (row["beats"], row["again"]) == (1, 1)
        assert row["accuracy"] == row["runner_up_accuracy"]


def test_the_only_model_and_policy_has_no_rival(traces):
    one = traces[traces.model == "qwen3-0.6b"]
    [row] = plan(one, H200, [50], n_splits=1).to_dict("records")
    assert (row["runner_up"], row["again"]) == ("", 1)
    assert np.isnan(row["beats"])


def test_a_budget_that_nothing_fits_names_the_cheapest_setting(traces):
    table = by_hand(summarize(traces))
    name = min(table, key=lambda n: table[n][0].mean())
    least = table[name][0].mean()
    found = plan(traces, H200, [least * 0.999, least], n_splits=1)
    assert found.note[0] == f"nothing fits; the cheapest, {name}, costs {least:.3g} device seconds"
    assert (found.setting[0], found.n_trials[0]) == ("", 0)
    numbers = found.drop(columns=[*NO_TEXT, "budget_s", "n_trials", "share", "oracle"])
    assert numbers.iloc[0].isna().all()
    assert (found.setting[1], found.note[1]) == (name, "")


def test_dense_is_the_best_dense_setting_whatever_the_filter(traces):
    table = by_hand(summarize(traces))
    dense = {name: values for name, values in table.items() if name.endswith("dense")}
    sparse = {name: values for name, values in table.items() if "topk" in name}
    found = plan(traces, H200, [0.1, 1, 4, 30], policies=["topk", "block_topk"], n_splits=1)
    for row in found.itertuples():
        name = best_of(dense, row.budget_s)
        assert row.dense_setting == name
        assert row.dense == pytest.approx(dense[name][1].mean()) if name else np.isnan(row.dense)
        assert row.setting == best_of(sparse, row.budget_s)
    assert found.dense.isna().any()
    assert found.dense.notna().any()
    without = plan(traces[traces.policy != "dense"], H200, [4], n_splits=1)
    assert (without.dense.isna().all(), without.dense_setting[0]) == (True, "")


@pytest.mark.parametrize("caps", [[], [3000]])
def test_every_task_has_its_own_plan(caps):
    one, two = made_up(1), made_up(2, n_problems=4, task="proofs")
    options = {"caps": caps, "n_boot": 50, "n_splits": 2}
    both = plan(pd.concat([one, two]), H200, [0.5, 3], **options)
    alone = [plan(data, H200, [0.5, 3], **options) for data in (two, one)]  # by name
    pd.testing.assert_frame_equal(both, pd.concat(alone, ignore_index=True))


# --- units, prices, policies ---------------------------------------------------------------------


def test_units_and_devices_change_nothing_but_numbers(traces):
    budgets = np.array([3, 0.4, 3])
    seconds = plan(traces, H200, budgets, n_splits=2)
    assert list(seconds.budget_s) == [0.4, 3]
    eflops = plan(traces, H200, budgets * H200.peak_flops, unit="eflops", n_splits=2)
    for name in ("budget", "cost", "spent"):
        assert list(eflops[f"{name}_eflops"] / H200.peak_flops) == pytest.approx(list(seconds[f"{name}_s"]))
    for name in ("runner_up_cost", "frugal_cost"):
        assert list(eflops[name] / H200.peak_flops) == pytest.approx(list(seconds[name]), nan_ok=True)
    ours = [
        name for name in seconds if name.removesuffix("_s").split("_")[-1] not in ("budget", "cost", "spent")
    ]
    pd.testing.assert_frame_equal(seconds[ours], eflops[ours])
    eight = plan(traces, H200, budgets, devices=8, n_splits=2)
    pd.testing.assert_frame_equal(eight.drop(columns="devices"), seconds.drop(columns="devices"))


def test_precision_sets_the_size_of_an_element(traces):
    fp8 = H200.at("fp8")
    table = by_hand(summarize(traces), hardware=fp8, bytes_per_element=1)
    [row] = plan(traces, fp8, [1], n_splits=1).to_dict("records")
    assert row["setting"] == best_of(table, 1)
    assert row["cost_s"] == pytest.approx(table[row["setting"]][0].mean())
    [wide] = plan(traces, fp8, [1], bytes_per_element=2, n_splits=1).to_dict("records")
    assert wide["cost_s"] != row["cost_s"]


@pytest.mark.parametrize(("topk", "name"), [("scan", "topk:256:false"), ("free", "topk:256")])
def test_oracle_top_k_is_priced_as_told(traces, topk, name):
    table = by_hand(summarize(traces), topk=topk)
    found = plan(traces, H200, [0.3, 2, 9], topk=topk, policies=["topk:256"], n_splits=1)
    fit = found[found.setting != ""]
    assert len(fit)
    assert set(fit.policy) == {name}
    assert set(fit.oracle) == {topk == "free"}
    for row in fit.itertuples():
        assert row.cost_s == pytest.approx(table[row.setting][0].mean())


def test_oracle_top_k_can_be_left_out(traces):
    found = plan(traces, H200, [0.3, 2, 9], topk="out", n_splits=1)
    without = plan(traces[traces.policy != "topk:256"], H200, [0.3, 2, 9], n_splits=1)
    pd.testing.assert_frame_equal(found, without)


def test_cost_options_go_through(traces):
    summary = summarize(traces)
    table = by_hand(summary, dense_layers=2, batch=64)
    [row] = plan(summary, H200, [2], dense_layers=2, batch=64, n_splits=1).to_dict("records")
    assert (row["setting"], row["cost_s"]) == (
        best_of(table, 2),
        pytest.approx(table[row["setting"]][0].mean()),
    )


@pytest.mark.parametrize("batch", ["endless", "fits"])
def test_too_few_traces_are_not_called_a_lack_of_room(embedded, batch):
    """14B dense and 32B have 16 and 8 traces of a problem, on a device with room for both."""
    found = plan(embedded, H200, [30], trials=[32], batch=batch, devices=8, n_splits=1)
    assert lacking(found) == {
        "aime24: qwen3-14b, dense": "too few traces for N = 32 (16 of each problem)",
        "aime24: qwen3-32b": "too few traces for N = 32 (8 of each problem)",
    }
    assert left_out(found)[0] == ("too few traces for N = 32 (16 of each problem): aime24: qwen3-14b, dense")


def test_a_problem_with_few_traces_says_which_n_it_costs(traces):
    short = traces[(traces.problem != "p1") | (traces.trial == 0)]
    found = plan(short, H200, [50], trials=[1, 2, 4], n_splits=1)
    assert found.n_trials[0] == 1
    why = "N > 1 takes more traces (1 of problem p1)"
    assert set(lacking(found).values()) == {why}
    assert list(lacking(found)) == [
        "sums: qwen3-0.6b, dense", "sums: qwen3-4b, block_topk:128:32", "sums: qwen3-8b"
    ]  # fmt: skip
    shorter = short[(short.problem != "p3") | (short.trial == 0) | (short.policy != "dense")]
    left = lacking(plan(shorter, H200, [50], trials=[1, 2, 4], n_splits=1))
    assert left["sums: qwen3-8b, dense"] == "N > 1 takes more traces (1 of problem p1 and 1 more)"
    assert left["sums: qwen3-8b, topk:256:false"] == why
    assert lacking(plan(short, H200, [50], trials=[1], n_splits=1)) == {}


def test_where_only_cut_answers_have_room_the_plan_says_so(traces, monkeypatch):
    real = plan_price.fit
    monkeypatch.setattr(
        plan_price,
        "fit",
        lambda *given, **more: replace(real(*given, **more), reason="full" * (given[3] >= 1000)),
    )
    found = plan(traces, H200, [5], trials=[1], caps=[1000], batch="fits", n_splits=1)
    assert found.cap[0] == 1000
    assert set(lacking(found).values()) == {"full"}
    assert len(lacking(found)) == 4
    assert all(name.endswith(", whole answers") for name in lacking(found))


def test_settings_that_lack_a_problem_are_left_out_and_named(traces):
    lacks = (traces.model == "qwen3-8b") & (traces.policy == "dense") & (traces.problem == "p4")
    found = plan(traces[~lacks], H200, [1, 50], trials=[1, 8], n_splits=1)
    assert "qwen3-8b, dense" not in " ".join(found.setting)
    assert lacking(found) == {"sums: qwen3-8b, dense": "no traces of problem p4"}
    assert found.attrs["n_settings"] == {"sums": 6}
    few = (
        (traces.model == "qwen3-8b")
        & (traces.policy == "dense")
        & (traces.problem == "p4")
        & (traces.trial > 2)
    )
    many = plan(traces[~few], H200, [500], policies=["dense"], n_splits=1).iloc[0]
    assert (many.model, many.n_trials) == (best_of_few(traces[~few]))


def best_of_few(traces):
    """Model and N of the best dense setting that every problem has traces for."""
    table = {n: v for n, v in by_hand(summarize(traces)).items() if n.endswith("dense") and len(v[0]) == 5}
    name = best_of(table, 500)
    return deployed(name).split(",")[0], int(name.split(" ")[0])


def test_your_own_model_comes_from_its_config(tmp_path, traces):
    shape = MODELS["qwen3-4b"]
    config = {
        "architectures": ["Qwen3ForCausalLM"], "num_hidden_layers": 36, "num_attention_heads": 32,
        "num_key_value_heads": 8, "head_dim": 128, "hidden_size": 2560, "intermediate_size": 9728,
        "vocab_size": 151936, "tie_word_embeddings": True,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    shapes = own_models({"ours": str(tmp_path / "config.json"), "tuned": "qwen3-4b"})
    assert shapes["ours"].n_params == shape.n_params
    assert shapes["tuned"] is shape
    assert "ours" not in MODELS
    mine = traces[traces.model == "qwen3-4b"]
    want = plan(mine, H200, [2], n_splits=1)
    for name in ("ours", "tuned"):
        got = plan(mine.assign(model=name), H200, [2], shapes=shapes, n_splits=1)
        assert (got.model[0], got.cost_s[0]) == (name, pytest.approx(want.cost_s[0]))
    with pytest.raises(ValueError, match="model 'ours' is not known"):
        plan(mine.assign(model="ours"), H200, [2])


def test_one_shape_without_a_name_is_for_the_one_unknown_model(traces):
    mine = traces.replace({"model": {"qwen3-4b": "ours"}})
    assert name_models(["config.json"], mine) == {"ours": "config.json"}
    both = mine.replace({"model": {"qwen3-8b": "theirs"}})
    assert name_models(["c.json", "theirs=qwen3-8b"], both) == {
        "theirs": "qwen3-8b",
        "ours": "c.json",
    }
    for data, held in ((both, r"2 \(ours, theirs\)"), (traces, "none")):
        with pytest.raises(ValueError, match=rf"must read NAME=SHAPE .*; they hold {held}; got 'c.json'"):
            name_models(["c.json"], data)
    for wrong in ("ours", "=c.json", "ours="):
        with pytest.raises(
            ValueError, match=f"must read NAME=SHAPE, or be a config.json alone; got '{wrong}'"
        ):
            name_models([wrong], mine)


# --- judged out of sample ------------------------------------------------------------------------


@pytest.mark.parametrize("allocation", ["uniform", "oracle"])
def test_halves_are_those_of_the_frontier(traces, allocation):
    summary = summarize(traces[traces.policy == "dense"])
    found = plan(summary, H200, [0.05, 9, 30], allocation=allocation, trials=[1, 2, 4], n_splits=7, seed=5)
    table = cost_table(summary, H200, [1, 2, 4])
    costs = found.budget_s * H200.peak_flops
    seen, unseen, _ = out_of_sample(split_trials(table, 7, 5), costs, ALLOCATIONS[allocation])
    assert list(found.seen.fillna(0)) == pytest.approx(list(seen.mean(0)))
    assert list(found.unseen.fillna(0)) == pytest.approx(list(unseen.mean(0)))
    fit = found.dropna(subset=["seen"])
    assert 0 < len(fit) < len(found)
    assert (fit.seen > fit.unseen).all()
    assert ((fit.spent_s > 0) & (fit.spent_s <= fit.budget_s)).all()


def test_with_caps_the_traces_are_split(traces):
    table = price(pd.concat([summarize(traces), summarize(traces, [4000, 12000])]), H200, [1, 2, 4])
    table = table.assign(who=table.model + ", " + table.policy)
    firsts = []
    for seen in split_traces(table, traces, 200, seed=1):
        assert ((seen >= 0) & (seen <= 4) & (table.n_correct - seen <= 4)).all()
        firsts.append(pass_at_k(4, seen, table.n_trials.to_numpy()))
        if len(firsts) > 5:
            continue
        halves = table.assign(first=firsts[-1])
        one = halves[halves.n_trials == 1]
        wide = one.pivot(index=["who", "problem"], columns="cap", values="first")
        # one split for all caps: a trace that is right within a short cap is right within a long one, in its half
        assert (wide[4000.0] <= wide[12000.0]).all()
        whole = one[one.cap.isna()].set_index(["who", "problem"])["first"]
        assert (wide[12000.0] <= whole.loc[wide.index]).all()
    assert list(np.mean(firsts, 0)) == pytest.approx(list(table.accuracy), abs=0.1)
    assert np.std(firsts, 0).max() > 0.1


@pytest.mark.parametrize("caps", [[], [4000]])
def test_trials_of_one_random_stream_stay_in_one_half(traces, caps):
    """Two settings that drew the same numbers: what one half says of the first, it says of the second."""
    one = traces[traces.model == "qwen3-4b"].assign(policy="dense").drop_duplicates(["problem", "trial"])
    twins = pd.concat([one, one.assign(policy="topk:512").sample(frac=1, random_state=0)], ignore_index=True)
    tables = [summarize(twins).assign(cap=np.nan), *([summarize(twins, caps)] if caps else [])]
    table = price(pd.concat(tables), H200, [1]).assign(who=lambda t: t.model + ", " + t.policy)
    drawn = set()
    for seen in split_traces(table, twins, 20, seed=3):
        found = table.assign(seen=seen).pivot(index=["problem", "cap"], columns="policy", values="seen")
        assert (found["dense"] == found["topk:512"]).all()
        drawn.add(tuple(found["dense"]))
    assert len(drawn) > 1


def test_a_plan_of_traces_keeps_trials_together_and_one_of_counts_cannot(traces, monkeypatch):
    asked = []
    for name in ("split_traces", "split_counts"):
        split = getattr(judge, name)
        monkeypatch.setattr(
            judge, name, lambda *args, name=name, split=split: asked.append(name) or split(*args)
        )
    plan(traces, H200, [4], n_splits=2)
    plan(summarize(traces), H200, [4], n_splits=2)
    assert asked == ["split_traces", "split_counts"]


def sure(solved):
    """Traces of models that are always or never right: model -> the problems it solves, of p0 to p4."""
    rows = [
        (model, "sums", f"p{p}", trial, "dense", 100, 1000, p in right, False)
        for model, right in solved.items()
        for p in range(5)
        for trial in range(4)
    ]
    return pd.DataFrame(rows, columns=COLUMNS)


def test_a_resample_in_which_the_cheaper_is_as_good_is_not_the_winners():
    """Only the dearer model solves p4: resamples without it, (4/5)^5 of them, are ties and go to the cheaper."""
    found = plan(
        sure({"qwen3-0.6b": range(4), "qwen3-8b": range(5)}), H200, [60], trials=[1], n_boot=4000
    ).iloc[0]
    assert found.model == "qwen3-8b"
    assert found.again == pytest.approx(1 - 0.8**5, abs=0.03)
    assert found.beats == pytest.approx(found.again)


def test_nothing_solved_is_a_score_and_nothing_bought_is_none():
    found = plan(sure({"qwen3-0.6b": ()}), H200, [1e-9, 60], trials=[1])
    assert found.seen.isna().tolist() == [True, False]
    assert (found.seen[1], found.unseen[1]) == (0, 0)
    assert found.spent_s[1] > 0


def test_a_plan_with_caps_weighs_cut_answers_too(traces):
    caps = [2000, 8000]
    parts = [summarize(traces).assign(cap=np.nan), summarize(traces, caps)]
    table = by_hand(pd.concat(parts))
    found = plan(traces, H200, [0.05, 0.2, 0.8, 4], caps=caps, n_splits=5)
    assert [row.setting for row in found.itertuples()] == [best_of(table, b) for b in found.budget_s]
    assert found.cap.notna().any()
    fit = found[found.setting != ""]
    assert fit.unseen.notna().all()
    assert not fit.note.str.contains("not judged").any()
    counts = plan(parts[1], H200, [0.8], n_splits=5)
    assert counts.unseen.isna().all()
    assert (
        counts.note[0]
        == "not judged out of sample: with length caps that takes the traces, not their summary"
    )


def test_one_trace_a_problem_cannot_be_split(traces):
    found = plan(traces[traces.trial == 0], H200, [4])
    assert (found.setting[0] != "", found.note[0]) == (
        True, "not judged out of sample: that takes twice as many traces of each problem as N",
    )  # fmt: skip


def test_traces_and_their_summary_give_one_plan(traces):
    judged = ["seen", "unseen", "spent_s"]  # by halves: traces are dealt, counts drawn
    one, other = (plan(data, H200, [0.5, 4]) for data in (traces, summarize(traces)))
    apart = [*judged, "context"]  # the longest answer is known, or bounded by its mean and mean square
    pd.testing.assert_frame_equal(one.drop(columns=apart), other.drop(columns=apart))
    assert (one.context <= other.context).all()
    np.testing.assert_allclose(one[judged], other[judged], atol=0.05)


# --- the embedded table --------------------------------------------------------------------------


def test_the_embedded_plan_is_stable_and_honest(embedded):
    budgets = [0.3, 1, 5, 20, 60]
    found = plan(embedded, H200, budgets)
    pd.testing.assert_frame_equal(found, plan(embedded, H200, budgets))
    assert not found.oracle.any()
    fit = found[found.setting != ""]
    assert (fit.accuracy.diff().dropna() >= 0).all()
    assert ((fit.low <= fit.accuracy) & (fit.accuracy <= fit.high)).all()
    assert (fit.cost_s <= fit.budget_s).all()
    assert (fit.accuracy >= fit.dense.fillna(0) - 1e-12).all()
    free = plan(embedded, H200, budgets, topk="free", n_splits=1)
    assert (free.accuracy.fillna(0) >= found.accuracy.fillna(0) - 1e-12).all()
    assert free.oracle.any()


def test_many_trials_flatter_an_oracle_most(summary):
    one = plan(summary, H200, [50], topk="free", n_splits=6).iloc[0]
    own = plan(summary, H200, [50], topk="free", allocation="oracle", n_splits=6).iloc[0]
    assert own.seen - own.unseen > 2 * (one.seen - one.unseen) > 0.02


# --- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budgets": []}, "budgets must hold a number at least; got []"),
        ({"budgets": [1, 0]}, "budgets must be positive (device seconds); got [0.0, 1.0]"),
        ({"budgets": [np.inf], "unit": "eflops"}, "budgets must be positive (eFLOPs); got [inf]"),
        ({"unit": "h"}, "unit 'h' is not known; known: eflops, s, usd"),
        ({"allocation": "unifrom"}, "allocation 'unifrom' is not known; did you mean uniform?"),
        ({"topk": "gratis"}, "topk 'gratis' is not known; known: free, out, scan"),
        ({"policies": ["quest"]}, "policies: among those of the data 'quest' is not known; known: block_topk:128:32"),
        ({"policies": ["desne"]}, "policy 'desne' is not known; did you mean dense?"),
        ({"policies": ["topk:9"]}, "policies: among those of the data 'topk:9' is not known; did you mean topk:256"),
        ({"trials": [0]}, "trials must be whole numbers >= 1; got [0]"),
        ({"trials": [1.5]}, "trials must be whole numbers >= 1; got [1.5]"),
        ({"trials": ["2"]}, "trials must be whole numbers >= 1; got ['2']"),
        ({"trials": [16]}, "no row has as many traces as trials=[16]; got 8"),
        ({"caps": [100]}, "caps must be empty for a summary, which cannot be cut anew; got [100]"),
        ({"batch": "full"}, "batch must be a number above 0, 'fits', 'within' or 'endless'; got 'full'"),
        ({"batch": -1}, "batch must be a number above 0, 'fits', 'within' or 'endless'; got -1"),
        ({"level": 95}, "level must lie between 0 and 1; got 95"),
        ({"n_boot": 0}, "n_boot must be >= 1; got 0"),
        ({"n_splits": 0}, "n_splits must be >= 1; got 0"),
        ({"dense_layers": 99}, "dense_layers must be 0..28 for qwen3-0.6b; got 99"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_named(traces, options, message):
    budgets = options.pop("budgets", [1, 2])
    with pytest.raises(ValueError) as error:  # noqa: PT011
        plan(summarize(traces), H200, budgets, **options)
    assert message in str(error.value)


FIRST = "row 0 (model qwen3-0.6b, task sums, policy dense, problem p0)"


def spoiled(summary, row, **values):
    """The summary with other values in one row."""
    summary = summary.copy()
    for column, value in values.items():
        summary[column] = summary[column].astype(object if isinstance(value, str | None) else float)
        summary.loc[row, column] = value
    return summary


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda s: s.drop(columns="n_correct"), "a summary has a column 'n_correct'; got ['model', "),
        (lambda s: s.drop(columns="policy"), "a summary has a column 'policy'; got ['model', "),
        (lambda s: s.assign(n_traces="many"), f"summary: n_traces must be a whole number >= 1; got 'many' in {FIRST}"),
        (lambda s: spoiled(s, 3, n_traces=np.nan), "n_traces must be a whole number >= 1; got nan in row 3 (model qwen3-0.6b, "),
        (lambda s: spoiled(s, 3, n_traces=7.5), "n_traces must be a whole number >= 1; got 7.5 in row 3 (model qwen3-0.6b, "),
        (lambda s: spoiled(s, 2, mean_tokens=np.nan), "mean_tokens must be a number >= 0; got nan in row 2 ("),
        (lambda s: spoiled(s, 2, mean_sq_tokens=np.inf), "mean_sq_tokens must be a number >= 0; got inf in row 2 ("),
        (lambda s: spoiled(s, 2, tokens_in=-1), "tokens_in must be a whole number >= 0; got -1.0 in row 2 ("),
        (lambda s: spoiled(s, 4, policy=None), "summary: policy must be given; got None in row 4 (model qwen3-0.6b, task sums, "),
        (lambda s: s.assign(cap=["8k"] * len(s)), "summary: cap must be a length > 0 or empty; got '8k' in row 0 ("),
        (lambda s: pd.concat([s, s[:1]], ignore_index=True), "problem must be in one row for each (model, task, policy, problem); got 'p0' in row 20 ("),
        (lambda s: s.replace({"policy": {"dense": "dens"}}), "policy 'dens' is not known; did you mean dense?"),
        (lambda s: s.replace({"model": {"qwen3-4b": "gpt"}}), "model 'gpt' is not known"),
        (lambda s: spoiled(s, 6, n_correct=9), "n_correct must be at most n_traces; got 9.0 in row 6 (model qwen3-4b, "),
        (lambda s: s.assign(mean_sq_tokens=1.0), f"mean_sq_tokens must be at least mean_tokens squared (it is E[L^2]); got 1.0 in {FIRST}"),
        (lambda s: s.assign(mean_tokens=0.0), "mean_tokens must be above 0 somewhere for a model and policy, or it would cost nothing; got 0 in every row of qwen3-0.6b, dense (sums)"),
        (lambda s: s[s.problem == "p0"], "a bootstrap over problems needs at least two; got 1"),
        (lambda s: pd.concat([s, s[s.policy == "topk:256"].assign(policy="topk:256:false")]),
         "topk='scan' needs traces of topk:B or of topk:B:false, not of both"),
        (lambda s: s[s.model.isin(["qwen3-0.6b"]) == (s.problem == "p0")],
         "task 'sums': no setting covers all 5 problems, as a comparison must; no traces of problem p1 and 3 more: qwen3-0.6b, dense | "
         "no traces of problem p0: qwen3-4b, block_topk:128:32; qwen3-8b"),
    ],
)  # fmt: skip
def test_a_wrong_summary_is_refused(traces, spoil, message):
    with pytest.raises(ValueError) as error:  # noqa: PT011
        plan(spoil(summarize(traces)), H200, [1])
    assert message in str(error.value)


def test_answers_of_no_tokens_at_all_are_refused(traces):
    """They would cost nothing and win every budget; a few empty answers among others are data."""
    empty = traces.policy == "topk:256"
    message = "tokens_out must be above 0 somewhere .* got 0 in every row of qwen3-8b, topk:256 "
    with pytest.raises(ValueError, match=message):
        plan(traces.assign(tokens_out=traces.tokens_out.where(~empty, 0)), H200, [1])
    few = plan(traces.assign(tokens_out=traces.tokens_out.where(traces.trial > 0, 0)), H200, [5], n_splits=2)
    assert few.cost_s[0] > 0
    assert np.isfinite(few.unseen[0])


def test_many_reasons_are_cut_short_in_an_error():
    left = {f"m{i}": "no room" for i in range(5)} | {"n": "no traces"}
    assert by_reason(left, most=3) == ["no room: m0; m1; m2 and 2 more", "no traces: n"]
    assert by_reason(left)[0] == "no room: m0; m1; m2; m3; m4"


def test_each_number_of_trials_counts_once(traces):
    once = plan(traces, H200, [2, 20], trials=[1, 4], n_splits=2)
    pd.testing.assert_frame_equal(plan(traces, H200, [2, 20], trials=[4, 1, 4.0, 1], n_splits=2), once)


def test_only_oracle_top_k_cannot_be_left_out(traces):
    with pytest.raises(
        ValueError, match=r"topk='out' must leave a policy; the data have only; got \['topk:256'\]"
    ):
        plan(traces[traces.policy == "topk:256"], H200, [1], topk="out")


# --- public sets, predicted settings -------------------------------------------------------------


@pytest.mark.parametrize("name", ["aime24", "otis", "ladder"])
def test_public_sets_can_be_planned_from(name):
    data, shapes, dense = public(name)
    found = full_plan(
        data,
        H200,
        [1e6],
        shapes=shapes,
        dense_layers=dense,
        n_splits=1,
        n_boot=20,
        precision=Precision("int4"),
    )
    assert found.setting[0] != ""
    assert data.problem.nunique() == {"aime24": 30, "otis": 45, "ladder": 64}[name]
    assert set(data.model) <= set(shapes)


def test_predicted_settings_are_the_mean_over_what_could_have_been_drawn():
    table = with_predicted(load())
    guessed = table[table.drawn.notna()]
    assert guessed.groupby(["model", "policy"]).ngroups == 20
    one = guessed[(guessed.model == "qwen3-14b") & (guessed.policy == "block_topk:1024:16")]
    options = {"strategy": UntilRight, "dense_layers": 1}
    together, _ = plan_price.price(one, H200, [4], **options)
    drawn = read_table("aime24_never_run").merge(one[["model", "policy"]].drop_duplicates())
    apart = []
    for _, rows in drawn.groupby("draw"):
        counts = rows.drop(columns=["mean_tokens", "mean_sq_tokens"]).merge(
            one[["problem", "mean_tokens", "mean_sq_tokens"]], on="problem"
        )
        apart.append(plan_price.price(counts, H200, [4], **options)[0].set_index("problem"))
    for column in ("accuracy", "draws", "eflops", "answer_s"):
        want = pd.concat(apart).groupby("problem")[column].mean()
        assert together.set_index("problem")[column].to_numpy() == pytest.approx(
            want[together.problem].to_numpy()
        )
    found = full_plan(table, H200, [20], dense_layers=1, n_boot=50)
    assert found.note[0].startswith("predicted, never run: qwen3-14b, block_topk:1024:16; a tie with")
    assert "predicted settings have no traces" in found.note[0]
    with pytest.raises(ValueError, match="those of the embedded summary; the data are of"):
        with_predicted(made_up())


# --- files, text ---------------------------------------------------------------------------------


def test_load_takes_traces_or_a_summary(tmp_path, traces):
    summary = summarize(traces)
    summary.to_csv(tmp_path / "summary.csv", index=False)
    summary.to_parquet(tmp_path / "summary.parquet")
    write_traces(traces, tmp_path / "traces.parquet")
    traces.to_csv(tmp_path / "traces.csv", index=False)
    for name in ("summary.csv", "summary.parquet"):
        pd.testing.assert_frame_equal(load([tmp_path / name]), summary)
    want = plan(traces, H200, [1], n_splits=2)
    for name in ("traces.csv", "traces.parquet"):
        assert "trial" in load(str(tmp_path / name))
        pd.testing.assert_frame_equal(plan(load(tmp_path / name), H200, [1], n_splits=2), want)
    assert set(load().model) == {f"qwen3-{size}" for size in ("0.6b", "1.7b", "4b", "8b", "14b", "32b")}
    assert EMBEDDED == "aime24_qwen3_best_of_n"


@pytest.mark.parametrize("name", ["empty.csv", "broken.parquet"])
def test_a_file_that_is_neither_is_refused_with_its_name(tmp_path, name):
    (tmp_path / name).write_text("")
    with pytest.raises((ValueError, OSError)) as error:
        load(tmp_path / name)
    assert name in str(error.value)


def test_the_text_fits_a_terminal(embedded):
    for options in ({}, {"topk": "free", "allocation": "oracle"}, {"unit": "eflops"}):
        budgets = [1e14, 5e15, 5e16] if "unit" in options else [0.1, 0.3, 5, 60]
        found = plan(embedded, H200, budgets, n_splits=1, **options)
        lines = text(found).split("To start:")[0].splitlines()
        assert max(map(len, lines)) <= 100
        for row in found.itertuples():
            told = [row.setting, row.runner_up, row.note]
            assert all(part in " ".join(map(str.strip, lines)) for part in told), row
        assert (" *" in "\n".join(lines)) == found.oracle.any()
    found = found.assign(
        policy=["dense", "topk:512:false", *found.policy[2:]]
    )  # one that scans is enough to explain it
    assert "scores every cached key" in text(found)
    assert "scores every cached key" not in text(found.assign(policy="dense"))


def test_shares_as_percentages():
    assert [often(x) for x in (0.123, 0.9949, 0.996, 1.0, np.nan)] == ["12", "99", ">99", "100", "-"]
    assert [percent(x) for x in (0.7654, np.nan)] == ["76.5", "-"]
    assert percent(0.999, 0) == "100"
