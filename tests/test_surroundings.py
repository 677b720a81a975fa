"""What a command meets outside its arguments: closed and full streams, pipes for files, odd bytes, limits of the system."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest

from kinetics_lab import cli
from kinetics_lab.traces import read

COST = ["cost", "--model", "qwen3-8b", "--n-in", "100", "--n-out", "1000"]
CONFIG = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": 64, "intermediate_size": 96,
          "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 100}  # fmt: skip


def rows(model: str = "m") -> str:
    return "".join(
        json.dumps({"model": model, "task": "t", "problem": f"p{i}", "trial": 0, "policy": "dense", "tokens_in": 9,
                    "tokens_out": 700 + i, "correct": i % 2, "truncated": 0}) + "\n"
        for i in range(4)
    )  # fmt: skip


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "m.jsonl").write_text(rows())
    return tmp_path


def asked(*words: str, shell: str = "", **options: object) -> subprocess.CompletedProcess[bytes]:
    """A command in a process of its own, with what a shell would say after it."""
    line = ["sh", "-c", f'exec "$@" {shell}', "sh", sys.executable, "-m", "kinetics_lab.cli", *words]
    return subprocess.run(line, capture_output=True, check=False, timeout=300, **options)


@pytest.mark.parametrize(
    ("shell", "words", "code", "told"),
    [
        (">&-", COST, 0, b""),
        (">&- 2>&- <&-", COST, 0, b""),
        ("2>&-", [*COST, "--n-out=-1"], 2, b""),
        ("2>/dev/full", [*COST, "--n-out=-1"], 2, b""),
        (">/dev/full", COST, 2, b"kinetics-lab: error: [Errno 28] No space left on device\n"),
    ],
)
def test_a_closed_or_full_stream_changes_no_exit_code(shell, words, code, told):
    done = asked(*words, shell=shell)
    assert (done.returncode, done.stdout, done.stderr) == (code, b"", told)


def test_where_streams_are_closed_a_file_gets_none_of_what_they_are_told(home):
    done = asked("traces", "m.jsonl", "-o", "out.parquet", shell=">&- 2>&- <&-", cwd=home)
    assert done.returncode == 0
    assert len(pd.read_parquet(home / "out.parquet")) == 4


@pytest.mark.notebooks
def test_a_chapter_runs_where_standard_output_is_closed(tmp_path, write_notebook):
    path = write_notebook(tmp_path / "10_square.ipynb", ("markdown", "# Square?"), ("code", "print(3 * 3)"))
    done = asked("run", str(path), "-o", str(tmp_path / "out"), shell=">&-")
    assert done.returncode == 0, done.stderr.decode()
    assert (tmp_path / "out" / "run.json").is_file()


def test_what_the_encoding_of_a_terminal_lacks_is_an_escape(home):
    """A name from data is written whatever the encoding; the file holds the name itself."""
    (home / "m.jsonl").write_text(rows("é名"), encoding="utf-8")
    plain = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = asked("traces", "m.jsonl", "-o", "out.parquet", cwd=home, env=plain)
    assert (done.returncode, done.stderr) == (0, b"")
    assert rb"model: \xe9\u540d;" in done.stdout
    assert {*pd.read_parquet(home / "out.parquet").model} == {"é名"}


def test_too_little_memory_and_too_small_a_file_are_one_sentence_and_leave_nothing(home):
    def little() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (3 * 10**8, 3 * 10**8))

    def short() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))

    done = asked(*COST, preexec_fn=little)
    assert (done.returncode, done.stderr.count(b"\n")) == (1, 1)
    done = asked("traces", "m.jsonl", "-o", "out.parquet", cwd=home, preexec_fn=short)
    assert (done.returncode, done.stderr) == (
        2,
        b"kinetics-lab: error: [Errno 27] File too large: 'out.parquet'\n",
    )
    assert sorted(path.name for path in home.iterdir()) == [".out.parquet.lock", "m.jsonl"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("a.jsonl", ["claims", "{}"]),
        ("a.json", ["cost", "--n-in", "1", "--n-out", "1", "--model", "{}"]),
        ("a.toml", [*COST, "--hardware", "{}"]),
        ("a.yml", ["sweep", "{}", "--dry-run", "-o", "s"]),
        ("a.ipynb", ["run", "{}", "-o", "r"]),
        ("a.jsonl", ["traces", "{}", "-o", "x.parquet"]),
        ("a.jsonl", ["plan", "--budget", "1", "--traces", "{}"]),
    ],
)
@pytest.mark.parametrize("kind", ["pipe", "loop", "device"])
def test_a_pipe_a_loop_or_a_device_is_no_file_and_nobody_waits_for_it(name, words, kind, home, monkeypatch, capsys):  # fmt: skip
    monkeypatch.chdir(home)
    folder = home / "given"
    folder.mkdir()
    path = folder / name
    {
        "pipe": lambda: os.mkfifo(path),
        "loop": lambda: path.symlink_to(path),
        "device": lambda: path.symlink_to("/dev/zero"),
    }[kind]()
    for given in [path, folder] if words[0] in ("traces", "plan") else [path]:
        assert cli.main([word.format(given) for word in words]) == 2
        told = capsys.readouterr().err
        assert str(path) in told
        assert told.startswith("kinetics-lab: error: ")
        assert told.count("\n") == 1


def test_names_of_files_may_hold_any_bytes(home, monkeypatch, capsys):
    """A path is opened as it is and shown with escapes."""
    monkeypatch.chdir(home)
    for raw in (
        b"a b",
        b"line\nend",
        b"'\"$(x)`",
        b"-dash",
        b"\xff\xfe",
        b"\x1b[31m",
        "\u202e".encode(),
        b"[a]*?",
    ):
        source = os.fsdecode(raw + b".jsonl")
        Path(source).write_text(rows())
        out = os.fsdecode(raw + b".parquet")
        assert cli.main(["traces", f"./{source}", "-o", f"./{out}"]) == 0
        assert cli.main(["traces", f"./{out}", "-o", "again.parquet"]) == 0
        told = capsys.readouterr()
        assert told.err == ""
        assert told.out.replace("\n", "").isprintable()
        assert len(pd.read_parquet("again.parquet")) == 4


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_a_byte_order_mark_is_no_content_and_another_encoding_is_said(encoding, home, monkeypatch, capsys):
    monkeypatch.chdir(home)
    Path("config.json").write_text(json.dumps(CONFIG), encoding=encoding)
    Path("m.jsonl").write_text(rows(), encoding=encoding)
    asked_for = [["cost", "--n-in=1", "--n-out=1", "--model=config.json"], ["traces", "m.jsonl", "-o", "x.parquet"]]  # fmt: skip
    for words, name in zip(asked_for, ("config.json", "m.jsonl"), strict=True):
        code = cli.main(words)
        told = capsys.readouterr().err
        if encoding == "utf-8-sig":
            assert (code, told) == (0, "")
        else:
            assert (code, told.count("\n")) == (2, 1)
            assert name in told
            assert "'utf-8' codec" in told


@pytest.fixture
def ordinary() -> list[str]:
    """What goes before a command so that it may read and write no more than its owner's permissions say."""
    line = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search"]
    if os.geteuid():
        return []
    if not shutil.which("setpriv"):
        pytest.skip("root reads everything, and there is no setpriv")
    return line


