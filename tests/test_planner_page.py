"""The planner's page computes what `plan` computes, calls ties ties, and shows what is typed as text."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import random
from functools import cache
from pathlib import Path
from urllib.parse import quote, urlencode

import pytest

from kinetics_lab import HARDWARE, cli, plan
from kinetics_lab.cli.shared import public
from kinetics_lab.cost.clock import parse_clock
from kinetics_lab.cost.models import MODELS
from kinetics_lab.cost.precision import find_precision
from kinetics_lab.planner.offers import PUBLIC, with_predicted
from kinetics_lab.planner.page import CACHES, SETS, WEIGHTS, page_files, planner_data
from kinetics_lab.planner.price import published
from kinetics_lab.planner.serve import commands
from kinetics_lab.planner.text import SPARSE, elsewhere

ROOT = Path(__file__).parent.parent
_spec = importlib.util.spec_from_file_location("browser", Path(__file__).with_name("browser.py"))
browser = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(browser)

NUMBERS = [
    "n_trials",
    "accuracy",
    "low",
    "high",
    "best_case",
    "cost",
    "tokens",
    "draws",
    "devices",
    "batch",
    "ttft_s",
    "tpot_s",
    "answer_s",
    "usd",
    "usd_per_mtok",
    "again",
    "runner_up_accuracy",
    "beats",
    "dense",
    "dense_cost",
    "context",
    "runner_up_cost",
    "frugal_accuracy",
    "frugal_cost",
]
TEXTS = ["setting", "model", "policy", "oracle", "runner_up", "dense_setting", "frugal"]
KINDS = {
    "aime24": ["dense", "topk", "block_topk"],
    "otis": ["dense"],
    "ladder": ["dense", "topk", "block_topk", "local"],
}
BUDGETS = {"aime24": (0.2, 100), "otis": (5, 2000), "ladder": (1e-8, 1e-4)}


@cache
def sets():
    return {name: public(name) for name in SETS}


@cache
def tables():
    return planner_data(sets())


USUAL = 40  # questions of every run of the tests


def questions(count: int) -> list[dict]:
    """Random questions, as the page asks them."""
    draw, asked = random.Random(11), []
    for _ in range(count):
        name = draw.choices(list(SETS), (5, 3, 2))[0]
        device = draw.choice(
            ["h200", "h100", "b200", "a100", "l40s", "rtx-4090", "mi300x", "b200-paper", "b300", "tpu-v6e"]
        )
        clocks = [one.split(":")[1] for one in tables()["clocks"] if one.startswith(device + ":")]
        strategy, unit = (
            draw.choice(["until-right", "best-of", "majority", "verified"]),
            draw.choice(["s", "s", "usd"]),
        )
        low, high = BUDGETS[name]
        budget = low * (high / low) ** draw.random() * (2.5 / 3600 if unit == "usd" else 1)
        topk = draw.choice(["out", "out", "scan", "free"])
        timed = draw.choice(["", "", *clocks])
        models = list({model for model, *_ in tables()["sets"][name]["settings"]})
        kinds = [kind for kind in KINDS[name] if kind != "topk" or topk != "out"]
        asked.append({
            "data": name, "predicted": name == "aime24" and draw.random() < 0.25, "hardware": device, "devices": draw.choice([None, None, None, 2, 4, 8]),
            "clock": timed, "weights": draw.choice(["", "", "published", "published", *WEIGHTS]), "kv": draw.choice(["", *CACHES]),
            "strategy": strategy, "hit": draw.choice([1, 0.9, 0.5]), "false_alarm": draw.choice([0, 0.1, 0.4]), "check": draw.choice([None, 0.05]),
            "models": draw.choice([[], [], draw.sample(sorted(models), draw.randint(1, len(models)))]),
            "policies": draw.choice([[], [], draw.sample(kinds, draw.randint(1, len(kinds)))]), "topk": topk,
            "budget": draw.choice([budget, budget, budget, None]), "unit": unit, "price": draw.choice([2.5, None]) if unit == "s" else 2.5,
            "max_seconds": draw.choice([None, None, 600, 3000]), "max_tpot": draw.choice([None, None, 0.02, 0.1]), "batch": draw.choice([None, None, 1, 32, "within", "within"]),
        })  # fmt: skip
    return asked


@cache
def clock(name: str):
    return parse_clock(name)


def expected(q: dict) -> dict:
    """The same from the package; an error is its message."""
    try:
        found = plan(**asked_of(q))
    except ValueError as error:
        return {"error": str(error)}
    row = found.rename(columns={f"cost_{q['unit']}": "cost"}).iloc[0]
    task = tables()["sets"][q["data"]]["task"]
    told = row["note"].split("; ")[0].split("predicted, never run: ")
    left = {who.removeprefix(f"{task}: "): why for who, why in found.attrs["left_out"].items()}
    numbers = {name: float(row[name]) for name in NUMBERS}
    return (
        numbers
        | {name: row[name] for name in TEXTS}
        | {
            "left_out": left,
            "rivals": row["rivals"],
            "n_settings": found.attrs["n_settings"][task],
            "predicted": told[1:],
            "start": commands(
                found.to_dict("records")[0], *(found.attrs[name] for name in ("weights", "kv", "reserve"))
            ),
        }
    )


def asked_of(q: dict) -> dict:
    """The question as the package's `plan` takes it."""
    data, shapes, dense = sets()[q["data"]]
    strategy = q["strategy"]
    if strategy == "verified":
        strategy = ":".join(
            map(str, ["verified", q["hit"], q["false_alarm"], *([q["check"]] if q["check"] else [])])
        )
    sources = {name: name if name in MODELS else None for name in data.model.unique()} | PUBLIC[q["data"]][3]
    told = q["weights"].replace("published", "") or None
    told = find_precision(told, q["kv"] or None) if told or q["kv"] else None
    return {
        "data": with_predicted(data) if q["predicted"] else data, "hardware": HARDWARE[q["hardware"]], "budgets": [q["budget"] or 1e9],
        "unit": q["unit"], "strategy": strategy, "models": q["models"], "policies": q["policies"], "topk": q["topk"],
        "shapes": shapes, "dense_layers": dense, "devices": q["devices"], "batch": q["batch"] or "fits", "hourly": q["price"] or math.nan,
        "clock": clock(f"fitted:{q['hardware']}:{q['clock']}") if q["clock"] else None,
        "precision": published(sources, q["kv"] or None) if q["weights"] == "published" else told,
        "max_seconds": q["max_seconds"] or math.inf, "max_tpot": q["max_tpot"] or math.inf, "n_splits": 1,
    }  # fmt: skip


