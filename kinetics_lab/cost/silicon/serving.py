"""From kernels to a server: the time per output token of requests in flight, from measured kernels alone.

A server that always holds as many requests decodes one token of each in a step. Requests come and go, so that in
every ``n_out`` steps each place sees one prompt read, too. Nothing here is fitted to serving runs.
"""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from kinetics_lab.cost.models import MODELS
from kinetics_lab.cost.shapes import ModelShape
from kinetics_lab.cost.silicon import HEAD_DIM, Silicon
from kinetics_lab.cost.silicon.grid import OutsideGridWarning
from kinetics_lab.data import read_table
from kinetics_lab.errors import require

CHUNK = 8192.0  # tokens of a prompt that are read at once
WEIGHTS = {"fp8": "fp8", "bf16": "bf16", "fp4": "nvfp4"}  # of a serving run's precision
#: Checkpoints of serving runs -> shapes. Others have no measured composition yet, each for a reason in `WHY_NOT`.
SERVED = {
    "meta-llama/Llama-3.1-70B": "llama3-70b",
    "meta-llama/Llama-3.1-8B-Instruct": "llama3-8b",
    "nvidia/Llama-3.1-8B-Instruct-FP8": "llama3-8b",
    "Qwen/Qwen3-32B": "qwen3-32b",
}
WHY_NOT = {
    "DeepSeek": "latent attention: its module and its experts have rows, their shared projections do not",
    "Kimi": "latent attention", "GLM-5": "latent attention with an index",
    "gpt-oss": "heads of 64 and windows: rows in silicon_windows, no composition yet",
    "Qwen3-235B": "experts split over tensor and expert parallelism at once", "Qwen3.5": "linear attention was not selected",
    "MiniMax": "its experts were not selected", "NVFP4": "three runs alone, of unclear settings",
}  # fmt: skip


def prefill_seconds(shape: ModelShape, silicon: Silicon, n_in: ArrayLike, tp: int = 1) -> np.ndarray:
    """Seconds to read one prompt of a dense model: products in chunks, causal attention at the measured matrix rate.

    Raises ``ValueError`` for a model with experts, or one that `Silicon.why_not` refuses.
    """
    if why := silicon.why_not(shape, tp):
        raise ValueError(f"{shape.name} has no measured kernels: {why}")
    require(
        not shape.n_experts,
        f"the prefill of {shape.name} needs measured experts at large batches",
        shape.n_experts,
    )
    n_in = np.asarray(n_in, float)
    rows = np.minimum(n_in, CHUNK)  # the last chunk is taken as full: its rest costs its share
    q, kv, width = shape.n_q_heads // tp, max(1, shape.n_kv_heads // tp), shape.hidden
    products = silicon.gemm(rows, (q + 2 * kv) * HEAD_DIM, width) + silicon.gemm(rows, width, q * HEAD_DIM)
    products = (
        products + silicon.gemm(rows, 2 * shape.ffn / tp, width) + silicon.gemm(rows, width, shape.ffn / tp)
    )
    attention = 2 * q * HEAD_DIM * n_in**2 / silicon.matrix_rate
    chunks = n_in / rows
    return shape.n_layers * (chunks * (products + 2 * silicon.all_reduce(tp, rows * width)) + attention)


def time_per_output_token(
    shape: ModelShape,
    silicon: Silicon,
    concurrency: ArrayLike,
    n_in: ArrayLike,
    n_out: ArrayLike,
    tp: int = 1,
) -> np.ndarray:
    """Seconds per output token after the first, with ``concurrency`` requests in flight on ``tp`` GPUs.

    The step at the middle of an answer, and the share of the prompts that are read meanwhile. Kernels only: the
    host, sampling, norms and activation functions are not in it, so that it comes out low where an engine waits for them.
    """
    concurrency, n_in, n_out = (np.asarray(x, float) for x in (concurrency, n_in, n_out))
    step = sum(silicon.step(shape, concurrency, n_in + n_out / 2, tp).values())
    return np.asarray(step + concurrency * prefill_seconds(shape, silicon, n_in, tp) / n_out)


def against_serving(runs: pd.DataFrame | None = None) -> pd.DataFrame:
    """Measured serving runs of dense models with what kernels predict: ``predicted_ms`` and ``ratio`` to the measured.

    ``runs``: rows like those of ``silicon_serving`` (the default). A cache of FP8 is assumed, as the runs do not say.
    Runs that cannot be composed are left out; `WHY_NOT` has the reasons.
    """
    runs = read_table("silicon_serving") if runs is None else runs
    runs = runs.astype({name: str for name in runs.select_dtypes("category")})
    runs = runs[runs.model.isin(list(SERVED)) & runs.precision.isin(list(WEIGHTS))]
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", OutsideGridWarning)  # long prompts in large batches leave the grid
        for (model, gpu, engine, precision, tp), part in runs.groupby(
            ["model", "gpu", "engine", "precision", "tp"]
        ):
            silicon = Silicon(str(gpu), str(engine), WEIGHTS[str(precision)], "fp8")
            shape = MODELS[SERVED[str(model)]]
            seconds = time_per_output_token(
                shape, silicon, part.concurrency, part.n_in, part.n_out, int(str(tp))
            )
            found.append(part.assign(predicted_ms=seconds * 1e3))
    table = pd.concat(found, ignore_index=True)
    return table.assign(ratio=table.predicted_ms / table.tpot_ms)
