"""Prices, times, room and strategies of a plan, against loops that say the same in words. All traces here are made up."""

from __future__ import annotations

import warnings
from itertools import product
from math import comb

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kinetics_lab.cost.clock import Datasheet, parse_clock
from kinetics_lab.cost.fit import Layout, fit
from kinetics_lab.cost.hardware import HARDWARE
from kinetics_lab.cost.models import MODELS
from kinetics_lab.cost.policies import Dense, parse_policy
from kinetics_lab.cost.precision import Precision
from kinetics_lab.cost.request import decode_cost, prefill_cost
from kinetics_lab.cost.silicon.grid import OutsideGridWarning
from kinetics_lab.cost.silicon.serving import prefill_seconds as measured_prefill
from kinetics_lab.cost.step import prefill_seconds, step_parts, step_seconds
from kinetics_lab.data import read_table
from kinetics_lab.laws.frontier import SUMMARY, mean_allocation, uniform_allocation
from kinetics_lab.laws.resample import cost_to_solve
from kinetics_lab.planner.offers import load, public, with_caps, with_votes
from kinetics_lab.planner.plan import better, plan
from kinetics_lab.planner.price import counts, price, published
from kinetics_lab.planner.serve import checkpoint, commands, with_contexts
from kinetics_lab.planner.strategy import BestOf, Majority, UntilRight, parse_strategy, vote
from kinetics_lab.planner.text import left_out, text
from kinetics_lab.traces.table import COLUMNS, check_traces, summarize

H200 = HARDWARE["h200"]
FEW = {"n_boot": 50, "n_splits": 1}


def made_up(
    seed=0,
    n_problems=4,
    n_traces=6,
    deployed=(("qwen3-4b", "dense"), ("qwen3-8b", "block_topk:128:32")),
    answers=False,
):
    """A trace table in which wrong answers are longer; with ``answers``, also what was answered."""
    rng, rows = np.random.default_rng(seed), []
    for model, policy in deployed:
        for problem in range(n_problems):
            skill = rng.uniform(0.1, 0.8)
            for trial in range(n_traces):
                right = bool(rng.random() < skill)
                length = int(rng.integers(200, 4_000) * (1 if right else 3))
                answer = "right" if right else rng.choice(["a", "b", None])
                rows.append(
                    (model, "sums", f"p{problem}", trial, policy, 100 + problem, length, right, False, answer)
                )
    table = pd.DataFrame(rows, columns=[*COLUMNS, "answer"])
    return table if answers else table[COLUMNS]


@pytest.fixture(scope="module")
def summary():
    return summarize(made_up())


def drawn(n, c, most):
    """Expected draws until the first right one, at most ``most``, from n traces of which c are right."""
    return sum(comb(n - c, j) / comb(n, j) for j in range(most))


def held(rows):
    """Cached tokens of an answer, mean over its steps and over answers."""
    return (
        (rows.tokens_in * rows.mean_tokens).sum() + rows.mean_sq_tokens.sum() / 2
    ) / rows.mean_tokens.sum()


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("prefill", [False, True])
def test_a_problem_costs_what_its_answers_cost(summary, share, prefill):
    """With draws one after another each reads the prompt; side by side they may share it."""
    for make, (batch, layers) in product((UntilRight, BestOf), ((64, 2), ("endless", 0))):
        table, refused = price(
            summary,
            H200,
            strategy=make,
            batch=batch,
            share_prompt=share,
            prefill=prefill,
            dense_layers=layers,
        )
        assert not refused
        assert set(table.n_trials) == set(range(1, 7))
        terms = {
            "batch": None if batch == "endless" else batch,
            "dense_layers": layers,
            "share_prompt": share,
        }
        for row in table.itertuples():
            draws = drawn(row.n_traces, row.n_correct, row.n_trials) if make is UntilRight else row.n_trials

            def cost(n, row=row, terms=terms):
                law = (MODELS[row.model], parse_policy(row.policy), row.tokens_in, row.mean_tokens, n)
                return decode_cost(*law, n_out_sq=row.mean_sq_tokens, **terms).eflops(H200)

            want = draws * cost(1) if make is UntilRight else cost(row.n_trials)
            prompt = prefill_cost(MODELS[row.model], row.tokens_in).eflops(H200) if prefill else 0
            want += prompt * (1 if share else draws)
            assert row.eflops == pytest.approx(want)
            assert (row.draws, row.tokens) == pytest.approx((draws, draws * row.mean_tokens))
            assert row.accuracy == pytest.approx(
                1 - comb(row.n_traces - row.n_correct, row.n_trials) / comb(row.n_traces, row.n_trials)
            )


