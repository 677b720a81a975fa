"""Kinetics Lab: what test-time compute costs, measured and fitted.

Submodules load on first use, so that ``import kinetics_lab`` stays quick and never imports torch.
"""

from importlib import import_module
from types import ModuleType

__version__ = "0.1.0"

_SUBMODULES = (
    "book",
    "cost",
    "data",
    "decode",
    "errors",
    "files",
    "ladder",
    "laws",
    "measure",
    "planner",
    "traces",
)
__all__ = ["__version__", *_SUBMODULES]


def __getattr__(name: str) -> ModuleType:
    if name in _SUBMODULES:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(_SUBMODULES)}")


def __dir__() -> list[str]:
    return sorted(__all__)
