"""What the answer pages compute with, written into the book by the build: models, devices, precisions, clocks, public results."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

import numpy as np
import pandas as pd

from kinetics_lab.cost.clock import NODES, calibrated
from kinetics_lab.cost.fit import COUNTS, Layout, layouts
from kinetics_lab.cost.hardware import ELEMENT_BYTES, HARDWARE
from kinetics_lab.cost.models import CONFIGS, MODELS
from kinetics_lab.cost.policies import Dense, parse_policy
from kinetics_lab.cost.precision import RATES, Precision, find_precision
from kinetics_lab.cost.shapes import CACHE_KINDS, PARAMETER_KINDS, ModelShape
from kinetics_lab.cost.shapes.parts import Attention, Experts
from kinetics_lab.cost.silicon import measured_engines
from kinetics_lab.cost.silicon.serving import SERVED, against_serving
from kinetics_lab.cost.silicon.tables import ENGINE_NAMES, L2_BYTES
from kinetics_lab.cost.step import blocks, routed
from kinetics_lab.data import read_table
from kinetics_lab.errors import require
from kinetics_lab.laws.resample import interval, problem_weights
from kinetics_lab.planner.offers import PUBLIC, load, offered, why_not_all, with_predicted
from kinetics_lab.planner.plan import FRUGAL, TIE
from kinetics_lab.planner.price import counts, published
from kinetics_lab.planner.serve import AS_IT_IS, ENGINES, ROOM, checkpoint, with_contexts

#: The questions that the pages open with, as arguments of ``kinetics-lab cost`` and ``kinetics-lab plan``.
QUESTION: dict[str, Any] = {"model": "qwen3-8b", "hardware": "h200", "n_in": 1024, "n_out": 16384, "combine": "max"}  # fmt: skip
PLANNED: dict[str, Any] = {"data": "aime24", "budget": [5], "hardware": "h200", "price": 3.99}
WEIGHTS, CACHES = ("bf16", "fp8", "nvfp4", "mxfp4", "int4"), ("bf16", "fp8")
#: Public results -> what they are called on the planner's page, and the budget (s) to begin with.
SETS = {
    "aime24": ("AIME 2024, six sizes of Qwen3", 5.0),
    "otis": ("OTIS Mock AIME, large open-weight models", 100.0),
    "ladder": ("Walks in graphs, the tiny reasoners of Part IV", 1e-6),
}
DIGITS = "".join(chr(code) for code in range(35, 126) if chr(code) not in "<>&\\'")[:81]  # of packed numbers
MIXER = "heads kv_heads unabsorbed window chunk stride topk index index_heads owns entry keys flops score_flops whole"
Set = tuple[pd.DataFrame, Mapping[str, ModelShape], int]  # a summary, its shapes, layers that stay dense


def calculator_data() -> dict[str, Any]:
    """All tables of the calculator, as JSON takes them; sizes in elements, rates in SI units."""
    at, weights = np.polynomial.legendre.leggauss(NODES)
    nodes = [((x + 1) / 2, w / 2) for x, w in zip(at.tolist(), weights.tolist(), strict=True)]
    found = _tables(MODELS, policies()) | {"nodes": nodes, "first": QUESTION}
    for name in MODELS:
        found["models"][name]["precision"] = _stored(find_precision(model=name if name in CONFIGS else None))
    return found


def policies() -> list[str]:
    """Those of the calculator: of the planner's answers of Qwen3, oracle top-k as an engine could have it; and a window, which nobody ran."""
    tried = {text: text.split(":") for text in {*offered(load(), "scan").policy} - {"dense"}}
    return ["dense", *sorted(tried, key=lambda text: (tried[text][0], int(tried[text][1]))), "local:1024:16"]


