"""How long the pages that reckon take to answer a change: milliseconds, in a headless Chromium of this machine.

    python benchmarks/page_speed.py [CHANGES]

Each change puts one field at random to another of its values and takes the time until the page has its new text, table and
picture laid out. Goal: 100 ms. The load of the machine is printed, since it is part of what is measured.
"""

from __future__ import annotations

import os
import random
import sys
import tempfile
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any

import numpy as np

from kinetics_lab.cli.shared import public
from kinetics_lab.planner.page import SETS, page_files

_file = Path(__file__).parent.parent / "tests" / "browser.py"
browser: Any = SourceFileLoader("browser", str(_file)).load_module()

#: Values that are typed into the fields that take numbers.
TYPED = {
    "n_in": (0, 700, 8191, 90_000), "n_out": (1, 500, 8192, 60_000), "answers": (1, 8), "batch": ("", 1, 16, 300),
    "reserve": (0, 10, 25), "price": (0.5, 2.5, 10), "budget": ("", 0.5, 5, 50, 1e-6), "hit": (0.5, 0.9, 1),
    "false_alarm": (0, 0.1, 0.4), "check": (0, 0.05), "max_seconds": ("", 60, 600), "max_tpot": ("", 0.005, 0.05),
}  # fmt: skip
FIELDS = """[...document.querySelectorAll('.kl-calc-field:not([hidden]) :is(select, input)')]"""
CHANGE = """(({at, share, value}) => {
  const field = %s[at], began = performance.now();
  if (field.type === 'checkbox') field.checked = !field.checked;
  else field.value = field.options ? field.options[Math.floor(share * field.options.length)].value : value;
  field.dispatchEvent(new Event('input', {bubbles: true}));
  document.body.getBoundingClientRect();
  return [performance.now() - began, document.querySelector('.kl-calc-said').textContent];
})(%s)"""


def changes(page: Any, count: int) -> list[tuple[float, str]]:
    """Milliseconds of random changes, and what each was; what a field refuses is not counted."""
    draw, found = random.Random(3), list[tuple[float, str]]()
    while len(found) < count:
        at, key = draw.choice(list(enumerate(page.js(f"{FIELDS}.map(e => e.name)"))))
        value = str(draw.choice(TYPED.get(key, ("",))))
        asked = f"{{at: {at}, share: {draw.random()}, value: {value!r}}}"
        took, said = page.js(CHANGE % (FIELDS, asked))
        if said != "A field needs another value.":
            found.append((took, f"{key}, {page.js('location.hash')[:400]}"))
    return found


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 300
    files = page_files({name: public(name) for name in SETS})
    chromium = browser.Browser()
    print(f"load of the machine {os.getloadavg()[0]:.2f}, {os.cpu_count()} processors")
    try:
        for name in ("calculator", "planner"):
            with tempfile.TemporaryDirectory() as folder, chromium.page() as page:
                data = files[f"book/_static/kl-{name}-data.js"]
                (Path(folder) / f"kl-{name}-data.js").write_bytes(data)
                page.goto(browser.lone_page(Path(folder), name))
                found = changes(page, count)
            took = np.array([one for one, _ in found])
            middle, most = np.quantile(took, [0.5, 0.95])
            worst = found[int(took.argmax())]
            print(
                f"{name}: {count} changes, median {middle:.1f} ms, 95 % within {most:.1f} ms, worst {worst[0]:.1f} ms"
            )
            print(f"  worst: {worst[1]}")
    finally:
        chromium.close()


if __name__ == "__main__":
    main()
