"""What the package ships fits a Hopper GPU, and the book's table of it (``data/kernels_sm90.csv``) is up to date."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from kinetics_lab.data import data_path, read_table

pytestmark = pytest.mark.xdist_group("aot")  # one worker compiles

KERNELS = Path(__file__).parents[2] / "kernels"
EACH = [  # a launch of each kernel, in the form with the least room
    "append step bf16 D=256 heads=64",
    "append prompt bf16/fp8 D=128",
    "attend bf16 D=128 page=16",
    "attend bf16/fp8 D=256 page=16 selected",
    "merge 64 splits D=128",
    "score means bf16 D=128",
    "score random",
    "select top N=4096",
]


@pytest.fixture(
    scope="module", params=[pytest.param(EACH, id="each"), pytest.param([], id="all", marks=pytest.mark.slow)]
)
def compiled(request, tmp_path_factory) -> dict[str, Any]:
    """The compiler's table of some launches or of all, made in a process that does not interpret them."""
    environ = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environ["PYTHONPATH"] = os.pathsep.join([str(KERNELS), environ.get("PYTHONPATH", "")])
    file = tmp_path_factory.mktemp("aot") / "aot.json"
    command = [sys.executable, KERNELS / "aot_check.py", "--json", file, *request.param]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(file.read_text(encoding="utf-8"))


def test_shipped_kernels_fit_sm_90(compiled):
    assert compiled["target"] == "sm_90"
    kernels = {row["kernel"].split()[0] for row in compiled["rows"]}
    assert kernels == {"append", "attend", "merge", "score", "select"}
    for row in compiled["rows"]:
        assert row["spill_bytes"] == 0
        assert 0 < row["registers"] <= 255
        assert row["shared_bytes"] <= 227 * 1024
        if row["kernel"].startswith(("attend", "score means", "select")):
            assert row["loop"] > 0
        if row["most_issue"]:
            assert 0 < row["issue"] <= row["most_issue"]


def test_the_books_table_is_what_the_compiler_says(compiled, tmp_path):
    book = read_table("kernels_sm90")
    (version,) = set(book.triton)
    if compiled["triton"] != version:  # registers differ from one Triton to the next
        pytest.skip(f"the table is of Triton {version}, this is {compiled['triton']}")
    file = tmp_path / "kernels_sm90.csv"
    pd.DataFrame(compiled["rows"]).assign(triton=version).to_csv(file, index=False)
    fresh = pd.read_csv(file)
    if len(fresh) == len(EACH):
        book = book.set_index("kernel").loc[EACH].reset_index()
    pd.testing.assert_frame_equal(
        book, fresh, obj=f"{data_path('kernels_sm90').name} is stale: compile all launches, "
        f"copy {file} over it, then rehash it; the table",
    )  # fmt: skip


def test_the_books_table_has_every_launch_as_it_is_now(monkeypatch):
    """What needs no compiler: which launches there are, their warps and stages, and the limits they are held to."""
    monkeypatch.syspath_prepend(KERNELS)
    from aot_cases import cases

    columns = ["kernel", "warps", "stages", "least_programs", "most_issue"]
    told = pd.DataFrame([(x.name, x.warps, x.stages, x.least, x.most) for x in cases()], columns=columns)
    pd.testing.assert_frame_equal(read_table("kernels_sm90")[columns], told)


def test_a_launch_over_the_limits_is_named(monkeypatch):
    """A tile of 1024 rows: too much shared memory, too many registers and too many instructions."""
    monkeypatch.syspath_prepend(KERNELS)
    from aot_check import Row, programs_per_sm

    huge = Row("huge", 4, 3, 255, 8, 300 * 1024, 0, 1, 900, 0.95, 0.8)
    assert huge.faults == [
        "8 bytes spilled",
        "307200 bytes of shared memory, 232448 at most",
        "0 programs fit a multiprocessor, 1 wanted",
        "instructions take 95% of the time, 80% at most",
    ]
    assert programs_per_sm(118, 72192, 128) == 3  # 228 KB of shared memory
    assert programs_per_sm(65, 0, 512) == 1  # 65536 registers, given out in eights: 72 each


def test_launches_are_named_as_in_the_table_and_not_interpreted(monkeypatch):
    monkeypatch.syspath_prepend(KERNELS)
    import aot_check

    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(SystemExit, match="TRITON_INTERPRET must not be 1"):
        aot_check.main([])
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(SystemExit, match="launches must be among those of the table, got merge 3 splits"):
        aot_check.main(["merge 3 splits", "score random"])
