"""What the package ships fits GPUs from sm_80 on, and the book's tables of it (``data/kernels_*.csv``) are up to date."""

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
ARCHITECTURES = (80, 89, 90, 100, 120)
EACH = [  # a launch of each kernel, in the form with the least room
    "append step bf16 D=256 heads=64",
    "append prompt bf16/fp8 D=128",
    "attend bf16 D=128 page=16",
    "attend bf16/fp8 D=256 page=16 selected",
    "join parts D=256",
    "list parts",
    "score means bf16 D=128",
    "score tokens bf16 D=128",
    "select top N=4096",
]


def compile_(folder: Path, *arguments: str) -> dict[str, Any]:
    """The compiler's table, made in a process that does not interpret kernels; a fault of any row fails."""
    environ = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environ["PYTHONPATH"] = os.pathsep.join([str(KERNELS), environ.get("PYTHONPATH", "")])
    command = [sys.executable, KERNELS / "aot_check.py", "--json", folder / "aot.json", *arguments]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((folder / "aot.json").read_text(encoding="utf-8"))


@pytest.fixture(
    scope="module", params=[pytest.param(EACH, id="each"), pytest.param([], id="all", marks=pytest.mark.slow)]
)
def compiled(request, tmp_path_factory) -> dict[str, Any]:
    """The table of some launches or of all, for sm_90."""
    return compile_(tmp_path_factory.mktemp("aot"), *request.param)


def test_shipped_kernels_fit_sm_90(compiled):
    assert {row["sm"] for row in compiled["rows"]} == {90}
    kernels = {row["kernel"].split()[0] for row in compiled["rows"]}
    assert kernels == {"append", "attend", "join", "list", "score", "select"}
    for row in compiled["rows"]:
        assert row["spill_bytes"] == 0
        assert 0 < row["registers"] <= 255
        assert row["shared_bytes"] <= 227 * 1024
        if row["kernel"].startswith(("attend", "score means", "select")):
            assert row["loop"] > 0
        if row["most_issue"]:
            assert 0 < row["issue"] <= row["most_issue"]


def check_table(name: str, fresh: pd.DataFrame, triton: str, folder: Path) -> None:
    """The book's table against fresh rows, which may be some of it."""
    book = read_table(name)
    (version,) = set(book.triton)
    if triton != version:  # registers differ from one Triton to the next
        pytest.skip(f"the table is of Triton {version}, this is {triton}")
    file = folder / f"{name}.csv"
    fresh.assign(triton=version)[list(book)].to_csv(file, index=False)
    fresh = pd.read_csv(file)
    if len(fresh) == len(EACH):
        book = book.set_index("kernel").loc[EACH].reset_index()
    pd.testing.assert_frame_equal(
        book, fresh, obj=f"{data_path(name).name} is stale: compile all launches, "
        f"copy {file} over it, then rehash it; the table",
    )  # fmt: skip


def test_the_books_table_is_what_the_compiler_says(compiled, tmp_path):
    check_table("kernels_sm90", pd.DataFrame(compiled["rows"]), compiled["triton"], tmp_path)


@pytest.mark.slow(reason="a hundred kernels compiled for five architectures; they change when kernels do")
def test_every_architecture_compiles_without_spills(tmp_path):
    made = compile_(tmp_path, "--sm", *map(str, ARCHITECTURES))
    rows = pd.DataFrame(made["rows"])
    assert set(rows.sm) == set(ARCHITECTURES)
    assert (rows.spill_bytes == 0).all()
    check_table("kernels_by_architecture", rows, made["triton"], tmp_path)


def test_the_table_by_architecture_has_every_launch(monkeypatch):
    """Which it should have needs no compiler: those named EVERYWHERE, fp8 from sm_89 on."""
    monkeypatch.syspath_prepend(KERNELS)
    from aot_cases import EVERYWHERE, cases

    assert set(EVERYWHERE) <= {case.name for case in cases()}
    table = read_table("kernels_by_architecture")
    told = [(sm, name) for sm in ARCHITECTURES for name in EVERYWHERE if sm >= 89 or "fp8" not in name]
    assert list(zip(table.sm, table.kernel, strict=True)) == told
    assert (table.spill_bytes == 0).all()
    fits = table[table.kernel == "attend bf16 D=128 page=16"].set_index("sm").programs_per_sm
    assert fits.to_dict() == {80: 2, 89: 1, 90: 3, 100: 3, 120: 1}


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
    from aot_check import Row

    huge = Row("huge", 4, 3, 255, 8, 300 * 1024, 0, 1, 900, 0.95, 0.8)
    assert huge.faults == [
        "8 bytes spilled",
        "307200 bytes of shared memory, 232448 at most",
        "0 programs fit a multiprocessor, 1 wanted",
        "instructions take 95% of the time, 80% at most",
    ]
    assert Row("wide", 4, 3, 128, 0, 120 * 1024, 1, 1, sm=89).faults == [
        "122880 bytes of shared memory, 101376 at most"
    ]


def test_launches_are_named_as_in_the_table_and_not_interpreted(monkeypatch):
    monkeypatch.syspath_prepend(KERNELS)
    import aot_check

    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(SystemExit, match="TRITON_INTERPRET must not be 1"):
        aot_check.main([])
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(SystemExit, match="launches must be among those of the table, got join 3 parts"):
        aot_check.main(["join 3 parts", "list parts"])