@pytest.fixture(scope="module")
def chromium():
    if browser.find_chromium() is None:
        pytest.skip("no Chromium: install it (Debian: apt-get install chromium) to run the browser tests")
    opened = browser.Browser()
    yield opened
    opened.close()


def page_of(folder: Path, data: bytes) -> Path:
    """The page's scripts beside a page that is nothing else."""
    (folder / "kl-planner-data.js").write_bytes(data)
    return browser.lone_page(folder, "planner")


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    return page_of(tmp_path_factory.mktemp("planner"), page_files(sets())["book/_static/kl-planner-data.js"])


def compare(chromium, index, asked: list[dict]) -> None:
    with chromium.page() as page:
        page.goto(index)
        answered = page.js(f"""{json.dumps(asked)}.map(q => {{ try {{ return klPlanner.plan(klPlannerData, q); }}
            catch (error) {{ return {{error: error.message}}; }} }})""")
    plans = 0
    for question, got in zip(asked, answered, strict=True):
        want = expected(question)
        if "error" in want or "error" in got:
            assert ("error" in got) == ("error" in want), (question, got, want)
            continue
        assert got["left_out"].keys() == want["left_out"].keys(), question
        for who, why in got["left_out"].items():
            assert why == want["left_out"][who] or why.startswith("too slow: "), question
        assert got["n_settings"] == want["n_settings"], question
        for name in NUMBERS:
            value = math.nan if got.get(name) is None else got[name]
            if got["setting"] or name.startswith("dense"):
                assert value == pytest.approx(want[name], rel=1e-9, nan_ok=True), (name, question)
        if not got["setting"]:
            assert want["setting"] == "", question
            continue
        assert {name: got[name] for name in TEXTS} == {name: want[name] for name in TEXTS}, question
        assert "; ".join(got["rivals"]) == want["rivals"], question
        assert " and ".join(got["predicted"]) == "".join(want["predicted"]), question
        assert dict(got["start"]) == want["start"], question
        plans += 1
    assert plans > len(asked) / 2


