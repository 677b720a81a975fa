"""The calculator's page computes what the package computes, and shows what is typed as text."""

from __future__ import annotations

import importlib.util
import json
import random
from dataclasses import replace
from pathlib import Path

import pytest

from kinetics_lab import HARDWARE, MODELS, cli, parse_policy
from kinetics_lab.cli.chapters import made_for_the_book
from kinetics_lab.cost.clock import Datasheet, answer_seconds, calibrated
from kinetics_lab.cost.fit import COUNTS, Fit, fit, layouts, parse_layout
from kinetics_lab.cost.precision import find_precision
from kinetics_lab.cost.silicon import Silicon
from kinetics_lab.cost.step import prefill_seconds
from kinetics_lab.planner.page import CACHES, WEIGHTS, calculator_data, page_files, policies

_spec = importlib.util.spec_from_file_location("browser", Path(__file__).with_name("browser.py"))
browser = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(browser)


def questions(count: int) -> list[dict]:
    """Random questions, the batch that fits among them, and layouts that a model refuses."""
    draw = random.Random(5)
    asked = []
    for _ in range(count):
        asked.append({
            "model": draw.choice(sorted(MODELS)), "hardware": draw.choice(sorted(HARDWARE)), "policy": draw.choice(policies()),
            "weights": draw.choice(["", *WEIGHTS]), "kv": draw.choice(["", *CACHES]), "n_in": draw.choice([0, 1, 700, 8191, 90_000]),
            "n_out": draw.choice([1, 500, 8192, 60_000]), "batch": draw.choice([None, None, 1, 16, 333]), "clock": "",
            "devices": draw.choice([None, None, None, 1, 8]), "reserve": draw.choice([0, 0.1, 0.25]), "price": 2.5, "answers": draw.choice([1, 7]),
        })  # fmt: skip
        asked[-1]["layout"] = draw.choice(["", "", *all_ways(asked[-1])])
    return asked


def all_ways(q: dict) -> list[str]:
    """The layouts that the page offers for a question."""
    counts = [q["devices"]] if q["devices"] else COUNTS
    ways = (way for count in counts for way in layouts(MODELS[q["model"]], count))
    return [f"tensor:{way.tensor}" + f",data:{way.data}" * (way.data > 1) for way in ways]


def room_of(q: dict) -> Fit:
    stored = find_precision(q["weights"] or None, q["kv"] or None, q["model"])
    return fit(
        MODELS[q["model"]], HARDWARE[q["hardware"]], stored, q["n_in"] + q["n_out"], q["batch"],
        reserve=q["reserve"], devices=q["devices"], layout=parse_layout(q["layout"]) if q["layout"] else None,
    )  # fmt: skip


def spent(q: dict, room: Fit) -> dict:
    """Seconds of one device, by part, and how long an answer takes."""
    batch = q["batch"] or max(room.batch, 1)
    clock = Datasheet(room.hardware, "max", room.precision, room.layout)
    whole = answer_seconds(clock, room.shape, q["n_in"], q["n_out"], batch, parse_policy(q["policy"]))
    how = {"precision": room.precision, "layout": room.layout}
    first = float(prefill_seconds(room.shape, room.hardware, q["n_in"], **how))
    parts = {name: q["answers"] * float(part) / batch * room.devices for name, part in whole.items()}
    return {
        "first": first,
        "decode": float(sum(whole.values())),
        "parts": {"prefill": first * room.layout.tensor, **parts},
    }


def cheaper(q: dict, here: float, room: Fit) -> dict:
    """By which share of its cost, and on how many devices, an answer is cheaper in another layout, where that is 1 % at least."""
    found = [(here, room.devices)]
    for layout in [] if room.reason else all_ways(q | {"devices": None}):
        asked = q | {"devices": None, "layout": layout}
        if not (other := room_of(asked)).reason:
            found.append((sum(spent(asked, other)["parts"].values()), other.devices))
    least, devices = min(found, key=lambda pair: pair[0])
    return {"less": 1 - least / here, "there": devices} if least <= 0.99 * here else {"less": 0, "there": 0}


def expected(q: dict) -> dict:
    """The same from the package, but what would be cheaper."""
    room = room_of(q)
    if room.layout.why_not(room.shape):
        return {"split": True}
    found = spent(q, room)
    parts = found.pop("parts")
    return {"fits": room.batch, "devices": room.devices, "weights": room.weights, "sequence": room.sequence, **found, **parts,
            "dollars": sum(parts.values()) / 3600 * q["price"]}  # fmt: skip


@pytest.fixture(scope="module")
def chromium():
    if browser.find_chromium() is None:
        pytest.skip("no Chromium: install it (Debian: apt-get install chromium) to run the browser tests")
    opened = browser.Browser()
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The page's scripts beside a page that is nothing else."""
    folder = tmp_path_factory.mktemp("calculator")
    for name, content in page_files({}).items():
        (folder / Path(name).name).write_bytes(content)
    browser.lone_page(folder, "calculator")
    return folder


