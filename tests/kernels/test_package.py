"""The package's promises: it stands alone, and what it ships fits a Hopper GPU."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
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


def aot_check(*arguments: str, code: str = "sys.exit(aot_check.main())") -> subprocess.CompletedProcess[str]:
    """Run the check in a process of its own: there Triton compiles, here it interprets."""
    environ = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environ["PYTHONPATH"] = str(KERNELS)
    command = [sys.executable, "-c", f"import sys, aot_check; {code}", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environ, check=False)


def test_shipped_kernels_fit_sm_90(tmp_path):
    done = aot_check("--json", str(tmp_path / "aot.json"))
    assert done.returncode == 0, done.stdout + done.stderr
    table = json.loads((tmp_path / "aot.json").read_text(encoding="utf-8"))
    assert table["target"] == "sm_90"
    assert {row["kernel"].split()[0] for row in table["rows"]} == {
        "append",
        "attend",
        "merge",
        "score",
        "select",
    }
    for row in table["rows"]:
        assert row["spill_bytes"] == 0
        assert 0 < row["registers"] <= 255
        assert row["shared_bytes"] <= 227 * 1024
        if row["kernel"].startswith(("attend", "score means", "select")):
            assert row["loop"] > 0
        if row["most_issue"]:
            assert 0 < row["issue"] <= row["most_issue"]


def test_a_kernel_over_the_limits_is_named():
    """A tile of 1024 rows: too much shared memory, too many registers and too many instructions."""
    row = "aot_check.Row('huge', 4, 3, 255, 8, 300 * 1024, 0, 1, 900, 0.95, 0.8)"
    done = aot_check(code=f"print(*{row}.faults, sep=chr(10))")
    assert done.stdout.splitlines() == [
        "8 bytes spilled",
        "307200 bytes of shared memory, 232448 at most",
        "0 programs fit a multiprocessor, 1 wanted",
        "instructions take 95% of the time, 80% at most",
    ]
