"""The suite ``model``, without PyTorch: its cases, which fill a GPU's memory, their limits, and what chapters show.

A case is one decode step of a whole Qwen3, dense beside sparse; :mod:`kinetics_lab.measure.suites.steps` times it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kinetics_lab.cost.families import from_hf_config
from kinetics_lab.cost.models import MODELS, find_model
from kinetics_lab.cost.policies import BlockTopK, Dense, Policy, balanced_block_size
from kinetics_lab.cost.request import Cost, cost_parts
from kinetics_lab.cost.shapes import ModelShape
from kinetics_lab.errors import require
from kinetics_lab.measure.bench import Row
from kinetics_lab.measure.limits import Rates, element, memory_of

if TYPE_CHECKING:
    import pandas as pd

PAGE = 16
COMPILE_S = 40.0  # a guess at what PyTorch's compiler takes, so that no case starts too late
FILLED = 0.9  # share of the memory that weights, cache and reserve take
RESERVE = 6e9  # bytes: logits, activations, captured graphs, the library's workspaces
NAMES = ("qwen3-8b", "qwen3-0.6b", "qwen3-1.7b", "qwen3-4b", "qwen3-14b", "qwen3-30b-a3b")
#: Kernels of one layer and step that are neither a product nor attention, uncompiled: the operations of the library's
#: code that are no view of a tensor (norms, rotary embedding, SwiGLU, residuals, routing), as the tests count them.
SMALL_KERNELS = {"qwen3": 46, "qwen3-moe": 64}
#: For rehearsals on a CPU.
TINY = from_hf_config({
    "architectures": ["Qwen3ForCausalLM"], "_name_or_path": "tiny", "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "hidden_size": 32, "intermediate_size": 64, "vocab_size": 64,
})  # fmt: skip


def shape_named(name: str) -> ModelShape:
    """A model of the package, or the tiny one of rehearsals."""
    return TINY if name == TINY.name else find_model(name)


def fitting_batch(model: ModelShape, context: int, block: int, memory: float) -> int:
    """Requests of ``context`` tokens that fill the memory (bytes) beside the weights; 0 where not one does."""
    each = context * model.kv_bytes_per_token() * (1 + 0.5 / block)
    return max(0, int((FILLED * memory - RESERVE - 2 * model.n_params) / each))


def filled(name: str, context: int, budget: int, memory: float) -> Row:
    """The case of a model whose requests fill a GPU's memory (bytes); its ``batch`` is 0 where not one fits.

    Blocks are balanced (scanning and reading move as much), in powers of two that divide the budget, at least a page.
    """
    balanced = int(balanced_block_size(context, budget))
    block = max(PAGE, min(1 << (balanced.bit_length() - 1), budget & -budget))
    batch = fitting_batch(shape_named(name), context, block, memory)
    return {"model": name, "batch": batch, "context": context, "page": PAGE, "budget": budget, "block": block}


def filling(memory: float) -> list[Row]:
    """The suite's cases on a GPU of this memory (bytes): all models, and what changes for a few of them."""
    wanted = [(name, 32768, 1024) for name in NAMES]
    wanted += [("qwen3-8b", context, 1024) for context in (8192, 16384)]
    wanted += [("qwen3-8b", 32768, budget) for budget in (256, 512, 2048)]
    wanted += [(name, 8192, 1024) for name in ("qwen3-0.6b", "qwen3-14b")]
    return [case for case in (filled(*which, memory) for which in wanted) if case["batch"]]


def model_cases(on_gpu: bool) -> list[Row]:
    """What 90 % of an H200's memory holds."""
    if not on_gpu:
        return [{"model": "tiny", "batch": 2, "context": 64, "page": PAGE, "budget": 32, "block": 16}]
    return filling(memory_of("nvidia-h200"))


def host_cases() -> list[Row]:
    """Two models whose caches are of one size, one request each: what a processor's memory holds in fp32."""
    return [
        {"model": name, "batch": 1, "context": context, "page": PAGE, "budget": 512, "block": 32, "element_bytes": 4}
        for name in ("qwen3-0.6b", "qwen3-1.7b")
        for context in (1024, 2048, 4096, 8192, 16384, 32768)
    ]  # fmt: skip


def policy_of(case: Row) -> BlockTopK:
    """The sparse layers' policy: chosen blocks, and the newest one on top."""
    return BlockTopK(case["budget"], case["block"], last_block=True)


def counted(case: Row) -> BlockTopK:
    """The same as the law counts it at the suite's contexts, whole numbers of blocks: there the newest one is full."""
    return BlockTopK(case["budget"] + case["block"], case["block"])