@pytest.mark.browser
def test_the_page_computes_what_the_package_computes(chromium, folder):
    asked = questions(500)
    with chromium.page() as page:
        page.goto(folder / "index.html")
        answered = page.js(f"""{json.dumps(asked)}.map(q => {{ const a = klCalculator.answer(klCalculatorData, q), r = a.room;
            return r.split ? {{split: true}} : {{fits: r.batch, devices: r.devices, weights: r.weights, sequence: r.sequence,
            first: a.first, decode: a.decode, dollars: a.dollars, ...a.spent, less: a.cheaper?.less ?? 0,
            there: a.cheaper?.way.devices ?? 0}}; }})""")
    assert sum("split" not in one for one in answered) > 400
    assert sum(one["layout"] != "" for one in asked) > 100
    assert sum(one.get("less", 0) > 0 for one in answered) > 50
    for i, (question, got) in enumerate(zip(asked, answered, strict=True)):
        other, want = {name: got.pop(name, 0) for name in ("less", "there")}, expected(question)
        assert got == pytest.approx(want, rel=1e-9), question
        if "split" not in want and i % 10 == 0:
            total = want["dollars"] / question["price"] * 3600
            assert other == pytest.approx(cheaper(question, total, room_of(question)), rel=1e-9), question


@pytest.mark.browser
def test_attention_overtakes_the_parameters_where_the_package_says(chromium, folder):
    """To a thousandth, with this policy and batch; a search halves its way there on the package's own step."""
    asked = [q | {"n_out": 8192} for q in questions(150)]
    with chromium.page() as page:
        page.goto(folder / "index.html")
        answered = page.js(f"""{json.dumps(asked)}.map(q => {{ const a = klCalculator.answer(klCalculatorData, q);
            return a.room.split ? "split" : klCalculator.crossing(a.at, klCalculatorData.policies[q.policy]) ?? null; }})""")
    compared = 0
    for q, got in zip(asked, answered, strict=True):
        if got == "split" or (room := room_of(q)).reason:
            continue
        clock = Datasheet(room.hardware, "max", room.precision, room.layout)

        def over(context: float, q=q, room=room, clock=clock) -> bool:
            step = clock.step(room.shape, q["batch"] or room.batch, context, parse_policy(q["policy"]))
            return sum(step.get(part, 0) for part in ("attention", "search", "state")) >= step["parameters"]

        if got is None:
            assert not over(2**20), q
        elif got == 256:
            assert over(256), q
        else:
            assert over(got * 1.001), q
            assert not over(got / 1.001), q
            compared += 1
    assert compared > 20


@pytest.mark.browser
def test_fitted_clocks_are_the_packages(chromium, folder):
    """On one device and on several, whose links count, with weights and cache as they are stored."""
    draw, names = random.Random(7), sorted(calculator_data()["clocks"])
    assert "h200:vllm" in names
    asked, want = [], []
    for name in draw.sample(names, 6):
        gpu, engine = name.split(":")
        fitted = calibrated(Silicon(gpu, engine))
        for q in draw.sample(questions(200), 8):
            q |= {"hardware": gpu, "clock": engine, "n_out": 8192, "devices": draw.choice([None, 1, 2, 8])}
            shape, stored = (
                MODELS[q["model"]],
                find_precision(q["weights"] or None, q["kv"] or None, q["model"]),
            )
            length = q["n_in"] + q["n_out"]
            room = fit(
                shape, HARDWARE[gpu], stored, length, q["batch"], reserve=q["reserve"], devices=q["devices"]
            )
            q["layout"] = ""
            if room.layout.why_not(shape):
                continue
            clock = replace(fitted, layout=room.layout, precision=stored)
            batch, policy = q["batch"] or max(room.batch, 1), parse_policy(q["policy"])
            decode = float(sum(answer_seconds(clock, shape, q["n_in"], q["n_out"], batch, policy).values()))
            asked.append(q)
            want.append([decode, float(clock.prefill(shape, q["n_in"])), room.devices])
    assert {1, 8} <= {devices for *_, devices in want}
    with chromium.page() as page:
        page.goto(folder / "index.html")
        got = page.js(f"""{json.dumps(asked)}.map(q => {{ const a = klCalculator.answer(klCalculatorData, q);
            return [a.decode, a.first, a.room.devices]; }})""")
    for question, found, wanted in zip(asked, got, want, strict=True):
        assert found == pytest.approx(wanted, rel=1e-9), question


