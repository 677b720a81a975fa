"""What to start for a setting: the command lines of serving engines, or the flag that they lack.

Every flag and value is one that the named release takes: ``data/engine_flags.csv``, read from its wheel.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from kinetics_lab.cost.models import CONFIGS, MODELS
from kinetics_lab.cost.precision import find_precision

#: Engine -> how it starts; its flags for devices, answers side by side, context and memory; how it names weights and caches that it
#: makes of a BF16 checkpoint itself; its flag for groups of devices that share the answers out, each with its own batch.
ENGINES: dict[str, tuple[str, str, str, str, str, dict[str, str], dict[str, str], str]] = {
    "vLLM 0.33.0": ("vllm serve", "--tensor-parallel-size", "--max-num-seqs", "--max-model-len", "--gpu-memory-utilization",
                    {"fp8": "fp8_per_tensor", "mxfp8": "mxfp8"}, {"fp8": "fp8", "nvfp4": "nvfp4"}, "--data-parallel-size"),
    "SGLang 0.5.23": ("sglang serve --model-path", "--tp-size", "--max-running-requests", "--context-length", "--mem-fraction-static",
                      {"fp8": "fp8", "mxfp8": "mxfp8"}, {"fp8": "fp8_e4m3", "nvfp4": "nvfp4"}, ""),
}  # fmt: skip
AS_IT_IS = ("bf16", "paper", "as published")  # weights and caches that need no flag
ROOM = "Engines keep activations and graphs in their share of the memory, too, so they may admit fewer answers side by side."


def checkpoint(model: str) -> str:
    """The name of a known model on the Hugging Face hub, or a place to write yours; "" for the book's tiny ones, which no engine knows."""
    size = model.removeprefix("qwen3-")
    known = model in MODELS and MODELS[model].family in ("qwen3", "qwen3-moe")
    name = "-".join(part.upper() for part in size.split("-"))
    own = "" if re.fullmatch(r"w\d+-s\d+", model) else shlex.quote(f"PATH/OF/{model}")
    return f"Qwen/Qwen3-{name}" if known else own


def with_contexts(summary: pd.DataFrame, data: pd.DataFrame) -> pd.DataFrame:
    """A column ``context``: tokens of a prompt and its answer at most, by setting: no length of n is sqrt(n - 1) deviations off (Samuelson 1968), and none is
    above the longest mean of the task in ``data`` where the answers to that problem are all alike, as they were cut."""
    if "trial" not in data:
        top = data[data.mean_tokens == data.groupby("task").mean_tokens.transform("max")]
        cut = (top.n_traces > 1) & (top.mean_sq_tokens < (1 + 1e-6) * top.mean_tokens**2)  # rounded means
        data = top.assign(tokens_out=top.mean_tokens.where(cut, np.inf))
    limits = summary.task.astype(str).map(data.groupby(data.task.astype(str)).tokens_out.max())
    variance = np.maximum(summary.mean_sq_tokens - summary.mean_tokens**2, 0) * (summary.n_traces - 1)
    total = np.ceil(summary.tokens_in + np.minimum(summary.mean_tokens + np.sqrt(variance), limits) - 1e-6)
    keys = [summary[name] for name in ("task", "model", "policy")]
    return summary.assign(context=total.groupby(keys, observed=True).transform("max"))


def commands(setting: Mapping[Any, Any], weights: str, kv: str, reserve: float = 0.1) -> dict[str, str]:
    """Engine -> the command line that serves a row of a plan, or one sentence that begins with "none: "."""
    found, place = dict[str, str](), checkpoint(setting["model"])
    policy, groups, context = setting["policy"], setting.get("groups", 1), setting.get("context", 0)
    source = setting.get("shape", setting["model"])
    own = find_precision(model=source).weights if source in CONFIGS else "bf16"
    for engine, flags in ENGINES.items() if place else ():
        start, devices, batch, longest, memory, weight_names, cache_names, spread = flags
        lacks = [
            (policy != "dense", f"no flag makes it read as {policy} does (`kinetics-lab generate --policy` can)"),
            (own != "bf16" and weights != "as published", f"its checkpoint is in {own} and is loaded so; price weights as published"),
            *((name not in (*names, *AS_IT_IS), f"no flag known here turns a BF16 checkpoint into {name}")
              for name, names in ((weights, weight_names), (kv, cache_names))),
            (groups > 1 and not spread, f"no flag known here shares the answers out to {groups:.0f} groups of devices"),
        ]  # fmt: skip
        words = [start, place, f"--dtype bfloat16 {devices} {setting['devices'] / groups:.0f}"]
        words += [f"{spread} {groups:.0f}"] * (groups > 1)
        words += [f"--quantization {weight_names.get(weights)}"] * (weights in weight_names)
        words += [f"--kv-cache-dtype {cache_names.get(kv)}"] * (kv in cache_names)
        words += [f"{batch} {-(-setting['batch'] // groups):.0f}"] * (setting["batch"] < float("inf"))
        words += [f"{longest} {context:.0f}"] * (context > 0) + [f"{memory} {1 - reserve:g}"]
        found[engine] = next((f"none: {why}" for holds, why in lacks if holds), " ".join(words))
    return found