def test_times_follow_from_the_batch(summary):
    """A token takes the server's time for a batch of them; N side by side take at most as long as their longest."""
    for make in (UntilRight, BestOf):
        table, _ = price(summary, H200, strategy=make, reserve=0.2)
        for (model, policy), rows in table[table.n_trials == 1].groupby(["model", "policy"]):
            shape = MODELS[model]
            batch = float(fit(shape, H200, context=held(rows), reserve=0.2).batch)
            law = (shape, parse_policy(policy), rows.tokens_in, rows.mean_tokens)
            seconds = decode_cost(
                *law, n_out_sq=rows.mean_sq_tokens, batch=batch, share_prompt=False
            ).seconds(H200)
            tpot = seconds.sum() * batch / rows.mean_tokens.sum()
            first = prefill_seconds(shape, H200, rows.tokens_in.to_numpy())
            own = table[(table.model == model) & (table.policy == policy)]
            assert set(own.batch) == {batch}
            assert list(own.tpot) == pytest.approx([tpot] * len(own))
            for n in (1, 5):
                some = own[own.n_trials == n]
                assert list(some.ttft) == pytest.approx(list(first))
                longest = some.mean_tokens + np.sqrt(some.mean_sq_tokens - some.mean_tokens**2) * (
                    n - 1
                ) / np.sqrt(2 * n - 1)
                want = (
                    first + longest * tpot
                    if make is BestOf
                    else some.draws * (first + some.mean_tokens * tpot)
                )
                assert list(some.answer_s) == pytest.approx(list(want))


def test_the_longest_of_several_answers_is_no_longer_than_said():
    """The bound on the longest of k, from moments alone, against the traces themselves."""
    traces = made_up(5, n_problems=3, n_traces=9)
    table, _ = price(summarize(traces), H200, [1, 4], strategy=BestOf)
    rng = np.random.default_rng(0)
    for (model, problem), rows in traces.groupby(["model", "problem"]):
        longest = rng.choice(rows.tokens_out, (4000, 4)).max(1).mean()
        row = table[(table.model == model) & (table.problem == problem) & (table.n_trials == 4)].iloc[0]
        assert row.ttft + longest * row.tpot <= row.answer_s < row.ttft + 1.6 * longest * row.tpot


def test_answers_at_once_wait_where_the_batch_does_not_hold_them():
    """A batch of two answers five in three rounds, each as long as the longest of two; one of five or more in one round."""
    summary = summarize(made_up(5, n_problems=3, n_traces=9))
    for batch, rounds, together in ((2, 3, 2), (5, 1, 5), (64, 1, 5), (2.5, 3, 2), (0.5, 5, 1)):
        for make in (BestOf, Majority):
            table, _ = price(summary, H200, [5], strategy=make, batch=batch)
            spread = np.sqrt(table.mean_sq_tokens - table.mean_tokens**2)
            longest = table.mean_tokens + spread * (together - 1) / np.sqrt(2 * together - 1)
            assert list(table.answer_s) == pytest.approx(list(rounds * (table.ttft + longest * table.tpot)))


@pytest.mark.parametrize("layers", [0, 3])
def test_a_clock_of_measured_kernels(summary, layers):
    clock = parse_clock("h200:vllm")
    table, _ = price(summary, H200, [1], strategy=UntilRight, clock=clock, batch=32, dense_layers=layers)
    for (model, policy), rows in table.groupby(["model", "policy"]):
        shape = MODELS[model]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", OutsideGridWarning)
            sparse, dense = (
                sum(clock.step(shape, 32, held(rows), p).values()) for p in (parse_policy(policy), Dense())
            )
            first = measured_prefill(shape, clock.silicon, rows.tokens_in)
        tpot = sparse + (dense - sparse) * layers / shape.n_layers
        assert rows.tpot.iloc[0] == pytest.approx(float(tpot))
        want = first + rows.mean_tokens * tpot / 32
        assert list(rows.eflops / H200.peak_flops) == pytest.approx(list(want))
    law, _ = price(summary, H200, [1], strategy=UntilRight, batch=32, dense_layers=layers)
    assert (table.eflops > law.eflops).all()  # peak rates are a bound


