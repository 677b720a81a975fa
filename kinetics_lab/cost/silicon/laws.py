"""Laws of few constants for measured decode attention: fitted in relative error, judged on shapes they have not seen."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from kinetics_lab.cost.silicon import Silicon

#: From the simplest on: which constants a law has besides its bandwidth.
LAWS = {"one bandwidth": (), "and a start": ("start",), "and a time per tile": ("start", "tile")}


def constants(terms: np.ndarray, seconds: np.ndarray, wanted: np.ndarray | None = None) -> np.ndarray:
    """Non-negative c with terms @ c nearest to ``wanted`` (default: ``seconds``), by least squares relative to ``seconds``."""
    from scipy.optimize import nnls

    relative = terms / seconds[:, None]
    scale = relative.max(0)
    aim = np.ones(len(seconds)) if wanted is None else wanted / seconds
    return np.asarray(nnls(relative / scale, aim)[0] / scale)


def attention_laws(silicon: Silicon, bandwidth: float | None = None) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Every law on every attention row whose cache exceeds twice the L2, and what each law's constants are.

    Pairs of heads are taken in order; every second one is ``held`` back from the fit and judges it. ``bandwidth``
    (bytes/s) adds the law "datasheet", which has nothing fitted.

    Returns rows (``law``, ``q_heads``, ``kv_heads``, ``batch``, ``context``, ``megabytes``, ``seconds``, ``predicted``,
    ``held``) and, for each law, ``start`` (s), ``tile`` (s a sequence and KV head), ``bandwidth`` (bytes/s), ``median``
    and ``p90`` of the error on what was held.
    """
    t, moved = silicon.cold_attention()
    seconds, tiles = t.us.to_numpy(float) * 1e-6, (t.batch * t.kv_heads).to_numpy(float)
    held = (t.groupby(["kv_heads", "q_heads"]).ngroup() % 2 == 1).to_numpy()
    known = {"start": np.ones(len(t)), "tile": tiles, "byte": moved}
    found = {"datasheet": {"byte": 1 / bandwidth}} if bandwidth else {}
    for law, names in LAWS.items():
        terms = np.stack([known[name] for name in (*names, "byte")], 1)
        fitted = constants(terms[~held], seconds[~held])
        found[law] = dict(zip((*names, "byte"), fitted.tolist(), strict=True))
    rows, told = [], []
    same = t[["q_heads", "kv_heads", "batch", "context"]]
    same = same.assign(megabytes=moved / 1e6, seconds=seconds, held=held)
    for law, parts in found.items():
        predicted = sum(np.asarray(known[name] * value) for name, value in parts.items())
        median, p90 = np.quantile(np.abs(predicted / seconds - 1)[held], [0.5, 0.9]).tolist()
        rows.append(same.assign(law=law, predicted=predicted))
        shown = {name: parts.get(name, 0.0) for name in ("start", "tile")}
        told.append({"law": law, **shown, "bandwidth": 1 / parts["byte"], "median": median, "p90": p90})
    return pd.concat(rows, ignore_index=True), pd.DataFrame(told)