@pytest.mark.browser
def test_the_command_that_the_page_copies_prints_its_numbers(chromium, folder, capsys):
    """On one device and on several, by the datasheet and by fitted constants, stored otherwise than published."""
    asked = [
        "model=qwen3-32b&hardware=h200&devices=4&clock=vllm&weights=fp8&n_in=700&n_out=8192",
        "model=gpt-oss-120b&hardware=b200&policy=block_topk:1024:16&batch=16&reserve=20&answers=5",
        "model=gpt-oss-120b&hardware=b200&batch=16&reserve=20&answers=40",
        "model=deepseek-v3&hardware=h200&layout=tensor:8&n_in=700&n_out=8192",
        "model=deepseek-v3&hardware=h200&devices=8&layout=tensor:1,data:8",
    ]
    for address in asked:
        with chromium.page() as page:
            page.goto(f"file://{folder / 'index.html'}#{address}")
            line = page.js("document.querySelector('#kl-calculator code').textContent")
            said = page.js("document.querySelector('.kl-calc-said').textContent")
            legend = page.js("document.querySelector('.kl-calc-legend').textContent")
            table = page.js("document.querySelector('#kl-calculator table').textContent")
        assert ("--layout" in line) == ("layout" in address)
        assert cli.main([*line.split()[1:], "--json"]) == 0
        printed = json.loads(capsys.readouterr().out)
        step, other = printed["step"], printed["cheaper"]
        assert f" {step['device_seconds']:.3g} seconds of one device" in legend
        where = other and (
            f"{other['devices']} devices ({other['layout']})" if other["devices"] > 1 else "one device"
        )
        assert ("would cost" in said) == bool(other)
        assert not other or said.endswith(
            f" On {where} an answer would cost {100 * other['less']:.0f}% less."
        )
        if "answers=" in address:
            rounds = -(-int(address.split("answers=")[1]) // 16)
            how = f"in {rounds} rounds of the batch" if rounds > 1 else "side by side"
            assert f", {how}, {step['seconds_to_all']:,.3g} s" in table
            assert step["seconds_to_all"] == pytest.approx(
                step["seconds_to_first_token"]
                + rounds * (step["seconds_to_an_answer"] - step["seconds_to_first_token"])
            )
        assert (
            f"A step takes {1e3 * step['seconds']:.3g} ms, an answer {step['seconds_to_an_answer']:.3g} s"
            in said
        )


def test_every_device_has_a_link_for_the_page_to_count():
    assert all(device.link > 0 for device in HARDWARE.values())


@pytest.mark.browser
def test_the_page_answers_a_change_and_says_what_is_wrong_beside_the_field(chromium, folder):
    with chromium.page(width=390) as page:
        page.goto(folder / "index.html")
        said = page.js("document.querySelector('.kl-calc-said').textContent")
        assert said.startswith("qwen3-8b fits on one H200 SXM with ")
        drawn = page.js("document.querySelector('.kl-calc-figure').textContent")
        assert "Dense attention overtakes the parameters at about" in drawn
        command = page.js("document.querySelector('#kl-calculator code').textContent")
        assert (
            command
            == "kinetics-lab cost --model qwen3-8b --hardware h200 --n-in 1024 --n-out 16384 --combine max"
        )
        type_into = "(e => {{ e.value = {value}; e.dispatchEvent(new Event('input', {{bubbles: true}})); }})(document.getElementById('kl-{key}'))"
        page.js(type_into.format(key="n_out", value=json.dumps("<img src=x onerror=alert(1)>")))
        assert (
            page.js("document.getElementById('kl-note-n_out').textContent")
            == "must be a whole number from 1 to 10,000,000"
        )
        assert page.js("document.querySelectorAll('#kl-calculator img').length") == 0
        for part in (
            "code",
            "table",
            "figure",
            ".kl-calc-legend",
        ):  # nothing answers a question that was not asked
            assert page.js(f"document.querySelector('#kl-calculator {part}').textContent") == ""
        page.js(type_into.format(key="n_out", value=json.dumps("4096")))
        page.js(type_into.format(key="hardware", value=json.dumps("tpu-v5e")))
        page.js(type_into.format(key="model", value=json.dumps("llama3-405b")))
        assert "It does not fit: llama3-405b: 811.7 GB of weights" in page.js(
            "document.querySelector('.kl-calc-said').textContent"
        )
        assert "n_out=4096" in page.js("location.hash")
        page.js(type_into.format(key="model", value=json.dumps("deepseek-v3.2")))  # its attention is sparse
        page.js(type_into.format(key="policy", value=json.dumps("topk:1024:false")))
        drawn = page.js("document.querySelector('.kl-calc-figure').textContent")
        assert "Its own attention" in drawn
        assert "Dense" not in drawn
        assert ":false" not in drawn + page.js("document.getElementById('kl-policy').textContent")
        assert page.js("document.documentElement.scrollWidth") <= 390
        labelled = "[...document.querySelectorAll('#kl-calculator :is(select, input)')].every(e => e.labels.length === 1)"
        assert page.js(labelled)


def test_its_data_are_the_packages_own_and_small():
    content = page_files({})["book/_static/kl-calculator-data.js"]
    assert len(content) < 200_000
    data = calculator_data()
    assert set(data["models"]) == set(MODELS)
    assert set(data["hardware"]) == set(HARDWARE)
    assert b"<" not in content  # nothing in it closes a script


def test_the_static_answer_is_what_the_command_prints():
    text = made_for_the_book()["book/calculator-default.txt"].decode()
    assert text.startswith(
        "$ kinetics-lab cost --model qwen3-8b --hardware h200 --n-in 1024 --n-out 16384 --combine max\n"
    )
    assert "fits     one H200 SXM: 16.4 GB of weights" in text
