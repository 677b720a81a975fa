"""Chapters read well in any viewer of notebooks: plain Markdown, with links, citations and equations that are right."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from kinetics_lab.book.parameters import read_notebook

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
ROLES = "ref|numref|eq|doc|download|any|term|math|abbr|glue|cite|footcite"
MYST = re.compile(
    rf"\{{(?:{ROLES})(?::\w+)?\}}`"  # a role
    r"|^[ >]*(?:`{3,}|~{3,}|:{3,})\{"  # a directive
    r"|^[ >]*:{3,}"  # a fence of colons
    r"|^\([\w:-]+\)="  # a label of what follows
    r"|\$\$[ \t]*\([\w:-]+\)"  # a label of an equation
    r"|^\+\+\+|^%[ \w]|^\{[.#]"  # breaks, comments and attributes of blocks
    r"|\]\(#|\]\{",  # a link within a page by a label; attributes of a span
    re.MULTILINE,
)
LINK = re.compile(r"(?<!!)\[((?:[^\[\]]|\[[^\[\]]*\])+)\]\(([^()\s]+)\)")
EQUATION = re.compile(
    r'<a id="(eq-[\w-]+)"></a>\n\n\$\$\n(?:(?!\$\$).)+\n\\tag\{(\d+)\}\n\$\$$', re.DOTALL | re.MULTILINE
)
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def markdown(path: Path) -> list[str]:
    return [cell.source for cell in read_notebook(path).cells if cell.cell_type == "markdown"]


def literals(source: str) -> Iterator[str]:
    """The texts that a code cell writes down; what is put into them later is an ellipsis."""
    parts = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.JoinedStr):
            parts |= set(map(id, node.values))
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in parts:
            yield node.value


def links(path: Path) -> list[tuple[str, str]]:
    """Text and address of each link in a chapter's Markdown, outside of code."""
    return [link for source in markdown(path) for link in LINK.findall(re.sub(r"`[^`]+`", "", source))]


def title(path: Path) -> str:
    text = markdown(path)[0] if path.suffix == ".ipynb" else path.read_text(encoding="utf-8")
    return re.findall(r"^# (.+)$", text, re.MULTILINE)[0]


@pytest.mark.parametrize(
    "text",
    ["See {ref}`ch:plan`.", "{cite:p}`a`", "```{dropdown} Answer", "> ````{note}", ":::", "(ch:plan)=\n# How?", "$$ (eq:one)",
     "[here](#one)", "[word]{.big}", "% a comment", "+++"],
)  # fmt: skip
def test_what_counts_as_myst(text):
    assert MYST.search(text)
    assert not MYST.search(
        "[a](b.ipynb), `{file}`: {x}, $\\{a\\}$ (3)\n```bash\n50 % of\n```\n$$\nx\n\\tag{3}\n$$\n(It is.)"
    )


@each_notebook
def test_text_is_plain_markdown(path):
    for cell in read_notebook(path).cells:
        texts = [cell.source] if cell.cell_type == "markdown" else literals(cell.source)
        assert not [found[0] for text in texts for found in MYST.finditer(text)], cell.id
    for text in markdown(path):
        assert text.count("<details>") == text.count("</details>") == text.count("<details><summary>")
        # a blank line on either side, without which what is inside stands as it is written
        assert text.count("</summary>\n\n") == text.count("\n\n</details>") == text.count("<details>")


@pytest.mark.notebooks
def test_what_chapters_print_is_plain_markdown_and_no_warning(built_book):
    executed = sorted((built_book.parents[1] / "stage" / "notebooks").glob("*.ipynb"))
    assert [path.name for path in executed] == [path.name for path in NOTEBOOKS]
    seen = 0
    for path in executed:
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            for output in cell.get("outputs", ()):
                assert output.get("name") != "stderr", (
                    path.name,
                    output["text"],
                )  # a warning, with a path of the machine
                text = "".join(output.get("data", {}).get("text/markdown", ""))
                assert not MYST.search(text), (path.name, text)
                seen += bool(text)
    assert seen > 100


