"""Times turned into the constants of the cost law: bandwidth, matrix rate, overhead."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd

from kinetics_lab.cost.hardware import Hardware
from kinetics_lab.cost.request import COMBINES, Cost
from kinetics_lab.errors import among, require

FORMS = (*COMBINES, "parts")


@dataclass(frozen=True)
class TimeLaw:
    """Time of a step of one layer: its traffic at ``bandwidth`` (bytes/s), arithmetic at ``matrix_rate`` (FLOP/s).

    ``form``: "add" (they take turns, Eq. 3), "max" (they overlap, Appendix A.1), or "parts": within the matrix
    products and within attention they overlap, and the two follow each other, as in the suites' limits.
    """

    bandwidth: float
    matrix_rate: float
    overhead_us: float
    form: str = "add"

    def us(self, table: pd.DataFrame) -> np.ndarray:
        """Microseconds for rows with ``bytes``, ``flops``, and of these ``weight_bytes`` and ``gemm_flops``."""
        at = Hardware("fitted", {"bf16": self.matrix_rate}, self.bandwidth, math.nan, "fitted")
        whole = Cost(table["flops"].to_numpy(float), table["bytes"].to_numpy(float))
        products = Cost(table["gemm_flops"].to_numpy(float), table["weight_bytes"].to_numpy(float))
        parts = [products, whole + -1 * products] if self.form == "parts" else [whole]
        combine = "max" if self.form == "parts" else self.form
        return np.asarray(self.overhead_us + 1e6 * sum(part.seconds(at, combine) for part in parts))


def halves(table: pd.DataFrame, seed: int) -> np.ndarray:
    """True for a random half of the dense and of the sparse rows (``budget``): to fit on, and to predict the rest."""
    draw, chosen = np.random.default_rng(seed), np.zeros(len(table), bool)
    for dense in (True, False):
        which = np.flatnonzero((table["budget"].to_numpy() == 0) == dense)
        chosen[draw.permutation(which)[: len(which) // 2]] = True
    return chosen


def fit_time_law(
    table: pd.DataFrame, us: np.ndarray, form: str = "add", matrix_rate: float | None = None
) -> TimeLaw:
    """The constants that come nearest to the times ``us``: robust least squares of log(predicted / us).

    Three, or two where ``matrix_rate`` (FLOP/s) is known: rows whose arithmetic grows with their traffic cannot tell
    both rates. In logarithms an error of 10 % weighs the same at 30 microseconds and at 3 milliseconds.
    """
    from scipy.optimize import least_squares

    among(FORMS, form, "form")
    us = np.asarray(us, float)
    require(len(us) == len(table) >= 6, "a fit needs at least 6 rows, and a time for each", len(us))
    require(np.isfinite(us) & (us > 0), "us must be positive and finite (microseconds)", us)

    def law(logs: np.ndarray) -> TimeLaw:
        bandwidth, overhead_us, *rate = (float(value) for value in np.exp(logs))
        return TimeLaw(bandwidth, matrix_rate or rate[0], overhead_us, form)

    def off(logs: np.ndarray) -> np.ndarray:
        return np.log(law(logs).us(table) / us)

    fastest = [(table[name].to_numpy(float) / us).max() * 1e6 for name in ("bytes", "flops")]
    start = np.log([fastest[0], us.min() / 2, *([] if matrix_rate else fastest[1:])])
    fit = least_squares(off, start, bounds=(start - 12, start + 12), loss="soft_l1", f_scale=0.1)
    return law(fit.x)
