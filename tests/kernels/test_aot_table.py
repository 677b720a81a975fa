"""The book's table of compiled kernels (``data/kernels_sm90.csv``) is what the compiler says today."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import triton

from kinetics_lab.data import data_path, read_table

CHECK = Path(__file__).parents[2] / "kernels" / "aot_check.py"


def test_the_books_table_is_what_the_compiler_says(tmp_path):
    book = read_table("kernels_sm90")
    (version,) = set(book.triton)
    if triton.__version__ != version:  # registers differ from one Triton to the next
        pytest.skip(f"the table is of Triton {version}, this is {triton.__version__}")
    environ = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    file = tmp_path / "aot.json"
    subprocess.run([sys.executable, CHECK, "--json", file], env=environ, capture_output=True, check=True)
    fresh = pd.DataFrame(json.loads(file.read_text(encoding="utf-8"))["rows"]).assign(triton=version)
    file = tmp_path / "kernels_sm90.csv"
    fresh.to_csv(file, index=False)
    pd.testing.assert_frame_equal(
        book,
        pd.read_csv(file),
        obj=f"{data_path('kernels_sm90').name} is stale: copy {file} over it, then rehash it; the table",
    )
