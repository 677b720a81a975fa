"""How well the interpolated kernel times predict rows that they have not seen: makes ``data/silicon/accuracy.csv``.

    python benchmarks/silicon_accuracy.py [OUT.csv]

Five tests for each GPU and engine, in bf16, error = |predicted / measured - 1|:

- ``gemm``, ``attention``: a random twentieth of the rows is dropped and predicted from the others;
- ``coarse``: of attention every second batch and context is dropped, and the others predict them (a factor of 2 away);
- ``heads``: a pair of heads is dropped and predicted from the nearest group with as many KV heads;
- ``tail``: rows above an eighth of the pair's largest batch x context are dropped and predicted (batch 16 to 256),
  which is what large batches at long contexts need.
"""

from __future__ import annotations

import sys
import warnings

import numpy as np
import pandas as pd

from kinetics_lab.cost.silicon import L2_BYTES, Silicon, measured_engines
from kinetics_lab.cost.silicon.grid import OutsideGridWarning


def without(
    gpu: str, engine: str, products: pd.Series | None = None, attention: pd.Series | None = None
) -> Silicon:
    """A Silicon that has not seen the rows where a mask is true."""
    silicon = Silicon(gpu, engine)
    if products is not None:
        silicon._products = silicon._products[~products]
    if attention is not None:
        silicon._attention = silicon._attention[~attention]
    return silicon


def errors(predicted: np.ndarray, us: pd.Series) -> tuple[int, float, float]:
    """Rows, median and 90th percentile of the relative error."""
    off = np.abs(predicted / (us.to_numpy(float) * 1e-6) - 1)
    return (len(off), *(float(f"{np.quantile(off, q):.3g}") for q in (0.5, 0.9)))


def inner(table: pd.DataFrame, axes: list[str]) -> pd.DataFrame:
    """The rows at neither end of any axis: what is left of them is predicted without leaving the grid."""
    ends = [table[axis].isin([table[axis].min(), table[axis].max()]) for axis in axes]
    return table[~np.logical_or.reduce(ends)]


def odd(values: pd.Series, phase: int = 1) -> pd.Series:
    """Whether a value is an inner one of every second of the axis."""
    points = np.unique(values)
    place = np.searchsorted(points, values)
    return pd.Series((place % 2 == phase) & (place > 0) & (place < len(points) - 1), index=values.index)


def gemm(gpu: str, engine: str) -> tuple[int, float, float]:
    t = Silicon(gpu, engine)._products
    asked = inner(t, ["m", "n", "k"]).sample(frac=0.05, random_state=0)
    silicon = without(gpu, engine, products=t.index.to_series().isin(asked.index))
    return errors(silicon.gemm(asked.m, asked.n, asked.k), asked.us)


def per_pair(gpu: str, engine: str, silicon: Silicon, asked: pd.DataFrame) -> tuple[int, float, float]:
    found = [
        silicon.attention(*map(int, pair), part.batch, part.context)
        for pair, part in asked.groupby(["q_heads", "kv_heads"], sort=False)
    ]
    us = pd.concat([part.us for _, part in asked.groupby(["q_heads", "kv_heads"], sort=False)])
    return errors(np.concatenate(found), us)


def attention(gpu: str, engine: str) -> tuple[int, float, float]:
    t = Silicon(gpu, engine)._attention
    asked = inner(t, ["batch", "context"]).sample(frac=0.05, random_state=0)
    return per_pair(gpu, engine, without(gpu, engine, attention=t.index.to_series().isin(asked.index)), asked)


def coarse(gpu: str, engine: str) -> tuple[int, float, float]:
    t = Silicon(gpu, engine)._attention
    drop = odd(t.batch) | odd(t.context)
    return per_pair(gpu, engine, without(gpu, engine, attention=drop), t[odd(t.batch) & odd(t.context)])


def heads(gpu: str, engine: str) -> tuple[int, float, float]:
    t = Silicon(gpu, engine)._attention
    parts = []
    for pair, part in t.groupby(["q_heads", "kv_heads"]):
        if t[(t.kv_heads == pair[1])].q_heads.nunique() > 1:
            unseen = without(gpu, engine, attention=(t.q_heads == pair[0]) & (t.kv_heads == pair[1]))
            predicted = unseen.attention(*map(int, pair), part.batch, part.context)
            parts.append(np.abs(predicted / (part.us.to_numpy(float) * 1e-6) - 1))
    off = np.concatenate(parts)
    return (len(off), *(float(f"{np.quantile(off, q):.3g}") for q in (0.5, 0.9)))


def tail(gpu: str, engine: str) -> tuple[int, float, float]:
    t = Silicon(gpu, engine)._attention
    work = t.batch * t.context
    most = work.groupby([t.q_heads, t.kv_heads]).transform("max")
    drop = work > most / 8
    asked = t[drop & t.batch.between(16, 256)]
    return per_pair(gpu, engine, without(gpu, engine, attention=drop), asked)


def main(out: str = "data/silicon/accuracy.csv") -> None:
    """Run the tests on all that was measured; prints and writes the table."""
    found = []
    for gpu in L2_BYTES:
        for engine in (one.engine for one in measured_engines(gpu)):
            for test in (gemm, attention, coarse, heads, tail):
                count, median, p90 = test(gpu, engine)
                found.append((gpu, engine, test.__name__, count, median, p90))
                print(*found[-1], flush=True)
    pd.DataFrame(found, columns=["gpu", "engine", "test", "rows", "median", "p90"]).to_csv(out, index=False)


if __name__ == "__main__":
    warnings.simplefilter("ignore", OutsideGridWarning)
    main(*sys.argv[1:])
