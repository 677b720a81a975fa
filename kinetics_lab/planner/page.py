"""What the calculator's page computes with, written into the book by the build: models, devices, precisions, clocks."""

from __future__ import annotations

import json
import math
from functools import cache
from typing import Any

import numpy as np

from kinetics_lab.cost.clock import NODES, calibrated
from kinetics_lab.cost.hardware import ELEMENT_BYTES, HARDWARE
from kinetics_lab.cost.models import MODELS
from kinetics_lab.cost.policies import Dense, parse_policy
from kinetics_lab.cost.precision import RATES, Precision, find_precision
from kinetics_lab.cost.shapes import CACHE_KINDS, PARAMETER_KINDS, ModelShape
from kinetics_lab.cost.shapes.parts import Attention, Experts
from kinetics_lab.cost.silicon import measured_engines
from kinetics_lab.cost.silicon.tables import ENGINE_NAMES, L2_BYTES
from kinetics_lab.cost.step import blocks, routed

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


def calculator_data() -> dict[str, Any]:
    """All tables of the calculator, as JSON takes them; sizes in elements, rates in SI units."""
    at, weights = np.polynomial.legendre.leggauss(NODES)
    return {
        "models": {name: _model(shape) for name, shape in MODELS.items()},
        "hardware": {name: {"peaks": dict(hw.peaks), "peak": hw.peak_flops, "bandwidth": hw.bandwidth, "memory": hw.memory,
                            "link": hw.link, "source": hw.source} for name, hw in HARDWARE.items()},
        "policies": {text: _policy(text) for text in POLICIES},
        "element_bytes": ELEMENT_BYTES,
        "rates": RATES,
        "plain": Precision().stored,
        "kinds": [*CACHE_KINDS, *PARAMETER_KINDS],
        "weights": WEIGHTS,
        "caches": CACHES,
        "nodes": [((x + 1) / 2, w / 2) for x, w in zip(at.tolist(), weights.tolist(), strict=True)],
        "first": QUESTION,
        "clocks": _clocks(),
    }  # fmt: skip


def calculator_files() -> dict[str, bytes]:
    """The files of the page, by their path in the book's folder."""
    text = json.dumps(calculator_data(), separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    return {"book/_static/kl-calculator-data.js": f"window.klCalculatorData={text};\n".encode()}


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
    stored = find_precision(model=shape.name)
    experts = [
        {"count": count, "experts": one.count, "chosen": one.chosen, "each": one.each}
        for one, count in shape.parts.items()
        if isinstance(one, Experts)
    ]
    return {
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