@pytest.mark.browser
def test_the_page_computes_what_the_package_computes(chromium, index):
    compare(chromium, index, questions(USUAL))


PLAIN = {name: None for name in ("devices", "check", "max_seconds", "max_tpot", "batch", "price")}
PLAIN |= {"data": "aime24", "predicted": False, "unit": "s", "strategy": "until-right", "policies": []}
PLAIN |= {"hit": 1, "false_alarm": 0, "models": [], "topk": "out", "weights": "", "kv": "", "clock": ""}


def told(got: dict | None, where: str) -> str:
    """What the page found beside a plan, as the package says it."""
    if not got:
        return ""
    return f"{where}: {got['accuracy']:.1%} for {got['cost']:.3g} by {got['setting']}{' (predicted)' * got['predicted']}"


@pytest.mark.browser
def test_the_page_says_as_the_package_what_sparse_attention_and_what_more_devices_would_do(chromium, index):
    """An engineer's three cases: a vote within dollars, and limits of time on an H100 and on an RTX 4090."""
    usual = PLAIN
    asked = [
        usual | {"hardware": "h100", "budget": 0.5, "unit": "usd", "price": 2.5, "strategy": "majority", "models": ["qwen3-32b"]},
        usual | {"hardware": "h100", "budget": 20},
        usual | {"hardware": "rtx-4090", "budget": 60},
        usual | {"hardware": "h100", "budget": 20, "predicted": True},
        usual | {"hardware": "h200", "budget": 20, "policies": ["block_topk"]},
        usual | {"data": "otis", "hardware": "h200", "budget": 100, "weights": "published", "clock": "vllm"},
        usual | {"hardware": "h200", "budget": 0.01},
        usual | {"data": "otis", "hardware": "h200", "budget": 100},
    ]  # fmt: skip
    with chromium.page() as page:
        page.goto(index)
        answered = page.js(
            f"""{json.dumps(asked)}.map(q => {{ const now = klPlanner.today(klPlannerData, q), found = klPlanner.plan(klPlannerData, now);
                return [klPlanner.elsewhere(klPlannerData, now, found), klPlanner.beside(klPlannerData, q, found)]; }})"""
        )
    for question, (more, sparse) in zip(asked, answered, strict=True):
        now = asked_of(question) | {"policies": question["policies"] or ["dense"]}
        found = plan(**now)
        assert told(more, more and f"on {more['devices']} device{'s' * (more['devices'] != 1)}") == elsewhere(found, now)[0], question  # fmt: skip
        want = "" if question["policies"] else elsewhere(found, now, SPARSE)[0]
        assert told(sparse, "sparse, which no engine serves") == want, question
    for i in (0, 1):
        assert sum(bool(pair[i]) for pair in answered) >= 3


@pytest.mark.browser
@pytest.mark.slow
def test_the_page_computes_what_the_package_computes_on_many_questions(chromium, index):
    """Those that come after the usual ones; 500 take ten minutes."""
    compare(chromium, index, questions(int(os.environ.get("PAGE_QUESTIONS", "80")))[USUAL:])


TYPE = "(e => {{ e.value = {value}; e.dispatchEvent(new Event('input', {{bubbles: true}})); }})(document.getElementById('kl-{key}'))"
TEXT = "document.querySelector({!r}).textContent"


def type_into(page, key: str, value: str) -> None:
    page.js(TYPE.format(key=key, value=json.dumps(value)))


