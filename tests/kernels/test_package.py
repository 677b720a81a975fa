"""The package's promises: it stands alone, and hides no other."""

from __future__ import annotations

import ast
from pathlib import Path

import kinetics_kernels

PACKAGE = Path(kinetics_kernels.__file__).parent
KERNELS = PACKAGE.parent


def test_it_imports_nothing_of_the_lab():
    for path in PACKAGE.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            modules = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(name.split(".")[0] == "kinetics_lab" for name in modules), path


def test_no_package_is_called_kernels():
    """Hugging Face has one of that name; an ``__init__.py`` here would hide it."""
    assert not (KERNELS / "__init__.py").exists()


def test_every_name_is_exported():
    assert all(hasattr(kinetics_kernels, name) for name in kinetics_kernels.__all__)
    assert kinetics_kernels.__all__ == sorted(kinetics_kernels.__all__)
