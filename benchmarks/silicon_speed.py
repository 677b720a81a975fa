"""How long measured kernels take to load and to price: prints seconds of one processor for each.

    python benchmarks/silicon_speed.py

Goals: the tables of one GPU and engine in half a second, 100,000 decode steps in one.
"""

from __future__ import annotations

import time
import warnings

import numpy as np

from kinetics_lab.cost.clock import Calibrated, Measured, calibrated
from kinetics_lab.cost.models import MODELS
from kinetics_lab.cost.silicon import Silicon
from kinetics_lab.cost.silicon.grid import OutsideGridWarning

STEPS = 100_000


def main() -> None:
    """Time loading, a first step (which builds the grids), many steps, and a fit of four constants."""
    import pandas  # noqa: F401  (not the tables' time)
    import scipy.interpolate  # noqa: F401

    shape, draw = MODELS["qwen3-8b"], np.random.default_rng(0)
    batch, context = draw.integers(1, 64, STEPS), draw.integers(512, 8192, STEPS)
    timed = time.process_time()
    clocks: list[Measured | Calibrated] = [Measured(Silicon("h200"))]
    said = {"load the tables": time.process_time() - timed}
    timed = time.process_time()
    clocks[0].step(shape, 1, 1024)
    said["the first step"] = time.process_time() - timed
    timed = time.process_time()
    clocks.append(calibrated(Silicon("h200")))
    said["fit four constants"] = time.process_time() - timed
    for clock in clocks:
        timed = time.process_time()
        clock.step(shape, batch, context)
        said[f"{STEPS:,} steps, {type(clock).__name__}"] = time.process_time() - timed
    for what, seconds in said.items():
        print(f"{what:32} {seconds:.3f} s")


if __name__ == "__main__":
    warnings.simplefilter("ignore", OutsideGridWarning)
    main()
