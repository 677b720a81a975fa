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
from kinetics_lab.cost.fit import fit
from kinetics_lab.cost.precision import find_precision
from kinetics_lab.cost.silicon import Silicon
from kinetics_lab.cost.step import prefill_seconds
from kinetics_lab.planner.page import CACHES, POLICIES, WEIGHTS, calculator_data, page_files

_spec = importlib.util.spec_from_file_location("browser", Path(__file__).with_name("browser.py"))
browser = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(browser)


def questions(count: int) -> list[dict]:
    """Random questions, the batch that fits among them."""
    draw = random.Random(5)
    asked = []
    for _ in range(count):
        asked.append({
            "model": draw.choice(sorted(MODELS)), "hardware": draw.choice(sorted(HARDWARE)), "policy": draw.choice(POLICIES),
            "weights": draw.choice(["", *WEIGHTS]), "kv": draw.choice(["", *CACHES]), "n_in": draw.choice([0, 1, 700, 8191, 90_000]),
            "n_out": draw.choice([1, 500, 8192, 60_000]), "batch": draw.choice([None, None, 1, 16, 333]), "clock": "",
            "devices": draw.choice([None, None, None, 1, 8]), "reserve": draw.choice([0, 0.1, 0.25]), "price": 2.5, "answers": 1,
        })  # fmt: skip
    return asked


def expected(q: dict) -> dict:
    """The same from the package."""
    shape, device = MODELS[q["model"]], HARDWARE[q["hardware"]]
    stored = find_precision(q["weights"] or None, q["kv"] or None, q["model"])
    room = fit(
        shape, device, stored, q["n_in"] + q["n_out"], q["batch"], reserve=q["reserve"], devices=q["devices"]
    )
    if room.layout.why_not(shape):
        return {"split": True}
    batch, clock = q["batch"] or max(room.batch, 1), Datasheet(device, "max", stored, room.layout)
    whole = answer_seconds(clock, shape, q["n_in"], q["n_out"], batch, parse_policy(q["policy"]))
    first = float(prefill_seconds(shape, device, q["n_in"], precision=stored, layout=room.layout))
    decode = float(sum(whole.values()))
    hours = (decode / batch * room.devices + first * room.layout.tensor) / 3600
    return {"fits": room.batch, "devices": room.devices, "weights": room.weights, "sequence": room.sequence,
            "first": first, "decode": decode, "dollars": hours * q["price"], "prefill": first * room.layout.tensor,
            **{name: float(part) / batch * room.devices for name, part in whole.items()}}  # fmt: skip


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
            first: a.first, decode: a.decode, dollars: a.dollars, ...a.spent}}; }})""")
    assert sum("split" not in one for one in answered) > 400
    for question, got in zip(asked, answered, strict=True):
        assert got == pytest.approx(expected(question), rel=1e-9), question


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
        "model=gpt-oss-120b&hardware=b200&policy=block_topk:1024:32&batch=16&reserve=20",
    ]
    for address in asked:
        with chromium.page() as page:
            page.goto(f"file://{folder / 'index.html'}#{address}")
            line = page.js("document.querySelector('#kl-calculator code').textContent")
            said = page.js("document.querySelector('.kl-calc-said').textContent")
        assert cli.main([*line.split()[1:], "--json"]) == 0
        step = json.loads(capsys.readouterr().out)["step"]
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
        assert said.startswith("qwen3-8b fits on one h200 with ")
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
        page.js(type_into.format(key="n_out", value=json.dumps("4096")))
        page.js(type_into.format(key="hardware", value=json.dumps("tpu-v5e")))
        page.js(type_into.format(key="model", value=json.dumps("llama3-405b")))
        assert "It does not fit: llama3-405b: 811.7 GB of weights" in page.js(
            "document.querySelector('.kl-calc-said').textContent"
        )
        assert "n_out=4096" in page.js("location.hash")
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
    assert "fits     one h200: 16.4 GB of weights" in text
