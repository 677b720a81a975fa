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
from kinetics_lab.cost.hardware import ELEMENT_BYTES, HARDWARE
from kinetics_lab.cost.models import CONFIGS, MODELS
from kinetics_lab.cost.policies import Dense, parse_policy
from kinetics_lab.cost.precision import RATES, Precision, find_precision
from kinetics_lab.cost.shapes import CACHE_KINDS, PARAMETER_KINDS, ModelShape
from kinetics_lab.cost.shapes.parts import Attention, Experts
from kinetics_lab.cost.silicon import measured_engines
from kinetics_lab.cost.silicon.tables import ENGINE_NAMES, L2_BYTES
from kinetics_lab.cost.step import blocks, routed
from kinetics_lab.errors import require
from kinetics_lab.laws.resample import interval, problem_weights
from kinetics_lab.planner.offers import PUBLIC
from kinetics_lab.planner.price import counts

POLICIES = ("dense", "block_topk:1024:32", "block_topk:512:32", "topk:1024:false", "local:1024:16")
#: The question that the page opens with, as arguments of ``kinetics-lab cost``.
QUESTION: dict[str, Any] = {
    "model": "qwen3-8b",
    "hardware": "h200",
    "n_in": 1024,
    "n_out": 16384,
    "combine": "max",
}
WEIGHTS, CACHES = ("bf16", "fp8", "nvfp4", "mxfp4", "int4"), ("bf16", "fp8")


#: Public results -> what they are called on the planner's page, and the budget (s) that it opens with.
SETS = {
    "aime24": ("AIME 2024, six sizes of Qwen3", 5.0),
    "otis": ("OTIS Mock AIME 2024 and 2025, large open-weight models", 100.0),
    "ladder": ("Walks in graphs, five tiny reasoners of Part IV", 1e-6),
}
#: The question that the planner opens with, as arguments of ``kinetics-lab plan``.
PLANNED: dict[str, Any] = {"data": "aime24", "budget": [5.0], "hardware": "h200", "price": 2.5}
ALPHABET = "".join(chr(code) for code in range(35, 126) if chr(code) not in "<>&\\'")[
    :81
]  # digits of packed numbers
Set = tuple[pd.DataFrame, Mapping[str, ModelShape], int]  # a summary, its shapes, layers that stay dense


def calculator_data() -> dict[str, Any]:
    """All tables of the calculator, as JSON takes them; sizes in elements, rates in SI units."""
    at, weights = np.polynomial.legendre.leggauss(NODES)
    nodes = [((x + 1) / 2, w / 2) for x, w in zip(at.tolist(), weights.tolist(), strict=True)]
    return _tables(MODELS, POLICIES) | {"nodes": nodes, "first": QUESTION}


def planner_data(sets: Mapping[str, Set]) -> dict[str, Any]:
    """All tables of the planner: of each set the answers to every problem in every setting, and the resamples of its problems."""
    shapes = {name: known[name] for data, known, _ in sets.values() for name in data.model.unique()}
    policies = dict.fromkeys(text for data, _, _ in sets.values() for text in data.policy)
    found = {name: _set(name, data, dense) for name, (data, _, dense) in sets.items()}
    return _tables(shapes, policies) | {"sets": found, "alphabet": ALPHABET, "first": PLANNED}


def page_files(sets: Mapping[str, Set]) -> dict[str, bytes]:
    """The data files of both pages, by their path in the book's folder."""
    files = {"Calculator": calculator_data(), "Planner": planner_data(sets)}
    texts = {name: json.dumps(data, separators=(",", ":"), allow_nan=False) for name, data in files.items()}
    return {
        f"book/_static/kl-{name.lower()}-data.js": f"window.kl{name}Data={text};\n".replace(
            "<", "\\u003c"
        ).encode()
        for name, text in texts.items()
    }


def _tables(shapes: Mapping[str, ModelShape], policies: Iterable[str]) -> dict[str, Any]:
    return {
        "models": {name: _model(shape) for name, shape in shapes.items()},
        "hardware": {name: {"name": name, "peaks": dict(hw.peaks), "peak": hw.peak_flops, "bandwidth": hw.bandwidth, "memory": hw.memory,
                            "link": hw.link, "own": hw.precision, "source": hw.source} for name, hw in HARDWARE.items()},
        "policies": {text: _policy(text) for text in policies},
        "element_bytes": ELEMENT_BYTES,
        "rates": RATES,
        "plain": Precision().stored,
        "kinds": [*CACHE_KINDS, *PARAMETER_KINDS],
        "weights": WEIGHTS,
        "caches": CACHES,
        "clocks": _clocks(),
    }  # fmt: skip