def planner_data(sets: Mapping[str, Set]) -> dict[str, Any]:
    """All tables of the planner: of each set the answers to every problem in every setting, and the resamples of its problems."""
    shapes = {name: known[name] for data, known, _ in sets.values() for name in data.model.unique()}
    known = {name: with_predicted(data) if name == "aime24" else data for name, (data, _, _) in sets.items()}
    found = {name: _set(name, data, sets[name][2]) for name, data in known.items()}
    tables = _tables(shapes, dict.fromkeys(text for data in known.values() for text in data.policy))
    for name, one in published(PUBLIC["otis"][3]).items():
        if name in shapes:
            tables["models"][name]["precision"] = _stored(one)
    start = {"engines": ENGINES, "as_it_is": AS_IT_IS, "room": ROOM, "checkpoints": {n: checkpoint(n) for n in shapes}}  # fmt: skip
    return tables | {"sets": found, "digits": DIGITS, "tie": TIE, "frugal": FRUGAL, "first": PLANNED} | start


def page_files(sets: Mapping[str, Set]) -> dict[str, bytes]:
    """The data files of both pages, by their path in the book's folder."""
    tables = {"Calculator": calculator_data(), "Planner": planner_data(sets)}
    texts = {name: json.dumps(data, separators=(",", ":"), allow_nan=False) for name, data in tables.items()}
    return {f"book/_static/kl-{name.lower()}-data.js": f"window.kl{name}Data={text};\n".replace("<", "\\u003c").encode()
            for name, text in texts.items()}  # fmt: skip


def _tables(shapes: Mapping[str, ModelShape], policies: Iterable[str]) -> dict[str, Any]:
    own = {hw.precision for hw in HARDWARE.values()} | {"bf16"}
    stored = {name: _stored(Precision(name, name, embedding=name)) for name in sorted(own)}
    return {
        "models": {name: _model(shape) for name, shape in shapes.items()},
        "hardware": {name: {"title": hw.title, "peaks": dict(hw.peaks), "peak": hw.peak_flops, "bandwidth": hw.bandwidth, "memory": hw.memory,
                            "link": hw.link, "own": hw.precision} for name, hw in HARDWARE.items()},
        "policies": {text: _policy(text) for text in policies},
        "element_bytes": ELEMENT_BYTES, "rates": RATES, "stored": stored, "kinds": [*CACHE_KINDS, *PARAMETER_KINDS],
        "weights": WEIGHTS, "caches": CACHES, **_clocks(), "prices": read_table("gpu_prices").groupby("gpu").usd_per_hour.min().to_dict(),
    }  # fmt: skip


def _set(name: str, data: pd.DataFrame, dense: int) -> dict[str, Any]:
    """One set: its settings, each with a place among the prompts that most share, and the resamples of its problems, packed."""
    problems, settings, prompts = sorted(data.problem.unique()), list[Any](), list[list[int]]()
    data = with_contexts(data, data)
    every = counts((), int(data.n_traces.max()))
    for (model, policy), rows in data.groupby(["model", "policy"], sort=False):
        whole = list(rows.problem) == problems and rows.n_traces.max() <= 64
        rule = f"{name}: a setting must have all problems, sorted, and at most 64 traces of each"
        require(whole, rule, (model, policy))
        asked = rows.tokens_in.astype(int).tolist()
        prompts += [] if asked in prompts else [asked]
        few = why_not_all(rows.set_index("problem").n_traces, rows.problem.unique(), "", every)
        settings.append([model, policy, prompts.index(asked), *_answers(name, rows), few, int(rows.context.max())])  # fmt: skip
    drawn = np.rint(problem_weights(len(problems), 1000) * len(problems)).ravel()
    require(drawn.max() < 9, f"{name}: a resample must hold a problem at most 8 times", drawn.max())
    ends = interval(np.linspace(0, 1, 1001), len(problems))  # of an interval, as quantiles
    return {"title": SETS[name][0], "budget": SETS[name][1], "task": PUBLIC[name][1], "dense_layers": dense, "weights": "published" if PUBLIC[name][3] else "", "problems": problems,
            "prompts": prompts, "settings": settings, "ends": [float(end) for end in ends],
            "resamples": _packed([drawn.reshape(-1, 2) @ [9, 1]], [1])}  # fmt: skip


