"""Numbers in sentences that sum up: computed by a run, never typed, so that they cannot disagree with a chapter."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import pytest

from kinetics_lab.book.parameters import read_notebook
from kinetics_lab.book.results import tell, told_in, with_words

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
CLAIMS = (ROOT / "data" / "claims.toml").read_text(encoding="utf-8")
NAMES = re.compile(  # digits in names, and the level of all intervals; nothing else
    r"(?:Qwen|qwen)[\d.]+(?:-[\d.]+[bB](?:-A\d+B)?)?|AIME ?(?:20)?\d\d|[ABHL]\d{2,3}s?\b|GB?200|B300|GPT-\d|DeepSeek-[VR]\d|Llama \d|\bV\d\b"
    r"|OTIS|GPQA|MI\d+X|BF16|FP[48]|\b(?:FP|BF)32|INT8|L2\b|\b20(?:2[0-9])\b|95 (?:%|percent)|top-k|pass@\d|Pass@\d"
)
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def typed(text: str, *more: str) -> list[str]:
    """What is left of digits in a text: not in a name, an equation, a role, an address, code, or a quotation of the paper."""
    for pattern in (
        r"\{\{ \w+ \}\}",
        r"\$\$.+?\$\$",
        r"\$[^$\n]+\$",
        r"\{[\w:]+\}`[^`]*`",
        r"`[^`]*`",
        r"<a [^>]+>(?:Eq|eq)uation \(\d+\)</a>|(?:Eq|eq)uation \(\d+\)|\]\([^()\s]+\)",  # references and addresses
        *more,
    ):
        text = re.sub(pattern, " ", text, flags=re.DOTALL)
    for quotation in re.findall(r'"([^"\n]+)"', text):
        if quotation in CLAIMS.replace('\\"', '"'):
            text = text.replace(quotation, " ")
    return re.findall(r"\S*\d\S*", NAMES.sub(" ", text))


def sentences(node: ast.AST) -> Iterator[str]:
    """The literal parts of texts in code; what is looked up, and how a number is formatted, is none of them."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.FormattedValue):
        if isinstance(node.value, ast.IfExp):
            yield from chain(sentences(node.value.body), sentences(node.value.orelse))
    elif isinstance(node, ast.Subscript):
        yield from sentences(node.value)
    elif not isinstance(node, ast.Compare):
        yield from chain.from_iterable(map(sentences, ast.iter_child_nodes(node)))


def calls(source: str, *names: str) -> list[ast.Call]:
    """The calls of functions by these names."""
    found = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    return [node for node in found if getattr(node.func, "id", "") in names]


def typed_in(source: str, *names: str) -> list[str]:
    return [digits for call in calls(source, *names) for digits in typed(" ".join(sentences(call)))]


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("Qwen3-8B on a B200 in BF16, 95 % intervals, AIME24", []),
        ("it is 7.3 times cheaper", ["7.3"]),
        ("{{ gain }} times, $2^{1/3}$ and {ref}`ch:cache2026` and `topk:32`", []),
        ("by equation (3) of [What?](10_what.ipynb), 4 times", ["4"]),
        ('the printed "10-1000x" holds, and "1.5 times" is not printed', ['"1.5']),
        ("from batch 64 on", ["64"]),
    ],
)
def test_what_counts_as_typed(text, left):
    assert typed(text) == left


def test_sentences_in_code_are_found_and_formats_are_not():
    assert typed_in(
        'Markdown(f"It is {x:.2f} times, not 3, " + ("or 4" if y else f"{z[\'5\']:,}"))', "Markdown"
    ) == ["3,", "4"]
    assert typed_in('tell(a=f"{x[\'7 tries\']:.0%}", b="8K", c=f"{\'9\' if x else y}")', "tell") == [
        "8K",
        "9",
    ]


def test_the_first_page_types_no_number():
    text = (ROOT / "book" / "intro.md").read_text(encoding="utf-8")
    text = "\n".join(line for line in text.splitlines() if not line.startswith(("#", ":", "```")))
    assert typed(text) == []


@each_notebook
def test_a_takeaway_types_no_number(path):
    for cell in read_notebook(path).cells:
        if cell.cell_type == "markdown" and "In one breath" in cell.source:
            assert typed(cell.source[cell.source.index("In one breath") :]) == [], cell.id
        elif "takeaway" in cell.metadata.get("tags", []):
            assert typed_in(cell.source, "Markdown") == [], cell.id


def formulas(source: str) -> list[str]:
    """Formulas in the sentences that a cell computes; the book shows them as they are typed, but for a takeaway."""
    texts = [node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant)]
    found = [text for text in texts if isinstance(text, str) and re.search(r"\$[A-Za-z\\]", text)]
    return found if calls(source, "Markdown") else []