def step_cost(case: Row, policy: Policy, dense_layers: int = 0) -> dict[str, Cost]:
    """What the cost law counts in one step of the whole batch, by part."""
    step = {"dense_layers": dense_layers, "batch": case["batch"], "bytes_per_element": element(case)}
    parts = cost_parts(shape_named(case["model"]), policy, case["context"] - 1, 1, **step)
    return {part: case["batch"] * cost for part, cost in parts.items()}


def model_limits(case: Row, rates: Rates) -> Row:
    """Limits of the step: dense, sparse, sparse with layer 0 dense, and without attention ("rest").

    Products take the larger of arithmetic and their weights' traffic, attention the larger of its own, one after the
    other. Left out: activations, norms, rotary embedding, the cache's append.
    """

    def us(*parts: Cost) -> float:
        whole = sum(parts, Cost(0.0, 0.0))
        return rates.us(float(whole.bytes), float(whole.flops))

    steps = {"dense": step_cost(case, Dense()), "": step_cost(case, counted(case)),
             "first_dense": step_cost(case, counted(case), 1)}  # fmt: skip
    found: Row = {"rest_limit_us": us(steps["dense"]["parameters"])}
    for name, parts in steps.items():
        limit = found["rest_limit_us"] + us(parts["attention"], parts["search"])
        found[f"{name}_limit_us".lstrip("_")] = limit
    sparse = sum(steps[""].values(), Cost(0.0, 0.0))
    model = shape_named(case["model"])
    size = element(case)
    cache = case["batch"] * case["context"] * model.kv_bytes_per_token(size) * (1 + 0.5 / case["block"])
    limits = [found[name] for name in ("limit_us", "dense_limit_us", "first_dense_limit_us", "rest_limit_us")]
    return {
        "bytes": float(sparse.bytes), "flops": float(sparse.flops), **found,
        "speedup_limit": found["dense_limit_us"] / found["limit_us"],
        "first_dense_speedup_limit": found["dense_limit_us"] / found["first_dense_limit_us"],
        "compile_s": COMPILE_S, "memory_bytes": size * model.n_params + cache + (RESERVE if size == 2 else 1e9),
        "round_us": sum(limits) + found["dense_limit_us"],
    }  # fmt: skip


def by_model(
    context: int, budget: int, memory: float, rates: Rates, timed: pd.DataFrame | None = None
) -> pd.DataFrame:
    """One row a model, smallest first: as ``timed`` (measured rows) has it, or else the limits at full memory (bytes).

    Models of which not one request fits are left out. Raises ValueError where none is left.
    """
    import pandas as pd

    cases = [filled(name, context, budget, memory) for name in MODELS if name in NAMES]
    table = pd.DataFrame([case | model_limits(case, rates) for case in cases if case["batch"]])
    if timed is not None:
        here = timed[timed["context"].eq(context) & timed["budget"].eq(budget)]
        table = pd.concat([here, table[~table["model"].isin(here["model"])]])
    rule = f"context must leave room for one request in {memory / 1e9:.0f} GB beside the weights of a model"
    require(len(table) > 0, rule, context)
    return table.sort_values("model", key=lambda names: names.map(list(MODELS).index)).reset_index(drop=True)


def timed_steps(table: pd.DataFrame) -> pd.DataFrame:
    """Measured rows of the suite, a row for each step: ``kind`` (dense, block top-k, without attention) and times.

    ``us``, ``low_us``, ``high_us`` (median, 20th and 80th percentile), ``limit_us``, and what the cost law counts:
    ``bytes``, ``flops``, of these ``weight_bytes`` and ``gemm_flops``. The columns of the case stand beside.
    """
    import pandas as pd

    rows, cases = [], list[dict[str, Any]](table.to_dict("records"))  # type: ignore[arg-type]
    for case in cases:
        dense, sparse = step_cost(case, Dense()), step_cost(case, counted(case))
        key = {name: case[name] for name in ("model", "batch", "context", "budget", "block")}
        for kind, name, limit, parts in (
            ("dense", "dense", "dense_limit_us", dense),
            ("block top-k", "sparse", "limit_us", sparse),
            ("without attention", "rest", "rest_limit_us", {"parameters": dense["parameters"]}),
        ):
            whole, products = sum(parts.values(), Cost(0.0, 0.0)), parts["parameters"]
            rows.append({
                **key, "kind": kind,
                "us": case[f"{name}_us"], "low_us": case[f"{name}_p20_us"], "high_us": case[f"{name}_p80_us"],
                "limit_us": case[limit], "bytes": float(whole.bytes), "flops": float(whole.flops),
                "weight_bytes": float(products.bytes), "gemm_flops": float(products.flops),
            })  # fmt: skip
    return pd.DataFrame(rows)
