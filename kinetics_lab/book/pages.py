"""Pages of HTML: one of an executed notebook, which loads nothing, and what the book's pages may load and run."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable
from functools import partial
from http.server import SimpleHTTPRequestHandler
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from kinetics_lab.book.parameters import read_notebook
from kinetics_lab.errors import printable
from kinetics_lab.files import write_text

STYLE = "<style>main { max-width: 54rem; margin: auto } img { max-width: 44rem; width: 100% }</style>"
POLICY = '<meta http-equiv="Content-Security-Policy" content="{}">'
ALONE = POLICY.format(
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
)
DISPLAYED = re.compile(r"^\$\$\n(.+?)\n\$\$$", re.DOTALL | re.MULTILINE)
ELSEWHERE = re.compile(r'<a href="[\w./-]+\.(?:ipynb|md)"[^>]*>(.*?)</a>', re.DOTALL)  # no page of this file
INLINE = re.compile(r'<script(?![^>]*\b(?:src=|type="application/json"))[^>]*>(.*?)</script>', re.DOTALL)


def pages(executed: Path) -> list[Path]:
    """The executed notebook and, where nbconvert is installed, an HTML file of it without code, nor any script."""
    if not find_spec("nbconvert"):
        return [executed]
    from nbconvert import HTMLExporter

    book = read_notebook(executed)
    book.cells = [cell for cell in book.cells if "book-only" not in cell.metadata.get("tags", [])]
    for cell in book.cells:
        if cell.cell_type == "markdown":  # symbols; the page has no mathematics beyond
            plain = DISPLAYED.sub(r"```\n\1\n```", re.sub(r"\\tag\{(\d+)\}", r"(\1)", cell.source))
            cell.source = re.sub(r"\$([^$\n]+)\$", r"*\1*", plain)
    title = re.findall(r"^# (.+)$", book.cells[0].source, re.MULTILINE)
    exporter = HTMLExporter(exclude_input=True, exclude_input_prompt=True, exclude_output_prompt=True)
    body, _ = exporter.from_notebook_node(book, {"metadata": {"name": (title or [executed.stem])[0]}})
    body = re.sub(r"<script\b.*?</script>", "", body, flags=re.DOTALL)  # pictures and tables need none
    body = ELSEWHERE.sub(r"“\1”", body)
    body = body.replace("<head>", "<head>" + ALONE, 1).replace("</head>", STYLE + "</head>", 1)
    return [executed, write_text(executed.with_suffix(".html"), body)]


def guard(folder: Path) -> None:
    """Give every page of a built book a Content-Security-Policy: files of the book, and the theme's own inline scripts.

    An inline script is the theme's if a page without content (the index, the search) has it, or if it only sets
    the page's name or MathJax's options. Any other, and any code made of text, is refused by the browser.
    """
    empty = [path.read_text(encoding="utf-8") for path in map(folder.joinpath, ("genindex.html", "search.html")) if path.exists()]  # fmt: skip
    theme = {script for text in empty for script in INLINE.findall(text)}
    for path in folder.rglob("*.html"):
        text = path.read_text(encoding="utf-8")
        named = f"DOCUMENTATION_OPTIONS.pagename = '{path.relative_to(folder).with_suffix('').as_posix()}';"
        ours = {
            script for script in INLINE.findall(text) if script in theme | {named} or _sets_mathjax(script)
        }
        seen = (hashlib.sha256(script.encode()) for script in {*ours, "window.print()"})  # of a button
        hashes = " ".join(sorted(f"'sha256-{base64.b64encode(one.digest()).decode()}'" for one in seen))
        scripts = f"script-src 'self' 'unsafe-hashes' {hashes}"
        rest = "style-src 'self' 'unsafe-inline'; img-src 'self' data:; font-src 'self'; connect-src 'self'"
        policy = f"default-src 'none'; {scripts}; {rest}; base-uri 'none'; form-action 'self'"
        path.write_text(text.replace("<head>", "<head>\n    " + POLICY.format(policy), 1), encoding="utf-8")


def handler(folder: Path) -> Callable[..., SimpleHTTPRequestHandler]:
    """What serves the folder's files on this machine: no listings, no link that leads out, no other host's name.

    The name of the host is checked because a page elsewhere may let its own name lead to 127.0.0.1 and read what is here.
    """
    root = folder.resolve()

    class Handler(SimpleHTTPRequestHandler):
        def send_head(self) -> Any:
            host = self.headers.get("Host", "").rpartition(":")[0] or self.headers.get("Host", "")
            if host not in ("127.0.0.1", "localhost"):
                self.send_error(403, "this server answers to 127.0.0.1 and localhost")
                return None
            if not Path(self.translate_path(self.path)).resolve().is_relative_to(root):
                self.send_error(404)
                return None
            return super().send_head()

        def list_directory(self, path: Any) -> None:
            self.send_error(404)

        def end_headers(self) -> None:
            for name, value in (("X-Content-Type-Options", "nosniff"), ("X-Frame-Options", "DENY")):
                self.send_header(name, value)
            super().end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            super().log_message("%s", printable(format % args))

    return partial(Handler, directory=str(root))


def _sets_mathjax(script: str) -> bool:
    name, _, options = script.partition(" = ")
    try:
        return name == "window.MathJax" and isinstance(json.loads(options), dict)
    except ValueError:
        return False
