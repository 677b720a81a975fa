"""Kinetics Lab: what test-time compute costs, measured and fitted.

The names below are the package's own; each loads its module on first use, so that ``import kinetics_lab`` takes
milliseconds and never imports torch or pandas. What is special to one part of the book stands in its room:
``kinetics_lab.laws``, ``kinetics_lab.measure``, ``kinetics_lab.ladder``, ``kinetics_lab.book`` and the others.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "cost.hardware": ("HARDWARE", "Hardware", "find_hardware"),
    "cost.policies": (
        "BlockTopK", "Dense", "Local", "Policy", "Quest", "StridedBlockTopK", "TopK", "balanced_block_size",
        "parse_policy",
    ),
    "cost.models": ("MODELS", "find_model"),
    "cost.countings": ("attended",),
    "cost.request": ("Cost", "cost_parts", "decode_cost", "max_batch", "prefill_cost"),
    "cost.shapes": ("ModelShape",),
    "data": ("read_table",),
    "laws.frontier": (
        "cost_table", "cost_to_reach", "oracle_allocation", "pareto_frontier", "uniform_allocation",
    ),
    "laws.powerlaw": ("fit_power_law",),
    "laws.resample": ("advantage", "cheapest", "winners"),
    "planner.plan": ("plan",),
    "traces.read": ("read_traces",),
    "traces.table": ("pass_at_k", "summarize", "write_traces"),
}  # fmt: skip
#: Public name -> the module that has it, below this package.
HOME = {name: module for module, names in _PUBLIC.items() for name in names}
__all__ = ["__version__", *sorted(HOME)]


def __getattr__(name: str) -> Any:
    if name not in HOME:
        from kinetics_lab.errors import unknown

        raise AttributeError(str(unknown("kinetics_lab: name", name, sorted(HOME))))
    value = getattr(import_module(f"{__name__}.{HOME[name]}"), name)
    globals()[name] = value  # found at once from now on
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
