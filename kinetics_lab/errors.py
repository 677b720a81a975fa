"""Helpers that make every complaint name what was given and what would be right."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import numpy as np

Value = TypeVar("Value")
MOST = 10**15  # of anything that is counted; beyond, floats lose whole numbers, and nobody means it


class NothingFitsError(ValueError):
    """No setting can be served on the devices, or none keeps the limits of a service."""


def require(condition: Any, rule: str, got: Any) -> None:
    """Raise ``ValueError`` with the rule and the value unless the condition holds (everywhere, for arrays)."""
    met = condition if isinstance(condition, bool) else getattr(condition, "all", lambda: condition)()
    if not met:
        got = repr(got.tolist() if hasattr(got, "tolist") else got)  # a path is known by its end
        raise ValueError(f"{rule}; got {got if len(got) <= 80 else f'{got[:37]}...{got[-40:]}'}")


def counts(value: Any, what: str, least: float = 0, unit: str = "") -> np.ndarray:
    """A number, or many, as an array of floats; ``ValueError`` unless each lies between ``least`` and ``MOST``."""
    import numpy as np

    try:
        found = np.asarray(value, float)
    except (OverflowError, TypeError, ValueError):
        found = np.full((), np.nan)
    rule = f"{what} must be >= {least} and finite{unit}, at most {MOST:g}"
    require((found >= least) & (found <= MOST), rule, value)
    return found


def unknown(what: str, name: object, known: list[str]) -> ValueError:
    """The error for a name that is not known: near matches first, else the choices."""
    near = get_close_matches(str(name), known, n=3, cutoff=0.5)
    some = ", ".join(known[:24]) + ", ..." * (len(known) > 24)
    hint = f"did you mean {', '.join(near)}?" if near else f"known: {some}"
    return ValueError(f"{what} {name!r:.300} is not known; {hint}")


def among(known: Iterable[Any], name: object, what: str) -> None:
    """Raise a ``ValueError`` naming the near matches unless ``name`` is one of those known."""
    if name not in (names := list(known)):
        raise unknown(what, name, names)


def lookup(table: Mapping[str, Value], name: object, what: str) -> Value:
    """``table[name]``, or a ``ValueError`` naming the near matches."""
    if isinstance(name, str) and name in table:
        return table[name]
    raise unknown(what, name, sorted(table))


_PIP = {"yaml": "pyyaml", "jupyter_book": "'jupyter-book<2'"}  # where a module's name is not its package's
_TORCH = ("torch", "triton", "transformers", "tokenizers", "huggingface_hub", "math_verify", "pebble", "distributed")  # fmt: skip


def absent(module: str, what: str = "this") -> ValueError:
    """The error for a package that is not installed: which it is, and the commands that install it."""
    module = module.partition(".")[0]
    make, pip = "torch" if module in _TORCH else "install", _PIP.get(module, module).replace("_", "-")
    return ValueError(
        f"{what} needs {module}: run `make {make}` in the project's folder, elsewhere `pip install {pip}`"
    )


def printable(text: object) -> str:
    """Text as a terminal may show it: control and direction characters, but for line ends, as their escapes."""
    escaped = (c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in str(text))
    return str(text) if str(text).isprintable() else "".join(escaped)


def report(line: object) -> None:
    """A line of progress, or a warning, on standard error as it happens."""
    print(printable(line), file=sys.stderr, flush=True)


def check_name(name: object, what: str) -> None:
    """Raise ``ValueError`` unless a name is one line of text that a terminal can show, of 1 to 300 characters."""
    fine = isinstance(name, str) and name.isprintable() and bool(name.strip()) and len(name) <= 300
    require(fine, f"{what} must be one line of printable text, at most 300 characters", name)


def is_label(name: object) -> bool:
    """Whether a name is words, digits and single signs between them, which no page, shell or terminal takes for more."""
    words = r"(?i)(?!.*\bwww\b)[^\W_]+(?:(?:[ ./+×_-]| \(|\) )[^\W_]+)*\)?"
    return isinstance(name, str) and len(name) <= 100 and bool(re.fullmatch(words, name))


def sentence(error: Exception) -> str:
    """An exception's type and first line, at most 300 characters."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or ['no message'])[0]}"[:300]
