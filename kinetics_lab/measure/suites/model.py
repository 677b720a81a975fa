"""The suite ``model``: one decode step of a whole Qwen3 on one GPU, its memory filled, dense beside sparse.

Weights and cache are random; the model is Hugging Face's, the attention ours. Its elementwise parts are fused by
PyTorch's compiler, the step is a CUDA graph. The peer is the same model with the library's own attention (PyTorch's
SDPA over a cache written in place, no copy and no mask), compiled and captured alike.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from kinetics_lab.cost.hardware import HARDWARE
from kinetics_lab.cost.models import MODELS, find_model
from kinetics_lab.cost.policies import BlockTopK, Dense, Policy, balanced_block_size
from kinetics_lab.cost.request import Cost, cost_parts
from kinetics_lab.cost.shapes import ModelShape
from kinetics_lab.errors import require, sentence
from kinetics_lab.measure.bench import Bench, Row
from kinetics_lab.measure.limits import Rates, element
from kinetics_lab.measure.runner import Suite
from kinetics_lab.measure.timers import Call

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
TINY = ModelShape(name="tiny", family="qwen3", n_layers=2, n_q_heads=4, n_kv_heads=2, head_dim=16, hidden=32, ffn=64,
                  vocab=64, qk_norm=True)  # fmt: skip


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


def _cases(on_gpu: bool) -> list[Row]:
    """What 90 % of the memory holds, of this GPU or else of an H200."""
    if not on_gpu:
        return [{"model": "tiny", "batch": 2, "context": 64, "page": PAGE, "budget": 32, "block": 16}]
    return filling(_memory())


def _host_cases() -> list[Row]:
    """Two models whose caches are of one size, one request each: what a processor's memory holds in fp32."""
    return [
        {"model": name, "batch": 1, "context": context, "page": PAGE, "budget": 512, "block": 32, "element_bytes": 4}
        for name in ("qwen3-0.6b", "qwen3-1.7b")
        for context in (1024, 2048, 4096, 8192, 16384, 32768)
    ]  # fmt: skip


def _memory() -> float:
    try:
        import torch

        return float(torch.cuda.get_device_properties(0).total_memory)
    except (ImportError, RuntimeError, AssertionError):  # no GPU here: planning for one
        return memory_of("nvidia-h200")


def memory_of(gpu: str) -> float:
    """Memory of a GPU by its folder ("nvidia-a100"), bytes by the datasheet; an H200's where it is not listed."""
    return next(
        (HARDWARE[name].memory for name in gpu.split("-") if name in HARDWARE), HARDWARE["h200"].memory
    )


def policy_of(case: Row) -> BlockTopK:
    """The sparse layers' policy: chosen blocks, and the newest one on top."""
    return BlockTopK(case["budget"], case["block"], last_block=True)


def counted(case: Row) -> BlockTopK:
    """The same as the law counts it at the suite's contexts, whole numbers of blocks: there the newest one is full."""
    return BlockTopK(case["budget"] + case["block"], case["block"])


def step_cost(case: Row, policy: Policy, dense_layers: int = 0) -> dict[str, Cost]:
    """What the cost law counts in one step of the whole batch, by part."""
    parts = cost_parts(
        shape_named(case["model"]),
        policy,
        case["context"] - 1,
        1,
        dense_layers=dense_layers,
        batch=case["batch"],
        bytes_per_element=element(case),
    )
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

    kinds = {
        "dense": ("dense", "dense_limit_us", lambda case: step_cost(case, Dense())),
        "block top-k": ("sparse", "limit_us", lambda case: step_cost(case, counted(case))),
        "without attention": (
            "rest",
            "rest_limit_us",
            lambda case: {"parameters": step_cost(case, Dense())["parameters"]},
        ),
    }
    rows = []
    for case in table.to_dict("records"):
        key = {name: case[name] for name in ("model", "batch", "context", "budget", "block")}
        for kind, (name, limit, cost_of) in kinds.items():
            parts = cost_of(case)
            whole, products = sum(parts.values(), Cost(0.0, 0.0)), parts["parameters"]
            us = {
                "us": case[f"{name}_us"],
                "low_us": case[f"{name}_p20_us"],
                "high_us": case[f"{name}_p80_us"],
            }
            counts = {
                "bytes": whole.bytes,
                "flops": whole.flops,
                "weight_bytes": products.bytes,
                "gemm_flops": products.flops,
            }
            rows.append(
                {
                    **key,
                    "kind": kind,
                    **us,
                    "limit_us": case[limit],
                    **{n: float(x) for n, x in counts.items()},
                }
            )
    return pd.DataFrame(rows)


