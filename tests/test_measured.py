"""What Part II shows: measured rows with their provenance, else limits that say so; and the fit of the law."""

from __future__ import annotations

import hashlib
import html
import importlib.util
import re
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from kinetics_lab import cli
from kinetics_lab.measure import bench as bench_module
from kinetics_lab.measure import limits
from kinetics_lab.measure import rows as measured
from kinetics_lab.measure.bench import CPU, code_state
from kinetics_lab.measure.runner import expected_seconds
from kinetics_lab.measure.suites import SUITES
from kinetics_lab.measure.timelaw import FORMS, TimeLaw, fit_time_law, halves

_spec = importlib.util.spec_from_file_location(
    "synthetic_rows", Path(__file__).with_name("synthetic_rows.py")
)
synthetic_rows = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(synthetic_rows)
_spec = importlib.util.spec_from_file_location("chapters", Path(__file__).with_name("chapters.py"))
chapters = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(chapters)
CHAPTERS, GPU, NOTEBOOKS, write = (
    synthetic_rows.CHAPTERS, synthetic_rows.GPU, synthetic_rows.NOTEBOOKS, synthetic_rows.write
)  # fmt: skip
each_chapter = pytest.mark.parametrize("suite", CHAPTERS)
OTHERS = pytest.mark.slow(reason="one chapter without rows stands for six in the default set")


# ---- measured or predicted ------------------------------------------------------------------------------------


def test_without_rows_the_limits_are_shown_and_called_so(tmp_path, monkeypatch):
    monkeypatch.setenv("KINETICS_DATA", str(tmp_path))
    for suite in SUITES:
        found = measured.rows("nvidia-h200", suite)
        assert (found.measured, found.label) == (False, "predicted")
        assert found.title == "Predicted, not yet measured on this GPU"
        assert len(found.table) == len(SUITES[suite].cases(True))
        timed = {c for c in found.table if c.endswith("_us") and "limit" not in c}
        assert timed == {"round_us"}
        assert "4.80 TB/s and 990 TFLOP/s (datasheet H200 SXM)" in repr(found)
        assert 'class="admonition warning"' in found._repr_html_()


@pytest.fixture(scope="module")
def sent(tmp_path_factory):
    """A folder of rows of all suites, as somebody would send them."""
    out = tmp_path_factory.mktemp("sent")
    clean = {"commit": "0123456789" * 4, "dirty": False, "triton": "3.7.1"}
    write(out, *SUITES, code=code_state() | clean)
    return out / GPU


def test_rows_that_are_what_they_say_pass_the_check(sent):
    for suite in SUITES:
        measured.check(sent / f"{suite}.parquet")