@pytest.mark.browser
def test_a_change_is_answered_at_once_and_stands_in_the_address(chromium, index):
    with chromium.page(width=390) as page:
        page.goto(index)
        assert page.js(TEXT.format(".kl-calc-said")).startswith(
            "Run 1 x qwen3-14b, dense (1 answer): it solves 79.6% of the problems for 4.94 s of one device a problem ($5.47 per 1,000 problems). "
            "With sparse attention 7 x qwen3-8b, block_topk:1024:16 would solve 84.6% for 4.68 s of one device a problem ($5.18 per 1,000 problems), but no engine serves it."
        )
        assert (
            page.js(TEXT.format("#kl-planner code"))
            == "kinetics-lab plan --data aime24 --budget 5 --hardware h200 --price 3.99"
        )
        page.wait(
            "document.querySelector('.kl-calc-said').textContent.includes(' On 4 devices 1 x qwen3-14b, dense ')"
        )
        type_into(page, "budget", "20")
        said = page.js(TEXT.format(".kl-calc-said"))
        assert said.startswith(
            "A tie: 11 x qwen3-14b, dense (up to 11 answers, one after another until one is right: "
        )
        started = "[...document.querySelectorAll('#kl-planner th')].filter(e => e.textContent.startsWith('vLLM')).map(e => e.nextSibling.textContent)"
        [line] = page.js(started)
        data, shapes, dense = sets()["aime24"]
        [row] = plan(
            data, HARDWARE["h200"], [20], policies=["dense"], shapes=shapes, dense_layers=dense, n_splits=1
        ).to_dict("records")
        assert line == commands(row, "bf16", "bf16")["vLLM 0.33.0"]
        assert (
            "wins again in only 38% of resamples, beside qwen3-8b, dense (37%) and qwen3-32b, dense (26%); "
            "other problems may turn the order. "
        ) in said
        left = page.js(TEXT.format("#kl-planner ul"))
        assert "block_topk with qwen3-0.6b, qwen3-14b, qwen3-32b: never run." in left
        assert "oracle top-k: no engine offers it." in left
        type_into(page, "hardware", "rtx-4090")
        assert "qwen3-32b: 65.5 GB of weights; 8 × RTX 4090 have" not in page.js(
            TEXT.format("#kl-planner ul")
        )
        type_into(page, "devices", "1")
        assert (
            "qwen3-32b, dense: qwen3-32b: 65.5 GB of weights; 1 × RTX 4090 has 23.2 GB beside the reserve"
            in page.js(TEXT.format("#kl-planner ul"))
        )
        type_into(page, "devices", "")
        type_into(page, "hardware", "h200")
        type_into(page, "predicted", "yes")
        said = page.js(TEXT.format(".kl-calc-said"))
        assert said.startswith("A tie: 11 x qwen3-14b, dense (")
        assert (
            "With sparse attention 32 x qwen3-14b, block_topk:1024:16 would solve a predicted 90.7% " in said
        )
        page.js("document.querySelector('[name=policies] [value=block_topk]').click()")
        said = page.js(TEXT.format(".kl-calc-said"))
        assert said.startswith("A tie: 32 x qwen3-14b, block_topk:1024:16 (")
        assert " solves a predicted 90.7% " in said
        assert "No engine serves block_topk:1024:16; dense attention reaches 88.7% for 20 s of one device a problem ($22.1 per 1,000 problems) with 11 x qwen3-14b, dense." in said  # fmt: skip
        assert page.js(started)[0].startswith("none: no flag makes it read as block_topk:1024:16 does")
        assert page.js(started)[1] == line
        assert "qwen3-14b, block_topk:1024:16: never run; " in page.js(TEXT.format("#kl-planner table"))
        assert page.js(TEXT.format("#kl-planner code")).endswith("--policies block_topk --predicted")
        page.js("document.querySelector('[name=policies] [value=block_topk]').click()")
        type_into(page, "predicted", "")
        type_into(page, "devices", "1")
        type_into(page, "hardware", "rtx-4090")
        type_into(page, "strategy", "verified")
        page.js("document.querySelector('[name=policies] [value=block_topk]').click()")
        assert (
            "--strategy verified:0.9:0.1 --hardware rtx-4090 --price 3.99 --policies block_topk --devices 1"
            in page.js(TEXT.format("#kl-planner code"))
        )
        address = page.js("location.hash")
        assert "policies=block_topk" in address
        assert page.js("document.documentElement.scrollWidth") <= 390
        labelled = "[...document.querySelectorAll('#kl-planner :is(select, input)')].every(e => e.labels.length === 1)"
        assert page.js(labelled)
        said = page.js(TEXT.format(".kl-calc-said"))
    with chromium.page() as page:  # the address alone
        page.goto(f"file://{index}{address}")
        assert page.js(TEXT.format(".kl-calc-said")) == said
        assert page.js(TEXT.format("#kl-planner code")).endswith("--policies block_topk --devices 1")


