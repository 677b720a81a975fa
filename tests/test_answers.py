"""The pages that answer: the table of what to run, its rows as texts and cards, and the worked cases with odd parameters."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from kinetics_lab.book.charts.html import cards
from kinetics_lab.book.parameters import read_notebook
from kinetics_lab.book.results import read_result
from kinetics_lab.book.runs import execute_all
from kinetics_lab.cost.clock import parse_clock
from kinetics_lab.cost.hardware import HARDWARE
from kinetics_lab.errors import NothingFitsError
from kinetics_lab.planner.offers import load
from kinetics_lab.planner.plan import better, plan
from kinetics_lab.planner.text import advice, bill, decided

_spec = importlib.util.spec_from_file_location("chapters", Path(__file__).with_name("chapters.py"))
chapters = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(chapters)

ROOT = Path(__file__).parent.parent
FEW = {"n_boot": 50, "n_splits": 1, "dense_layers": 1, "hourly": 3.6}


def page(stem, given=None, out=None):
    """A chapter's result and what it shows as text: with the book's parameters from the cache of the book, else run anew, in this process."""
    path = next((ROOT / "notebooks").glob(f"{stem}_*.ipynb"))
    if given is None:
        [run] = execute_all([path], None, ROOT / "_build" / "runs")
    else:
        run = chapters.run_here(path, given, out)
    outputs = [o for cell in read_notebook(run.executed).cells for o in cell.get("outputs", [])]
    assert not [o for o in outputs if o.get("name") == "stderr"]
    data = [o.get("data", {}) for o in outputs]
    return read_result(run.folder), "\n".join(
        str(d.get("text/markdown", d.get("text/html", ""))) for d in data
    )


# --- rows as texts ------------------------------------------------------------------------------


def test_a_row_is_told_with_the_numbers_of_the_plan():
    found = plan(load(), HARDWARE["h200"], [0.01, 20], clock=parse_clock("h200:vllm"), **FEW)
    nothing, row = found.to_dict("records")
    assert decided(nothing) == {"run": nothing["note"], "solves": "", "bill for 1,000": "", "how sure": ""}
    told = decided(row, 500)
    assert told["run"].startswith(
        f"{row['model']}, {row['policy']}\nup to {row['n_trials']} answers a problem\n"
    )
    assert told["solves"].startswith(f"{100 * row['accuracy']:.1f} %\n{100 * row['low']:.0f} to ")
    assert "at best" not in told["solves"]
    dollars, hours, seconds = told["bill for 500"].split("\n")[:3]
    assert float(dollars[1:]) == pytest.approx(row["cost_s"] * 500 * 3.6 / 3600, rel=5e-3)
    assert float(hours.split()[0]) == pytest.approx(row["cost_s"] * 500 / 3600, rel=5e-3)
    assert float(seconds.split()[2].replace(",", "")) == pytest.approx(row["answer_s"], rel=5e-3)
    assert ("a tie with" in told["how sure"]) == (row["again"] < 0.6)
    assert row["runner_up"] in told["how sure"]


def test_a_vote_is_told_with_its_best_case_and_no_price_with_hours_alone():
    [row] = plan(
        load(), HARDWARE["h200"], [50], strategy="majority", trials=[3], **FEW | {"hourly": np.nan}
    ).to_dict("records")
    told = decided(row)
    assert f"at best {100 * row['best_case']:.1f} %" in told["solves"]
    assert told["run"].split("\n")[1] == "3 answers a problem at once"
    assert re.match(r"[\d.]+ device-hours\n", told["bill for 1,000"])
    assert "dollars" not in bill(row, 10, 1)


def test_an_answer_in_bold_is_followed_by_whether_it_is_a_tie_and_its_times_are_extrapolated():
    rows = plan(load(), HARDWARE["h200"], [1, 5, 20, 50], clock=parse_clock("h200:vllm"), **FEW).to_dict(
        "records"
    )
    ties = [row for row in rows if row["again"] < 0.6]
    assert 0 < len(ties) < len(rows)
    assert any("extrapolated" in row["note"] for row in rows)
    for row in rows:
        said = advice(row, "it")
        tie = f"**Run it.** This is a tie with {row['rivals']}: it wins again in {100 * row['again']:.0f} % of resamples"
        assert said.startswith(tie if row in ties else "**Run it.**")
        assert ("times are extrapolated" in said) == ("extrapolated" in row["note"])


def test_a_bill_adds_up():
    [row] = plan(load(), HARDWARE["h100"], [20], devices=2, **FEW).to_dict("records")
    items = bill(row, 2000, 8)
    assert items["problems"] == "2,000"
    assert float(items["answers drawn"].replace(",", "")) == pytest.approx(2000 * row["draws"], abs=1)
    assert float(items["hours on 8 devices, every place filled"]) == pytest.approx(
        float(items["device-hours"]) / 8, rel=1e-2
    )
    assert float(items["dollars"][1:]) == pytest.approx(3.6 * float(items["device-hours"]), rel=1e-2)


# --- cards --------------------------------------------------------------------------------------


def test_cards_label_every_cell_and_escape_everything():
    table = pd.DataFrame(
        {"run <it>": ["a & b\nsmall <i>", ""], "see": [[("x<y", 'p.html?"a"')], [("one", "1"), ("two", "2")]]}
    )
    found = cards({"<head>": table})
    assert '<td data-label="run &lt;it&gt;: ">a &amp; b<br><small>small &lt;i&gt;</small></td>' in found
    assert '<a href="p.html?&quot;a&quot;">x&lt;y</a>' in found
    assert "<td></td>" in found  # nothing to label
    assert '<th colspan="2">&lt;head&gt;</th>' in found
    assert found.count("<tr") == 1 + 1 + 2
    assert not re.search(r"<(head|it|i)>", found)


# --- the page -----------------------------------------------------------------------------------


@pytest.mark.xdist_group("book")
@pytest.mark.parametrize("part", [0, *(pytest.param(part, marks=pytest.mark.slow) for part in (1, 2))])
def test_every_cell_of_the_table_is_the_plans_answer(part):
    """A third of the judges' and waits' pairs, in which each judge and each wait comes once; the others in the slow set."""
    result, _ = page("50")
    cells = result[result.kind == "Competition maths (AIME 2024)"]
    terms = {
        "clock": parse_clock("h200:vllm"),
        "hourly": 3.99,
        "batch": "within",
    }
    judges = {"a checker": "until-right", "a judge who errs": "verified:0.8:0.3", "no judge": "majority"}
    limits = {"any time": np.inf, "within 10 min": 600, "within 60 s": 60}
    budgets = [2, 10, 50]
    assert sorted(map(tuple, cells[["judge", "wait", "budget_s"]].to_numpy())) == sorted(
        (judge, wait, float(budget)) for judge in judges for wait in limits for budget in budgets
    )
    names = [
        "setting",
        "accuracy",
        "low",
        "high",
        "cost_s",
        "usd",
        "answer_s",
        "batch",
        "again",
        "runner_up",
    ]
    pairs = [(j, w) for i, j in enumerate(judges) for k, w in enumerate(limits) if (i + k) % 3 == part]
    for judge, wait in pairs:
        rows = cells[(cells.judge == judge) & (cells.wait == wait)].sort_values("budget_s")
        ways = [judges[judge], *["best-of"] * (judge == "a checker" and limits[wait] < np.inf)]
        asked = terms | {"max_seconds": limits[wait], "n_splits": 1, "dense_layers": 1}
        want, every = (
            better(
                [
                    plan(load(), HARDWARE["h200"], budgets, strategy=way, policies=kinds, **asked)
                    for way in ways
                ]
            )
            for kinds in (["dense"], ["dense", "block_topk"])
        )
        pd.testing.assert_frame_equal(rows[names].reset_index(drop=True), want[names], check_dtype=False)
        assert rows.any_setting.tolist() == every.setting.tolist()
        assert rows.any_accuracy.tolist() == every.accuracy.tolist()
        assert (want.answer_s.dropna() <= limits[wait]).all()


@pytest.mark.xdist_group("book")
def test_kinds_without_data_are_empty_and_say_so():
    result, said = page("50")
    assert not set(result.kind) & {"Code with tests", "Long documents", "Agents with tools"}
    for kind in ("Code with tests", "Long documents", "Agents with tools"):
        row = said.split(">Without data</th></tr>")[1].split(f">{kind}</td>")[1].split("</tr>")[0]
        assert "no data" in row
        assert not re.search(r"\d", re.sub(r"<[^>]*>", "", row))
    assert set(result[result.kind.str.contains("GPQA")].judge) == {"no judge"}  # letters are guessed


@pytest.mark.xdist_group("book")
def test_the_rules_repeat_what_their_chapters_found():
    pairs, _ = page("37")
    _, said = page("50")
    wins, total = (pairs.gain > 0).sum(), len(pairs)
    assert f"the higher effort wins {wins} of {total} pairs" in said
    leaves = (1 - pairs.accuracy_high) / (1 - pairs.accuracy_low)
    assert f"{((pairs.gain > 0) & (leaves <= 0.6)).sum()} of {(leaves <= 0.6).sum()} where it leaves" in said


@pytest.mark.slow
def test_a_kind_with_a_file_has_rows_and_a_device_too_small_has_sentences(tmp_path):
    counts = load()
    counts[(counts.model == "qwen3-4b") & (counts.policy == "dense")].assign(task="code").to_csv(
        tmp_path / "code.csv", index=False
    )
    given = {
        "kinds": {"Code": str(tmp_path / "code.csv"), "Agents": None},
        "hardware": "tpu-v5e",
        "clock": "",
        "n_boot": 20,
    }
    result, said = page("50", given | {"budgets": [50], "waits": [0.01]}, tmp_path / "run")
    assert set(result[result.kind == "Code"].judge) == {"a checker", "a judge who errs", "no judge"}
    late = result[result.wait != "any time"]
    assert (late.setting == "").all()
    assert late.note.str.startswith("no setting keeps max_seconds=0.01").all()
    assert "no setting keeps max_seconds=0.01" in said


# --- the cases ----------------------------------------------------------------------------------


@pytest.mark.xdist_group("book")
@pytest.mark.parametrize(
    ("stem", "start"),
    [("51", "vllm serve Qwen/"), ("52", "CUDA_VISIBLE_DEVICES="), ("53", "vllm serve PATH/OF/gemma")],
)
def test_a_case_ends_in_a_command_and_a_bill(stem, start):
    result, said = page(stem)
    assert len(result)
    assert start in said
    assert "The bill" in said
    assert "$" in said.split("The bill")[1]
    if stem == "51":
        assert result.answer_s[0] <= 120
        assert result.accuracy[0] >= 0.8
    if stem == "52":  # as many copies as devices allow, each on its own
        own = re.findall(r"CUDA_VISIBLE_DEVICES=([\d,]+) vllm", said)
        assert sorted(i for part in own for i in part.split(",")) == [str(i) for i in range(8)]
        assert result.hourly.is_monotonic_decreasing


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stem", "given", "sentence"),
    [
        ("51", {"max_seconds": 1}, "Nothing keeps the limit of 1 s on this device"),
        ("51", {"level": 0.999}, "No setting reaches 100 % in time"),
        ("53", {"weights": "bf16"}, "gemma-4-12b-it does not fit on one RTX-4090"),
    ],
)
def test_a_case_without_an_answer_says_so(stem, given, sentence, tmp_path):
    _, said = page(stem, given | {"n_boot": 20}, tmp_path / "run")
    assert sentence in said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stem", "given", "sentence"),
    [
        ("50", {"budgets": []}, r"budgets must be positive \(seconds of one device\); got \[\]"),
        ("50", {"hardware": "b200"}, "the clock is of h200, and hardware must be the same; got 'b200'"),
        ("51", {"level": 0}, r"level must lie in \(0, 1\]; got 0"),
        ("52", {"n_devices": 3}, "n_devices must be 1, 2, 4 or 8"),
        ("53", {"price": -1}, "n_problems, price and every one of caps must be positive"),
    ],
)
def test_an_odd_parameter_of_an_answer_is_named_in_one_sentence(stem, given, sentence, tmp_path):
    with pytest.raises(ValueError, match=sentence):
        page(stem, given, tmp_path / "run")


def test_what_cannot_be_served_has_an_error_of_its_own():
    with pytest.raises(NothingFitsError, match="no setting keeps max_seconds=0.001"):
        plan(load(), HARDWARE["h200"], [50], max_seconds=0.001, batch="within", **FEW)
    large = load()
    with pytest.raises(NothingFitsError, match="no model can be served"):
        plan(large[large.model == "qwen3-32b"], HARDWARE["l4"], [50], devices=1, **FEW)
