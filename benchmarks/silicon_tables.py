"""Kernel times measured by NVIDIA's collector, selected for this project: makes ``data/silicon/*.parquet``.

    pip install --no-deps aiconfigurator-core==0.12.0      # or the extra `silicon`
    python benchmarks/silicon_tables.py [OUT]              # OUT: data/silicon

Nothing is fitted or filled in. What is left out stands in ``LEFT_OUT`` with its reason, or beside the line that
leaves it out. Times are microseconds to four significant digits; a case that was measured twice has the median.

What the collector does (read in its source): a CUDA graph of one call (products: of five or six), a few warm-ups,
then 6 replays (SGLang 20) between two events, of which the mean is stored. The L2 cache is not flushed between
replays and no clock is recorded, so there is no spread, and rows whose data fit the L2 are warm.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

VERSION = "0.12.0"
GPUS = {  # the collector's name -> this project's
    "a100_sxm": "a100", "h100_sxm": "h100", "h200_sxm": "h200", "b200_sxm": "b200", "b300_sxm": "b300",
    "gb200": "gb200", "gb300": "gb300", "l40s": "l40s", "rtx_pro_6000_server": "rtx-pro-6000",
}  # fmt: skip
BLACKWELL = ("b200", "b300", "gb200", "gb300")
#: (GPU, or "" for all; engine and version; family) -> why its rows are not used.
LEFT_OUT = {
    (
        "a100",
        "trtllm 1.0.0",
        "attention",
    ): "up to 1.69 times the datasheet's bandwidth, far beyond the L2: not physical",
    ("", "vllm 0.22.0", "attention"): "an older version beside vllm 0.24.0 on the same GPU",
    ("", "sglang 0.5.6.post2", "gemm"): "an older version beside sglang 0.5.14",
}
#: The decode kernel that an engine picks by itself for plain grouped-query attention.
DEFAULT_KERNELS = {
    "fa3", "trtllm_mha", "flash_attention", "flashinfer", "torch_flow", "vllm_flash_attn", "vllm_flash_attn_fa2",
    "vllm_flash_attn_fa3", "vllm_flashinfer_trtllmdecode", "vllm_flashinfer_fidecode",
}  # fmt: skip
#: (query heads, KV heads) on one GPU of the models of this book, whole and split over 2, 4 or 8 GPUs.
HEADS = {
    (16, 8), (32, 8), (40, 8), (64, 8), (32, 4), (64, 4), (16, 4), (20, 4), (16, 2), (8, 2), (10, 2), (12, 2),
    (8, 1), (4, 1), (5, 1), (2, 1), (6, 1), (16, 16), (32, 32),
}  # fmt: skip
WINDOWED_HEADS = {
    (64, 8),
    (32, 4),
    (16, 2),
    (8, 1),
}  # gpt-oss: heads of 64, every other layer a window of 128
TOKENS = [2**power for power in range(14)]  # of a product: one a sequence in a decode step
EXPERTS = {  # (hidden, expert width, chosen, experts) -> model
    (2048, 768, 8, 128): "qwen3-30b-a3b",
    (4096, 1536, 8, 128): "qwen3-235b-a22b",
    (2880, 2880, 4, 128): "gpt-oss-120b",
    (7168, 2048, 8, 256): "deepseek-v3",
}
SPLITS = {
    (1, 1),
    (1, 2),
    (1, 4),
    (1, 8),
    (2, 1),
    (4, 1),
    (8, 1),
}  # experts: (tensor, expert) parallel, as served
MODULES = (
    "mla_generation_module", "dsa_generation_module", "msa_generation_module", "dsv4_csa_generation_module",
    "dsv4_hca_generation_module", "generation_mla",
)  # fmt: skip
NAMES = {"bfloat16": "bf16", "fp8_e4m3": "fp8"}
#: Serving runs kept apart: predictions are to be judged on runs that nobody has looked at.
KEPT_APART = {
    ("Qwen/Qwen3-235B-A22B-FP8", "h200"), ("meta-llama/Llama-3.1-8B-Instruct", "h200"),
    ("nvidia/Llama-3.1-8B-Instruct-FP8", "h200"), ("openai/gpt-oss-120b", "h100"),
}  # fmt: skip


def systems() -> Path:
    """The folder of tables in the installed package. Raises SystemExit saying how to install it."""
    spec = importlib.util.find_spec("aiconfigurator_core")
    if spec is None or spec.origin is None:
        raise SystemExit(
            f"aiconfigurator-core {VERSION} is not installed: pip install --no-deps aiconfigurator-core=={VERSION}"
        )
    return Path(spec.origin).parent / "systems"


def tables(family: str, name: str) -> Iterator[pd.DataFrame]:
    """Every table called ``name`` of the GPUs, with columns ``gpu`` and ``engine`` ("vllm 0.24.0")."""
    for path in sorted((systems() / "data").glob(f"*/{family}/*/*/{name}_perf.parquet")):
        gpu, _, engine, version = path.parts[-5:-1]
        if gpu not in GPUS:
            continue
        gpu, engine = GPUS[gpu], f"{engine} {version}"
        if not {(gpu, engine, family), ("", engine, family)} & set(LEFT_OUT):
            yield pd.read_parquet(path).assign(gpu=gpu, engine=engine)


def named(column: pd.Series) -> pd.Series:
    """Precisions by the names this project uses."""
    return column.astype(str).replace(NAMES)


def microseconds(milliseconds: pd.Series) -> np.ndarray:
    """Microseconds to four significant digits."""
    us = milliseconds.to_numpy(float) * 1e3
    scale = 10.0 ** (3 - np.floor(np.log10(us)))
    return (np.round(us * scale) / scale).astype("float32")


def attention_rows(windowed: bool) -> pd.DataFrame:
    """Decode attention: heads of 128 without a window, or heads of 64 with one and without (``windowed``)."""
    parts = []
    for table in tables("attention", "generation_attention"):
        window = table.get("window_size", 0)
        table = table.assign(window=window)
        heads = pd.Series(
            list(zip(table.num_heads, table.num_key_value_heads, strict=True)), index=table.index
        )
        if windowed:
            table = table[(table.head_dim == 64) & table.window.isin([0, 128]) & heads.isin(WINDOWED_HEADS)]
        else:
            table = table[(table.head_dim == 128) & (table.window == 0) & heads.isin(HEADS)]
        kernel = table.kernel_source.astype(str)
        # SGLang lists two kernels for one shape on Blackwell; its default for plain attention there is trtllm_mha.
        keep = kernel.isin(DEFAULT_KERNELS) & ~(table.gpu.isin(BLACKWELL) & (kernel == "flashinfer"))
        table = table[keep]
        parts.append(pd.DataFrame({
            "gpu": table.gpu, "engine": table.engine, "kv": named(table.kv_cache_dtype),
            "q_heads": table.num_heads, "kv_heads": table.num_key_value_heads, "window": table.window,
            "batch": table.batch_size,
            "context": table.step + 1,  # `step` counts the cached tokens before the new one, which is read too
            "us": microseconds(table.latency),
        }))  # fmt: skip
    return pd.concat(parts)


def attention() -> pd.DataFrame:
    return attention_rows(windowed=False).drop(columns="window")


def windows() -> pd.DataFrame:
    found = attention_rows(windowed=True)
    powers = np.log2(found.batch).mod(1).eq(0) & np.log2(found.context).mod(1).eq(0)
    return found[powers]


def gemm() -> pd.DataFrame:
    parts = []
    for table in tables("gemm", "gemm"):
        # fp8_block: vLLM times it without a graph, so that the host is in it
        known = table.gemm_dtype.isin(["bfloat16", "fp8", "nvfp4"])
        table = table[known & table.m.isin(TOKENS) & (table.n >= 512) & (table.k >= 512)]
        parts.append(pd.DataFrame({
            "gpu": table.gpu, "engine": table.engine, "dtype": named(table.gemm_dtype),
            "n": table.n, "k": table.k, "m": table.m, "us": microseconds(table.latency),
        }))  # fmt: skip
    return pd.concat(parts)


def experts() -> pd.DataFrame:
    """Routed experts of one layer; where an engine has several kernels for a case, the fastest."""
    parts = []
    for table in tables("moe", "moe"):
        shape = zip(table.hidden_size, table.inter_size, table.topk, table.num_experts, strict=True)
        table = table.assign(model=[EXPERTS.get(one) for one in shape])
        split = pd.Series(list(zip(table.moe_tp_size, table.moe_ep_size, strict=True)), index=table.index)
        table = table[table.model.notna() & split.isin(SPLITS) & (table.num_tokens <= 8192)]
        table = table[
            table.moe_dtype.isin(["bfloat16", "fp8", "fp8_block", "nvfp4", "w4a16_mxfp4", "w4a8_mxfp4_mxfp8"])
        ]
        table = table[table.distribution.isin(["balanced", "power_law_1.2", "power_law_1.01"])]
        parts.append(pd.DataFrame({
            "model": table.model, "gpu": table.gpu, "engine": table.engine, "dtype": named(table.moe_dtype),
            "routing": table.distribution.astype(str), "tp": table.moe_tp_size, "ep": table.moe_ep_size,
            "tokens": table.num_tokens, "kernel": table.kernel_source.astype(str), "us": microseconds(table.latency),
        }))  # fmt: skip
    found = once(pd.concat(parts))
    case = [name for name in found if name not in ("kernel", "us")]
    return found.groupby(case, as_index=False, observed=True).us.min()


def sparse() -> pd.DataFrame:
    """Whole attention modules, one decode step: MLA, DSA, MSA, CSA, HCA; and TensorRT-LLM's bare MLA kernel.

    glm5_* tables are left out: prefill kernels at one token, and zeros that mean "not run".
    """
    parts = []
    for name in MODULES:
        for table in tables("*", name):
            if name == "generation_mla" and "trtllm" not in table.engine.iloc[0]:
                continue
            table = table[(table.isl == 1) & (table.latency > 0) & table.num_heads.isin([16, 64, 128])]
            blank = pd.Series("", index=table.index)
            parts.append(pd.DataFrame({
                "op": name, "gpu": table.gpu, "engine": table.engine,
                "model": table.get("model", blank).astype(str).str.split("/").str[-1],
                "kernel": table.kernel_source.astype(str), "kv": named(table.kv_cache_dtype),
                "gemm": named(table.get("gemm_type", blank)), "heads": table.num_heads, "tp": table.tp_size,
                "batch": table.batch_size, "context": table.step, "us": microseconds(table.latency),
            }))  # fmt: skip
    return pd.concat(parts)


def search() -> pd.DataFrame:
    """What finds the tokens to read: the scan of index keys, and top-k where all scores tie or rise to the end."""
    parts = []
    for name, op in (("dsv4_paged_mqa_logits_module", "scan"), ("dsv4_csa_topk_calib", "topk")):
        for table in tables("sparse_attention", name):
            table = table[(table.isl == 1) & (table.latency > 0)]
            scores = (
                table["score_mode"].astype(str) if "score_mode" in table else pd.Series("", index=table.index)
            )
            parts.append(pd.DataFrame({
                "op": op, "gpu": table.gpu, "engine": table.engine, "kernel": table.kernel_source.astype(str),
                "model": table.model.astype(str).str.split("/").str[-1],
                "scores": scores.map(lambda mode: "ties" if "flat" in mode else "ramp" if "top_last" in mode else ""),
                "batch": table.batch_size, "entries": table.step // table.compress_ratio,
                "us": microseconds(table.latency),
            }))  # fmt: skip
    return pd.concat(parts)


def allreduce() -> pd.DataFrame:
    """Custom all-reduce within a node, each engine's newest version."""
    parts = []
    for table in tables("comm", "custom_allreduce"):
        table = table[table.message_size <= 2**24]
        kernel = table.get("implementation", table.kernel_source)
        parts.append(pd.DataFrame({
            "gpu": table.gpu, "engine": table.engine, "kernel": kernel.astype(str), "gpus": table.num_gpus,
            "elements": table.message_size, "us": microseconds(table.latency),
        }))  # fmt: skip
    found = pd.concat(parts)
    version = found.engine.str.extract(r"(\d+)\.(\d+)\.(\d+)(?:rc(\d+))?").astype(float).fillna(1e6)
    order = (version * [1e9, 1e6, 1e3, 1e-3]).sum(axis=1)
    return found[order == order.groupby([found.gpu, found.engine.str.split().str[0]]).transform("max")]


