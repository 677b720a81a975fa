"""The picture of the book that links to it show: book/_static/card.png, drawn by a browser from the figure of the first page.

    python benchmarks/card.py

The figure is book/_static/cost-of-a-request.svg, so the picture holds no number that the book does not.
"""

from __future__ import annotations

import importlib.util
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
STATIC = ROOT / "book" / "_static"
CARD = STATIC / "card.png"
WIDTH, HEIGHT = 1200, 630  # as previews of links want it
PAGE = """<!doctype html><meta charset="utf-8"><style>
* {{ box-sizing: border-box }}
body {{ margin: 0; width: {width}px; height: {height}px; padding: 64px 24px 56px 48px; border-left: 22px solid #b34700; background: #fff;
  font-family: system-ui, "DejaVu Sans", sans-serif; display: grid; grid-template-columns: 470px 1fr; grid-template-rows: auto 1fr auto; column-gap: 24px }}
h1 {{ margin: 0; font-size: 84px; line-height: 1.1; letter-spacing: -1px; color: #212830; grid-column: 1 / 3 }}
p {{ margin: 18px 0 0; color: #44546a; grid-column: 1; font-size: 38px; line-height: 1.3 }}
p + p {{ font-size: 27px; align-self: end }}
svg {{ grid-column: 2; grid-row: 2 / 4; width: auto; height: 412px; align-self: end; justify-self: end; color-scheme: light }}
</style><h1>Kinetics Lab</h1><p>What does it cost to let a model think?</p>
<p>An executable book on test-time compute: derived, measured, fitted, planned</p>{figure}"""


def page() -> str:
    """The page that is photographed."""
    figure = (STATIC / "cost-of-a-request.svg").read_text(encoding="utf-8")
    return PAGE.format(width=WIDTH, height=HEIGHT, figure=figure)


def main() -> None:
    spec = importlib.util.spec_from_file_location("browser", ROOT / "tests" / "browser.py")
    driver = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(driver)
    browser = driver.Browser()
    try:
        with tempfile.TemporaryDirectory() as folder, browser.page(WIDTH, HEIGHT) as tab:
            (Path(folder) / "card.html").write_text(page(), encoding="utf-8")
            tab.goto(Path(folder) / "card.html")
            time.sleep(0.5)  # fonts settle
            tab.screenshot(CARD)
    finally:
        browser.close()
    print(CARD)


if __name__ == "__main__":
    main()