@pytest.mark.browser
def test_the_command_that_the_page_copies_prints_its_numbers(chromium, index, capsys):
    """A limit of time kept by a smaller batch, several devices by a fitted clock, and a judge who errs, among others."""
    asked = [
        "data=aime24&budget=20&max_tpot=0.01&slow=within",
        "data=aime24&budget=10&max_seconds=300&slow=within&clock=vllm&devices=4&strategy=verified&hit=0.8&false_alarm=0.3",
        "data=aime24&budget=0.05&unit=usd&hardware=rtx-4090&weights=fp8&strategy=majority&topk=scan&predicted=yes",
        "data=otis&budget=200&hardware=b200&kv=fp8&batch=8&price=5",
    ]
    for address in asked:
        with chromium.page() as page:
            page.goto(f"file://{index}#{address}")
            line = page.js(TEXT.format("#kl-planner code"))
            ran = page.js(TEXT.format("#kl-planner td"))
            told = page.js(f"{TEXT.format('#kl-planner table')}")
            assert page.js("document.getElementById('kl-batch').closest('div').hidden") == (
                "within" in address
            )
        assert ("--batch within" in line) == ("slow=within" in address)
        assert cli.main([*line.split()[1:], "--json"]) == 0
        row = json.loads(capsys.readouterr().out)
        assert row["setting"] == ran, address
        assert f"{row['devices']:.0f} " in told
        assert f"{row['batch']:,.0f} answers side by side" in told
        for share in ("accuracy", "low", "high"):
            assert f"{100 * row[share]:.1f}%" in told, (address, share)
        assert f"{1e3 * row['tpot_s']:.3g} ms" in told, address


@pytest.mark.browser
def test_limits_that_nothing_keeps_are_followed_by_what_would_keep_them(chromium, index):
    """Qwen3-14B on two RTX 4090, each problem within 30 seconds; the price is an H200's, and the page says so."""
    asked = PLAIN | {
        "hardware": "rtx-4090",
        "devices": 2,
        "max_seconds": 30,
        "batch": "within",
        "budget": None,
    }
    [row] = plan(**asked_of(asked | {"policies": ["dense"]})).to_dict("records")
    would = f"With any model, budget and batch, {row['setting']} keeps them and solves {row['accuracy']:.1%} for {row['cost_s']:.3g} s "
    with chromium.page() as page:
        page.goto(f"file://{index}#hardware=rtx-4090&devices=2&max_seconds=30&models=qwen3-14b")
        said = page.js(TEXT.format(".kl-calc-said"))
    assert said.startswith("No setting keeps the limits: ")
    assert would in said
    assert "per 1,000 problems at an H200's price)" in said


@pytest.mark.browser
@pytest.mark.parametrize(
    ("clock", "other", "told"),
    [
        (
            "",
            {"clock": "vllm"},
            "by the law fitted to the times of vLLM's kernels {} keeps it and solves {} ",
        ),
        (
            "vllm",
            {"strategy": "best-of"},
            "With all answers paid for, side by side, {} keeps the limit and solves {} ",
        ),
    ],
)
def test_a_limit_of_time_is_answered_by_times_of_kernels_and_by_answers_side_by_side(
    chromium, index, clock, other, told
):
    asked = {"data": "aime24", "hardware": "h200", "budget": 52, "max_seconds": 60, "clock": clock}
    question = PLAIN | asked | other | {"batch": "within", "policies": ["dense"]}
    [row] = plan(**asked_of(question)).to_dict("records")
    with chromium.page() as page:
        page.goto(f"file://{index}#{urlencode(asked | {'slow': 'within'})}")
        would = told.format(row["setting"], f"{row['accuracy']:.1%}")
        said = page.wait(f"(s => s.includes({json.dumps(would)}) && s)({TEXT.format('.kl-calc-said')})")
        assert ("datasheet's rates" in said) == (not clock)
        type_into(page, "max_seconds", "")
        page.js("new Promise(done => setTimeout(done, 300))")
        assert "keeps" not in page.js(TEXT.format(".kl-calc-said"))


