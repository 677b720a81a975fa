"""A page of HTML made of one executed notebook: it loads nothing, and a browser opens it anywhere."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

from kinetics_lab.files import write_text

STYLE = "<style>main { max-width: 54rem; margin: auto } img { max-width: 44rem; width: 100% }</style>"


def pages(executed: Path, chapter: Path) -> list[Path]:
    """The executed notebook and, where nbconvert is installed, one HTML file made of it.

    That loads nothing, and is without code and what only the book can show.
    """
    if not find_spec("nbconvert"):
        return [executed]
    import nbformat
    from nbconvert import HTMLExporter

    book = nbformat.read(executed, as_version=4)
    book.cells = [cell for cell in book.cells if "book-only" not in cell.metadata.get("tags", [])]
    titles = _titles(chapter.parent)
    for cell in book.cells:
        if cell.cell_type == "markdown":
            plain = re.sub(r"^\(ch:\w+\)=\n", "", cell.source)
            plain = re.sub(r"\$([^$\n]+)\$", r"*\1*", plain)  # symbols; the page has no mathematics beyond
            cell.source = re.sub(r"\{ref\}`([\w:-]+)`", lambda found: titles.get(found[1], found[1]), plain)
    title = re.findall(r"^# (.+)$", book.cells[0].source, re.MULTILINE)
    exporter = HTMLExporter(exclude_input=True, exclude_input_prompt=True, exclude_output_prompt=True)
    body, _ = exporter.from_notebook_node(book, {"metadata": {"name": (title or [executed.stem])[0]}})
    body = re.sub(r"<script\b.*?</script>", "", body, flags=re.DOTALL)  # pictures and tables need none
    body = body.replace("</head>", STYLE + "</head>", 1)
    return [executed, write_text(executed.with_suffix(".html"), body)]


def _titles(folder: Path) -> dict[str, str]:
    """Label -> title of every chapter in the folder."""
    from kinetics_lab.book.parameters import read_notebook

    first = "\n".join(read_notebook(path).cells[0].source for path in sorted(folder.glob("*.ipynb")))
    return {
        label: f"“{title}”" for label, title in re.findall(r"^\((ch:\w+)\)=\n# (.+)$", first, re.MULTILINE)
    }
