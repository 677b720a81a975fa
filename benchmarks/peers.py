"""The datasheet bound beside AIConfigurator's own ("speed of light") on the same steps, part by part.

Needs the package aiconfigurator-core (the extra ``silicon``). Their bound also counts the traffic of activations, norms
and embeddings, which the cost law leaves out; the columns ``theirs`` and ``ours`` hold what both count: matrices,
attention, all-reduces. Writes ``benchmarks/peers.csv``, which the tests compare with today's law.

    python benchmarks/peers.py
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pandas as pd

from kinetics_lab import find_hardware, find_model
from kinetics_lab.cost.fit import BF16, Layout
from kinetics_lab.cost.step import step_parts, step_seconds

MODELS = {
    "qwen3-8b": "Qwen/Qwen3-8B",
    "qwen3-32b": "Qwen/Qwen3-32B",
    "llama3-70b": "meta-llama/Meta-Llama-3.1-70B",
}
STEPS = [(1, 1024), (16, 8192), (64, 16384), (256, 4096)]  # batch, context
THEIR_PEAK = 989e12  # of an H200; ours is 989.5e12


def ours(name: str, tensor: int, batch: int, context: int) -> float:
    """Milliseconds by this package, at their peak."""
    device = replace(find_hardware("h200"), peaks={"bf16": THEIR_PEAK})
    parts = step_parts(find_model(name), batch, context, layout=Layout(tensor))
    return 1e3 * float(sum(step_seconds(device, BF16, parts).values()))


def main() -> None:
    """Print and write the table."""
    from aiconfigurator_core.sdk.config_builders import build_model_config
    from aiconfigurator_core.sdk.engine import EngineHandle, build_ops_json
    from aiconfigurator_core.sdk.models import get_model

    engine = EngineHandle.compile(MODELS["qwen3-8b"], "h200_sxm", "vllm")
    unset = dict.fromkeys(("gemm", "kvcache", "fmha", "moe", "comm"))
    rows = []
    for name, path in MODELS.items():
        for tensor in (1, 4):
            config = build_model_config(
                tp_size=tensor, pp_size=1, attention_dp_size=1, moe_tp_size=1, moe_ep_size=1, forward_model="op_level",
                attention_backend=None, **{f"{kind}_quant_mode": mode for kind, mode in unset.items()},
            )  # fmt: skip
            ops = build_ops_json(get_model(path, config, "vllm").generation_ops)
            for batch, context in STEPS:
                found = engine.evaluate_ops_sol_json(ops, is_context=False, batch_size=batch, s=context)
                shared = sum(
                    ms for op, ms, *_ in found if op.endswith(("_gemm", "_attention", "_ar_1", "_ar_2"))
                )
                rows.append(
                    (
                        name,
                        tensor,
                        batch,
                        context,
                        shared,
                        ours(name, tensor, batch, context),
                        sum(row[1] for row in found),
                    )
                )
    columns = ["model", "tensor", "batch", "context", "theirs", "ours", "their_whole_step"]
    table = pd.DataFrame(rows, columns=columns)
    table["ratio"] = table["ours"] / table["theirs"]
    print(table.round(4).to_string(index=False))
    table.round(6).to_csv(Path(__file__).with_suffix(".csv"), index=False)


if __name__ == "__main__":
    main()
