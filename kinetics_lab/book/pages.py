"""A page of HTML made of one executed notebook: it loads nothing, and a browser opens it anywhere."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

from kinetics_lab.book.parameters import read_notebook
from kinetics_lab.files import write_text

STYLE = "<style>main { max-width: 54rem; margin: auto } img { max-width: 44rem; width: 100% }</style>"


def pages(executed: Path, chapter: Path) -> list[Path]:
    """The executed notebook and, where nbconvert is installed, an HTML file of it without code."""
    if not find_spec("nbconvert"):
        return [executed]
    from nbconvert import HTMLExporter

    book = read_notebook(executed)
    book.cells = [cell for cell in book.cells if "book-only" not in cell.metadata.get("tags", [])]
    first = "\n".join(read_notebook(path).cells[0].source for path in sorted(chapter.parent.glob("*.ipynb")))
    titles = dict(re.findall(r"^\((ch:\w+)\)=\n# (.+)$", first, re.MULTILINE))

    def title_of(link: re.Match[str]) -> str:
        return f"“{titles[link[1]]}”" if link[1] in titles else link[1]

    for cell in book.cells:
        if cell.cell_type == "markdown":
            plain = re.sub(r"^\(ch:\w+\)=\n", "", cell.source)
            plain = re.sub(r"\$([^$\n]+)\$", r"*\1*", plain)  # symbols; the page has no mathematics beyond
            cell.source = re.sub(r"\{ref\}`([\w:-]+)`", title_of, plain)
    title = re.findall(r"^# (.+)$", book.cells[0].source, re.MULTILINE)
    exporter = HTMLExporter(exclude_input=True, exclude_input_prompt=True, exclude_output_prompt=True)
    body, _ = exporter.from_notebook_node(book, {"metadata": {"name": (title or [executed.stem])[0]}})
    body = re.sub(r"<script\b.*?</script>", "", body, flags=re.DOTALL)  # pictures and tables need none
    body = body.replace("</head>", STYLE + "</head>", 1)
    return [executed, write_text(executed.with_suffix(".html"), body)]