def test_what_a_clock_cannot_price_is_named(summary):
    found = plan(
        summary.replace({"model": {"qwen3-8b": "llama3-1b"}}),
        H200,
        [50],
        clock=parse_clock("h200:vllm"),
        **FEW,
    )
    [told] = [line for line in left_out(found) if "cannot price it" in line]
    assert "heads of 64, measured: 128" in told
    assert found.model[0] == "qwen3-4b"
    assert "measured by NVIDIA's collector" in text(found)
    with pytest.raises(ValueError, match="no model can be served: h200:vllm, .* heads of 64, measured: 128"):
        price(summary.assign(model="opt-125m"), H200, [1], clock=parse_clock("h200:vllm"), batch=8)
    with pytest.raises(ValueError, match="the clock is of b200, and hardware must be the same; got 'h200'"):
        price(summary, H200, [1], clock=parse_clock("b200:vllm"))
    with pytest.raises(ValueError, match="precision must be left to the clock"):
        price(summary, H200, [1], clock=parse_clock("h200:vllm"), precision=Precision())
    with pytest.raises(ValueError, match="batch must be finite with a clock"):
        price(summary, H200, [1], clock=parse_clock("h200:vllm"), batch="endless")
    law = price(summary, H200, [1])[0].eflops
    assert price(summary, H200, [1], clock=Datasheet(H200))[0].eflops.equals(law)
    timed, fitted = (
        price(summary, H200, [1], clock=parse_clock(f"{name}h200:vllm"))[0] for name in ("", "fitted:")
    )
    assert (fitted.eflops / timed.eflops).between(0.8, 1.2).all()  # no longer the datasheet's law
    assert not np.isclose(fitted.eflops, law, rtol=1e-3).any()
    with pytest.raises(ValueError, match="the clock is of b200, and hardware must be the same; got 'h200'"):
        price(summary, H200, [1], clock=parse_clock("fitted:b200:vllm"))


# --- room ----------------------------------------------------------------------------------------

PLAIN = [name for name in MODELS if name.startswith(("qwen3-", "qwen2.5", "llama3", "opt"))]


@given(
    device=st.sampled_from(sorted(HARDWARE)), models=st.sets(st.sampled_from(sorted(PLAIN)), min_size=1, max_size=4),
    devices=st.sampled_from([None, 1, 2, 8]), length=st.integers(100, 100_000), reserve=st.floats(0, 0.5),
    weights=st.sampled_from(["bf16", "fp8", "nvfp4"]), kv=st.sampled_from(["bf16", "fp8"]), batch=st.sampled_from(["fits", 1, 40]),
)  # fmt: skip
def test_nothing_that_does_not_fit_is_recommended(
    device, models, devices, length, reserve, weights, kv, batch
):
    """Weights and cache of what is chosen, counted from the dimensions, are within the memory of the devices it is chosen for."""
    hardware, precision = HARDWARE[device], Precision(weights, kv)
    rows = [(m, "t", "dense", p, 100, 4, 2, length, 2.0 * length**2) for m in sorted(models) for p in "ab"]
    names = [
        "model",
        "task",
        "policy",
        "problem",
        "tokens_in",
        "n_traces",
        "n_correct",
        "mean_tokens",
        "mean_sq_tokens",
    ]
    summary, bytes_of = pd.DataFrame(rows, columns=names), {"bf16": 2, "fp8": 1, "nvfp4": 9 / 16}
    given_ = {"precision": precision, "devices": devices, "reserve": reserve, "batch": batch}
    try:
        found = plan(summary, hardware, [1e9], **given_, **FEW)
    except ValueError as error:
        assert "no model can be served: " in str(error)  # noqa: PT017
        for name in models:  # one sequence of none of them fits beside its weights, or its heads do not split
            least = bytes_of[weights] * (MODELS[name].n_params - 2 * MODELS[name].vocab * MODELS[name].hidden)
            room = (1 - reserve) * hardware.memory * (devices or 8)
            assert 3 * least > room or devices in (2, 8) or batch == 40 or length > 20_000, name
        return
    row = found.iloc[0]
    shape = MODELS[row.model]
    vocabulary = shape.vocab * shape.hidden
    held = (
        bytes_of[weights] * (shape.n_params - 2 * vocabulary) + 2 * vocabulary
    )  # at least: norms and heads are larger
    cache = row.batch * shape.kv_bytes_per_token(bytes_of[kv]) * (100 + length)
    assert held + cache <= (1 - reserve) * hardware.memory * row.devices * (1 + 1e-9)
    assert row.devices == devices or devices is None
    if devices is None and row.devices > 1:  # half as many do not hold it
        assert fit(
            shape,
            hardware,
            precision,
            100 + length,
            None if batch == "fits" else batch,
            reserve=reserve,
            devices=int(row.devices) // 2,
        ).reason
    left = {name.split(": ")[1].split(",")[0] for name, why in found.attrs["left_out"].items() if "GB" in why}
    assert row.model not in left


def test_the_fewest_devices_that_hold_a_model_are_said():
    table = load()
    few = table[(table.policy == "dense") & table.model.isin(["qwen3-4b", "qwen3-32b"])]
    found = plan(few, HARDWARE["l40s"], [5, 600], dense_layers=1, **FEW)
    big = found[found.model == "qwen3-32b"].iloc[0]
    assert (big.devices, HARDWARE["l40s"].memory < 65.5e9) == (2, True)
    assert "2 devices, batch" in text(found)
    assert plan(few, HARDWARE["l40s"], [600], dense_layers=1, devices=4, **FEW).devices[0] == 4
    assert plan(few, HARDWARE["l40s"], [600], batch="endless", **FEW).batch[0] == np.inf
    alone = plan(few, HARDWARE["l40s"], [60], devices=1, **FEW)
    [why] = [line for line in left_out(alone) if "GB" in line]
    assert why.startswith("qwen3-32b: 65.5 GB of weights; 1 × L40S has 43.")