def test_formulas_in_computed_sentences_are_found():
    assert formulas('told = f"the exponent $b$ = {b:.2f}"\nMarkdown(told)') == ["the exponent $b$ = "]
    assert formulas('Markdown(f"costs ${price:g} an hour, as *b* = {b:.2f}")') == []


@each_notebook
def test_a_computed_sentence_holds_no_formula(path):
    cells = ["".join(cell.source) for cell in read_notebook(path).cells if cell.cell_type == "code"]
    assert [text for cell in cells if "In one breath" not in cell for text in formulas(cell)] == []


@each_notebook
def test_an_alt_text_types_no_number(path):
    """It says what to see; numbers are in the chart's data. Sizes, layers, equations and series are names there."""
    names = (
        r"\b\d+(?:\.\d+)?[BM]\b",
        r"\bw\d+\b",
        r"\blayer \d\b",
        r"\bEquation \d+",
        r"\b\d+-bit\b",
        r"\b[Tt]op-k \d+(?: and \d+)?",
    )
    for cell in read_notebook(path).cells:
        for node in ast.walk(ast.parse(cell.source)) if cell.cell_type == "code" else ():
            if isinstance(node, ast.keyword) and node.arg == "description":
                assert typed(" ".join(sentences(node.value)), *names) == [], cell.id
            elif (
                isinstance(node, ast.Call)
                and getattr(node.func, "attr", "") == "caption"
                and len(node.args) > 1
            ):
                assert typed(" ".join(sentences(node.args[1])), *names) == [], cell.id


@each_notebook
def test_words_for_pages_of_text_are_computed(path):
    for cell in read_notebook(path).cells:
        if cell.cell_type == "code":
            assert typed_in(cell.source, "tell") == [], cell.id


def test_every_word_of_the_pages_is_told_by_one_chapter():
    pages = [page.read_text(encoding="utf-8") for page in (ROOT / "book").glob("*.md")]
    asked = {name for page in pages for name in re.findall(r"\{\{ (\w+) \}\}", page)}
    sources = [c.source for path in NOTEBOOKS for c in read_notebook(path).cells if c.cell_type == "code"]
    told = [word.arg for source in sources for call in calls(source, "tell") for word in call.keywords]
    assert sorted(told) == sorted(asked)


def test_words_are_kept_in_a_run_and_only_there(tmp_path, monkeypatch):
    monkeypatch.delenv("KINETICS_RUN_DIR", raising=False)
    tell(gain="7.3 times")
    assert told_in(tmp_path) == {}
    monkeypatch.setenv("KINETICS_RUN_DIR", str(tmp_path))
    tell(gain="7.3 times")
    tell(cost="2 s", gain="7.4 times")
    assert told_in(tmp_path) == {"gain": "7.4 times", "cost": "2 s"}


def test_a_page_gets_its_words_or_is_refused():
    page = r"costs {{ gain }}, \frac{{{ gain }}\ \text{s}}{2}, {not one}"
    assert with_words(page, {"gain": "7.3"}) == r"costs 7.3, \frac{7.3\ \text{s}}{2}, {not one}"
    with pytest.raises(ValueError, match="a page asks for 'gain', which no chapter tells"):
        with_words(page, {"cost": "2"})


def test_claims_are_where_quotations_are_looked_up():
    assert len(tomllib.loads(CLAIMS)["claim"]) > 50


MATHS = re.compile(r"\$\$(.+?)\$\$|\$([^$\n]+)\$", re.DOTALL)
GREEK = r"\\(?:alpha|beta|ell|lambda|omega|Phi|rho|sigma|tau|varepsilon)\b"


def letters(text: str) -> set[str]:
    """The letters of a text's formulas, without words, names of functions and environments."""
    formulas = " ".join(map("".join, MATHS.findall(text)))
    formulas = re.sub(r"\\(?:text|operatorname|mathrm|begin|end|mathcal|mathbb)\{[^{}]*\}", " ", formulas)
    return {*re.findall(GREEK, formulas)} | {
        *re.findall(r"[A-Za-z]", re.sub(r"\\[A-Za-z]+|_\{?[A-Za-z,\\]+\}?", " ", formulas))
    }


def test_the_letters_of_a_formula_are_told_from_its_words():
    assert letters(r"costs $2 P L_\text{in} + e^{-\beta^\ast}$ and `x`, not $5") == {"P", "L", "e", "\\beta"}


@each_notebook
def test_the_page_of_notation_has_every_letter(path):
    """In the first column of one of its tables."""
    rows = [
        line
        for line in (ROOT / "book" / "notation.md").read_text(encoding="utf-8").splitlines()
        if line.startswith("|")
    ]
    listed = set().union(*(letters(row.split(" | ")[0]) for row in rows))
    used = letters("\n".join(c.source for c in read_notebook(path).cells if c.cell_type == "markdown"))
    assert used <= listed, path.stem
