"""Numbers on the page of differences, each computed again from shapes, devices and tables: a sentence that differs fails."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy import optimize, stats

from kinetics_lab import (
    HARDWARE,
    MODELS,
    BlockTopK,
    Dense,
    TopK,
    cost_parts,
    decode_cost,
    find_model,
    fit_power_law,
    read_table,
)
from kinetics_lab.laws.reprice import cost_at

ROOT = Path(__file__).parent.parent
PAGE = re.sub(r"\s+", " ", (ROOT / "book" / "differences.md").read_text(encoding="utf-8"))
QWEN3 = [m for m in MODELS.values() if m.family == "qwen3"]
B200 = HARDWARE["b200-paper"]
SAID: list[Callable[[], str]] = []


def says(sentence: Callable[[], str]) -> Callable[[], str]:
    SAID.append(sentence)
    return sentence


def slopes(family: str) -> tuple[float, float]:
    """Growth of the cache for each doubling of all parameters: in logarithms, and fitted in plain numbers."""
    own = [m for m in MODELS.values() if m.family == family]
    x, y = (np.log2([getattr(m, name) for m in own]) for name in ("n_params", "kv_elements_per_token"))
    u, v = x - x[-1], 2 ** (y - y[-1])
    (_, plain), _ = optimize.curve_fit(lambda u, a, b: 2 ** (a + b * u), u, v, (0, 1))
    return float(2 ** stats.linregress(x, y).slope), float(2**plain)


@says
def one_entry_of_table_2() -> str:
    qwen, other = MODELS["qwen3-14b"], MODELS["qwen2.5-14b"]
    ours, theirs = (32768 * m.kv_bytes_per_token(2) / 2**30 for m in (qwen, other))
    return f"Its {qwen.n_layers} layers give {ours:.1f} GiB; {theirs:.0f} GiB belongs to Qwen2.5-14B, which has {other.n_layers} layers"


@says
def growth_of_the_cache() -> str:
    released = np.log2([m.released_params for m in QWEN3])
    cache = np.log2([m.kv_elements_per_token for m in QWEN3])
    low, high = sorted((slopes("qwen3")[0], 2 ** stats.linregress(released, cache).slope))
    others = [slopes(family)[0] for family in ("qwen2.5", "llama3", "opt")]
    return "In logarithms whole families give {:.2f}× to {:.2f}×, {:.2f}×, {:.2f}× and {:.2f}×".format(
        low, high, *others
    )


@says
def what_p_is() -> str:
    released = [100 * (m.released_params / m.n_matmul_params - 1) for m in QWEN3]
    sizes = [m.name.removeprefix("qwen3-").upper() for m in QWEN3]
    told = [f"{round(x)} %" if round(x) else "0" for x in released]
    return "Too much arithmetic: " + ", ".join(f"{a} ({b})" for a, b in zip(told, sizes, strict=True))


@says
def two_sizes_of_one_model() -> str:
    return f"The released scripts take {MODELS['qwen3-14b'].released_params / 1e9:.2f} billion parameters"


@says
def intensity() -> str:
    peak = B200.peak_flops / 1e12
    return (
        f"$I = {B200.intensity:.1f}$ FLOP/byte with 2 bytes per element. The peak in it, {peak:.0f} TFLOP/s"
    )


@says
def iso_cost() -> str:
    a, b = MODELS["qwen3-14b"], MODELS["qwen3-4b"]
    by_params = sorted(
        8 * np.divide(*pair)
        for pair in (
            (a.n_matmul_params, b.n_matmul_params),
            (a.released_params, b.released_params),
            (14.33e9, b.released_params),
        )
    )
    caches = a.kv_elements_per_token / b.kv_elements_per_token
    by_cache, wrong = 8 * caches**0.5, 8 * (caches * 48 / a.n_layers) ** 0.5
    return (
        f"The first is {by_params[0]:.0f}K to {by_params[-1]:.0f}K. The second is {by_cache:.1f}K with {a.n_layers} layers; "
        f"the 48 behind the wrong entry of Table 2 would give {wrong:.1f}K"
    )


@says
def the_batch() -> str:
    shape = MODELS["qwen3-32b"]
    each = 16384 * shape.kv_bytes_per_token(2)
    room = int((8 * 192e9 - 2 * shape.n_params) // each)
    return f"4096 sequences of 16K tokens would hold {4096 * each / 1e12:.1f} TB of cache for Qwen3-32B. Eight B200 of 192 GB have room for {room}"


@says
def a_dense_layer() -> str:
    times = []
    for name in ("qwen3-0.6b", "qwen3-8b", "qwen3-32b"):
        thin, thick = (
            decode_cost(MODELS[name], TopK(128), 512, 16384, dense_layers=n).eflops(B200) for n in (0, 1)
        )
        times.append(float(thick / thin))
    return "answers of 16K tokens at a budget of 128 cost, on the paper's B200, {:.1f} times as much with 0.6B, {:.1f} times with 8B, {:.1f} times with 32B".format(
        *times
    )


@says
def tokens_that_are_not_counted() -> str:
    policy, shape = BlockTopK(128, 128, sink=4, last_block=True), MODELS["qwen3-8b"]
    one = shape.kv_bytes_per_token(2)
    moved = cost_parts(shape, policy, 10**6, 1, bytes_per_element=2)["attention"].bytes
    return f"with $B = b = 128$, {float(moved) / one:.1f} tokens on average where 128 are priced"


@says
def budget_per_doubling() -> str:
    points = read_table("sparse_scale")
    own = points[points.curve == "kv_budget"]
    ends = np.array([own.tera_eflops.min(), own.tera_eflops.max()])
    low, high = (81.77 * (2 * ends) ** 0.25 - 212) / (81.77 * ends**0.25 - 212)
    line = fit_power_law(own.tera_eflops, own.value, space="log").doubling_factor(1000.0)
    return (
        f"is close to $2^{{0.25}} = {2**0.25:.2f}$: the exponent without the offset. From the formula itself a doubling of $x$ gives {low:.2f}× at "
        f"the low end of the plotted range and {high:.2f}× at its end; a straight line through the published points gives {line:.2f}×"
    )


@says
def four_budgets() -> str:
    points = read_table("sparse_scale")
    count = points[points.curve == "kv_budget"].value.round().nunique()
    return f"The points take only {['no', 'one', 'two', 'three', 'four', 'five'][count]} values"


@says
def the_token_fit() -> str:
    points = read_table("sparse_scale")
    own = points[points.curve == "tokens"]
    law = fit_power_law(own.tera_eflops, own.value, space="log")
    return f"on log axes the same points give about ${law.a:.0f}\\, x^{{{law.b:.2f}}}$"


@says
def pairs_of_fits() -> str:
    """Tokens times (budget + s*), as a share of the cost, where Figure 7 has points."""
    points, shape = read_table("sparse_scale"), find_model("qwen3-8b")
    at = np.geomspace(points.tera_eflops.min(), points.tera_eflops.max(), 200)
    per_token = shape.attention_flops_per_token + B200.intensity * shape.kv_bytes_per_token(2)
    worth = 2 * shape.released_params / per_token
    shares = []
    for a, b, c, d in ((213.58, 0.74, 140.92, 0.17), (22.08, 0.92, 161.83, 0.19)):
        used = 100 * per_token * a * at**b * (c * at**d - 212 + worth) / (1e12 * at)
        shares += [used.min(), used.max()]
    return "cost {:.0f} to {:.0f} % and {:.0f} to {:.0f} % of the cost they belong to".format(*shares)


@says
def up_to_three_times_costlier() -> str:
    """Price of choosing by FLOP over that of choosing by eFLOPs, on the published frontiers, as chapter 32 reads it."""
    rule = read_table("frontier_by_rule")
    by_cost, by_flops = (rule[rule.chosen_by == chosen] for chosen in ("eflops", "flops"))
    levels = np.union1d(np.linspace(0.03, 0.815, 315), by_flops.accuracy)
    drawn = np.exp(np.interp(levels, by_flops.accuracy, np.log(by_flops.tera_eflops)))
    factor = drawn / cost_at(by_cost.tera_eflops, by_cost.accuracy, levels)
    whole, low = (np.nanmax(factor[part]) for part in (levels > 0.1, levels <= 0.1))
    assert low > whole
    near = levels[levels > 0.1][np.nanargmax(factor[levels > 0.1])]
    return (
        f"it is {whole:.2f} near an accuracy of {near:.2f}, in one narrow place, and more at accuracies below 0.1; "
        f"the median over all accuracies is {np.nanmedian(factor):.1f}"
    )


@says
def two_figures_of_the_same_curves() -> str:
    """Dense Long-CoT curves as drawn: those with steps beside those read from the panel of eFLOPs, at the costs that both have."""
    stepped, smooth = read_table("longcot_curves"), read_table("longcot_flops_eflops")
    stepped, smooth = stepped[stepped.policy == "dense"], smooth[smooth.axis == "eflops"]
    apart = dict[str, float]()
    for model, other in smooth.groupby("model"):
        own, other = stepped[stepped.model == model], other.sort_values("tera")
        both = own[own.tera_eflops.between(other.tera.min(), other.tera.max())]
        there = np.interp(np.log(both.tera_eflops), np.log(other.tera), other.accuracy)
        apart[str(model)] = float(np.abs(there - both.as_plotted).max())
    most = max(apart, key=apart.__getitem__)
    return (
        f"differ by up to {100 * apart[most]:.0f} points of accuracy at equal cost, most for {most.title()}"
    )


@says
def lengths_in_best_of_n() -> str:
    table = read_table("aime24_qwen3_best_of_n")
    dense = table[table.policy == "dense"].groupby("model").mean_tokens.mean() / 1e3
    by_1024 = [f"{1e3 * end / 1024:.1f}K" for end in (dense.min(), dense.max())]
    return f"the tables behind it say {dense.min():.1f} to {dense.max():.1f} thousand ({' to '.join(by_1024)} with K = 1024)"


@says
def budgets_that_were_run() -> str:
    table = read_table("aime24_qwen3_best_of_n")
    top = table[table.policy.str.startswith("topk")]
    run = top.policy.str.split(":").str[1].astype(int).groupby(top.model).agg(lambda own: sorted(set(own)))
    assert max(run["qwen3-0.6b"]) == max(run["qwen3-1.7b"])
    few = " and ".join(str(budget) for budget in run["qwen3-14b"])
    return f"hold top-k for 0.6B and 1.7B up to a budget of {max(run['qwen3-0.6b'])}, for 14B only at {few}"


@pytest.mark.parametrize("sentence", SAID, ids=lambda one: one.__name__)
def test_the_page_says_what_is_computed(sentence):
    assert sentence() in PAGE


def test_attention_over_parameters_stays_inside_what_the_page_says():
    ratio = {}
    for m in QWEN3:
        parts = cost_parts(m, Dense(), 0, [4096, 32768], counting="paper")
        ratio[m.name] = parts["attention"].eflops(B200) / parts["parameters"].eflops(B200)
    assert (
        '"10 to 1000 times" does not hold for every model: at 4096 tokens the large ones stay below 10'
        in PAGE
    )
    assert ratio["qwen3-14b"][0] < 10
    assert ratio["qwen3-32b"][0] < 10
    assert max(one[1] for one in ratio.values()) < 1000


def test_the_plain_fits_come_within_what_the_page_says():
    assert "in plain numbers some choice of models comes within 0.02 of every published value" in PAGE
    published = {"qwen3": 1.18, "qwen2.5": 1.46, "llama3": 1.27}
    assert {name: slopes(name)[1] for name in published} == pytest.approx(published, abs=0.02)