@pytest.mark.browser
def test_sparse_attention_that_ships_is_called_a_models_own(chromium, index):
    with chromium.page() as page:
        page.goto(f"file://{index}#data=otis&models=deepseek-reasoner&devices=8")
        rows = page.js("[...document.querySelectorAll('#kl-planner tr')].map(e => e.textContent)")
        assert "Priced asdeepseek-v3.2" in rows
        assert any(row.startswith("Attentionits own, sparse as it ships") for row in rows)
        type_into(page, "data", "aime24")
        rows = page.js("[...document.querySelectorAll('#kl-planner tr')].map(e => e.textContent)")
        assert not any(row.startswith(("Attention", "Priced as")) for row in rows)


@pytest.mark.browser
def test_an_address_is_followed_and_what_it_asks_in_vain_is_said(chromium, index):
    note = "document.getElementById('kl-note-{}').textContent"
    code = TEXT.format("#kl-planner code")
    with chromium.page() as page:
        page.goto(f"file://{index}#data=nope&hardware=h999&models=foo&clock=bar")
        assert page.js(note.format("hardware")) == "h999 is not offered here; this is H200 SXM"
        assert page.js(note.format("data")).startswith("nope is not offered here; this is AIME 2024")
        assert page.js(note.format("models")) == "foo is not offered here"
        assert page.js(note.format("clock")).startswith("bar is not offered here; this is datasheet")
        assert page.js(code) == "kinetics-lab plan --data aime24 --budget 5 --hardware h200 --price 3.99"
        page.js(
            "location.hash = '#hardware=h100&budget=7&models=qwen3-8b'; new Promise(done => setTimeout(done, 300))"
        )
        line = "kinetics-lab plan --data aime24 --budget 7 --hardware h100 --price {} --models qwen3-8b"
        prices = json.loads(
            (index.parent / "kl-planner-data.js").read_text().partition("=")[2].rstrip(";\n")
        )["prices"]
        assert page.js(code) == line.format(prices["h100"])
        page.js(
            "location.hash = '#costs'; new Promise(done => setTimeout(done, 300))"
        )  # a heading asks nothing
        assert page.js(code) == line.format(prices["h100"])
        type_into(page, "unit", "usd")
        assert "--budget 0.0055 --unit usd" in page.js(code)
        type_into(page, "unit", "s")
        assert page.js(code) == line.format(prices["h100"])
        type_into(page, "clock", "vllm")
        assert "--clock fitted:h100:vllm" in page.js(code)
        type_into(page, "hardware", "mi300x")
        assert "--clock" not in page.js(code)
        assert page.js(note.format("clock")).startswith("vllm is not offered here; this is datasheet")
        assert page.js(note.format("price")) == "an H200's, 2026: type yours"
        type_into(page, "price", "2")
        type_into(page, "hardware", "b200")
        assert "--price 2 " in page.js(code)
        assert page.js("document.querySelectorAll('[aria-invalid=true]').length") == 0
        type_into(page, "price", "-2")
        assert page.js(code) == page.js(TEXT.format("#kl-planner table")) == ""
        assert page.js("document.querySelector('.kl-calc-copy').disabled")