def _set(name: str, data: pd.DataFrame, dense: int) -> dict[str, Any]:
    """One set; of each setting n (or n by problem), prompts, and problem by problem, packed, right answers, E[L] and E[L^2]."""
    problems, settings, prompts = sorted(data.problem.unique()), list[Any](), list[list[int]]()
    lengths = [data[column].to_numpy() for column in ("mean_tokens", "mean_sq_tokens")]
    n = data.n_traces.to_numpy()
    summed = [
        bool((one * n % 1 == 0).all()) for one in lengths
    ]  # as sums where these are whole, else to the thousandth
    whole = [np.rint(one * (n if total else 1000)) for one, total in zip(lengths, summed, strict=True)]
    kept = all(
        (w / (n if total else 1000) == one).all()
        for w, one, total in zip(whole, lengths, summed, strict=True)
    )
    require(kept, f"{name}: lengths must be sums of whole numbers, or be rounded to thousandths", summed)
    columns = [data.n_correct.to_numpy(), *whole]
    digits = [int(np.ceil(np.log(one.max() + 1) / np.log(len(ALPHABET)))) for one in columns]
    for (model, policy), rows in data.groupby(["model", "policy"], sort=False):
        every = list(rows.problem) == problems
        require(every, f"{name}: every setting must have every problem, sorted", (model, policy))
        asked, traces = rows.tokens_in.astype(int).tolist(), rows.n_traces.tolist()
        prompts += [] if asked in prompts else [asked]  # most settings share them
        packed = _packed([one[rows.index] for one in columns], digits)
        settings.append(
            [model, policy, traces if np.ptp(traces) else traces[0], prompts.index(asked), packed]
        )
    drawn = np.rint(problem_weights(len(problems), 1000) * len(problems)).ravel()
    require(drawn.max() < 9, f"{name}: a resample must hold a problem at most 8 times", drawn.max())
    ends = interval(np.linspace(0, 1, 1001), len(problems))  # of an interval, as quantiles
    title, budget = SETS[name]
    return {"title": title, "task": PUBLIC[name][1], "problems": problems, "prompts": prompts, "settings": settings, "summed": summed,
            "digits": digits, "budget": budget, "dense_layers": dense, "counts": counts([], int(n.max())).tolist(),
            "resamples": _packed([drawn.reshape(-1, 2) @ [9, 1]], [1]), "ends": [float(end) for end in ends]}  # fmt: skip


def _packed(columns: list[np.ndarray], digits: list[int]) -> str:
    """Whole numbers as text, row by row, each with so many digits of ``ALPHABET``."""
    text = [
        ALPHABET[int(value) // 81**place % 81]
        for row in zip(*columns, strict=True)
        for value, width in zip(row, digits, strict=True)
        for place in reversed(range(width))
    ]
    return "".join(text)


@cache
def _clocks() -> dict[str, Any]:
    """The law's four constants for each GPU and engine that was measured in BF16, and the error on models not seen."""
    found = {}
    for silicon in (one for gpu in L2_BYTES for one in measured_engines(gpu)):
        clock = calibrated(silicon)
        constants = {
            name: getattr(clock, name) for name in ("layer", "weights", "cache", "matrix", "error", "p90")
        }
        found[f"{silicon.gpu}:{silicon.engine}"] = {"engine": ENGINE_NAMES[silicon.engine], **constants}
    return found


def _policy(text: str) -> dict[str, float | None]:
    policy = parse_policy(text)
    if isinstance(policy, Dense):
        return {"tokens": None, "scored": 0}
    return {"tokens": float(policy.tokens_read), "scored": float(policy.keys_scored_per_token)}


def _model(shape: ModelShape) -> dict[str, Any]:
    stored = find_precision(model=shape.name if shape.name in CONFIGS else None)
    experts = [
        {"count": count, "experts": one.count, "chosen": one.chosen, "each": one.each}
        for one, count in shape.parts.items()
        if isinstance(one, Experts)
    ]
    return {
        "name": shape.name,
        "family": shape.family,
        "hidden": shape.hidden,
        "layers": shape.n_layers,
        "parameters": {kind: int(count) for kind, count in shape.parameters.items()},
        "active": shape.n_active_params,
        "multiplied": shape.n_matmul_params,
        "blocks": blocks(shape),
        "routed": routed(shape),
        "experts": experts,
        "mixers": [{"count": count, **_mixer(one)} for one, count in shape.mixers.items()],
        "precision": {"weights": stored.weights, "rate": stored.rate_name, "stored": stored.stored},
    }


def _mixer(one: Any) -> dict[str, Any]:
    if not isinstance(one, Attention):
        return {"recurrent": one.recurrent, "conv": one.conv, "flops": one.flops}
    names = (
        "heads",
        "kv_heads",
        "latent",
        "unabsorbed",
        "window",
        "chunk",
        "stride",
        "topk",
        "index",
        "index_heads",
        "owns",
    )
    found = {name: getattr(one, name) for name in (*names, "entry", "keys", "flops", "score_flops", "whole")}
    return {name: None if value == math.inf else value for name, value in found.items()}
