"""From kernels to a server: the time per output token of requests in flight, from measured kernels alone.

A server that always holds as many requests decodes one token of each in a step. Requests come and go, so that in
every ``n_out`` steps each place sees one prompt read, too. Nothing here is fitted to serving runs.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from kinetics_lab.cost.models import CONFIGS, MODELS
from kinetics_lab.cost.shapes import ModelShape
from kinetics_lab.cost.silicon import Silicon
from kinetics_lab.cost.silicon.grid import Grid, OutsideGridWarning
from kinetics_lab.cost.silicon.tables import BYTES, rows
from kinetics_lab.data import read_table
from kinetics_lab.errors import require

CHUNK = 8192.0  # tokens of a prompt that are read at once
WEIGHTS = {"fp8": "fp8", "bf16": "bf16", "fp4": "nvfp4"}  # of a serving run's precision
WINDOW = 128  # of gpt-oss, in every other layer
#: Checkpoints of serving runs -> shapes. Others have no measured composition, each for a reason in `WHY_NOT`.
SERVED: Mapping[str, ModelShape] = {
    "meta-llama/Llama-3.1-70B": MODELS["llama3-70b"],
    "meta-llama/Llama-3.1-8B-Instruct": MODELS["llama3-8b"],
    "nvidia/Llama-3.1-8B-Instruct-FP8": MODELS["llama3-8b"],
    "Qwen/Qwen3-32B": MODELS["qwen3-32b"],
    "Qwen/Qwen3-235B-A22B-FP8": MODELS["qwen3-235b-a22b"],
    "deepseek-ai/DeepSeek-R1": MODELS["deepseek-v3"],
    "deepseek-ai/DeepSeek-V3": MODELS["deepseek-v3"],
    "openai/gpt-oss-120b": MODELS["gpt-oss-120b"],
}
WHY_NOT = {
    "NVFP4": "single runs of unclear settings", "Kimi": "no table has its experts",
    "GLM-5": "no table has its experts", "Qwen3.5": "no table has its linear attention",
    "MiniMax": "no table has its experts",
}  # fmt: skip


def _attention(shape: ModelShape, silicon: Silicon, batch: np.ndarray, context: np.ndarray, tp: int) -> np.ndarray:  # fmt: skip
    """Attention of all layers in a decode step: MLA as a whole module, gpt-oss with its windows, or plain heads of 128."""
    q, kv = shape.n_q_heads // tp, max(1, shape.n_kv_heads // tp)
    if shape.is_mla:
        t, kind = rows("sparse", silicon.gpu, silicon.engine, "mla_generation_module"), silicon.weights
        t = t[(t.gemm == ("fp8_block" if kind == "fp8" else kind)) & (t["heads"] == q)]
        element = shape.head_dim
        what, layers = f"MLA with {q} heads", {0: shape.n_layers}
    elif shape.family == "gpt-oss":
        t, element = rows("windows", silicon.gpu, silicon.engine), 2 * kv * shape.head_dim
        t, what = t[(t.q_heads == q) & (t.kv_heads == kv)], f"windowed attention with {q} and {kv} heads"
        layers = {0: shape.n_layers // 2, WINDOW: shape.n_layers // 2}
    else:
        return np.asarray(shape.n_layers * silicon.attention(q, kv, batch, context))
    t = t[t.kv == silicon.kv]
    require(len(t) > 0, f"{what} was not measured on {silicon.gpu} under {silicon.engine}; cache", silicon.kv)
    start, _, byte = silicon._attention_law
    total = np.zeros(np.shape(batch))
    for window, count in layers.items():
        part = t[t.window == window] if "window" in t else t

        def law(n: np.ndarray, s: np.ndarray, most: float = window or np.inf) -> np.ndarray:
            return start + byte * n * np.minimum(s, most) * element * BYTES[silicon.kv]

        part = part.groupby(["batch", "context"], as_index=False)[["us"]].min()
        grid = Grid({"batch": part.batch, "context": part.context}, part.us * 1e-6, law)
        total = total + count * grid(what, batch, context)
    return total


def prefill_seconds(shape: ModelShape, silicon: Silicon, n_in: ArrayLike, tp: int = 1, ep: int = 1) -> np.ndarray:  # fmt: skip
    """Seconds to read one prompt: products in chunks, causal attention at the measured matrix rate.

    MLA's own products are its matrices at the measured rates, too. Raises ``ValueError`` naming the rows that lack.
    """
    n_in = np.asarray(n_in, float)
    tokens = np.minimum(n_in, CHUNK)  # the last chunk is taken as full: its rest costs its share
    products = silicon.products(shape, tokens, tp, ep)
    heads, width = shape.n_q_heads // tp, shape.hidden
    pairs, size = n_in**2 / 2, 2 * shape.head_dim  # of a query and a key; what they multiply, with the value
    if shape.is_mla:
        c = CONFIGS[shape.name]
        key, value, latent = c["qk_nope_head_dim"] + c["qk_rope_head_dim"], c["v_head_dim"], c["kv_lora_rank"]
        size = key + value
        matrices = [(c["q_lora_rank"] + shape.head_dim, width), (heads * key, c["q_lora_rank"])]
        matrices += [(heads * (c["qk_nope_head_dim"] + value), latent), (width, heads * value)]
        products = products + shape.n_layers * sum(silicon.gemm(tokens, n, k) for n, k in matrices)
    elif shape.family == "gpt-oss":
        pairs = (pairs + np.minimum(pairs, n_in * WINDOW)) / 2
    attention = shape.n_layers * 2 * heads * size * pairs / silicon.matrix_rate
    talk = 2 * shape.n_layers * silicon.all_reduce(tp, tokens * width)
    return np.asarray(n_in / tokens * (products + talk) + attention)


def kernels_per_output_token(
    shape: ModelShape, silicon: Silicon, concurrency: ArrayLike, n_in: ArrayLike, n_out: ArrayLike,
    tp: int = 1, ep: int = 1,
) -> np.ndarray:  # fmt: skip
    """Seconds per output token after the first, with ``concurrency`` requests in flight on ``tp`` GPUs, the experts over ``ep``.

    The step at the middle of an answer, MLA and windows as they are served, and the share of the prompts that are read meanwhile.
    Kernels only: the host, sampling, norms and activation functions are not in it, so that it comes
    out low where an engine waits for them. Raises ``ValueError`` naming the rows that lack.
    """
    concurrency, n_in, n_out = (np.asarray(x, float) for x in (concurrency, n_in, n_out))
    require(shape.n_q_heads % tp == 0, f"{shape.name}: query heads must split over tp GPUs", tp)
    step = silicon.products(shape, concurrency, tp, ep)
    step = step + silicon._quiet(concurrency, shape.vocab / tp, shape.hidden)
    step = step + _attention(shape, silicon, concurrency, n_in + n_out / 2, tp)
    step = step + 2 * shape.n_layers * silicon.all_reduce(tp, concurrency * shape.hidden)
    return np.asarray(step + concurrency * prefill_seconds(shape, silicon, n_in, tp, ep) / n_out)


def against_serving() -> pd.DataFrame:
    """The runs of ``silicon_serving`` with what kernels predict: ``predicted_ms``, ``ratio`` to the measured, and ``why_not``.

    A cache of FP8 is assumed, as the runs do not say.
    Runs that cannot be composed have no prediction, and the rows that lack in ``why_not`` (else empty).
    """
    runs = read_table("silicon_serving")
    runs = runs.astype(dict.fromkeys(runs.select_dtypes("category"), str))
    found = []
    keys = ["model", "gpu", "engine", "precision", "tp", "moe_ep"]
    for key, part in runs.groupby(keys):
        ms, why = np.full(len(part), np.nan), ""
        try:
            ms = _predicted_ms(part, *(str(value) for value in key))
        except ValueError as error:
            why = str(error)
        found.append(part.assign(predicted_ms=ms, why_not=why))
    table = pd.concat(found, ignore_index=True)
    return table.assign(ratio=table.predicted_ms / table.tpot_ms)


def _predicted_ms(
    part: pd.DataFrame, model: str, gpu: str, engine: str, precision: str, tp: str, moe_ep: str
) -> np.ndarray:
    for name, why in WHY_NOT.items():
        require(name not in model, why, model)
    known = model in SERVED and precision in WEIGHTS
    require(known, "neither the model nor its precision was selected", (model, precision))
    shape = SERVED[model]
    weights = "bf16" if shape.family == "gpt-oss" else WEIGHTS[precision]  # beside MXFP4 experts
    ep = max(1, int(moe_ep)) if shape.n_experts else 1
    silicon = Silicon(gpu, engine, weights, "fp8")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", OutsideGridWarning)  # long prompts in large batches leave the grid
        asked = (part.concurrency, part.n_in, part.n_out)
        return 1e3 * kernels_per_output_token(shape, silicon, *asked, int(tp), ep)
