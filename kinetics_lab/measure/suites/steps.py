"""The suite ``model``, timed: one decode step of a whole Qwen3 on one GPU, dense beside sparse.

Weights and cache are random; the model is Hugging Face's, the attention ours. Its elementwise parts are fused by
PyTorch's compiler, the step is a CUDA graph. The peer is the same model with the library's own attention (PyTorch's
SDPA over a cache written in place, no copy and no mask), compiled and captured alike.
"""

from __future__ import annotations

import functools
from typing import Any

from kinetics_lab.cost.policies import Dense
from kinetics_lab.cost.shapes import ModelShape
from kinetics_lab.errors import sentence
from kinetics_lab.measure import timers
from kinetics_lab.measure.bench import Bench, Row
from kinetics_lab.measure.runner import Suite
from kinetics_lab.measure.suites import model as suite
from kinetics_lab.measure.timers import Call


class NoAttention:
    """A cache that keeps nothing and attends to nothing: what is left is the rest of the step."""

    def append(self, k: Any, v: Any, active: Any = None) -> None:
        pass

    def attend(self, q: Any, scale: float | None = None) -> Any:
        return q


def _paged_layers(case: Row, shape: ModelShape, dtype: Any, device: str) -> tuple[list[Any], Call]:
    """Full caches of all layers, and what makes them one token short again."""
    import torch

    from kinetics_lab.decode.caches import PagedCache

    context, sizes = case["context"], (case["batch"], shape.n_kv_heads, shape.head_dim, case["context"])
    layers = [
        PagedCache(suite.policy_of(case), *sizes, dtype=dtype, device=device) for _ in range(shape.n_layers)
    ]
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
    return [HostCache(suite.policy_of(case), *sizes) for _ in range(shape.n_layers)], lambda: None


@functools.lru_cache(maxsize=1)  # a processor takes longer to fill one with random numbers than to time it
def _host_model(shape: ModelShape) -> Any:
    from kinetics_lab.decode import hf

    return hf.random_model(shape)


def _model_of(shape: ModelShape, bench: Bench) -> Any:
    import torch

    from kinetics_lab.decode import hf

    if bench.on_host:
        return _host_model(shape)
    torch.compiler.reset()  # another model's shapes are not generalised over
    model = hf.random_model(shape, **bench.kind)
    if bench.on_gpu:
        hf.compile_layers(model)
    return model


def _measure_model(case: Row, bench: Bench) -> Row:
    """Whole steps, timed in alternation on one cache."""
    import torch

    from kinetics_lab.decode import hf

    shape, batch, context = suite.shape_named(case["model"]), case["batch"], case["context"]
    dtype, device = bench.kind["dtype"], bench.kind["device"]
    torch.manual_seed(0)
    model = _model_of(shape, bench)
    layers, one_short = (_host_layers if bench.on_host else _paged_layers)(case, shape, dtype, device)
    ids = torch.randint(shape.vocab, (batch, 1), device=device)
    positions = torch.full((batch, 1), context - 1, device=device)
    active = torch.ones(batch, dtype=torch.int32, device=device)

    def stepping(cache: Any) -> Call:
        return lambda: hf.step(model, ids, positions, cache)

    dense = [layer.under(Dense()) for layer in layers]
    ours = {"dense": dense, "sparse": layers, "first_dense": [dense[0], *layers[1:]],
            "rest": [NoAttention()] * shape.n_layers}  # fmt: skip
    calls = {name: stepping(hf.PolicyCache(caches, active)) for name, caches in ours.items()}
    row: Row = {}
    try:
        # The same memory, seen as the library lays it out: a contiguous run of tokens for every request and head.
        held = [layer if bench.on_host else layer.cache for layer in layers]
        laid_out = batch, shape.n_kv_heads, context, shape.head_dim
        pool = [(cache.k.view(laid_out), cache.v.view(laid_out)) for cache in held]
        peer = stepping(hf.InPlaceCache(pool))
        peer()
        calls["peer"] = peer
    except Exception as error:  # a fact about the peer: the row says so, and keeps ours
        row["peer_error"] = sentence(error)
    row |= bench.time(calls, dict.fromkeys(("dense", "sparse", "first_dense"), one_short), optional=["peer"])
    row |= {"speedup": row["dense_us"] / row["sparse_us"], "tokens_per_s": batch / row["sparse_us"] * 1e6,
            "first_dense_speedup": row["dense_us"] / row["first_dense_us"],
            "dense_tokens_per_s": batch / row["dense_us"] * 1e6}  # fmt: skip
    here = timers.this_gpu() if bench.on_gpu else None
    row["gpu_memory_bytes"] = here[1] if here else None  # what the cases fill
    if "peer_us" in row:
        row["peer_over_dense"] = row["peer_us"] / row["dense_us"]
    return row


MODEL = Suite("model", 1, "sparse_us", suite.model_cases, suite.model_limits, _measure_model, suite.host_cases,
              suite.filling)  # fmt: skip