def test_several_devices_pay_for_copies_and_for_their_link(summary):
    """A server of several devices takes what the step of its layout takes, against the same step on one."""
    one, four = (price(summary, H200, [1], batch=64, devices=n, prefill=False)[0] for n in (1, 4))
    for model in ("qwen3-4b", "qwen3-8b"):
        rows = [table[table.model == model] for table in (one, four)]
        policy, shape = parse_policy(rows[0].policy.iloc[0]), MODELS[model]
        steps = [
            sum(
                step_seconds(
                    H200, Precision(), step_parts(shape, 64, held(rows[0]), policy, layout=layout), "add"
                ).values()
            )
            for layout in (Layout(), Layout(4))
        ]
        assert list(rows[1].eflops / rows[0].eflops) == pytest.approx(
            [4 * steps[1] / steps[0]] * len(rows[0])
        )
        assert rows[1].tpot.iloc[0] < rows[0].tpot.iloc[0]


# --- choices -------------------------------------------------------------------------------------


def test_every_number_of_answers_is_tried():
    assert list(counts((), 8)) == list(range(1, 9))
    many = counts((), 1000)
    assert list(many[:64]) == list(range(1, 65))
    assert many[-1] == 1000
    assert (np.diff(many) <= np.maximum(1, 0.12 * many[1:])).all()
    assert len(many) < 100
    assert list(counts([4, 1, 4], 8)) == [1, 4]


@pytest.mark.parametrize("strategy", ["until-right", "best-of", "verified:0.8:0.3:0.1", "majority"])
def test_the_plan_follows_the_strategy(summary, strategy):
    table, _ = price(summary, H200, strategy=parse_strategy(strategy), batch=64)
    mean = table.groupby(["model", "policy", "n_trials"])[["eflops", "accuracy", "best_case"]].mean()
    budgets = np.quantile(mean.eflops, [0.1, 0.5, 1]) * (1 + 1e-9) / H200.peak_flops
    found = plan(summary, H200, budgets, strategy=strategy, batch=64, **FEW)
    for row in found.itertuples():
        fits = mean[mean.eflops <= row.budget_s * H200.peak_flops * (1 + 1e-12)]
        best = fits[fits.accuracy >= fits.accuracy.max() - 1e-12].eflops.idxmin()
        assert (row.model, row.policy, row.n_trials) == best
        assert row.accuracy == pytest.approx(mean.accuracy[best])
        assert row.best_case == pytest.approx(mean.best_case[best])
        assert row.cost_s == pytest.approx(mean.eflops[best] / H200.peak_flops)
        assert (row.best_case > row.accuracy) == (strategy == "majority" and row.n_trials > 1)
    assert (found.accuracy.diff().dropna() >= 0).all()


@given(
    seed=st.integers(0, 50), strategy=st.sampled_from(["until-right", "verified:0.7:0.2", "majority"]),
    allocation=st.sampled_from(["uniform", "oracle", "hindsight"]),
)  # fmt: skip
def test_more_money_never_solves_less(seed, strategy, allocation):
    found = plan(
        summarize(made_up(seed)),
        H200,
        np.geomspace(1e-3, 2, 7),
        strategy=strategy,
        allocation=allocation,
        **FEW,
    )
    assert (found.accuracy.fillna(0).diff().dropna() >= -1e-12).all()


def test_a_vote_with_known_answers_is_exact():
    traces = made_up(3, answers=True)
    found = plan(traces, H200, [50], strategy="majority", trials=[5], policies=["dense"], **FEW).iloc[0]
    want = []
    for _, rows in traces[traces.policy == "dense"].groupby("problem"):
        given_ = rows.answer[rows.answer.notna()]
        votes = (
            *((int(n), a == "right") for a, n in given_.value_counts().items()),
            (int(rows.answer.isna().sum()), None),
        )
        want.append(vote(votes, 5)[5])
    assert found.accuracy == found.best_case == pytest.approx(np.mean(want))
    bound = plan(
        traces[COLUMNS], H200, [50], strategy="majority", trials=[5], policies=["dense"], **FEW
    ).iloc[0]
    assert bound.accuracy <= found.accuracy <= bound.best_case
    band = plan(traces[COLUMNS], H200, [50], strategy="majority", trials=[5], policies=["dense"], **FEW)
    assert f"{100 * band.best_case[0]:.1f} if no two wrong answers agree" in text(band)
    few = plan(traces, H200, [50], strategy="majority", trials=[2], policies=["dense"], **FEW).iloc[0]
    assert few.note == "not judged out of sample: a vote takes the answers themselves"
    cut = plan(traces, H200, [50], strategy="majority", trials=[5], caps=[1], policies=["dense"], **FEW)
    assert cut.accuracy[0] == pytest.approx(found.accuracy)
    assert "answer" in check_traces(traces)
    cut_short = with_votes(with_caps(check_traces(traces), [1]), check_traces(traces))
    assert set(cut_short.votes[cut_short.cap == 1]) == {((6, None),)}  # what was cut is no vote
    both = traces.assign(answer=traces.answer.where(traces.correct, "right"))
    with pytest.raises(
        ValueError, match="answer 'right' to problem p0 must be right or wrong in all traces; got both"
    ):
        plan(both, H200, [50], strategy="majority", **FEW)