def test_what_may_not_be_read_is_named_and_never_left_out(home, ordinary):
    """A file, a folder, a folder within a folder of traces; and a place that may not be written to."""
    for name in ("shut", "part/shut", "still"):
        (home / name).mkdir(parents=True)
        (home / name / "m.jsonl").write_text(rows())
    (home / "part" / "m.jsonl").write_text(rows())
    (home / "file.jsonl").write_text(rows())
    for name, mode in (("shut", 0), ("part/shut", 0), ("file.jsonl", 0), ("still", 0o555)):
        (home / name).chmod(mode)
    kinetics = [*ordinary, sys.executable, "-m", "kinetics_lab.cli", "traces"]
    try:
        for given, out, named in (
            ("shut", "o.parquet", "shut"),
            ("part", "o.parquet", "part/shut"),
            ("file.jsonl", "o.parquet", "file.jsonl"),
            ("still/m.jsonl", "still/o.parquet", f"{home}/still/.o.parquet.lock"),
        ):
            done = subprocess.run(
                [*kinetics, given, "-o", out], cwd=home, capture_output=True, check=False, timeout=300
            )
            told = f"kinetics-lab: error: [Errno 13] Permission denied: '{named}'\n"
            assert (done.returncode, done.stdout, done.stderr.decode()) == (2, b"", told)
    finally:
        for name in ("shut", "part/shut", "still"):
            (home / name).chmod(0o755)
    assert not [*home.rglob("o.parquet")]


def many(model: str) -> str:
    return "".join(
        line.replace("p0", f"p{i}") for i in range(3000) for line in [rows(model).splitlines(True)[0]]
    )