@each_notebook
def test_links_lead_to_files_and_say_the_titles_of_today(path):
    for text, address in links(path):
        if not re.match(r"https?://", address):
            assert (path.parent / address).is_file(), address
            if address.endswith((".ipynb", ".md")):
                assert text == title(path.parent / address), address


def test_links_in_what_cells_print_lead_to_notebooks():
    """In the book they lead to the pages made of them."""
    found = []
    for path in NOTEBOOKS:
        code = "\n".join(cell.source for cell in read_notebook(path).cells if cell.cell_type == "code")
        assert not re.search(r"(?:\d\d_\w+|stem\})\.html", code), path.name
        found += re.findall(r"\b\d\d_\w+\.ipynb", code)
    assert len(found) > 5
    assert all((ROOT / "notebooks" / name).is_file() for name in found)


def bibliography() -> dict[str, tuple[str, str]]:
    """Authors and year of what is in book/references.bib, by its address."""
    from pybtex.database import parse_file
    from pybtex.richtext import Text

    found = {}
    for key, entry in parse_file(str(ROOT / "book" / "references.bib")).entries.items():
        people = entry.persons["author"]
        names = [str(Text.from_latex(" ".join(one.prelast_names + one.last_names))) for one in people]
        told = f"{names[0]} et al." if len(names) > 2 or "others" in names else " and ".join(names)
        doi, number = entry.fields.get("doi"), entry.fields.get("eprint")
        address = (
            f"https://doi.org/{doi}" if doi else entry.fields.get("url") or f"https://arxiv.org/abs/{number}"
        )
        assert address not in found, key
        found[address] = told, entry.fields["year"]
    return found


def test_citations_are_those_of_the_bibliography():
    listed, cited = bibliography(), set()
    for path in NOTEBOOKS:
        for text, address in links(path):
            looks = re.search(r"(?:, | \()\d{4}\)?$", text)
            if address in listed and looks:
                told, year = listed[address]
                assert text in (f"{told}, {year}", f"{told} ({year})"), (path.name, address)
                cited.add(address)
            assert not looks or address in listed, (path.name, text)
    assert len(cited) > 15


def equations(path: Path) -> dict[str, int]:
    found = [one for source in markdown(path) for one in EQUATION.findall(source)]
    assert len(found) == sum(source.count("\\tag{") for source in markdown(path)), path.name
    names = {name: int(number) for name, number in found}
    assert len(names) == len(found)
    return names


def test_equations_are_numbered_in_the_order_of_the_book():
    order = re.findall(r"file: notebooks/(\w+)", (ROOT / "book" / "_toc.yml").read_text(encoding="utf-8"))
    numbers = [n for stem in order for n in equations(ROOT / "notebooks" / f"{stem}.ipynb").values()]
    assert numbers == list(range(1, len(numbers) + 1))
    assert len(numbers) > 50


@each_notebook
def test_references_name_equations_that_there_are(path):
    own = equations(path)
    for paragraph in (part for source in markdown(path) for part in source.split("\n\n")):
        inside = re.findall(r'<a href="#(eq-[\w-]+)">(?:Eq|eq)uation \((\d+)\)</a>', paragraph)
        assert all(own[name] == int(number) for name, number in inside), paragraph
        elsewhere = re.findall(
            r"(?:Eq|eq)uation \((\d+)\) (?:of \[[^\]]+\]\((\w+\.ipynb)\)|there)", paragraph
        )
        where = ""
        for number, file in elsewhere:
            where = file or where
            assert int(number) in equations(path.parent / where).values(), paragraph
        assert len(inside) + len(elsewhere) == len(re.findall(r"(?:Eq|eq)uation \(\d+\)", paragraph)), (
            paragraph
        )
