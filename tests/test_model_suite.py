"""The suite ``model``: its limits counted by hand, its cases, a rehearsal, the peer, and chapter 25's tables."""

from __future__ import annotations

import importlib.util
import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from kinetics_lab.cost.families import from_hf_config
from kinetics_lab.cost.models import MODELS
from kinetics_lab.cost.policies import Dense
from kinetics_lab.measure import runner as measure
from kinetics_lab.measure.limits import Rates, datasheet_rates
from kinetics_lab.measure.suites import model as model_suite
from kinetics_lab.measure.suites import steps
from kinetics_lab.measure.suites.model import by_model, filled, filling, fitting_batch, model_limits

if importlib.util.find_spec("torch"):
    import torch

    torch.set_num_threads(1)  # models this small lose time to a second thread
    if not torch.cuda.is_available():
        os.environ.setdefault("TRITON_INTERPRET", "1")  # read when triton is imported

_spec = importlib.util.spec_from_file_location(
    "synthetic_rows", Path(__file__).with_name("synthetic_rows.py")
)
synthetic_rows = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(synthetic_rows)
_spec = importlib.util.spec_from_file_location("chapters", Path(__file__).with_name("chapters.py"))
chapters = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(chapters)

H200, REACHED = datasheet_rates("nvidia-h200"), Rates(4.3e12, 790e12, "by hand")
MEMORIES = {"a100": 80e9, "h200": 141e9, "as a driver reports an H200": 143771 * 2**20, "b200": 180e9}
CASES = [(name, case) for name, memory in MEMORIES.items() for case in filling(memory)]
each_case = pytest.mark.parametrize(
    ("memory", "case"), CASES, ids=lambda x: measure.words(x) if isinstance(x, dict) else x
)


# ---- limits by hand -------------------------------------------------------------------------------------------


def by_hand(
    *, batch: int, rates: Rates, read: float, budget: int = 1024, block: int = 16
) -> tuple[float, ...]:
    """Microseconds of a step of Qwen3-8B at 32K: dense, sparse, layer 0 dense, rest. Bound by traffic throughout."""
    token = 36 * 8 * 128 * 2 * 2  # bytes: layers, KV heads, head_dim, K and V, 16 bits
    dense = batch * 32768 * token
    sparse = (
        batch * token * (budget + block + 32768 / block / 2)
    )  # chosen, newest block, a mean key each block
    rest = 2 * read
    first = sparse * 35 / 36 + dense / 36
    return tuple(moved / rates.bandwidth * 1e6 for moved in (rest + dense, rest + sparse, rest + first, rest))


LAYER = 2 * 4096 * 32 * 128 + 2 * 4096 * 8 * 128 + 3 * 4096 * 12288 + 2 * 4096 + 2 * 128
READ = 36 * LAYER + 4096 + 151936 * 4096  # of Qwen3-8B: layers, last norm, output head
ALL = READ + 151936 * 4096  # and the input embedding, of which a step looks up a row a request


@pytest.mark.parametrize("rates", [H200, REACHED], ids=["datasheet", "reached"])
def test_the_limits_of_the_main_case_by_hand(rates):
    assert ALL == 8_190_735_360
    room = 0.9 * 141e9 - 6e9 - 2 * ALL
    batch = int(room / (32768 * 147456 * (1 + 1 / 32)))
    assert batch == 20
    case = filled("qwen3-8b", 32768, 1024, 141e9)
    assert case == {
        "model": "qwen3-8b",
        "batch": batch,
        "context": 32768,
        "page": 16,
        "budget": 1024,
        "block": 16,
    }
    found = model_limits(case, rates)
    names = ("dense_limit_us", "limit_us", "first_dense_limit_us", "rest_limit_us")
    dense, sparse, first, rest = by_hand(batch=batch, rates=rates, read=READ)
    # the law integrates over the token that the step adds: half a token of 32768
    assert [found[name] for name in names] == pytest.approx([dense, sparse, first, rest], rel=3e-5)
    assert found["bytes"] == pytest.approx(sparse * rates.bandwidth / 1e6, rel=3e-5)
    assert found["speedup_limit"] == pytest.approx(5.27, abs=0.005)
    assert found["first_dense_speedup_limit"] == pytest.approx(4.71, abs=0.005)
    assert found["memory_bytes"] == 2 * ALL + batch * 32768 * 147456 * (1 + 1 / 32) + 6e9


def test_other_countings_of_the_same_step():
    """All parameters read, nothing kept in reserve: two differences that nearly cancel."""
    batch = int((0.9 * 141e9 - 2 * ALL) / (32768 * 147456 * (1 + 1 / 32)))
    dense, sparse, first, _ = by_hand(batch=batch, rates=H200, read=ALL)
    assert (batch, round(dense / sparse, 2), round(dense / first, 2)) == (22, 5.32, 4.75)