def serving() -> pd.DataFrame:
    """Measured serving of one node: no attention data parallelism (written in two ways), a stated precision."""
    runs = pd.read_csv(systems() / "silicon_sample.csv")
    alone = (runs["mode"] == "agg") & (runs.attention_dp_size.fillna(1) <= 1) & runs.tp_size.between(1, 8)
    runs = runs[alone & runs.precision.isin(["fp8", "fp4", "bf16", "int4"])].copy()
    told = runs.silicon_data_source.str
    runs["concurrency"] = told.extract(r"silicon_concurrency=(\d+)")[0].astype(float).fillna(runs.batch_size)
    runs["measured"] = told.extract(r"measured=(\d{4}-\d{2}-\d{2})")[0].fillna("")
    runs["version"] = runs.backend_version.fillna("")
    columns = {
        "model_path": "model", "system": "gpu", "backend": "engine", "version": "version", "precision": "precision",
        "isl": "n_in", "osl": "n_out", "concurrency": "concurrency", "tp_size": "tp", "moe_tp_size": "moe_tp",
        "moe_ep_size": "moe_ep", "silicon_ttft_ms": "ttft_ms", "silicon_tpot_ms": "tpot_ms", "measured": "measured",
    }  # fmt: skip
    runs = runs[list(columns)].rename(columns=columns)
    runs["gpu"] = runs.gpu.map(GPUS)
    apart = [case in KEPT_APART for case in zip(runs.model, runs.gpu, strict=True)]
    runs = runs[runs.gpu.notna() & ~np.array(apart)]
    for name in ("ttft_ms", "tpot_ms"):
        runs[name] = runs[name].map(lambda value: float(f"{value:.4g}")).astype("float32")
    for name in ("concurrency", "tp", "moe_tp", "moe_ep"):
        runs[name] = runs[name].fillna(0).astype("int32")
    case = ["model", "gpu", "engine", "precision", "n_in", "n_out", "concurrency", "tp"]
    return runs.sort_values("measured").drop_duplicates(
        [*case, "tpot_ms"], keep="last"
    )  # one run, exported twice


def once(table: pd.DataFrame) -> pd.DataFrame:
    """One row a case: the median of its times. Sorted, small integers, texts as categories."""
    if "us" in table:
        case = [name for name in table if name != "us"]
        table = table.groupby(case, as_index=False, observed=True).us.median()
    table = table.sort_values(list(table)).reset_index(drop=True)
    for name in table:
        if pd.api.types.is_integer_dtype(table[name]):
            table[name] = table[name].astype("int32")
        elif not pd.api.types.is_float_dtype(table[name]):
            table[name] = table[name].astype(str).astype("category")
    return table


TABLES = {
    make.__name__: make for make in (attention, windows, gemm, experts, sparse, search, allreduce, serving)
}


def main(out: str = "data/silicon") -> None:
    """Write every table; prints its rows and size."""
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    for name, make in TABLES.items():
        table = once(make())
        path = folder / f"{name}.parquet"
        table.to_parquet(path, index=False, compression="zstd", compression_level=19)
        print(f"{name}: {len(table):,} rows, {path.stat().st_size / 1e3:,.0f} kB")


if __name__ == "__main__":
    main(*sys.argv[1:])