def test_hindsight_spends_a_mean_as_well_as_it_can():
    """Against every combination of settings of three problems, at the mean costs that it has."""
    table, _ = price(summarize(made_up(7, n_problems=3)), H200, [1, 2, 5], strategy=UntilRight, batch=64)
    costs = np.geomspace(table.eflops.min() / 4, table.eflops.max(), 60)
    found = mean_allocation(table, costs)
    spent = found.values("eflops").mean(0)
    assert (spent <= costs * (1 + 1e-12)).all()
    parts = [table[table.problem == problem][["eflops", "accuracy"]].to_numpy() for problem in found.problems]
    sums = np.array([np.sum(choice, 0) for choice in product(*([*part, (0, 0)] for part in parts))]) / 3
    for cost, accuracy in zip(spent, found.accuracy, strict=True):
        assert accuracy == pytest.approx(sums[sums[:, 0] <= cost * (1 + 1e-12), 1].max())
    _, first = np.unique(spent, return_index=True)
    first = first[spent[first] > 0]
    one = uniform_allocation(table, spent[first])
    assert (one.accuracy <= found.accuracy[first] + 1e-12).all()
    assert one.accuracy.max() > 0.3


def test_money(summary):
    found = plan(summary, H200, [2], hourly=4, **FEW).iloc[0]
    assert found.usd == pytest.approx(found.cost_s * 4 / 3600)
    assert found.usd_per_mtok == pytest.approx(found.usd / found.tokens * 1e6)
    dollars = plan(summary, H200, [2 * 4 / 3600], unit="usd", hourly=4, **FEW).iloc[0]
    assert (dollars.setting, dollars.cost_usd) == (found.setting, pytest.approx(found.usd))
    eight = plan(summary, H200, [2], hourly=4, batch=32, devices=8, **FEW).iloc[0]
    assert eight.usd == pytest.approx(eight.cost_s * 4 / 3600)
    assert "Mtok)" in text(plan(summary, H200, [2], hourly=4, **FEW))
    listed = read_table("gpu_prices")
    assert (listed.usd_per_hour.between(0.5, 20)).all()
    assert set(listed.gpu) <= set(HARDWARE)


def test_limits_of_a_service_cut_the_choices(summary):
    free = plan(summary, H200, [50], **FEW).iloc[0]
    close = plan(summary, H200, [50], max_seconds=free.answer_s * 0.9, **FEW).iloc[0]
    assert close.answer_s <= free.answer_s * 0.9
    assert close.accuracy < free.accuracy
    speeds = price(summary, H200, [1])[0].groupby("model").tpot.first()
    slow = speeds.idxmax()
    found = plan(summary, H200, [50], max_tpot=speeds.mean(), **FEW)
    assert found.model[0] == speeds.idxmin()
    assert any("too slow" in line and slow in line for line in left_out(found))
    with pytest.raises(ValueError, match="no setting keeps max_seconds=0.001; the fastest takes"):
        plan(summary, H200, [50], max_seconds=0.001, **FEW)
    with pytest.raises(ValueError, match="batch must be finite where a service has limits"):
        plan(summary, H200, [50], max_tpot=1, batch="endless", **FEW)


@pytest.mark.parametrize("limits", [{"max_seconds": 60}, {"max_tpot": 0.004}, {}], ids=str)
def test_each_setting_gets_the_largest_batch_that_keeps_the_limits(summary, limits):
    most = price(summary, H200, [1])[0].groupby("model").batch.first()
    best: dict[tuple[str, int], tuple[float, ...]] = {}
    for side in sorted({*most, *(2.0**k for k in range(12) if 2**k < most.max())}):
        held = summary[summary.model.map(most >= side)]
        found = price(held, H200, [1, 2, 3], batch=side, strategy=UntilRight)[0]
        for (model, n), rows in found.groupby(["model", "n_trials"]):
            quick = rows.answer_s.mean() <= limits.get("max_seconds", np.inf)
            of_its_own = (
                side == most[model] or np.log2(side) % 1 == 0
            )  # not the batch that fits the other model
            if quick and of_its_own and rows.tpot.max() <= limits.get("max_tpot", np.inf):
                best[model, n] = (rows.accuracy.mean(), -rows.eflops.mean() / H200.peak_flops, side)
    for budget in (3, 30):
        got = plan(summary, H200, [budget], batch="within", trials=[1, 2, 3], **limits, **FEW).iloc[0]
        accuracy, cost, side = max(one for one in best.values() if -one[1] <= budget)
        assert (got.accuracy, got.cost_s, got.batch) == (pytest.approx(accuracy), pytest.approx(-cost), side)