class _Nothing:
    """A cache that keeps nothing and attends to nothing: what is left is the rest of the step."""

    def append(self, k: Any, v: Any, active: Any = None) -> None:
        pass

    def attend(self, q: Any, scale: float | None = None) -> Any:
        return q


@functools.lru_cache(maxsize=1)
def _host_model(shape: ModelShape) -> Any:
    """A model for a processor, which takes longer to fill it with random numbers than to time it."""
    from kinetics_lab.decode import hf

    return hf.random_model(shape)


def _paged_layers(case: Row, shape: ModelShape, dtype: Any, device: str) -> tuple[list[Any], Call]:
    """Full caches of all layers, and what makes them one token short again."""
    import torch

    from kinetics_lab.decode.caches import PagedCache

    context, sizes = case["context"], (case["batch"], shape.n_kv_heads, shape.head_dim, case["context"])
    layers = [PagedCache(policy_of(case), *sizes, dtype=dtype, device=device) for _ in range(shape.n_layers)]
    for layer in layers:
        cache = layer.cache
        cache.k.normal_()
        cache.v.normal_()
        cache.page_table.copy_(
            torch.randperm(cache.page_table.numel(), device=device).view_as(cache.page_table)
        )
        for tokens in (context - 1, context):  # first the sum of the open block, then all means
            cache.lengths.fill_(tokens)
            cache.refresh()

    def one_short() -> None:
        for layer in layers:
            layer.cache.lengths.fill_(context - 1)

    return layers, one_short


def _host_layers(case: Row, shape: ModelShape, dtype: Any, device: str) -> tuple[list[Any], Call]:
    """The same for a processor, whose caches stay full."""
    from kinetics_lab.decode.host import HostCache

    sizes = case["batch"], shape.n_kv_heads, shape.head_dim, case["context"], case["block"]
    return [HostCache(policy_of(case), *sizes) for _ in range(shape.n_layers)], lambda: None


def _measure_model(case: Row, bench: Bench) -> Row:
    """Whole steps, timed in alternation on one cache."""
    import torch

    from kinetics_lab.decode import hf

    shape, batch, context = shape_named(case["model"]), case["batch"], case["context"]
    dtype, device = bench.kind["dtype"], bench.kind["device"]
    torch.manual_seed(0)
    if bench.on_gpu:
        torch.compiler.reset()  # another model's shapes are not generalised over
    model = _host_model(shape) if bench.on_host else hf.random_model(shape, device=device, dtype=dtype)
    if bench.on_gpu:
        hf.compile_layers(model)
    layers, one_short = (_host_layers if bench.on_host else _paged_layers)(case, shape, dtype, device)
    ids = torch.randint(shape.vocab, (batch, 1), device=device)
    positions = torch.full((batch, 1), context - 1, device=device)
    active = torch.ones(batch, dtype=torch.int32, device=device)

    def stepping(caches: list[Any]) -> Call:
        cache = hf.PolicyCache(caches, active)
        return lambda: hf.step(model, ids, positions, cache)

    dense = [layer.under(Dense()) for layer in layers]
    calls: dict[str, Call] = {
        "dense": stepping(dense),
        "sparse": stepping(layers),
        "first_dense": stepping([dense[0], *layers[1:]]),
        "rest": stepping([_Nothing()] * shape.n_layers),
    }
    row: Row = {}
    try:
        # The same memory, seen as the library lays it out: a contiguous run of tokens for every request and head.
        held = [layer if bench.on_host else layer.cache for layer in layers]
        laid_out = batch, shape.n_kv_heads, context, shape.head_dim
        pool = [(cache.k.view(laid_out), cache.v.view(laid_out)) for cache in held]
        peer = hf.InPlaceCache(pool)
        call: Call = lambda: hf.step(model, ids, positions, peer)  # noqa: E731
        call()
        calls["peer"] = call
    except Exception as error:  # a fact about the peer: the row says so, and keeps ours
        row["peer_error"] = sentence(error)
    row |= bench.time(calls, dict.fromkeys(("dense", "sparse", "first_dense"), one_short), optional=["peer"])
    row |= {"speedup": row["dense_us"] / row["sparse_us"], "tokens_per_s": batch / row["sparse_us"] * 1e6,
            "first_dense_speedup": row["dense_us"] / row["first_dense_us"],
            "dense_tokens_per_s": batch / row["dense_us"] * 1e6}  # fmt: skip
    row["gpu_memory_bytes"] = _memory() if bench.on_gpu else None
    if "peer_us" in row:
        row["peer_over_dense"] = row["peer_us"] / row["dense_us"]
    return row


MODEL = Suite("model", 1, "sparse_us", _cases, model_limits, _measure_model, _host_cases)
