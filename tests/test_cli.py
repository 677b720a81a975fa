"""The command line: one JSON line, one message, an exit code."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import urllib.request

import pytest

import kinetics_lab
from kinetics_lab import cli
from kinetics_lab.cost import decode_cost
from kinetics_lab.hardware import HARDWARE
from kinetics_lab.policies import BlockTopK
from kinetics_lab.shapes import MODELS

COST = ["cost", "--model", "qwen3-8b", "--n-in", "1000", "--n-out", "16000"]


def test_cost_prints_what_the_package_computes(capsys):
    options = ["--policy", "block_topk:512:32", "--n-trials", "4", "--hardware", "h100", "--precision", "fp8"]
    assert cli.main([*COST, *options, "--combine", "max", "--batch", "64"]) == 0
    [line] = capsys.readouterr().out.splitlines()
    got = json.loads(line)
    policy, device = BlockTopK(512, 32), HARDWARE["h100"].at("fp8")
    want = decode_cost(MODELS["qwen3-8b"], policy, 1000, 16000, 4, bytes_per_element=1, batch=64)
    assert got["flops"] == want.flops
    assert got["bytes"] == want.bytes
    assert got["eflops"] == want.eflops(device, "max")
    assert got["seconds"] == want.seconds(device, "max")
    assert got["arguments"]["policy"] == "block_topk:512:32"
    assert got["arguments"]["precision"] == "fp8"


def test_cost_names_the_precision_it_took(capsys):
    cli.main(COST)
    assert json.loads(capsys.readouterr().out)["arguments"]["precision"] == "bf16"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "qwen3-88b"], "model 'qwen3-88b' is not known; did you mean qwen3-8b"),
        (["--hardware", "h20"], "hardware 'h20' is not known; did you mean h200"),
        (["--precision", "fp16"], "h200: precision 'fp16' is not known"),
        (["--policy", "topk"], "policy 'topk'"),
        (["--policy", "block_topk:500:32"], "budget must be a multiple of block_size=32; got 500"),
        (["--n-in", "-1"], "n_in must be >= 0"),
        (["--n-trials", "0"], "n_trials must be >= 1"),
    ],
)
def test_wrong_settings_are_one_line_on_stderr(capsys, options, message):
    assert cli.main([*COST, *options]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert err.startswith("kinetics-lab: error: ")
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "arguments", [[], ["measre"], ["cost", "--model", "qwen3-8b"], [*COST, "--n-in", "many"]]
)
def test_wrong_grammar_ends_with_usage(capsys, arguments):
    with pytest.raises(SystemExit, match="2"):
        cli.main(arguments)
    assert "usage: kinetics-lab" in capsys.readouterr().err


def test_version(capsys):
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--version"])
    assert capsys.readouterr().out == f"kinetics-lab {kinetics_lab.__version__}\n"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("1e5", 1e5),
        ("-2.5E-3", -2.5e-3),
        ("true", True),
        ("qwen3-8b", "qwen3-8b"),
        ("[1, 2]", [1, 2]),
    ],
)
def test_values_are_yaml(text, value):
    assert cli.scalar(text) == value
    assert type(cli.scalar(text)) is type(value)


def test_a_value_that_is_not_yaml():
    with pytest.raises(ValueError, match=r"must be YAML; got '\[1'"):
        cli.scalar("[1")


@pytest.fixture
def notebook(tmp_path, write_notebook):
    cells = [("code", "n = 3\nmodel = 'a'", "parameters"), ("code", "assert n < 9\nprint(n, model)")]
    return write_notebook(tmp_path / "10_one.ipynb", *cells)


def test_run_writes_a_run_folder(notebook, tmp_path, capsys):
    (tmp_path / "p.yml").write_text("common: {n: 5, model: b}\n")
    folder = tmp_path / "out"
    given = ["-f", str(tmp_path / "p.yml"), "-p", "n", "7", "-o", str(folder)]
    assert cli.main(["run", str(notebook), *given]) == 0
    assert capsys.readouterr().out == f"{folder}\n"
    assert json.loads((folder / "run.json").read_text())["parameters"] == {"n": 7, "model": "b"}
    assert "7 b" in (folder / "10_one.ipynb").read_text()


@pytest.mark.parametrize(
    ("parameter", "code", "message"),
    [
        (["m", "1"], 2, "10_one.ipynb declares n, model; parameter 'm' is not known"),
        (["n", "few"], 2, "parameter 'n' of 10_one.ipynb takes int (default 3); got 'few'"),
        (["n", "9"], 1, "cell 2 ('assert n < 9'...) raised AssertionError"),
    ],
)
def test_a_run_that_cannot_be_leaves_no_folder(notebook, tmp_path, capsys, parameter, code, message):
    assert cli.main(["run", str(notebook), "-p", *parameter, "-o", str(tmp_path / "out")]) == code
    err = capsys.readouterr().err
    assert message in err
    assert "Traceback" not in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["book", "pdf"])
def test_the_book_needs_the_projects_folder(tmp_path, monkeypatch, capsys, command):
    monkeypatch.chdir(tmp_path)
    assert cli.main([command]) == 2
    assert "there is no _config.yml in" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_claims_of_no_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["claims"]) == 2
    assert "no findings under _build/runs: run `kinetics-lab book`" in capsys.readouterr().err


def test_claims_prints_the_newest_findings(tmp_path, monkeypatch, capsys):
    from kinetics_lab.claims import load_claims

    runs = tmp_path / "_build" / "runs"
    runs.mkdir(parents=True)
    found = [{"id": c.id, "value": c.published, "interval": None} for c in load_claims().values()]
    (runs / "claims-1.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in found))
    monkeypatch.chdir(tmp_path)
    assert cli.main(["claims"]) == 0
    out = capsys.readouterr().out
    assert out.count("reproduced") == len(found)


@pytest.mark.parametrize("taken", [False, True])
def test_serve_shows_the_book_on_a_free_port(tmp_path, taken):
    folder = tmp_path / "_build" / "book" / "_build" / "html"
    folder.mkdir(parents=True)
    (folder / "index.html").write_text("the book")
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1] if taken else 0)
        command = [sys.executable, "-m", "kinetics_lab.cli", "serve", "--port", port]
        with subprocess.Popen(
            command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as server:
            try:
                address = server.stdout.readline().split()[0]
                assert not address.endswith(f":{port}/")
                assert urllib.request.urlopen(address, timeout=10).read() == b"the book"
                server.send_signal(signal.SIGINT)
                assert server.wait(10) == 130
            finally:
                server.kill()  # nothing to a server that has stopped; without it a failure would wait for ever
            assert "Traceback" not in server.stderr.read()


def test_serve_needs_a_book(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["serve"]) == 2
    assert "run `kinetics-lab book` in the project's folder first" in capsys.readouterr().err