def test_a_choice_that_rarely_wins_again_is_a_tie():
    found = plan(load(), H200, [5, 20], dense_layers=1, n_boot=400, n_splits=1)
    sure, tie = found.iloc[0], found.iloc[1]
    assert (sure.again >= 0.6, sure.rivals, "tie" in sure.note) == (True, "", False)
    assert tie.again < 0.6
    assert tie.runner_up.split(" x ")[1] in tie.rivals or "(" in tie.rivals
    assert tie.note.startswith(f"a tie with {tie.rivals}: it wins again in {tie.again:.0%} of resamples")
    assert f"{tie.again:.0%} of resamples" in " ".join(text(found).split())


def test_what_no_engine_offers_is_out_unless_asked_for():
    assert not plan(load(), H200, [1, 50], dense_layers=1, **FEW).policy.str.startswith("topk").any()
    scan = plan(load(), H200, [1, 50], topk="scan", dense_layers=1, **FEW)
    assert scan.policy.str.startswith("topk").any()
    assert "which no serving engine offers" in text(scan)


def test_settings_never_run_are_named():
    found = plan(load(), H200, [5], dense_layers=1, **FEW)
    assert "never run: aime24: block_topk with qwen3-0.6b, qwen3-14b, qwen3-32b" in left_out(found)


def test_a_check_that_costs_more_than_it_saves():
    """The price of a verifier goes into the cost of each draw."""
    summary = summarize(made_up())
    cheap, dear = (
        price(summary, H200, strategy=parse_strategy(f"verified:1:0:{cost}"))[0] for cost in (0, 3)
    )
    assert list(dear.eflops) == pytest.approx(list(4 * cheap.eflops))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strategy": "until"}, "strategy 'until' is not known; did you mean until-right"),
        ({"hourly": -1}, "price must be positive (dollars an hour a device); got -1"),
        ({"unit": "usd"}, "a budget in dollars needs the price of a device (hourly); got nan"),
        ({"max_tpot": 0}, "max_tpot must be positive (seconds per output token); got 0"),
        ({"max_seconds": -1}, "max_seconds must be positive (seconds to an answer); got -1"),
        ({"batch": np.nan}, "batch must be a number above 0, 'fits', 'within' or 'endless'; got nan"),
        ({"share_prompt": True, "combine": "max"}, "share_prompt needs combine='add', by which shared costs add up; got 'max'"),
        ({"reserve": 1}, "reserve must be in [0, 1) (share of the memory); got 1"),
    ],
)  # fmt: skip
def test_wrong_terms_are_named(summary, options, message):
    with pytest.raises(ValueError) as error:  # noqa: PT011
        plan(summary, H200, [1], **options)
    assert message in str(error.value)


# --- what to start -------------------------------------------------------------------------------


def test_commands_parse():
    """Every flag of a command, and every value of those that list theirs, is one that the named release takes."""
    table = read_table("engine_flags").fillna("")
    released = {
        "vLLM": table[table.engine == "vllm"],
        "SGLang": table[table.engine == "sglang"],
    }
    stored = product(("bf16", "fp8", "mxfp8"), ("bf16", "fp8", "nvfp4"), (1, 8), ("qwen3-8b", "mine"))
    for weights, kv, devices, model in stored:
        setting = {
            "policy": "dense",
            "model": model,
            "devices": float(devices),
            "batch": 69.0,
            "context": 31239.0,
        }
        found = commands(setting, weights, kv)
        assert list(found) == [f"{name} {rows.version.iloc[0]}" for name, rows in released.items()]
        for rows, line in zip(released.values(), found.values(), strict=True):
            start = "vllm serve" if line.startswith("vllm") else "sglang serve --model-path"
            assert line.startswith(f"{start} {checkpoint(model)} ")
            words = line.removeprefix(start).split()[1:]
            given = dict(zip(words[::2], words[1::2], strict=True))
            assert len(given) == 5 + (weights != "bf16") + (kv != "bf16")
            for flag, value in given.items():
                [row] = rows[rows.flag == flag].itertuples()
                assert value in (row.choices.split() or [value]), (flag, value)
            assert sorted(float(value) for value in given.values() if value[0].isdigit()) == sorted(
                [0.9, devices, 69, 31239]
            )
    assert (checkpoint("qwen3-30b-a3b"), checkpoint("qwen3-0.6b"), checkpoint("mine")) == (
        "Qwen/Qwen3-30B-A3B",
        "Qwen/Qwen3-0.6B",
        "PATH/OF/mine",
    )