def test_experts_that_nobody_is_sent_to_are_not_read():
    case = filled("qwen3-30b-a3b", 32768, 1024, 141e9)
    assert case["batch"] == 18
    attention = 2 * 2048 * 32 * 128 + 2 * 2048 * 4 * 128 + 2 * 128 + 2 * 2048
    experts = 128 * (1 - (1 - 8 / 128) ** 18)
    layer = attention + 2048 * 128 + experts * 3 * 2048 * 768
    read = 48 * layer + 2048 + 151936 * 2048
    assert model_limits(case, H200)["rest_limit_us"] == pytest.approx(2 * read / 4.8e12 * 1e6, rel=1e-6)


def test_products_are_bound_by_arithmetic_where_the_batch_is_large():
    case = filled("qwen3-8b", 8192, 1024, 141e9) | {"batch": 1000}
    assert model_limits(case, H200)["rest_limit_us"] == pytest.approx(
        2 * 7_568_4 * 1e5 * 1000 / 989.5e6, rel=1e-4
    )


@each_case
def test_one_dense_layer_lies_between_dense_and_sparse(memory, case):
    found = model_limits(case, H200)
    rest, sparse, first, dense = (
        found[f"{name}limit_us"] for name in ("rest_", "", "first_dense_", "dense_")
    )
    assert rest < sparse < first < dense
    share = 1 / MODELS[case["model"]].n_layers
    assert first == pytest.approx(sparse + share * (dense - sparse), rel=1e-9)
    assert found["first_dense_speedup_limit"] < min(1 / share, found["speedup_limit"])
    assert found["speedup_limit"] < dense / rest


# ---- cases ----------------------------------------------------------------------------------------------------


@each_case
def test_a_batch_fills_the_memory_and_one_more_would_not_fit(memory, case):
    shape, limit = MODELS[case["model"]], 0.9 * MEMORIES[memory]
    used = model_limits(case, H200)["memory_bytes"]
    more = model_limits(case | {"batch": case["batch"] + 1}, H200)["memory_bytes"]
    assert used <= limit < more
    assert fitting_batch(shape, case["context"], case["block"], 2 * shape.n_params) == 0


@pytest.mark.parametrize("context", [4096, 32768, 40000, 131072])
@pytest.mark.parametrize("budget", [48, 256, 1024, 2048, 3072])
def test_blocks_are_balanced_powers_of_two_that_divide_the_budget(context, budget):
    case = filled("qwen3-8b", context, budget, 141e9)
    block = case["block"]
    assert block & (block - 1) == 0
    assert budget % block == 0
    wider = 2 * block
    assert block == 16 or block <= context / (2 * budget)
    assert wider > min(budget, context / (2 * budget)) or budget % wider
    assert model_suite.counted(case).tokens_read == budget + block


def test_the_kernels_take_every_case():
    pytest.importorskip("triton")
    from kinetics_kernels import configs

    from kinetics_lab.decode.caches import PagedCache

    for case in {(c["context"], c["budget"], c["block"]): c for _, c in CASES}.values():
        policy = model_suite.policy_of(case)
        cache = PagedCache(policy, 1, 1, 16, case["context"], device="cpu").cache
        assert (cache.page_size, cache.block_size) == (case["page"], case["block"])
        assert (
            cache.k.shape[0] * cache.page_size == cache.max_tokens == case["context"]
        )  # the peer sees it whole
        assert cache.max_blocks <= configs.MAX_SELECT
        assert PagedCache(policy, 1, 1, 16, 64, device="cpu").under(Dense()).policy == Dense()


def test_no_case_is_planned_that_does_not_fit():
    assert {case["model"] for case in filling(40e9)} == {"qwen3-0.6b", "qwen3-1.7b", "qwen3-4b", "qwen3-8b"}
    assert filling(6e9) == []
    assert model_suite.memory_of("nvidia-a100") == 80 * 2**30
    assert model_suite.memory_of("some-other-gpu") == model_suite.memory_of("nvidia-h200") == 143771 * 2**20


# ---- the table of models --------------------------------------------------------------------------------------


def test_models_stand_by_size_and_measured_rows_come_first():
    table = by_model(32768, 1024, 141e9, H200)
    assert list(table["model"]) == [
        f"qwen3-{size}" for size in ("0.6b", "1.7b", "4b", "8b", "14b", "30b-a3b")
    ]
    eight = table.iloc[[3]].assign(sparse_us=6000.0, batch=19)
    timed = pd.concat([eight, eight.assign(budget=256), eight.assign(context=8192)])
    mixed = by_model(32768, 1024, 141e9, H200, timed)
    assert list(mixed["model"]) == list(table["model"])
    assert mixed["sparse_us"].notna().tolist() == [False, False, False, True, False, False]
    assert mixed["batch"].tolist() == [30, 30, 22, 19, 16, 18]
    assert by_model(16384, 1024, 141e9, H200, timed).get("sparse_us", pd.Series([np.nan])).isna().all()


