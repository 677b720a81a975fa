"""How long each chapter is to read: words of its built page outside code, printed output, figures and formulas.

A section under the heading "In depth" is not counted: it is for those who want more than the argument.

    python benchmarks/words.py [FOLDER]           # _build/book/_build/html
    python benchmarks/words.py --write [FOLDER]   # into benchmarks/words.csv, which the tests hold chapters to

A new chapter has at most 2,500 words. Those that are longer are listed with their length, and are to become shorter.
"""

from __future__ import annotations

import argparse
import csv
import re
from html.parser import HTMLParser
from pathlib import Path

ROOT = Path(__file__).parent.parent
COUNTS = Path(__file__).with_suffix(".csv")
MOST = 2500  # words of a new chapter
LEFT_OUT = {"pre", "figure", "svg", "script", "style", "button"}
IN_DEPTH = "in-depth"  # the section of this heading
VOID = {"br", "hr", "img", "input", "link", "meta", "source", "wbr"}


class Article(HTMLParser):
    """The text of a page's article, without what is not read as text."""

    def __init__(self) -> None:
        super().__init__()
        self.text: list[str] = []
        self.open: list[str] = []  # from the article on
        self.silent = 0  # depth of the element that is left out

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        classes = (given.get("class") or "").split()
        if tag in VOID or not (self.open or "bd-article" in classes):
            return
        self.open.append(tag)
        left_out = tag in LEFT_OUT or {"math", "headerlink", "hide"} & set(classes)
        left_out = left_out or given.get("id") == IN_DEPTH
        if left_out and not self.silent:
            self.silent = len(self.open)

    def handle_endtag(self, tag: str) -> None:
        if tag in self.open:
            while self.open.pop() != tag:
                pass
            if len(self.open) < self.silent:
                self.silent = 0

    def handle_data(self, data: str) -> None:
        if self.open and not self.silent:
            self.text.append(data)


def words(page: str) -> int:
    """Words of a page: runs of signs with a letter or a digit in them."""
    article = Article()
    article.feed(page)
    return len(re.findall(r"\S*\w\S*", " ".join(article.text)))


def counted(folder: Path) -> dict[str, int]:
    """Words by chapter of the book in ``folder``."""
    return {
        path.stem: words(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("notebooks/*.html"))
    }


def listed() -> dict[str, int]:
    """Words of the chapters that were longer when they were last written down."""
    with COUNTS.open(encoding="utf-8", newline="") as file:
        return {row["chapter"]: int(row["words"]) for row in csv.DictReader(file)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT / "_build" / "book" / "_build" / "html")
    parser.add_argument("--write", action="store_true", help=f"write {COUNTS.name}")
    options = parser.parse_args()
    found = counted(options.folder)
    for chapter, count in found.items():
        print(f"{count:6,}  {chapter}")
    print(
        f"{sum(found.values()):6,}  in {len(found)} chapters; {sum(n > MOST for n in found.values())} above {MOST:,}"
    )
    if options.write:
        with COUNTS.open("w", encoding="utf-8", newline="") as file:
            rows = csv.writer(file, lineterminator="\n")
            rows.writerow(["chapter", "words"])
            rows.writerows((chapter, count) for chapter, count in found.items() if count > MOST)


if __name__ == "__main__":
    main()