@pytest.mark.browser
def test_what_is_wrong_is_said_beside_the_field(chromium, index):
    with chromium.page() as page:
        page.goto(index)
        for key, value, said in (
            ("budget", "-5", "must be a number from 1e-15 to 1,000,000,000"),
            ("budget", "0", "must be a number from 1e-15 to 1,000,000,000"),
            ("batch", "1.5", "must be a whole number from 1 to 1,000,000,000"),
            ("price", "-1", "must be a number from 0.0001 to 10,000"),
            ("max_tpot", "0", "must be a number from 1e-9 to 1,000,000"),
        ):
            before = page.js(f"document.getElementById('kl-{key}').value")
            type_into(page, key, value)
            assert page.js(f"document.getElementById('kl-note-{key}').textContent") == said
            assert page.js(f"document.getElementById('kl-{key}').getAttribute('aria-invalid')") == "true"
            assert page.js(TEXT.format(".kl-calc-said")) == "A field needs another value."
            type_into(page, key, before)
        page.js("document.getElementById('kl-batch').focus()")
        page.command("Input.insertText", text="1e")  # which a reader can type, and is no number
        assert page.js(TEXT.format("#kl-note-batch")) == "must be a whole number from 1 to 1,000,000,000"
        type_into(page, "batch", "")
        type_into(page, "price", "")
        type_into(page, "unit", "usd")
        assert page.js(TEXT.format("#kl-note-price")) == "a budget in dollars needs a price"
        assert page.js("document.querySelectorAll('#kl-planner img').length") == 0
        type_into(page, "price", "2")
        type_into(page, "max_tpot", "1e-6")
        assert page.js(TEXT.format(".kl-calc-said")).startswith(
            "No setting keeps the limits: the fastest takes "
        )


@pytest.mark.browser
def test_names_are_shown_as_text(chromium, tmp_path):
    """A model, a policy, a set, a problem and a device whose names are markup run nothing and make no element."""
    bad = "<img src=x onerror='window.ran=1'></script><script>window.ran=1</script>"
    data, shapes, dense = sets()["otis"]
    named = {model: bad + model for model in data.model.unique()}
    spoiled = (
        data.assign(model=data.model.map(named)),
        {bad + name: shape for name, shape in shapes.items()},
        dense,
    )
    content = page_files(sets() | {"otis": spoiled})["book/_static/kl-planner-data.js"]
    assert b"<" not in content
    with chromium.page() as page:
        page.goto(f"file://{page_of(tmp_path, content)}#data=otis&budget=5000")
        page.js(
            f"klPlannerData.sets.otis.title = {json.dumps(bad)}; klPlannerData.hardware[{json.dumps(bad)}] = klPlannerData.hardware.h200"
        )
        type_into(page, "budget", "6000")
        assert bad in page.js(TEXT.format(".kl-calc-said"))
        assert bad in page.js(TEXT.format("#kl-planner table"))
        assert page.js("document.querySelectorAll('#kl-planner :is(img, script)').length") == 0
    with chromium.page() as page:
        page.goto(
            f"file://{tmp_path / 'index.html'}#data={quote(bad)}&budget={quote(bad)}&policies={quote(bad)}"
        )
        assert page.js(TEXT.format("#kl-note-budget")) == "must be a number from 1e-15 to 1,000,000,000"
        assert page.js(TEXT.format(".kl-calc-said")) == "A field needs another value."
        assert page.js("document.querySelectorAll('#kl-planner :is(img, script)').length") == 0
        assert page.js("window.ran === undefined")


def test_its_data_are_small_and_the_pages_light():
    content = page_files(sets())["book/_static/kl-planner-data.js"]
    assert len(content) < 200_000
    scripts = sum((ROOT / "book" / "_static" / name).stat().st_size for name in ("law.js", "planner.js"))
    assert len(content) + scripts < 300_000
    for name in ("law.js", "calculator.js", "planner.js"):
        source = (ROOT / "book" / "_static" / name).read_text(encoding="utf-8")
        assert not any(
            word in source
            for word in ("innerHTML", "eval(", "new Function", "document.write", "fetch(", "import(")
        ), name


def test_a_set_that_does_not_say_all_is_refused():
    data, shapes, dense = sets()["otis"]
    for spoiled, message in (
        (data.iloc[1:], "a setting must have all problems, sorted"),
        (data.assign(mean_sq_tokens=data.mean_sq_tokens + 1e-5), "rounded to thousandths"),
    ):
        with pytest.raises(ValueError, match=message):
            planner_data({"otis": (spoiled.reset_index(drop=True), shapes, dense)})