def test_a_context_that_fits_nowhere_is_refused():
    with pytest.raises(ValueError, match="context must leave room for one request in 24 GB .*; got 1048576"):
        by_model(2**20, 1024, 24e9, H200)


# ---- the step itself, tiny ------------------------------------------------------------------------------------

SIZES = dict(num_attention_heads=4, head_dim=16, hidden_size=32, intermediate_size=64, vocab_size=64)
EXPERTS = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32)


@pytest.fixture(scope="module")
def hf():
    """The bridge to transformers, with Triton's interpreter where there is no GPU."""
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    pytest.importorskip("triton")
    if torch.cuda.is_available():
        pytest.skip("the interpreter's tests; a GPU runs the suite itself")
    from kinetics_lab.decode import hf

    return hf


def tiny(hf, n_layers: int = 2, n_kv_heads: int = 2, family: str = "qwen3", dtype: Any = None) -> Any:
    more = EXPERTS if family == "qwen3-moe" else {}
    kind = ["Qwen3MoeForCausalLM" if more else "Qwen3ForCausalLM"]
    layers = {"num_hidden_layers": n_layers, "num_key_value_heads": n_kv_heads}
    shape = from_hf_config({"architectures": kind} | layers | SIZES | more)
    model = hf.random_model(shape, dtype=dtype or torch.float32, seed=3)
    for p in model.parameters():
        p.data *= 8 if p.ndim > 1 else 1  # far from uniform attention
    return model


def full_caches(n_layers: int, n_kv_heads: int, batch: int = 3, context: int = 64) -> list[Any]:
    from kinetics_lab.decode.caches import PagedCache

    torch.manual_seed(0)
    policy = model_suite.policy_of({"budget": 32, "block": 16})
    kind = dict(dtype=torch.float32, device="cpu")
    caches = [PagedCache(policy, batch, n_kv_heads, 16, context, **kind) for _ in range(n_layers)]
    for cache in (c.cache for c in caches):
        cache.k.normal_()
        cache.v.normal_()
        cache.lengths.fill_(context - 1)
        cache.refresh()
    return caches


def inputs(batch: int = 3, context: int = 64) -> tuple[Any, Any, Any]:
    """Token ids, positions, and who takes the token."""
    return (
        torch.arange(batch)[:, None] + 7,
        torch.full((batch, 1), context - 1),
        torch.ones(batch, dtype=torch.int32),
    )


def test_the_peer_computes_what_our_dense_step_computes(hf):
    model, caches = tiny(hf, n_kv_heads=1), full_caches(2, 1)
    ids, positions, active = inputs()
    # One KV head and pages in order: the pages are the contiguous cache that the library reads.
    pool = [(c.cache.k.clone().view(3, 1, 64, 16), c.cache.v.clone().view(3, 1, 64, 16)) for c in caches]
    ours = hf.step(model, ids, positions, hf.PolicyCache([c.under(Dense()) for c in caches], active))
    peers = hf.step(model, ids, positions, hf.InPlaceCache(pool))
    assert ours.std() > 0.1
    torch.testing.assert_close(peers, ours, rtol=1e-4, atol=1e-5)
    pool[1][1][:, :, :-1] += 1
    assert (hf.step(model, ids, positions, hf.InPlaceCache(pool)) - ours).abs().max() > 1e-3


def test_the_rest_is_the_step_without_attention(hf, monkeypatch):
    from kinetics_lab.decode.caches import PagedCache

    model, nothing = tiny(hf), [steps.NoAttention()] * 2
    ids, positions, active = inputs()
    monkeypatch.setattr(PagedCache, "attend", lambda self, q, scale=None: q)
    without = hf.step(model, ids, positions, hf.PolicyCache(full_caches(2, 2), active))
    monkeypatch.undo()
    rest = hf.step(model, ids, positions, hf.PolicyCache(nothing, active))
    torch.testing.assert_close(rest, without)
    caches = full_caches(2, 2)
    assert (hf.step(model, ids, positions, hf.PolicyCache(caches, active)) - rest).abs().max() > 1e-3
    assert (caches[0].cache.lengths == 64).all()


