"""The page "Using the package": its examples run and print what it says, its reference has every public name."""

from __future__ import annotations

import ast
import doctest
import inspect
import re
from pathlib import Path

import pytest

import kinetics_lab

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "book" / "using-the-package.md").read_text(encoding="utf-8")
FILES = dict(
    re.findall(r"^```\{code-block\} \w+\n:caption: (\S+)\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
)
EXAMPLES = {
    section.partition("\n")[0]: block
    for section in re.split(r"^## ", PAGE, flags=re.MULTILINE)
    for block in re.findall(r"^```pycon\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)
}


def test_every_example_has_a_section_of_its_own():
    assert len(EXAMPLES) == 11 == PAGE.count("```pycon")


@pytest.mark.parametrize("title", EXAMPLES)
def test_an_example_prints_what_the_page_says(title, tmp_path, monkeypatch):
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    found = doctest.DocTestParser().get_doctest(EXAMPLES[title], {}, title, "using-the-package.md", 0)
    told: list[str] = []
    doctest.DocTestRunner().run(found, out=told.append)
    assert not told, "".join(told)


def test_examples_need_nothing_but_public_names():
    code = ast.parse(
        "\n".join(
            example.source
            for text in EXAMPLES.values()
            for example in doctest.DocTestParser().get_examples(text)
        )
    )
    imports = [node for node in ast.walk(code) if isinstance(node, ast.Import | ast.ImportFrom)]
    assert imports
    for node in imports:
        assert isinstance(node, ast.ImportFrom), ast.unparse(node)
        assert node.module == "kinetics_lab", ast.unparse(node)
        assert {alias.name for alias in node.names} <= set(kinetics_lab.__all__), ast.unparse(node)


def test_the_reference_has_every_public_name_once():
    named = re.findall(
        r"^\.\. (?:auto(?:class|function):: kinetics_lab\.|py:data:: )(\w+)$", PAGE, re.MULTILINE
    )
    assert sorted(named) == sorted(set(kinetics_lab.__all__) - {"__version__"})


def test_every_public_name_says_what_it_is():
    for name in set(kinetics_lab.__all__) - {"__version__", "MODELS", "HARDWARE"}:
        thing = getattr(kinetics_lab, name)
        assert len((inspect.getdoc(thing) or "").split()) > 2, name
        assert not (inspect.getdoc(thing) or "").startswith(f"{name}("), f"{name}: only its signature"


@pytest.mark.parametrize("name", re.findall(r"^\.\. autoclass:: kinetics_lab\.(\w+)$", PAGE, re.MULTILINE))
def test_no_property_of_the_reference_begins_like_a_type(name):
    """Sphinx reads what stands before a colon in the first line of a property's docstring as its type."""
    for member, value in vars(getattr(kinetics_lab, name)).items():
        if isinstance(value, property) and not member.startswith("_"):
            first = (inspect.getdoc(value) or "").partition("\n")[0]
            assert ": " not in first, f"{member}: {first}"


def test_every_promise_names_a_test_that_is_there():
    page = (ROOT / "book" / "architecture.md").read_text(encoding="utf-8")
    promises = page.partition("## What is guaranteed")[2].partition("\n## ")[0]
    named = set(re.findall(r"`(test_\w+)`", promises))
    texts = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("*.py"))
    there = set(re.findall(r"^def (test_\w+)", texts, re.MULTILINE))
    assert len(named) > 15
    assert named <= there, named - there


def test_the_sentence_above_an_example_says_what_it_prints():
    (printed,) = re.findall(r"^\{4096: \d+, 16384: (\d+), 65536: \d+\}$", PAGE, re.MULTILINE)
    assert f"An H200 holds the weights of Qwen3-8B and {printed} sequences of 16,384 tokens" in PAGE
