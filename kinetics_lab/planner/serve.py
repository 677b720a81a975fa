"""What to start for a setting: the command lines of serving engines, or the flag that they lack.

Every flag and value is one that the named release takes: ``data/engine_flags.csv``, read from its wheel.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from kinetics_lab.cost.models import MODELS

#: Engine -> how it starts; its flags for devices, answers side by side and memory; how it names weights and caches that it
#: makes of a BF16 checkpoint itself; its flag for groups of devices that share the answers out, each with its own batch.
ENGINES: dict[str, tuple[str, str, str, str, dict[str, str], dict[str, str], str]] = {
    "vLLM 0.33.0": ("vllm serve", "--tensor-parallel-size", "--max-num-seqs", "--gpu-memory-utilization",
                    {"fp8": "fp8_per_tensor", "mxfp8": "mxfp8"}, {"fp8": "fp8", "nvfp4": "nvfp4"}, "--data-parallel-size"),
    "SGLang 0.5.23": ("sglang serve --model-path", "--tp-size", "--max-running-requests", "--mem-fraction-static",
                      {"fp8": "fp8", "mxfp8": "mxfp8"}, {"fp8": "fp8_e4m3", "nvfp4": "nvfp4"}, ""),
}  # fmt: skip
AS_IT_IS = ("bf16", "paper", "as published")  # weights and caches that need no flag


def checkpoint(model: str) -> str:
    """The name of a known model on the Hugging Face hub, or a place to write yours."""
    size = model.removeprefix("qwen3-")
    known = model in MODELS and MODELS[model].family in ("qwen3", "qwen3-moe")
    name = "-".join(part.upper() for part in size.split("-"))
    return f"Qwen/Qwen3-{name}" if known else shlex.quote(f"PATH/OF/{model}")


def commands(setting: Mapping[Any, Any], weights: str, kv: str, reserve: float = 0.1) -> dict[str, str]:
    """Engine -> the command line that serves a row of a plan, or one sentence that begins with "none: "."""
    found, groups = dict[str, str](), setting.get("groups", 1)
    for engine, (start, devices, batch, memory, weight_names, cache_names, spread) in ENGINES.items():
        odd = [weights] * (weights not in (*weight_names, *AS_IT_IS))
        odd += [kv] * (kv not in (*cache_names, *AS_IT_IS))
        if setting["policy"] != "dense":
            read = f"no flag makes it read as {setting['policy']} does"
            found[engine] = f"none: {read} (`kinetics-lab generate --policy` can)"
        elif odd:
            found[engine] = f"none: no flag known here turns a BF16 checkpoint into {odd[0]}"
        elif groups > 1 and not spread:
            many = f"{groups:.0f} groups of devices"
            found[engine] = f"none: no flag known here shares the answers out to {many}"
        else:
            words = [start, checkpoint(setting["model"]), "--dtype bfloat16"]
            words += [f"{devices} {setting['devices'] / groups:.0f}"]
            words += [f"{spread} {groups:.0f}"] * (groups > 1)
            words += [f"--quantization {weight_names.get(weights)}"] * (weights in weight_names)
            words += [f"--kv-cache-dtype {cache_names.get(kv)}"] * (kv in cache_names)
            words += [f"{batch} {-(-setting['batch'] // groups):.0f}"] * (setting["batch"] < float("inf"))
            found[engine] = " ".join([*words, f"{memory} {1 - reserve:g}"])
    return found
