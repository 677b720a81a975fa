"""Rows that no GPU has measured, in the form that a GPU would leave, and what a chapter shows of them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from kinetics_lab.book.parameters import read_notebook
from kinetics_lab.measure import limits
from kinetics_lab.measure import runner as measure
from kinetics_lab.measure.bench import Bench
from kinetics_lab.measure.suites import SUITES
from kinetics_lab.measure.timers import WallTimer, summary

CHAPTERS = {
    "roofline": "20_what_can_this_gpu_do",
    "dense": "21_how_near_the_limit_is_dense_decoding",
    "topk": "22_how_does_block_topk_find_its_pages",
    "layer": "23_how_much_faster_is_a_sparse_layer",
    "validate": "24_does_the_cost_law_predict_milliseconds",
    "model": "25_from_kernel_to_whole_model",
}
NOTEBOOKS = Path(__file__).parent.parent / "notebooks"
GPU = "synthetic-rows-of-a-test-no-h200"


class SyntheticBench(Bench):
    """A bench that calls itself what it is; nothing runs on it."""

    def has_memory(self, needed):
        return True

    def provenance(self):
        return super().provenance() | {"driver": "none", "flashinfer": "0.0"}


def made_up(suite):
    """The suite with times from its limits, a share of them and a few microseconds, in place of measured ones."""

    def run(case, bench):
        found = suite.predict(case, limits.datasheet_rates(GPU))
        limit, noise = found["limit_us"], np.random.default_rng(int(found["bytes"]) % 2**32)
        shares = {
            "roofline": {"time": 0.88} | ({"copy": 0.9} if case.get("kind") == "both" else {}),
            "dense": {
                "ours": 0.9,
                "sdpa": 0.7,
                "flex": 0.6,
                "flashinfer": 0.85,
                "flashinfer_paged": 0.91,
                "flash_attn": 0.88,
            },
            "ragged": {"ours": 0.87, "flashinfer": 0.8},
            "topk": dict.fromkeys(
                ("append", "score", "score_select", "select", "torch_topk", "attend", "step"), 0.8
            ),
            "layer": {"gemm": 0.7, "attention": 0.8, "layer": 0.8, "dense": 0.9, "dense_layer": 0.9},
            "validate": {"gemm": 0.7, "attention": 0.8, "layer": 0.8},
            "fp8": {"fp8": 0.8, "bf16": 0.45},
            "model": {"dense": 0.85, "sparse": 0.8, "first_dense": 0.8, "rest": 0.8, "peer": 0.7},
        }[suite.name]
        bases = {}
        if suite.name == "layer":
            bases = dict.fromkeys(("dense", "dense_layer"), found["dense_limit_us"])
        if suite.name == "model":
            bases = {name: found[f"{name}_limit_us"] for name in ("dense", "first_dense", "rest")}
            bases["peer"] = found["dense_limit_us"]
        row = {}
        for name, share in shares.items():
            us = (bases.get(name, limit) / share + 3) * np.exp(noise.normal(0, 0.02, 20))
            row |= {f"{name}_{key}": value for key, value in summary(us * 1e-6, "graph").items()}
        if "copy" in shares:
            row |= {"bandwidth": 4.3e12, "matrix_rate": 7.9e14, "intensity": 7.9e14 / 4.3e12}
        if suite.name == "dense":
            row |= {f"{name}_distance": 1e-3 for name in shares if name != "ours"}
        if suite.name == "topk":
            row["torch_topk_agrees"] = 1.0
        if suite.name == "layer":
            row["speedup"] = row["dense_layer_us"] / row["layer_us"]
        if suite.name == "fp8":
            row |= {"fp8_distance": 0.03, "speedup": row["bf16_us"] / row["fp8_us"]}
        if suite.name == "model":
            dense, sparse, first, peer = (row[f"{n}_us"] for n in ("dense", "sparse", "first_dense", "peer"))
            row |= {"speedup": dense / sparse, "first_dense_speedup": dense / first, "peer_over_dense": peer / dense,
                    "tokens_per_s": case["batch"] / sparse * 1e6, "dense_tokens_per_s": case["batch"] / dense * 1e6,
                    "gpu_memory_bytes": 141e9}  # fmt: skip
        return row

    return replace(suite, measure=run)


def write(folder, *names, **changes):
    """Rows of the suites in ``folder``; ``changes`` to the bench."""
    bench = SyntheticBench("cuda", "Synthetic rows of a test, no H200", WallTimer())
    for name, value in changes.items():
        setattr(bench, name, value)
    assert bench.folder == GPU
    for name in names:
        assert measure.run_suite(made_up(SUITES[name]), folder, bench, say=lambda line: None)
    return bench


def outputs(run):
    """Everything a notebook shows: text, and the titles of its charts."""
    shown, titles = [], []
    for cell in read_notebook(run.executed).cells:
        for output in cell.get("outputs", []):
            assert output.get("name") != "stderr", output
            for kind, data in output.get("data", {}).items():
                if "vegalite" in kind:
                    titles.append(json.dumps(data["title"]))
                elif kind.startswith("text/"):
                    shown.append("".join(data))
    return "\n".join(shown), titles