@pytest.mark.parametrize("family", ["qwen3", "qwen3-moe"])
def test_small_kernels_are_counted(hf, family):
    from torch.utils._python_dispatch import TorchDispatchMode

    class Counted(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.seen = Counter[str]()

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            free = func.is_view or "view" in func.__name__ or "empty" in func.__name__
            kind = "view" if free else "product" if "mm" in func.__name__ else "small"
            self.seen[kind] += 1
            return func(*args, **(kwargs or {}))

    seen = []
    for n_layers in (2, 3):
        model = tiny(hf, n_layers, family=family, dtype=torch.bfloat16)
        ids, positions, active = inputs()
        with Counted() as count:
            hf.step(model, ids, positions, hf.PolicyCache([steps.NoAttention()] * n_layers, active))
        seen.append(count.seen)
    layer = seen[1] - seen[0]
    assert layer["product"] == 7  # with experts: q, k, v, out, router, and two grouped products
    # transformers 5.23 exactly; other versions differ by a few
    assert layer["small"] == pytest.approx(model_suite.SMALL_KERNELS[family], rel=0.1)


@pytest.mark.slow(reason="PyTorch's compiler takes longest, on code that changes rarely")
def test_layers_share_their_compiled_code(hf):
    from torch._dynamo.utils import counters

    torch.compiler.reset()
    ids, positions, active = inputs()
    found = {}
    for compiled in (False, True):
        model = tiny(hf, 12)
        if compiled:
            hf.compile_layers(model, backend="eager")
        counters.clear()
        cache = hf.PolicyCache(full_caches(12, 2), active)
        found[compiled] = hf.step(model, ids, positions, cache)
    assert 1 <= counters["stats"]["unique_graphs"] <= 6
    torch.testing.assert_close(found[True], found[False])
    torch.compiler.reset()


def test_the_kernels_read_as_many_tokens_as_are_counted(hf):
    case = {"budget": 32, "block": 16}
    cache = full_caches(1, 2, context=96)[0]
    cache.cache.lengths.fill_(96)
    cache.cache.refresh()
    blocks = cache._select(torch.randn(3, 4, 16)).blocks
    read = {len(set(head.tolist())) * 16 for request in blocks for head in request}
    assert read == {model_suite.counted(case).tokens_read} == {48}
    assert (blocks == 5).any(-1).all()  # the newest


def test_every_step_attends_as_it_is_called(hf, monkeypatch):
    from kinetics_lab.decode.caches import PagedCache

    seen: dict[str, list[Any]] = {}
    append, held = PagedCache.append, []

    class Watching:
        """A bench that runs every step once and keeps what each layer does."""

        on_gpu = on_host = False
        kind = {"dtype": torch.float16, "device": "cpu"}  # noqa: RUF012

        def time(self, calls, resets, optional):
            for name, call in calls.items():
                resets.get(name, lambda: None)()
                held.clear()
                call()
                seen[name] = list(held)
            return {f"{name}_us": 1.0 for name in calls}

    def watched_append(self, *args):
        held.append(self.cache.lengths.tolist())
        append(self, *args)

    def watched_attend(self, q, scale=None):
        held.append((str(self.policy), self.cache.lengths.tolist()))
        return q

    monkeypatch.setattr(PagedCache, "append", watched_append)
    monkeypatch.setattr(PagedCache, "attend", watched_attend)
    row = steps.MODEL.measure(steps.MODEL.cases(False)[0], Watching())
    assert set(row) >= {"speedup", "first_dense_speedup", "peer_over_dense"}
    dense = [[63, 63], ("dense", [64, 64])]
    sparse = [[63, 63], ("block_topk:32:16:0:true", [64, 64])]
    wanted = {"dense": dense * 2, "sparse": sparse * 2, "first_dense": dense + sparse, "rest": [], "peer": []}
    assert seen == wanted


# ---- what the chapter makes of rows ------------------------------------------------------------


@pytest.mark.notebooks
def test_the_chapter_calls_measured_what_is_measured_and_nothing_else(tmp_path):
    synthetic_rows.write(tmp_path / "rows", "model")  # SYNTHETIC rows, and labelled so by their GPU's name
    chosen: dict[str, Any] = {
        "gpu": synthetic_rows.GPU,
        "measurements": str(tmp_path / "rows"),
        "context": 8192,
    }
    chapter = synthetic_rows.NOTEBOOKS / "25_from_kernel_to_whole_model.ipynb"
    run = chapters.run_here(chapter, chosen, tmp_path / "run")
    text, titles = synthetic_rows.outputs(run)
    result = pd.read_parquet(run.folder / "result.parquet").set_index("model")
    timed = ["qwen3-0.6b", "qwen3-8b", "qwen3-14b"]  # the suite's cases at 8K tokens
    assert list(result.index[result["sparse_us"].notna()]) == timed
    assert result["peer_us"].notna().sum() == 3
    assert text.count(">measured</td>") == 3
    assert text.count(">limit</td>") == 3
    assert "every layer sparse, 4 times where 5.56 is the limit: " in text
    assert "dense not slower than the library: it takes " in text
    assert sum("easured" in title for title in titles) == 2
