"""The tables of measured kernels: the rows of one GPU under one engine, and what their columns mean."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from kinetics_lab.cost.hardware import ELEMENT_BYTES
from kinetics_lab.data import read_table
from kinetics_lab.errors import among, require

if TYPE_CHECKING:
    import pandas as pd

ENGINE_NAMES = {"vllm": "vLLM", "sglang": "SGLang", "trtllm": "TensorRT-LLM"}
#: L2 cache, bytes (whitepapers of the A100, H100, Blackwell, L40S, RTX PRO 6000). What fits is warm in the tables.
L2_BYTES = {
    "a100": 40e6, "h100": 50e6, "h200": 50e6, "b200": 126e6, "b300": 126e6, "gb200": 126e6, "gb300": 126e6,
    "l40s": 96e6, "rtx-pro-6000": 128e6,
}  # fmt: skip
#: Bytes of a stored number, in the precisions that were measured.
BYTES = {name: ELEMENT_BYTES[name] for name in ("bf16", "fp8", "nvfp4")}
HEAD_DIM = 128  # of the attention that was measured


@cache
def rows(table: str, gpu: str, engine: str, op: str = "") -> pd.DataFrame:
    """The rows of one table ("attention", "gemm", ...), or of one ``op`` in it, of a GPU under an engine's newest version.

    Raises ``ValueError`` naming what there is for an unknown GPU or engine, or one without rows.
    """
    among(sorted(L2_BYTES), gpu, "gpu with measured kernels")
    among(ENGINE_NAMES, engine, "engine")
    everything = _table(table)
    here = everything[(everything.gpu == gpu) & ((everything.op == op) if op else True)]
    versions = sorted(here.engine.unique())
    there = sorted({version.split()[0] for version in versions})
    rule = f"{op or table} on {gpu} was measured under {', '.join(there) or 'no engine'}"
    require(engine in there, rule, engine)
    newest = max(version for version in versions if version.startswith(f"{engine} "))
    found = here[here.engine == newest].drop(columns=["gpu"])
    return found.assign(**{name: found[name].astype(str) for name in found.select_dtypes("category")})


@cache
def _table(name: str) -> pd.DataFrame:
    return read_table(f"silicon_{name}")
