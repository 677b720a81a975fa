"""What to start for a setting: the command lines of serving engines, or the flag that they lack.

Flags: vLLM 0.8.5, docs.vllm.ai/en/v0.8.5/serving/engine_args.html (newer ones keep them); SGLang's docs/advanced_features/server_arguments.md
at commit b36e8e1.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from kinetics_lab.cost.models import MODELS

#: Engine -> how it starts, its flags for devices, answers side by side and memory, and the name of an FP8 cache.
ENGINES = {
    "vLLM 0.8.5": ("vllm serve", "--tensor-parallel-size", "--max-num-seqs", "--gpu-memory-utilization", "fp8"),
    "SGLang b36e8e1": ("python -m sglang.launch_server --model-path", "--tp-size", "--max-running-requests",
                       "--mem-fraction-static", "fp8_e4m3"),
}  # fmt: skip


def checkpoint(model: str) -> str:
    """The name of a known model on the Hugging Face hub, or a place to write yours."""
    size = model.removeprefix("qwen3-")
    known = model in MODELS and MODELS[model].family in ("qwen3", "qwen3-moe")
    return (
        f"Qwen/Qwen3-{'-'.join(part.upper() for part in size.split('-'))}"
        if known
        else shlex.quote(f"PATH/OF/{model}")
    )


def commands(setting: Mapping[Any, Any], weights: str, kv: str, reserve: float = 0.1) -> dict[str, str]:
    """Engine -> the command line that serves a row of a plan, or one sentence that begins with "none: "."""
    found, odd = dict[str, str](), [name for name in (weights, kv) if name not in ("bf16", "fp8", "paper")]
    for engine, (start, devices, batch, memory, fp8) in ENGINES.items():
        if setting["policy"] != "dense":
            found[engine] = (
                f"none: no flag makes it read as {setting['policy']} does (`kinetics-lab generate --policy` can)"
            )
        elif odd:
            found[engine] = f"none: no flag turns a BF16 checkpoint into {odd[0]}"
        else:
            words = [
                start,
                checkpoint(setting["model"]),
                "--dtype bfloat16",
                f"{devices} {setting['devices']:.0f}",
            ]
            words += ["--quantization fp8"] * (weights == "fp8") + [f"--kv-cache-dtype {fp8}"] * (kv == "fp8")
            words += [f"{batch} {setting['batch']:.0f}"] * (setting["batch"] < float("inf"))
            found[engine] = " ".join([*words, f"{memory} {1 - reserve:g}"])
    return found