def test_groups_of_devices_that_share_the_answers_out_are_started_as_such():
    """Kimi K2 on eight H200: data parallel attention holds what eight copies of its latent cache do not."""
    data = public("otis")[0].query("model == 'kimi-k2.6'")
    kept = published({"kimi-k2.6": "kimi-k2.5"})
    shapes = public("otis")[1]
    [row] = plan(data, H200, [100], shapes=shapes, precision=kept, **FEW).to_dict("records")
    room = fit(shapes["kimi-k2.6"], H200, kept["kimi-k2.6"], 30_000)
    assert (row["groups"], row["devices"], str(room.layout)) == (8, 8, "data parallel 8")
    vllm, sglang = commands(row, "as published", "bf16").values()
    assert (
        f"--tensor-parallel-size 1 --data-parallel-size 8 --max-num-seqs {-(-int(row['batch']) // 8)} "
        in vllm
    )
    assert sglang == "none: no flag known here shares the answers out to 8 groups of devices"
    flags = read_table("engine_flags").query("engine == 'vllm'").flag
    assert {"--tensor-parallel-size", "--data-parallel-size", "--max-num-seqs"} <= {*flags}


def test_a_quantised_checkpoint_is_started_as_it_is_or_not_at_all():
    """Kimi K2 Thinking exists in four bits only; of the book's tiny models no engine knows any."""
    row = {
        "policy": "dense",
        "model": "kimi-k2-thinking-turbo",
        "shape": "kimi-k2-thinking",
        "devices": 8.0,
        "batch": 80.0,
    }
    assert "PATH/OF/kimi-k2-thinking-turbo" in commands(row, "as published", "bf16")["vLLM 0.33.0"]
    said = "none: its checkpoint is in int4-g32 and is loaded so; price weights as published"
    assert {*commands(row, "bf16", "bf16").values()} == {*commands(row, "fp8", "bf16").values()} == {said}
    assert commands(row | {"model": "w24-s0", "shape": "w24-s0"}, "bf16", "bf16") == {}


def test_no_answer_is_longer_than_the_context():
    """By its mean and mean square where single lengths are not known, and by the limit that all answers to a problem ran into."""
    rng = np.random.default_rng(3)
    for _ in range(20):
        lengths = rng.lognormal(8, rng.uniform(0.1, 1), (3, rng.integers(1, 9))).round() + 1
        rows = [
            ("m", "t", "dense", f"p{i}", 10 * i, len(one), 0, one.mean(), (one**2).mean())
            for i, one in enumerate(lengths)
        ]
        table = pd.DataFrame(rows, columns=SUMMARY)
        [most] = with_contexts(table, table).context.unique()
        assert most >= (lengths + 10 * np.arange(3)[:, None]).max()
        cut = table.assign(mean_tokens=lengths.max(), mean_sq_tokens=lengths.max() ** 2)
        both = pd.concat([table, cut.assign(policy="topk:32")], ignore_index=True)
        if len(lengths[0]) > 1:
            assert with_contexts(both, both).context.max() == 20 + lengths.max()


def test_a_fitted_clock_times_weights_as_they_are_stored():
    """gpt-oss exists in MXFP4 only: fewer bytes, less time; kernels that were measured keep their own precision."""
    data, shapes, dense = public("otis")
    options = {"shapes": shapes, "dense_layers": dense, "clock": parse_clock("fitted:h200:vllm")}
    kept = published({"gpt-oss-120b": "gpt-oss-120b"})
    one, other = (
        plan(data, H200, [1e4], models=["gpt-oss-120b"], devices=8, batch=8, precision=how, **options, **FEW)
        for how in (kept, None)
    )
    assert one.tpot_s[0] < 0.7 * other.tpot_s[0]
    assert (one.attrs["weights"], other.attrs["weights"]) == ("as published", "bf16")
    assert one.attrs["clock"].endswith("others by their bytes")


def test_a_setting_without_a_flag_says_so():
    sparse = {"policy": "block_topk:512:32", "model": "qwen3-8b", "devices": 1.0, "batch": 69.0}
    assert all(
        line.startswith("none: no flag makes it read as block_topk:512:32 does")
        for line in commands(sparse, "bf16", "bf16").values()
    )
    assert all("into fp4" in line for line in commands(sparse | {"policy": "dense"}, "fp4", "bf16").values())


# --- on other trials, on other problems ----------------------------------------------------------