def _answers(name: str, rows: pd.DataFrame) -> list[Any]:
    """Of one setting n (or n by problem), scales and widths of what is packed, and that, problem by problem: right answers (predicted ones
    of each draw), E[L] and E[L^2], as sums (scale 0) where these are whole, else in thousandths."""
    guessed = "drawn" in rows and rows.drawn.notna().all()
    columns, scales, n = list(np.stack([*(rows.drawn if guessed else rows.n_correct)]).T.reshape(-1, len(rows))), list[int](), rows.n_traces.to_numpy()  # fmt: skip
    for lengths in (rows.mean_tokens.to_numpy(), rows.mean_sq_tokens.to_numpy()):
        scales.append(0 if (lengths * n % 1 == 0).all() else 1000)
        columns.append(np.rint(lengths * (scales[-1] or n)))
        kept = bool((columns[-1] / (scales[-1] or n) == lengths).all())
        require(kept, f"{name}: lengths must be sums of whole numbers, or be rounded to thousandths", scales)
    widths = [int(np.ceil(np.log(one.max() + 2) / np.log(81))) for one in columns]
    return [n.tolist() if np.ptp(n) else int(n[0]), scales, widths[-2:], _packed(columns, widths)]


def _packed(columns: list[np.ndarray], widths: list[int]) -> str:
    """Whole numbers as text, row by row, each as wide as its column says, to the base of 81 ``DIGITS``."""
    cells = (pair for row in zip(*columns, strict=True) for pair in zip(row, widths, strict=True))
    numbers = (int(value) // 81**at % 81 for value, width in cells for at in reversed(range(width)))
    return "".join(DIGITS[number] for number in numbers)


@cache
def _clocks() -> dict[str, Any]:
    """The law's four constants for each GPU and engine that was measured in BF16, the error on models not seen, and that of summed
    kernels against measured servers: of dense models, and by family of experts (chapter 25)."""
    runs, found = against_serving(), {}
    kinds = runs.model.map({name: one.family if one.n_experts else "dense" for name, one in SERVED.items()})
    served = (runs.ratio - 1).abs().groupby(kinds).median().to_dict()
    for silicon in (one for gpu in L2_BYTES for one in measured_engines(gpu)):
        clock = calibrated(silicon)
        told = {name: getattr(clock, name) for name in ("layer", "weights", "cache", "matrix", "error")}
        found[f"{silicon.gpu}:{silicon.engine}"] = {"engine": ENGINE_NAMES[silicon.engine]} | told
    return {"clocks": found, "served": served}


def _policy(text: str) -> dict[str, float | None]:
    policy = parse_policy(text)
    read = None if isinstance(policy, Dense) else float(policy.tokens_read)
    return {"tokens": read, "scored": 0 if read is None else float(policy.keys_scored_per_token)}


def _model(shape: ModelShape) -> dict[str, Any]:
    experts = [(one, count) for one, count in shape.parts.items() if isinstance(one, Experts)]
    return {
        "name": shape.name, "family": shape.family, "hidden": shape.hidden, "layers": shape.n_layers,
        "parameters": {kind: int(count) for kind, count in shape.parameters.items()}, "multiplied": shape.n_matmul_params,
        "blocks": blocks(shape), "routed": routed(shape),
        "experts": [{"count": count, "experts": one.count, "chosen": one.chosen, "each": one.each} for one, count in experts],
        "mixers": [{"count": count, **_mixer(one)} for one, count in shape.mixers.items()],
        "ways": [_way(shape, way) for count in COUNTS for way in layouts(shape, count)],
    }  # fmt: skip


def _stored(one: Precision) -> dict[str, Any]:
    return {"weights": one.weights, "rate": one.rate_name, "stored": one.stored}


def _way(shape: ModelShape, way: Layout) -> dict[str, Any]:
    """A layout: what a device has of kinds that are not split evenly, and of each mixer's keys and values."""
    split = {kind: part for kind, part in way.matrices(shape).items() if part != 1 / way.tensor}
    return {"devices": way.devices, "tensor": way.tensor, "data": way.data, "why": way.why_not(shape), "share": split,
            "kv": [way.held(one)["kv"] for one in shape.mixers]}  # fmt: skip


def _mixer(one: Any) -> dict[str, Any]:
    names = MIXER.split() if isinstance(one, Attention) else ("recurrent", "conv", "flops")
    return {name: value for name in names if (value := getattr(one, name)) not in (None, math.inf)}
