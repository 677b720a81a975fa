"""Forty names that would be markup, code or commands somewhere, and a census of what a page is made of."""

from __future__ import annotations

from collections import Counter
from html.parser import HTMLParser

NAMES = [
    "<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "<b>bold</b>", "[click](https://evil.example)",
    "![i](https://evil.example/x.png)", "`code`", "**strong**", "{ref}`ch:plan`", "```{raw} html", r"$\alpha$",
    "</script><script>alert(1)</script>", "<!--<script>", "&lt;b&gt;", "https://evil.example", "www.evil.example",
    "a' onmouseover='alert(1)", 'a" onmouseover="alert(1)', "<svg onload=alert(1)>", "<a href=javascript:alert(1)>x</a>",
    "{{ 7*7 }}", "{% raw %}", "</table><h1>x</h1>", "<style>*{display:none}</style>", "<iframe src=//evil.example>",
    "| a | b |", "# head", "~~gone~~", "<br>", r"\<b>", "__init__", "*x*", "<https://evil.example>", "datum.x",
    "'+alert(1)+'", "constructor", "__proto__", "$(rm -rf ~)", "; rm -rf ~", "<details open ontoggle=alert(1)>",
    "%3Cb%3E",
]  # fmt: skip
PLAIN = [f"m{i:02d}" for i in range(len(NAMES))]
COMMANDS = ["\x1b[31mred", "\x1b]0;title\x07", "a\rb", "a\x08b", "\x9b31m", "a\u202eb", "a\u2066b", "\x00"]


class _Census(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[tuple[str, ...]] = Counter()
        self.code = 0

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        """Count an element with the names of its attributes, and a link that leaves the page with its address."""
        given = dict(attributes)
        self.code += tag == "pre"
        if self.code and tag == "span" and given.keys() == {"class"}:
            tag = "coloured"  # how many tokens a text has as code depends on the text
        address = given.get("href") or ""
        self.found[tag, *sorted(given), "" if address.startswith("#") else address] += 1

    def handle_endtag(self, tag: str) -> None:
        """Leave what is coloured as code."""
        self.code -= tag == "pre"


def census(page: str) -> Counter[tuple[str, ...]]:
    """How often each kind of element stands in the body of a page; a coloured token of code is of a kind of its own."""
    reader = _Census()
    reader.feed(page[page.find("<body") :])
    return reader.found
