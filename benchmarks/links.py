"""Whether the addresses that the book's pages and the project's Markdown lead to elsewhere still answer.

    python benchmarks/links.py [FOLDER]   # _build/book/_build/html; asks each address once, over the network

Links within the book are checked by its build, which is strict. These depend on others, so nobody but a person asks for
them: no test and no build does. An address that refuses programs (403, 405, 429) is named apart: open it in a browser.
"""

from __future__ import annotations

import argparse
import re
import urllib.error
import urllib.request
from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from html import unescape
from pathlib import Path

ROOT = Path(__file__).parent.parent
REFUSED = {401, 403, 405, 406, 429, 999}


def addresses(paths: Iterable[Path]) -> dict[str, set[str]]:
    """Every address elsewhere, without its fragment, and the names of the files that lead there."""
    found = defaultdict(set)
    for path in paths:
        text = path.read_text(encoding="utf-8")
        links = re.findall(r'<a\b[^>]*href="(https?://[^"#]+)', text) if path.suffix == ".html" else []
        links += re.findall(r"\]\((https?://[^)#\s]+)", text) if path.suffix == ".md" else []
        for link in links:
            found[unescape(link)].add(path.name)
    return dict(found)


def answer(address: str, timeout: float = 20) -> str:
    """ "ok", "refused: ..." or "dead: ..."."""
    asked = urllib.request.Request(
        address, headers={"User-Agent": "Mozilla/5.0 (a book's check of its links)"}
    )
    try:
        with urllib.request.urlopen(asked, timeout=timeout) as page:
            page.read(1)
    except urllib.error.HTTPError as error:
        return f"{'refused' if error.code in REFUSED else 'dead'}: {error.code}"
    except (OSError, ValueError) as error:
        return f"dead: {getattr(error, 'reason', error)}"
    return "ok"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT / "_build" / "book" / "_build" / "html")
    folder = parser.parse_args().folder
    found = addresses([*sorted(folder.glob("*/*.html")), *sorted(ROOT.glob("*.md"))])
    with ThreadPoolExecutor(8) as pool:
        told = dict(zip(found, pool.map(answer, found), strict=True))
    for address, said in sorted(told.items(), key=lambda one: one[::-1]):
        if said != "ok":
            print(f"{said:14}  {address}  ({', '.join(sorted(found[address]))})")
    kinds = [said.partition(":")[0] for said in told.values()]
    print(
        f"{len(told)} addresses: "
        + ", ".join(f"{kinds.count(kind)} {kind}" for kind in ("ok", "refused", "dead"))
    )
    raise SystemExit("dead" in kinds)


if __name__ == "__main__":
    main()
