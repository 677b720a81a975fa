"""What a reader loads: the files of each page of the built book, compressed as a server sends them.

    python benchmarks/weight.py [FOLDER]   # _build/book/_build/html; needs Chromium

A first visit is a page with an empty cache, read to its end, so that its charts come alive. Sizes are those of gzip at
its default level; pictures and fonts, which are compressed already, count as they are.
"""

from __future__ import annotations

import argparse
import gzip
import importlib.util
import urllib.parse
from collections.abc import Iterable
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKED = {".gz", ".jpg", ".pdf", ".png", ".webp", ".woff", ".woff2"}


@cache
def transfer(path: Path) -> int:
    """Bytes of a file on its way to a reader."""
    content = path.read_bytes()
    return len(content) if path.suffix in PACKED else len(gzip.compress(content))


def weight(requests: Iterable[str]) -> dict[str, int]:
    """Bytes by file name, of a page's requests for files; each file counts once."""
    files = {
        Path(urllib.parse.unquote(urllib.parse.urlsplit(one).path))
        for one in requests
        if one.startswith("file:")
    }
    return {path.name: transfer(path) for path in files if path.is_file()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT / "_build" / "book" / "_build" / "html")
    folder = parser.parse_args().folder
    spec = importlib.util.spec_from_file_location("browser", ROOT / "tests" / "browser.py")
    browser = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(browser)
    chromium, heaviest = browser.Browser(), {}
    try:
        for path in sorted(folder.glob("*/*.html")):
            if "_static" in path.parts:
                continue
            with chromium.page() as page:
                page.goto(path)
                page.show_all()
                found = weight(page.requests())
            print(f"{sum(found.values()) / 1e3:7.0f} kB  {path.relative_to(folder)}")
            heaviest |= found
    finally:
        chromium.close()
    print("\nThe heaviest files:")
    for name, size in sorted(heaviest.items(), key=lambda one: -one[1])[:12]:
        print(f"{size / 1e3:7.0f} kB  {name}")


if __name__ == "__main__":
    main()