def test_the_command_checks_a_folder(sent, tmp_path, capsys):
    assert cli.main(["measure", "--check", str(sent)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{sent / name}.parquet: as it should be" for name in sorted(SUITES)
    ]
    assert cli.main(["measure", "--check", str(tmp_path)]) == 2
    assert "--check must be a folder with Parquet files of rows; got " in capsys.readouterr().err


def test_the_page_says_how_long_it_takes():
    """Minutes of the page On your GPU: free memory, GB/s and TFLOP/s of a row make its times."""
    page = Path(__file__).parent.parent / "book" / "on-your-gpu.md"
    rows = [
        line.strip("| ").split(" | ")
        for line in page.read_text().splitlines()
        if re.match(r"\| .* \| \d", line)
    ]
    assert len(rows) == 6
    for name, memory, bandwidth, matrix, whole, kernels in rows:
        rates, free = (
            limits.Rates(float(bandwidth) * 1e9, float(matrix) * 1e12, "datasheet"),
            float(memory) * 2**30,
        )
        minutes = {
            suite: sum(
                expected_seconds(SUITES[suite].predict(case, rates))
                for case in SUITES[suite].cases_on("cuda", free)
            )
            / 60
            for suite in SUITES
        }
        assert int(whole) == round(sum(minutes.values())), name
        assert int(kernels) == round(sum(minutes.values()) - minutes["model"]), name


def test_the_rows_of_the_book_pass_the_check():
    files = sorted((Path(__file__).parent.parent / "data" / "measurements").glob("*/*.parquet"))
    assert files
    for file in files:
        measured.check(file)


@pytest.mark.parametrize(
    ("column", "change", "message"),
    [
        (
            "gpu",
            lambda x: "NVIDIA H200",
            "gpu must be that of the folder synthetic-rows-of-a-test-no-h200; got 'NVIDIA H200'",
        ),
        ("suite", lambda x: "dense", "suite must be the name of the file; got 'dense'"),
        (
            "device",
            lambda x: CPU,
            "device must be cuda or host: a rehearsal is no measurement; got 'cpu-interpreter'",
        ),
        ("commit", lambda x: "unknown", "commit must be the 40 digits of a commit; got 'unknown'"),
        ("commit", lambda x: None, "commit must be the 40 digits of a commit; got "),
        ("dirty", lambda x: True, "dirty must be False: measured by code that is committed; got True"),
        ("kernels_digest", lambda x: "x" * 12, "kernels_digest must be 12 hexadecimal digits; got 'xxx"),
        ("date", lambda x: "yesterday", "date must be a time in UTC; got 'yesterday'"),
        ("driver", lambda x: None, "driver must be a version; got "),
        ("triton", lambda x: None, "triton must be a version; got "),
        ("bytes", lambda x: x - 1, "bytes must be as the suite counts it; got "),
        ("limit_us", lambda x: 0.9 * x, "limit_us must be as the suite counts it; got "),
        ("budget", lambda x: 256, "batch must be of a case that no other row has; got 4096"),
        ("step_us", lambda x: 0.0, "step_us must be positive, between its percentiles; got 0.0"),
        ("step_us", lambda x: 2 * x, "step_us must be positive, between its percentiles; got "),
        ("share_of_limit", lambda x: 1.2, "share_of_limit must be at most 1.1; got 1.2"),
    ],
)
def test_a_row_that_cannot_be_is_named(sent, tmp_path, column, change, message):
    rows = pd.read_parquet(sent / "topk.parquet")
    rows[column] = [change(x) if i == 1 else x for i, x in enumerate(rows[column])]
    if column == "budget":  # the case of row 2, said by row 1
        for name in ("block", "window", "page"):
            rows.loc[1, name] = rows.loc[2, name]
    file = tmp_path / GPU / "topk.parquet"
    file.parent.mkdir()
    rows.to_parquet(file)
    named = 2 if column == "budget" else 1
    with pytest.raises(ValueError, match=re.escape(f"{file}, row {named}: {message}")):
        measured.check(file)


def test_rows_of_a_copy_without_git_need_the_source_of_their_commit(sent, tmp_path, monkeypatch):
    rows = pd.read_parquet(sent / "topk.parquet").assign(dirty=None)
    file = tmp_path / GPU / "topk.parquet"
    file.parent.mkdir()
    rows.to_parquet(file)
    with pytest.raises(
        ValueError, match="row 0: dirty must be False: measured by code that is committed; got None"
    ):
        measured.check(file)  # a commit that nobody here knows
    monkeypatch.setattr(measured, "digest_at", lambda commit: rows["kernels_digest"][0])
    measured.check(file)
    monkeypatch.setattr(measured, "digest_at", lambda commit: "0" * 12)
    with pytest.raises(
        ValueError, match="row 0: kernels_digest must be that of the source at the row's commit; got "
    ):
        measured.check(file)


def test_the_source_of_a_commit_has_the_digest_it_had_as_files(tmp_path, monkeypatch):
    source = tmp_path / "kernels" / "kinetics_kernels"
    source.mkdir(parents=True)
    files = {"b.py": b"x = 1\n", "a.py": b"", "ladder.py": b"never timed\n", "notes.md": b"not code\n"}
    for name, content in files.items():
        (source / name).write_bytes(content)
    git = ["git", "-C", str(tmp_path), "-c", "user.name=x", "-c", "user.email=x@example.org"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "x"]):
        subprocess.run([*git, *command], check=True)
    commit = subprocess.run(
        [*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True
    ).stdout.strip()
    (source / "b.py").write_bytes(b"x = 2\n")  # not committed
    monkeypatch.setattr(bench_module, "ROOT", tmp_path)
    assert bench_module.digest_at(commit) == hashlib.sha256(b"a.py\0b.py\0x = 1\n").hexdigest()[:12]
    assert bench_module.digest_at("0" * 40) is None


def test_a_file_that_is_no_suite_or_lacks_columns_is_named(sent, tmp_path):
    with pytest.raises(ValueError, match=r"times.parquet: suite 'times' is not known"):
        measured.check(tmp_path / GPU / "times.parquet")
    file = tmp_path / GPU / "topk.parquet"
    file.parent.mkdir()
    pd.read_parquet(sent / "topk.parquet").drop(columns=["commit", "step_us"]).to_parquet(file)
    with pytest.raises(ValueError, match=r"columns of topk must be there; got \['commit', 'step_us'\]"):
        measured.check(file)


def test_limits_take_measured_rates_as_soon_as_there_are_some(tmp_path):
    write(tmp_path, "roofline")
    found = measured.rows(GPU, "dense", tmp_path)
    assert not found.measured
    assert found.rates == limits.Rates(4.3e12, 7.9e14, "measured")
    assert found.table["limit_us"].iloc[2] == pytest.approx(4096 * 16384 * 512 / 4.3e6)


def test_rows_say_where_they_come_from(tmp_path, monkeypatch):
    monkeypatch.setenv("KINETICS_DATA", str(tmp_path))
    write(tmp_path / "measurements", "dense")
    found = measured.rows(GPU, "dense")
    assert (found.measured, found.label, found.gpu) == (True, "measured", GPU)
    assert found.title == "Measured on Synthetic rows of a test, no H200"
    assert found.said["Cases"] == "31 of 31 of the suite “dense”"
    assert found.said["Versions"].startswith("driver none, torch ")
    assert found.said["Commit"].startswith(found.table["commit"].iloc[0])
    assert re.fullmatch(r"\d{4}-\d\d-\d\d( to .*)?", found.said["Date"])
    assert not {"Failed", "Left out", "Mind"} & set(found.said)
    assert all(html.escape(text) in found._repr_html_() for text in found.said.values())
    assert 'class="admonition note"' in found._repr_html_()


def test_what_a_box_says_cannot_be_markup():
    said = {"Failed": "1 case, the first with: <b>&</b>"}
    shown = measured.Rows(
        "g", "<i>", False, pd.DataFrame(), limits.datasheet_rates("h200"), said
    )._repr_html_()
    assert "&lt;b&gt;&amp;&lt;/b&gt;" in shown
    assert "<i>" not in shown


def change(folder, suite, **columns):
    """The suite's rows with other values; each a value for all rows, or (mask, value)."""
    path = folder / GPU / f"{suite}.parquet"
    table = pd.read_parquet(path)
    for name, value in columns.items():
        where, value = value if isinstance(value, tuple) else (slice(None), value)
        table.loc[where, name] = value
    table.to_parquet(path, index=False)
    return table


NEEDED = ["date", "device", "error", "gpu", "kernels_digest", "suite_version"]


@pytest.mark.parametrize("lost", NEEDED)
def test_a_file_that_no_measuring_wrote_is_refused_by_its_path(tmp_path, lost):
    (tmp_path / "nvidia-h200").mkdir()
    path = tmp_path / "nvidia-h200" / "dense.parquet"
    pd.DataFrame({name: ["x"] for name in NEEDED if name != lost}).to_parquet(path)
    with pytest.raises(ValueError, match=rf"dense.parquet must have .* lacks some; got \['{lost}'\]"):
        measured.rows("nvidia-h200", "dense", tmp_path)


@pytest.mark.parametrize("what", ["kernels_digest", "suite_version"])
def test_rows_of_other_code_are_left_out_and_counted(tmp_path, what):
    bench = write(tmp_path, "dense")
    old = {"kernels_digest": "0" * 12, "date": "2020-01-01T00:00:00+00:00"}
    change(tmp_path, "dense", **(old if what == "kernels_digest" else {"suite_version": 0}), ours_us=1.0)
    assert measured.rows(GPU, "dense", tmp_path).said.get("Mind") == (
        "the kernels have changed since" if what == "kernels_digest" else None
    )
    write(tmp_path, "dense", code=bench.code)
    found = measured.rows(GPU, "dense", tmp_path)
    assert len(found.table) == 31
    assert (found.table["ours_us"] > 1).all()
    assert found.said["Left out"].startswith("31 rows of an older version")
    assert "Mind" not in found.said


def test_failed_cases_are_counted_and_not_shown(tmp_path):
    write(tmp_path, "roofline")
    change(tmp_path, "roofline", error=([1, 4], "ValueError: not liked"), time_us=([1, 4], np.nan))
    found = measured.rows(GPU, "roofline", tmp_path)
    assert found.said["Cases"].startswith("10 of 12")
    assert found.said["Failed"] == "2 cases, the first with: ValueError: not liked"
    assert found.table["time_us"].notna().all()
    change(tmp_path, "roofline", error="RuntimeError: out of luck")
    found = measured.rows(GPU, "roofline", tmp_path)
    assert not found.measured
    assert found.said["Measured"] == "nothing; 12 cases were tried and failed: RuntimeError: out of luck"


def test_a_rehearsal_is_never_shown(tmp_path):
    write(tmp_path, "roofline")
    change(tmp_path, "roofline", device=([3], CPU))
    with pytest.raises(ValueError, match="roofline: rows must be of device cuda; got "):
        measured.rows(GPU, "roofline", tmp_path)


@pytest.mark.parametrize(
    ("gpu", "suite", "folder", "message"),
    [
        ("nvidia-h200", "densse", None, "suite 'densse' is not known; did you mean dense?"),
        ("nvidia-h2000", "dense", None, "gpu 'nvidia-h2000' is not known; did you mean nvidia-h200"),
        ("nvidia-h200", "dense", "nowhere", "nowhere: gpu 'nvidia-h200' is not known; known: none"),
    ],
)
def test_unknown_names_are_one_sentence(tmp_path, monkeypatch, gpu, suite, folder, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KINETICS_DATA", str(tmp_path))
    with pytest.raises(ValueError, match=message):
        measured.rows(gpu, suite, folder)


def test_to_measure_again_runs_the_suite_here(tmp_path, monkeypatch):
    asked = []

    def now(names, out, device, say):
        asked.append((names, out, device))
        write(out, *names.split(","))
        return [out / GPU / f"{name}.parquet" for name in names.split(",")]

    monkeypatch.setattr(measured, "measure", now)
    monkeypatch.setenv("KINETICS_RUN_DIR", str(tmp_path))
    found = measured.rows("nvidia-h200", "dense", remeasure=True)
    assert asked == [("roofline,dense", tmp_path / "measurements", "cuda")]
    assert (found.measured, found.gpu) == (True, GPU)
    assert found.rates.source == "measured"


def test_to_measure_again_needs_a_gpu(tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    pytest.importorskip("triton")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RuntimeError, match="measuring needs a CUDA GPU, and PyTorch sees none"):
        measured.rows("nvidia-h200", "dense", tmp_path, remeasure=True)
    assert not list(tmp_path.iterdir())


# ---- the law in time, on synthetic times ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def layers():
    suite = SUITES["validate"]
    return pd.DataFrame([c | suite.predict(c, limits.datasheet_rates("h200")) for c in suite.cases(True)])


@pytest.mark.parametrize(("form", "us"), [("add", 5 + 6 + 8), ("max", 5 + 8), ("parts", 5 + 7 + 4)])
def test_the_time_of_a_step_by_hand(form, us):
    # at 1 byte and 1 FLOP a microsecond: products 2 bytes and 7 FLOP, attention 4 bytes and 1 FLOP
    step = pd.DataFrame({"bytes": [6], "flops": [8], "weight_bytes": [2], "gemm_flops": [7]})
    assert TimeLaw(1e6, 1e6, 5.0, form).us(step) == pytest.approx([us])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("overhead_us", [0.1, 10.0, 100.0])
def test_a_fit_finds_known_constants(layers, form, overhead_us):
    known = TimeLaw(3.9e12, 6e14, overhead_us, form)
    half = halves(layers, 1)
    found = fit_time_law(layers[half], known.us(layers[half]), form)
    assert found.form == form
    for name in ("bandwidth", "matrix_rate", "overhead_us"):
        assert getattr(found, name) == pytest.approx(getattr(known, name), rel=1e-4)


def test_noise_and_outliers_move_the_constants_little(layers):
    known, draw = TimeLaw(3.9e12, 6e14, 10.0, "parts"), np.random.default_rng(0)
    us = known.us(layers) * np.exp(draw.normal(0, 0.05, len(layers)))
    us[draw.choice(len(us), 10, replace=False)] *= 3
    found = fit_time_law(layers, us, "parts")
    assert found.bandwidth == pytest.approx(known.bandwidth, rel=0.05)
    assert found.matrix_rate == pytest.approx(known.matrix_rate, rel=0.1)
    assert found.overhead_us == pytest.approx(known.overhead_us, rel=0.1)


def test_halves_are_halves_of_dense_and_of_sparse(layers):
    half, dense = halves(layers, 0), layers["budget"].to_numpy() == 0
    assert (half & dense).sum() == (half & ~dense).sum() == 50
    assert (halves(layers, 0) == half).all()
    assert (halves(layers, 1) != half).any()


@pytest.mark.parametrize(
    ("us", "form", "message"),
    [
        ([1.0] * 5, "add", "a fit needs at least 6 rows, and a time for each; got 5"),
        ([1.0] * 7, "add", "a fit needs at least 6 rows, and a time for each; got 7"),
        ([1.0] * 7 + [0.0], "add", "us must be positive and finite"),
        ([1.0] * 8, "sum", "form 'sum' is not known"),
    ],
)
def test_a_fit_of_nonsense_is_refused(layers, us, form, message):
    with pytest.raises(ValueError, match=message):
        fit_time_law(layers.iloc[: 5 if len(us) == 5 else 8], np.array(us), form)


# ---- the chapters ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def synthetic(tmp_path_factory):
    """A folder with rows of every suite."""
    folder = tmp_path_factory.mktemp("synthetic") / "rows"
    write(folder, *SUITES)
    return folder


@pytest.mark.slow(reason="six chapters; tests/test_model_suite.py runs one with rows in the default set")
@pytest.mark.notebooks
@each_chapter
def test_a_chapter_shows_measured_rows_with_their_provenance(suite, synthetic, tmp_path):
    parameters = {"gpu": GPU, "measurements": str(synthetic)}
    text, titles = synthetic_rows.outputs(
        chapters.run_here(NOTEBOOKS / f"{CHAPTERS[suite]}.ipynb", parameters, tmp_path)
    )
    assert "Measured on Synthetic rows of a test, no H200" in text
    assert re.search(r"<th>Commit</th><td>\w+", text)
    assert "not yet measured" not in text
    assert "othing measured yet" not in text
    assert any(re.search("[Mm]easured", title) for title in titles)


@pytest.mark.notebooks
@pytest.mark.parametrize(
    "suite", ["roofline", *(pytest.param(suite, marks=OTHERS) for suite in CHAPTERS if suite != "roofline")]
)
def test_a_chapter_without_rows_calls_nothing_measured(suite, tmp_path):
    run = chapters.run_here(NOTEBOOKS / f"{CHAPTERS[suite]}.ipynb", {"gpu": "nvidia-a100"}, tmp_path)
    text, titles = synthetic_rows.outputs(run)
    assert "Predicted, not yet measured on this GPU" in text
    assert "Measured on" not in text
    assert titles
    assert not [title for title in titles if re.search("[Mm]easured(?! by NVIDIA's collector)", title)]
