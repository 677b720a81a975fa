"""The two cells that every chapter has, and folded code that is folded in JupyterLab as well as in the book.

What JupyterLab adds to a chapter's metadata on saving goes, too; `make strip` calls this after nbstripout.

python benchmarks/shared_cells.py          write them anew, with the address in _config.yml
python benchmarks/shared_cells.py --check  only say which chapters differ
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
COMMAND = "python benchmarks/shared_cells.py"
KERNEL = {
    "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
FOLDED = {"hide-input", "remove-input", "remove-cell"}
KEPT = ("mystnb",)  # metadata that say how the book renders an output

INSTALL = """\
# Where the package is missing, Colab installs it here, and any other kernel is told the line that does.
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

address = "{address}"  # repository.url of _config.yml
if not all(map(find_spec, ("kinetics_lab", "altair", "pyarrow", "scipy"))):
    folders = [Path.cwd(), *Path.cwd().parents]
    project = next((str(f) for f in folders if (f / "kinetics_lab").is_dir()), "")
    source = project or f"git+{{address or 'https://THE/REPOSITORY'}}"
    line = [sys.executable, "-m", "pip", "install", "--quiet", source]
    if "google.colab" not in sys.modules or not (project or address):
        raise ModuleNotFoundError(f"this kernel lacks kinetics_lab; run: {{' '.join(line)}}")
    subprocess.run(line, check=True)"""

CHECK = """\
from kinetics_lab.book.results import check_injected

check_injected(globals())  # refuses what papermill put in where the cell above has no such name"""


def shared(address: str) -> dict[str, str]:
    """Sources of the shared cells by their ids; the first stands below the title, the second below the parameters."""
    return {"install": INSTALL.format(address=address), "injected": CHECK}


def address() -> str:
    """The repository's address, empty until it is set."""
    config = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
    return str(config["repository"]["url"] or "")


def with_shared_cells(book: dict[str, Any], address: str) -> dict[str, Any]:
    """The notebook with the shared cells in their places, and with every folded cell folded."""
    sources = shared(address)
    cells = [cell for cell in book["cells"] if cell["id"] not in sources]
    tagged = next(i for i, cell in enumerate(cells) if "parameters" in cell["metadata"].get("tags", []))
    for place, name in ((tagged + 1, "injected"), (1, "install")):
        cells.insert(place, _cell(name, sources[name]))
    for cell in cells:
        tags = cell["metadata"].get("tags", [])
        folded = cell["cell_type"] == "code" and FOLDED & set(tags)
        kept = {key: value for key, value in cell["metadata"].items() if key in KEPT}
        cell["metadata"] = ({"jupyter": {"source_hidden": True}} if folded else {}) | kept
        cell["metadata"] |= {"tags": tags} if tags else {}
    about = {**KERNEL, "kinetics": book["metadata"].get("kinetics", {})}  # JupyterLab adds versions on saving
    return {**book, "cells": cells, "metadata": {key: about[key] for key in sorted(about)}}


def _cell(name: str, source: str) -> dict[str, Any]:
    return {
        "cell_type": "code",
        "execution_count": None,
        "id": name,
        "metadata": {"tags": ["remove-cell"]},
        "outputs": [],
        "source": source.splitlines(keepends=True),
    }


def text(book: dict[str, Any]) -> str:
    """The file's text, laid out as every chapter is."""
    return json.dumps(book, indent=1, ensure_ascii=False) + "\n"


def outdated() -> dict[Path, str]:
    """Chapters whose text differs from what it should be, and that text."""
    found = {}
    for path in NOTEBOOKS:
        now = path.read_text(encoding="utf-8")
        new = text(with_shared_cells(json.loads(now), address()))
        if new != now:
            found[path] = new
    return found


if __name__ == "__main__":
    differ = outdated()
    print(*(path.name for path in differ), sep="\n")
    if "--check" in sys.argv:
        sys.exit(1 if differ else 0)
    for path, new in differ.items():
        path.write_text(new, encoding="utf-8")