def test_a_file_that_is_written_into_while_it_is_read_is_refused(home, monkeypatch, capsys):
    """Half of what is read would be of one content and half of the other, each line of it right."""
    monkeypatch.chdir(home)
    Path("m.jsonl").write_text(many("a"))
    plain = read.records

    def meanwhile(file, tables=False):
        for count, found in enumerate(plain(file, tables)):
            if count == 1000:
                Path("m.jsonl").write_text(many("b"))
            yield found

    monkeypatch.setattr(read, "records", meanwhile)
    assert cli.main(["traces", "m.jsonl", "-o", "o.parquet"]) == 2
    told = "m.jsonl changed while it was read; give it when it is whole"
    assert capsys.readouterr().err == f"kinetics-lab: error: {told}\n"
    assert not Path("o.parquet").exists()


@pytest.mark.parametrize("whole", [True, False])
def test_a_file_that_changes_while_it_is_read_gives_one_of_its_contents_or_a_sentence(
    whole, home, monkeypatch, capsys
):
    """Another writes it anew all the time, by renaming or in its place."""
    monkeypatch.chdir(home)
    texts, path, stop, ended = [many("a"), many("b")], Path("m.jsonl"), threading.Event(), Counter[str]()
    path.write_text(texts[0])

    def write() -> None:
        while not stop.is_set():
            for text in texts:
                target = Path("new") if whole else path
                target.write_text(text)
                target.replace(path)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(10):
            code = cli.main(["traces", "m.jsonl", "-o", "o.parquet"])
            told = capsys.readouterr().err
            ended["read" if code == 0 else "refused"] += 1
            if code == 0:
                found = pd.read_parquet("o.parquet")
                assert (len(found), found.model.nunique()) == (3000, 1)
            else:
                assert (code, told.count("\n")) == (2, 1), told
                assert told.startswith("kinetics-lab: error: m.jsonl")
    finally:
        stop.set()
        writer.join()
    assert not (whole and ended["refused"])


@pytest.mark.slow
@pytest.mark.notebooks
def test_too_few_files_for_a_kernel_are_one_sentence(tmp_path, write_notebook):
    """ZeroMQ has an error of its own for sockets that cannot be opened."""
    path = write_notebook(tmp_path / "10_square.ipynb", ("markdown", "# Square?"), ("code", "print(3 * 3)"))
    done = asked(
        "run", str(path), "-o", str(tmp_path / "out"),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (20, 20)),
    )  # fmt: skip
    assert done.returncode == 1
    told = done.stderr.decode().splitlines()[-1]
    assert told.startswith(
        f"kinetics-lab: {path}: the kernel failed: Too many open files; the run so far is "
    )
    assert b"Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.notebooks
@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGHUP])
def test_a_command_that_is_told_to_end_leaves_no_kernel(sent, tmp_path, write_notebook):
    cells = [("code", "n = 0\npause = 0", "parameters"),
             ("code", "import os, pathlib, time\npathlib.Path(os.environ['HERE'], str(os.getpid())).touch()\ntime.sleep(pause)"),
             ("code", "from kinetics_lab.book.results import hand_over\nhand_over({'square': n * n})")]  # fmt: skip
    write_notebook(
        tmp_path / "10_square.ipynb",
        ("markdown", "# Square?"),
        *cells,
        kinetics={"result": "result.json"},
    )
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "pids").mkdir()
    grid = tmp_path / "grid.yml"
    grid.write_text("notebook: 10_square.ipynb\naxes: {n: [1]}\nfixed: {pause: 300}\n")
    line = [sys.executable, "-m", "kinetics_lab.cli", "sweep", str(grid), "-o", str(tmp_path / "out")]
    here = os.environ | {"HERE": str(tmp_path / "pids")}

    def heard() -> None:
        signal.signal(sent, signal.SIG_DFL)  # a caller under nohup ignores SIGHUP, and its children do

    with subprocess.Popen(line, env=here, preexec_fn=heard) as process:
        began = time.monotonic()
        while not (found := [*(tmp_path / "pids").iterdir()]) and time.monotonic() < began + 120:
            time.sleep(0.1)
        process.send_signal(sent)
        assert process.wait(60) == -sent
    kernel = int(found[0].name)
    for _ in range(300):
        try:
            if Path(f"/proc/{kernel}/stat").read_text().split()[2] == "Z":
                break
        except OSError:
            break
        time.sleep(0.1)
    else:
        raise AssertionError(f"kernel {kernel} lives on")
    assert not [*tmp_path.glob("out/results*")]
