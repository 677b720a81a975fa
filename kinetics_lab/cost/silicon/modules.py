"""Sparse attention that ships: DeepSeek's DSA beside MLA, whole modules, projections and search included."""

from __future__ import annotations

import numpy as np
import pandas as pd

from kinetics_lab.cost.hardware import ELEMENT_BYTES, Hardware
from kinetics_lab.cost.silicon.tables import BYTES, ENGINE_NAMES, L2_BYTES
from kinetics_lab.data import read_table
from kinetics_lab.errors import among, lookup, require

#: DeepSeek-V3.2: a latent of 512 and 64 rotary elements a token; an index key of 128 in FP8 with its scale, 64 heads.
LATENT, VALUE, INDEX_HEADS, INDEX_DIM = 576, 512, 64, 128
INDEX_BYTES = INDEX_DIM * ELEMENT_BYTES["mxfp8"]
CHOSEN = 2048  # tokens that are read


def sparse_twins(gpu: str, engine: str, kv: str = "bf16", heads: int = 128) -> pd.DataFrame:
    """DSA (an index chooses 2048 tokens) and MLA on one GPU, each engine's newest version that timed both.

    Columns ``batch``, ``context``, ``mla_us``, ``dsa_us``, ``speedup``. Raises ``ValueError`` for an unknown GPU or
    engine, and naming what there is where no pair was measured.
    """
    among(sorted(L2_BYTES), gpu, "gpu with measured kernels")
    among(ENGINE_NAMES, engine, "engine")
    t = read_table("silicon_sparse")
    t = t[(t.gpu == gpu) & t.op.isin(["mla_generation_module", "dsa_generation_module"]) & (t.gemm == "bf16")]
    t = t[t.model.isin(["DeepSeek-V3", "DeepSeek-V3.2"]) & (t["heads"] == heads) & (t.kv == kv)]
    t = t[t.engine.str.startswith(f"{engine} ")]
    wide = t.pivot_table("us", ["engine", "batch", "context"], columns="op", aggfunc="min", observed=True)
    there = wide.dropna() if wide.shape[1] == 2 else wide.iloc[:0]
    what = f"DSA and MLA on {gpu} under {engine} were not both measured; {heads} heads, cache"
    require(len(there) > 0, what, kv)
    there = there.reset_index()
    there = there[there.engine == max(there.engine.unique())]
    named = there.rename(columns={"mla_generation_module": "mla_us", "dsa_generation_module": "dsa_us"})
    return named[["batch", "context", "mla_us", "dsa_us"]].assign(speedup=lambda t: t.mla_us / t.dsa_us)


def break_even(twins: pd.DataFrame) -> pd.DataFrame:
    """For each batch the context from which on DSA is the faster one, and the straight lines behind it.

    Columns ``batch``; ``context`` (log-linear between measured ones; infinite where DSA never is faster); ``extra_us``
    (what DSA costs more before any context is read), ``mla_ns`` and ``dsa_ns`` (growth, ns a token and sequence) of lines
    through all contexts beyond the 2048 that are chosen; ``by_lines``, the context where the lines cross.
    """
    rows = []
    for batch, part in twins[twins.context >= CHOSEN].groupby("batch"):
        part = part.sort_values("context")
        log, gain = np.log(part.context.to_numpy(float)), np.log(part.speedup.to_numpy(float))
        slower = np.flatnonzero(gain <= 0)
        last = int(slower[-1]) if len(slower) else 0
        pays = float(np.exp(np.interp(0, gain[last : last + 2], log[last : last + 2])))
        pays = np.inf if last == len(part) - 1 else pays
        at = part[part.context > CHOSEN]
        weighted = {name: (at[f"{name}_us"], 1 / at[f"{name}_us"]) for name in ("mla", "dsa")}
        lines = {name: np.polyfit(at.context, us, 1, w=w) for name, (us, w) in weighted.items()}
        extra = lines["dsa"][1] - lines["mla"][1]
        growth = {name: line[0] / float(str(batch)) for name, line in lines.items()}
        crossing = extra / (lines["mla"][0] - lines["dsa"][0])
        rows.append((int(str(batch)), pays, extra, 1e3 * growth["mla"], 1e3 * growth["dsa"], crossing))
    return pd.DataFrame(rows, columns=["batch", "context", "extra_us", "mla_ns", "dsa_ns", "by_lines"])


def law_growth(hardware: Hardware, kv: str = "bf16", heads: int = 128) -> tuple[float, float]:
    """What the cost law says of the growth, ns a token and sequence at the datasheet's rates: MLA, and DSA's search.

    Each is the larger of traffic and arithmetic. Over an FP8 cache MLA multiplies in FP8 on Blackwell (told by its FP4
    peak) and converts to BF16 on older GPUs; the index multiplies in FP8.
    """
    bf16, peaks = hardware.at("bf16").peak_flops, hardware.peaks
    flops = 2 * heads * (LATENT + VALUE) / (peaks["fp8"] if kv == "fp8" and "fp4" in peaks else bf16)
    search = 2 * INDEX_HEADS * INDEX_DIM / peaks.get("fp8", bf16)
    dense = max(LATENT * lookup(BYTES, kv, "kv") / hardware.bandwidth, flops)
    return 1e9 * dense, 1e9 * max(INDEX_BYTES / hardware.bandwidth, search)