def test_halves_choose_by_their_own_costs():
    """Stopping costs what the half says that chooses, and what is spent is what it costs on the other."""
    summary = summarize(made_up(11, n_problems=3, n_traces=8, deployed=[("qwen3-4b", "dense")]))
    table, _ = price(summary, H200, [1, 2, 4], strategy=UntilRight, batch=64, prefill=False)
    one = table[table.n_trials == 1].set_index("problem").eflops / H200.peak_flops
    budget = 2.2 * one.mean()
    found = plan(
        summary, H200, [budget], trials=[1, 2, 4], batch=64, prefill=False, n_boot=5, n_splits=6, seed=2
    ).iloc[0]
    c, rng, results = (
        summary.set_index("problem").n_correct[one.index].to_numpy(),
        np.random.default_rng(2),
        [],
    )
    for _ in range(6):
        right = rng.hypergeometric(c, 8 - c, 4)
        halves = (right, c - right)
        for mine, other in (halves, halves[::-1]):
            costs = {
                n: np.mean([x * drawn(4, r, n) for x, r in zip(one, mine, strict=True)]) for n in (1, 2, 4)
            }
            solved = {
                n: [np.mean([1 - comb(4 - r, n) / comb(4, n) for r in half]) for half in (mine, other)]
                for n in (1, 2, 4)
            }
            fits = [n for n in (1, 2, 4) if costs[n] <= budget]
            n = max(fits, key=lambda n: (round(solved[n][0], 9), -costs[n]), default=0)
            spent = np.mean([x * drawn(4, r, n) for x, r in zip(one, other, strict=True)]) if n else 0
            results.append([*solved.get(n, (0, 0)), spent])
    assert [found.seen, found.unseen, found.spent_s] == pytest.approx(list(np.mean(results, 0)))


def test_the_cost_to_solve_a_share_is_the_cheapest_settings():
    table, _ = price(summarize(made_up(4)), H200, [1, 3, 6], strategy=UntilRight, batch=64)
    weights = np.array([[0.5, 0.5, 0, 0], [0, 0.25, 0.25, 0.5]])
    levels = [0.2, 0.6, 0.99]
    value, draws = cost_to_solve(table, levels, weights)
    for some, got in ((np.full(4, 0.25), value), (weights[0], draws[0]), (weights[1], draws[1])):
        for level, cost in zip(levels, got, strict=True):
            enough = [
                some @ own.eflops for _, own in (
                    (key, rows.set_index("problem").loc[["p0", "p1", "p2", "p3"]])
                    for key, rows in table.groupby(["model", "policy", "n_trials"])
                ) if some @ own.accuracy >= level - 1e-12
            ]  # fmt: skip
            assert cost == pytest.approx(min(enough, default=np.inf))
    assert np.isfinite(value[0])
    with pytest.raises(ValueError, match="one setting at least must cover every problem"):
        cost_to_solve(table[(table.model == "qwen3-4b") == (table.problem == "p0")], levels, weights)


def test_each_model_may_be_stored_in_its_own_precision():
    """A row for each model, equal to that of a plan in which all are stored so; who is not named is as ever."""
    data = made_up(deployed=(("qwen3-4b", "dense"), ("qwen3-8b", "dense"), ("qwen3-1.7b", "dense")))
    kept = {"qwen3-4b": Precision("fp8", "fp8"), "qwen3-8b": Precision("int4", "bf16")}
    summary = summarize(data)
    mixed, _ = price(summary, H200, [2], precision=kept)
    for model, one in {**kept, "qwen3-1.7b": None}.items():
        own, _ = price(summary, H200, [2], precision=one)
        same = mixed[mixed.model == model].reset_index(drop=True)
        pd.testing.assert_frame_equal(same, own[own.model == model].reset_index(drop=True))
    assert mixed.groupby("model").batch.first().nunique() == 3
    found = plan(data, H200, [50], precision=kept, **FEW)
    assert "weights as published, KV cache as published" in text(found)
    assert " --dtype bfloat16 " in text(found)


def test_the_better_of_two_ways_for_each_budget(summary):
    """Under a limit of time tries side by side may solve more than tries in turn; without one they cost more for the same."""
    budgets, limits = [1e-6, 3, 30, 300], {"max_seconds": 60, "batch": "within"}
    ways = [
        plan(summary, H200, budgets, strategy=name, **limits, **FEW) for name in ("until-right", "best-of")
    ]
    found = better(ways)
    assert list(found.budget_s) == budgets
    assert found.attrs == ways[0].attrs
    for k, row in found.iterrows():
        each = [way.iloc[k] for way in ways]
        if not any(one.setting for one in each):
            assert not row.setting
            continue
        assert row.dense == max(one.dense for one in each)
        best = max(one.accuracy for one in each if one.setting)
        assert row.accuracy == pytest.approx(best)
        assert row.cost_s == min(one.cost_s for one in each if one.accuracy == pytest.approx(best))
