"""The command line: what is typed, what is printed, how it ends. Commands run in this process."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from functools import partial
from http.server import ThreadingHTTPServer
from pathlib import Path

import pandas as pd
import pytest

import kinetics_lab
from kinetics_lab import cli
from kinetics_lab.book.pages import handler
from kinetics_lab.book.parameters import scalar
from kinetics_lab.cli.shared import spread
from kinetics_lab.cost.fit import fit
from kinetics_lab.cost.hardware import HARDWARE
from kinetics_lab.cost.models import MODELS
from kinetics_lab.cost.policies import BlockTopK, Dense
from kinetics_lab.cost.precision import find_precision
from kinetics_lab.cost.request import cost_parts, decode_cost
from kinetics_lab.files import sole_writer

COST = ["cost", "--model", "qwen3-8b", "--n-in", "1000", "--n-out", "16000"]


def priced(capsys, *options):
    assert cli.main([*COST, "--json", *options]) == 0
    return json.loads(capsys.readouterr().out)


def test_cost_prints_what_the_package_computes(capsys):
    options = [
        "--policy",
        "block_topk:512:32",
        "--n-trials",
        "4",
        "--hardware",
        "h100",
        "--weights",
        "fp8",
        "--kv",
        "fp8",
    ]
    got = priced(capsys, *options, "--combine", "max", "--batch", "endless")
    policy, device = BlockTopK(512, 32), HARDWARE["h100"]
    want = decode_cost(MODELS["qwen3-8b"], policy, 1000, 16000, 4, bytes_per_element=1)
    assert got["flops"] == pytest.approx(want.flops)
    assert got["bytes"] == pytest.approx(want.bytes)
    assert got["eflops"] == pytest.approx(got["seconds"] * device.peak_flops)
    assert got["arguments"]["policy"] == "block_topk:512:32"
    assert "step" not in got


def test_one_precision_and_an_endless_batch_are_the_papers_law(capsys):
    for combine in ("add", "max"):
        got = priced(capsys, "--batch", "endless", "--hardware", "b200-paper", "--combine", combine)
        law = cost_parts(MODELS["qwen3-8b"], Dense(), 1000, 16000)
        want = sum(part.seconds(HARDWARE["b200-paper"], combine) for part in law.values())
        assert got["seconds"] == pytest.approx(float(want))


def test_a_short_answer_that_the_released_formula_makes_negative_is_refused(capsys):
    """Budget 512, a prompt of 9: 503^2 / 2 reads are taken off, 512 an answer's token are there."""
    asked = ["cost", "--model", "qwen3-8b", "--policy", "block_topk:512:32", "--counting", "released", "--n-in", "9"]  # fmt: skip
    assert cli.main([*asked, "--n-out", "247"]) == 2
    assert "more than there are: --n-out must be larger; got 247" in capsys.readouterr().err
    assert cli.main([*asked, "--n-out", "248"]) == 0


def test_cost_says_what_fits_and_keeps_precisions_apart(capsys):
    got = priced(capsys)
    room = fit(MODELS["qwen3-8b"], HARDWARE["h200"], context=17000)
    assert (got["fits"]["devices"], got["fits"]["batch"], got["batch"]) == (1, room.batch, room.batch)
    assert got["step"]["seconds"] == pytest.approx(sum(got["step"]["parts"].values()))
    light = priced(capsys, "--weights", "fp8", "--batch", "64")
    both = priced(capsys, "--weights", "fp8", "--kv", "fp8", "--batch", "64")
    attention, halved = (found["parts"]["attention"]["bytes"] for found in (light, both))
    assert attention == got["parts"]["attention"]["bytes"] == 2 * halved  # FP8 weights leave the cache alone
    own = priced(capsys, "--no-share-prompt", "--n-trials", "4")["prefill_flops"]
    assert own == pytest.approx(4 * got["prefill_flops"])


def test_what_does_not_fit_is_priced_with_a_warning(capsys):
    assert (
        cli.main(
            [
                "cost",
                "--model",
                "deepseek-v3",
                "--hardware",
                "h100",
                "--n-in",
                "9",
                "--n-out",
                "99",
                "--batch",
                "256",
            ]
        )
        == 0
    )
    out, err = capsys.readouterr()
    assert "fits     no: deepseek-v3: 673.0 GB of weights; 8 × H100 SXM have 615.7 GB" in out
    assert "assumed" in out
    assert err.startswith("kinetics-lab: warning: priced as if it fitted: deepseek-v3")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "qwen3-88b"], "model 'qwen3-88b' is not known; did you mean qwen3-8b"),
        (["--hardware", "h20"], "hardware 'h20' is not known; did you mean h200"),
        (["--weights", "fp9"], "precision of weights 'fp9' is not known; did you mean fp8"),
        (["--batch", "many"], "--batch must be a whole number, fits or endless; got 'many'"),
        (["--devices", "3"], "qwen3-8b: 32 query heads do not split over 3 devices"),
        (["--cached", "1"], "cached must be in [0, 1) (share of the prompt); got 1.0"),
        (["--policy", "topk"], "policy 'topk'"),
        (["--policy", "block_topk:500:32"], "budget must be a multiple of block_size=32; got 500"),
        (["--n-in", "-1"], "n_in must be >= 0"),
        (["--n-trials", "0"], "n_trials must be >= 1"),
        (["--counting", "papre"], "counting 'papre' is not known; did you mean paper"),
        (["--combine", "mean"], "combine 'mean' is not known; did you mean "),
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
    ("arguments", "message"),
    [
        ([], "kinetics-lab: error: Missing command."),
        (["measre"], "kinetics-lab: error: No such command 'measre'. Did you mean 'measure'?"),
        (["cost", "--model", "qwen3-8b"], "kinetics-lab cost: error: Missing option '--n-in'."),
        ([*COST, "--n-in", "many"], "kinetics-lab cost: error: Invalid value for '--n-in': "),
        (["plan", "--bugdet", "3"], "kinetics-lab plan: error: No such option: --bugdet (Possible options: --budget)"),
        (["plan"], "kinetics-lab plan: error: Missing option '--budget'."),
        (["plan", "--budget", "1", "--trials", "1", "1.5"], "kinetics-lab plan: error: Invalid value for '--trials': "),
        (["book", "10_what"], "kinetics-lab book: error: Got unexpected extra argument(s) (10_what)"),
        (["ladder", "trian"], "kinetics-lab: error: step 'trian' is not known; did you mean train?"),
        (["measure", "--device", "gpu"], "kinetics-lab: error: device 'gpu' is not known; did you mean cpu?"),
        (["run", "a.ipynb", "-o", "x", "-p", "n"], "kinetics-lab: error: -p must be given NAME VALUE; got 'n' alone"),
        (["sweep", "a.yml", "-o", "x", "--resources", "GPU"], "kinetics-lab: error: --resources must read NAME=N; got 'GPU'"),
    ],
)  # fmt: skip
def test_wrong_grammar_is_one_sentence(capsys, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert cli.main(arguments) == 2
    out, err = capsys.readouterr()
    assert not out
    assert err.startswith(message)
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("typed", "read"),
    [
        ("--budget 1 5 20 --json", "--budget 1 --budget 5 --budget 20 --json"),
        ("--budget=1 -5 .5 -o x", "--budget=1 --budget -5 --budget .5 -o x"),
        ("--model a=b c.json --budget", "--model a=b --model c.json --budget"),
        ("-p n 3 -p m -4 one.ipynb", "-p n=3 -p m=-4 one.ipynb"),
        ("-p n=3 one.ipynb -p text a=b", "-p n=3 one.ipynb -p text=a=b"),
        ("-o x 1 2", "-o x 1 2"),
    ],
)
def test_a_list_takes_values_up_to_the_next_flag(typed, read):
    lists = {"--budget": "N ...", "--model": "NAME=SHAPE ...", "-p": "NAME VALUE", "-o": ""}
    assert spread(typed.split(), lists) == read.split()


def test_every_command_has_its_help(capsys):
    commands = [command.name or command.callback.__name__ for command in cli.app.registered_commands]
    assert len(commands) == 13
    assert cli.main(["--help"]) == 0
    told = capsys.readouterr().out
    assert all(
        re.search(rf"^  {name} +[A-Z].*\.$", told, re.MULTILINE) for name in commands
    )  # none cut short
    for name in commands:
        assert cli.main([name, "-h"]) == 0
        assert capsys.readouterr().out.startswith(f"Usage: kinetics-lab {name} [OPTIONS]")


def test_help_loads_nothing_heavy_and_a_shell_completes():
    code = (
        "import sys; from kinetics_lab.cli import main; main(['plan', '--help']); "
        "sys.exit(' '.join({'numpy', 'pandas', 'torch', 'yaml', 'rich', 'altair'} & {*sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.strip()) == (1, "")
    assert "kinetics-lab run notebooks/35_plan_your_own.ipynb --page" in done.stdout
    asked = {"_KINETICS_LAB_COMPLETE": "complete_bash", "COMP_WORDS": "kinetics-lab cost --hardware b20", "COMP_CWORD": "3"}  # fmt: skip
    code = "from kinetics_lab.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | asked, capture_output=True, text=True, check=False)  # fmt: skip
    assert sorted(done.stdout.split()) == ["b200", "b200-paper"]


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"kinetics-lab {kinetics_lab.__version__}\n"


@pytest.mark.parametrize(
    ("raised", "code", "message"),
    [
        (RuntimeError("a run failed"), 1, "kinetics-lab: a run failed\n"),
        (OSError("no room"), 2, "kinetics-lab: error: no room\n"),
        (KeyboardInterrupt(), 130, "kinetics-lab: stopped\n"),
    ],
)
def test_how_a_command_ends(monkeypatch, capsys, raised, code, message):
    def broken(*_):
        raise raised

    monkeypatch.setattr(kinetics_lab, "find_hardware", broken)
    assert cli.main(COST) == code
    assert capsys.readouterr().err == message


@pytest.mark.parametrize(
    ("kind", "name", "what"),
    [
        ("models", "qwen3-30b-a3b", "30.5 billion parameters, 3.4 active"),
        ("hardware", "h200", "GB at 4.80 TB/s; bf16"),
        ("policies", "topk:budget", "tokens"),
        ("chapters", "notebooks/10_what_does_a_token_cost.ipynb", "What does a token cost?"),
    ],
)
def test_what_can_be_named_is_listed(capsys, monkeypatch, kind, name, what):
    monkeypatch.chdir(Path(__file__).parent.parent)
    assert cli.main(["list", kind]) == 0
    [line] = [line for line in capsys.readouterr().out.splitlines() if line.split()[0].startswith(name)][:1]
    assert what in line


def test_a_list_of_what_is_not_there(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["list", "chapters"]) == 2
    assert "chapters are listed in the project's folder" in capsys.readouterr().err
    assert cli.main(["list", "moddels"]) == 2
    assert "did you mean models?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "gone", "cure"),
    [
        ("generate --model m --problems p.jsonl -o out", "torch", "run `make torch`"),
        ("run notebooks/10_what_does_a_token_cost.ipynb -o out -p n_in 3", "yaml", "`pip install pyyaml`"),
        ("run notebooks/10_what_does_a_token_cost.ipynb -o out", "jupyter_client", "run `make install`"),
        ("run notebooks/10_what_does_a_token_cost.ipynb -o out", "nbformat", "run `make install`"),
        ("sweep notebooks/params/sweep-hardware.yml -o out", "yaml", "run `make install`"),
        ("book", "yaml", "run `make install`"),
        ("pdf", "nbformat", "run `make install`"),
        ("ladder train -o out.parquet", "torch", "run `make torch`"),
        ("measure --device host", "torch", "run `make torch`"),
    ],
)
def test_a_missing_package_is_one_sentence(tmp_path, line, gone, cure):
    root = Path(__file__).parent.parent
    for name in ("notebooks", "book", "_config.yml", "data"):
        (tmp_path / name).symlink_to(root / name)
    code = f"import sys; sys.modules[{gone!r}] = None; from kinetics_lab.cli import chapters, main; "
    code += "chapters.made_for_the_book = dict; sys.exit(main())"  # takes seconds, and no package that may be missing
    done = subprocess.run(
        [sys.executable, "-c", code, *line.split()], cwd=tmp_path, capture_output=True, text=True, check=False,
        env=os.environ | {"PYTHONPATH": f"{root}:{root / 'kernels'}"},
    )  # fmt: skip
    told = done.stderr.strip().splitlines()
    assert done.returncode == 2, done.stderr
    assert len(told) == 1, done.stderr
    assert f"needs {gone}: " in told[0]
    assert cure in told[0]


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
    assert scalar(text, "n") == value
    assert type(scalar(text, "n")) is type(value)


def test_a_value_that_is_not_yaml():
    with pytest.raises(ValueError, match=r"parameter 'n' must be YAML; got '\[1'"):
        scalar("[1", "n")


@pytest.fixture
def notebook(tmp_path, write_notebook):
    return write_notebook(tmp_path / "10_one.ipynb", ("code", "n = 3\nmodel = 'a'", "parameters"))


def test_run_hands_over_parameters_of_a_file_and_of_the_line(notebook, tmp_path, capsys, monkeypatch):
    from kinetics_lab.book.runs import RunResult

    def run(notebook, parameters, *, out, kernel):
        assert (parameters, kernel) == ({"n": -7, "model": "b"}, "other")
        return RunResult(notebook, Path(out), "", 0)

    monkeypatch.setattr("kinetics_lab.book.runs.run_notebook", run)
    (tmp_path / "p.yml").write_text("common: {n: 5, model: b}\n")
    given = ["-f", str(tmp_path / "p.yml"), "-k", "other", "-o", str(tmp_path / "out")]
    assert cli.main(["run", "-p", "n", "-7", str(notebook), *given]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'out'}\n"


@pytest.mark.parametrize(
    ("parameter", "message"),
    [
        (["m", "1"], "10_one.ipynb declares n, model; parameter 'm' is not known"),
        (["n", "few"], "parameter 'n' of 10_one.ipynb takes int (default 3); got 'few'"),
    ],
)
def test_a_run_that_cannot_be_leaves_no_folder(notebook, tmp_path, capsys, parameter, message):
    assert cli.main(["run", str(notebook), "-p", *parameter, "-o", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["book", "pdf"])
def test_the_book_needs_the_projects_folder(tmp_path, monkeypatch, capsys, command):
    """And says so before it makes anything."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delattr("kinetics_lab.cli.ask.plan")
    assert cli.main([command]) == 2
    assert "there is no _config.yml in" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_claims_of_no_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["claims"]) == 2
    assert "no findings under _build/runs: run `kinetics-lab book`" in capsys.readouterr().err


def test_claims_prints_the_newest_findings(tmp_path, monkeypatch, capsys):
    from kinetics_lab.book.claims import load_claims

    runs = tmp_path / "_build" / "runs"
    runs.mkdir(parents=True)
    found = [{"id": c.id, "value": c.published, "interval": None} for c in load_claims().values()]
    (runs / "claims-1.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in found))
    monkeypatch.chdir(tmp_path)
    assert cli.main(["claims"]) == 0
    out = capsys.readouterr().out
    assert out.count("reproduced") == len(found)


def test_serve_shows_the_book_beside_a_port_that_is_taken(tmp_path):
    folder = tmp_path / "_build" / "book" / "_build" / "html"
    folder.mkdir(parents=True)
    (folder / "index.html").write_text("the book")
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
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


def test_serve_lists_no_folder_follows_no_link_out_and_answers_to_its_own_name(tmp_path):
    folder = tmp_path / "html"
    (folder / "inside").mkdir(parents=True)
    (folder / "index.html").write_text("the book")
    (folder / "inside" / "page.html").write_text("a page")
    (tmp_path / "secret.txt").write_text("secret")
    (folder / "out.txt").symlink_to(tmp_path / "secret.txt")
    (folder / "up").symlink_to(tmp_path)
    (folder / "in.html").symlink_to(folder / "inside" / "page.html")
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with server:

        def get(path, **headers):
            connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
            connection.request("GET", path, headers=headers)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()

        assert get("/") == (200, "the book")
        assert get("/in.html") == (200, "a page")
        assert get("/", Host="localhost:8000")[0] == 200
        for path in (
            "/inside/",
            "/out.txt",
            "/up/secret.txt",
            "/../secret.txt",
            "/%2e%2e/secret.txt",
            "//secret.txt",
        ):
            status, body = get(path)
            assert status == 404, path
            assert "secret" not in body
            assert "page.html" not in body
        for host in ("evil.example", "127.0.0.1.evil.example", "evil.example:80", "", "[::1]"):
            assert get("/", Host=host)[0] == 403, host
        server.shutdown()


def test_serve_needs_a_book(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["serve"]) == 2
    assert "run `kinetics-lab book` in the project's folder first" in capsys.readouterr().err


PLAN = ["plan", "--budget", "0.1", "5"]


@pytest.fixture
def plan(monkeypatch):
    """The planner with few resamples; commands get it, too."""
    few = partial(kinetics_lab.plan, n_boot=100, n_splits=2)
    monkeypatch.setattr("kinetics_lab.planner.text.plan", few)
    return few


def test_plan_prints_a_table_of_the_embedded_traces(capsys, plan):
    from kinetics_lab.data import read_table
    from kinetics_lab.planner.text import SPARSE, elsewhere, text

    assert cli.main([*PLAN, "--hardware", "h100", "--weights", "fp8", "--kv", "fp8"]) == 0
    out, err = capsys.readouterr()
    summary = read_table("aime24_qwen3_best_of_n")
    asked = {"data": summary, "hardware": HARDWARE["h100"], "budgets": [0.1, 5], "dense_layers": 1}
    asked |= {"precision": find_precision("fp8", "fp8"), "policies": ["dense"]}  # what engines run
    want = plan(**asked)
    want["elsewhere"], want["beside"] = elsewhere(want, asked), elsewhere(want, asked, SPARSE)
    assert want.beside[1].startswith("sparse, which no engine serves: ")
    assert want.beside[1] in out
    assert want.elsewhere[1].startswith("on 4 devices: ")
    assert out == text(want) + "\n"
    assert max(map(len, out.split("To start:")[0].splitlines())) <= 100
    assert err.splitlines() == [
        "kinetics-lab: no --traces: planning with aime24_qwen3_best_of_n",
        "kinetics-lab: left out: N > 16 takes more traces (16 of each problem): aime24: qwen3-14b, dense",
        "kinetics-lab: left out: N > 8 takes more traces (8 of each problem): aime24: qwen3-32b, dense",
        "kinetics-lab: left out: never run: aime24: block_topk with qwen3-0.6b, qwen3-14b, qwen3-32b",
    ]


def test_plan_prints_json_lines(capsys, plan):
    assert cli.main([*PLAN, "--json", "--policies", "dense", "block_topk", "--trials", "1"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["budget_s"] for row in rows] == [0.1, 5]
    assert rows[0]["setting"] == ""
    assert rows[0]["accuracy"] is None
    assert rows[0]["note"].startswith("nothing fits; the cheapest, 1 x qwen3-")
    assert (rows[1]["model"], rows[1]["policy"], rows[1]["n_trials"]) == ("qwen3-14b", "dense", 1)
    assert rows[1]["low"] < rows[1]["accuracy"] < rows[1]["high"]


def test_plan_says_what_has_no_room(capsys, plan):
    options = ["--hardware", "tpu-v5e", "--devices", "2", "--trials", "1", "--json"]
    assert cli.main([*PLAN, *options]) == 0
    told = [line for line in capsys.readouterr().err.splitlines() if "GB" in line]
    assert [line.split(": ")[2] for line in told] == ["qwen3-14b", "qwen3-32b"]
    assert "65.5 GB of weights; 2 × TPU v5e have 30.4 GB beside the reserve" in told[1]


def test_plan_takes_a_clock_a_price_and_limits(capsys, plan):
    given = [
        "--clock",
        "h200:vllm",
        "--price",
        "4",
        "--max-tpot",
        "0.033",
        "--max-seconds-per-answer",
        "900",
        "--policies",
        "dense",
    ]
    assert (
        cli.main(["plan", "--budget", "0.02", "--unit", "usd", "--strategy", "verified:0.9:0.1:0.05", *given])
        == 0
    )
    out, err = capsys.readouterr()
    assert "by h200:vllm, weights bf16, KV cache bf16, measured by NVIDIA's collector" in out
    assert "too slow" in err
    assert "vllm serve Qwen/Qwen3-" in out
    assert "--tp-size 1" in out
    assert cli.main(["plan", "--budget", "9", "--clock", "b200:vllm"]) == 2
    assert "the clock is of b200, and hardware must be the same; got 'h200'" in capsys.readouterr().err


@pytest.fixture
def trace_file(tmp_path):
    """A made-up trace table of two problems as CSV, the second problem a trace short."""
    header = "model,task,problem,trial,policy,tokens_in,tokens_out,correct,truncated"
    rows = [
        f"{model},sums,{problem},{trial},dense,100,{1000 * (trial + 1)},{(trial + problem) % 2},0"
        for model in ("mine", "other")
        for problem in (1, 2)
        for trial in range(4)
    ]
    path = tmp_path / "traces.csv"
    path.write_text("\n".join([header, *rows[:-1]]) + "\n")
    return path


def test_traces_become_a_table_that_a_plan_reads(trace_file, tmp_path, capsys, plan):
    table = tmp_path / "out.parquet"
    assert cli.main(["traces", str(trace_file), "-o", str(table)]) == 0
    out, err = capsys.readouterr()
    found = "15 traces of 2 problems, 3 to 4 each; model: mine, other; task: sums; policy: dense"
    assert out == f"{table}: {found}\n"
    assert err == (
        "kinetics-lab: warning: other, sums, dense: 1 of 2 problems have fewer than 4 trials: 2 (3)\n"
    )
    models = ["--model", "mine=qwen3-8b", "other=qwen3-4b"]
    given = ["--traces", str(table), *models, "--trials", "4", "--caps", "2000", "--json"]
    assert cli.main(["plan", "--budget", "0.01", "9", *given]) == 0
    out, err = capsys.readouterr()
    rows = [json.loads(line) for line in out.splitlines()]
    assert [row["setting"] for row in rows] == ["", "4 x mine, dense, cap 2000"]
    # one right answer among four: it comes first, second, third or last
    assert (rows[1]["accuracy"], rows[1]["tokens"]) == (1, (1 + 2 + 3 + 4) / 4 * 1750)
    assert rows[0]["note"].startswith("nothing fits; the cheapest, 4 x mine, dense, cap 2000, costs 0.")
    left = "kinetics-lab: left out: too few traces for N = 4 (3 of problem 2): sums: other"
    assert err.splitlines()[-1] == left


def test_columns_are_mapped_on_the_command_line(tmp_path, capsys):
    path, table = tmp_path / "theirs.csv", tmp_path / "out.parquet"
    path.write_text("q,n_in,n_out,score,pred\n1,20,300,1,7\n1,20,500,0,8\n")
    columns = ["q=problem", "n_in=tokens_in", "n_out=tokens_out", "score=correct", "pred=answer"]
    given = [
        str(path),
        "--map",
        *columns,
        "--model",
        "m",
        "--task",
        "t",
        "--policy",
        "dense",
        "--limit",
        "400",
    ]
    assert cli.main(["traces", *given, "-o", str(table)]) == 0
    assert capsys.readouterr().out.startswith(f"{table}: 2 traces of 1 problems, 2 each; model: m; ")
    found = pd.read_parquet(table)
    assert found[["tokens_out", "correct", "truncated", "answer"]].to_numpy().tolist() == [
        [300, True, False, "7"],
        [500, False, True, "8"],
    ]
    assert cli.main(["traces", str(path), "--map", "q", "-o", str(table)]) == 2
    assert "--map must read THEIRS=OURS, score=correct for example; got 'q'" in capsys.readouterr().err


def test_a_file_that_another_process_writes_is_refused_by_its_name(trace_file, tmp_path, capsys, monkeypatch):
    """`traces` and `pdf` write one file, `ladder -o` one beside its folder: each holds it alone."""
    monkeypatch.setattr("kinetics_lab.book.build.build_book", lambda *_, **__: tmp_path / "index.html")
    table = tmp_path / "table.parquet"
    commands = [
        ["traces", str(trace_file)],
        ["pdf"],
        ["ladder", "train", "--folder", str(tmp_path / "ladder")],
    ]
    with sole_writer(table):
        for command in commands:
            assert cli.main([*command, "-o", str(table)]) == 2
            told = f"kinetics-lab: error: another process writes {table}; wait for it or give another place"
            assert told in capsys.readouterr().err
    assert not table.exists()
    assert cli.main([*commands[0], "-o", str(table)]) == 0


def test_traces_go_into_parquet_only(trace_file, tmp_path, capsys):
    assert cli.main(["traces", str(trace_file), "-o", str(tmp_path / "out.csv")]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert err.startswith("kinetics-lab: error: -o must name a .parquet file, ")
    assert f"got '{tmp_path / 'out.csv'}'" in err
    assert err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["traces.csv"]


def test_a_config_needs_no_name_for_the_one_unknown_model(trace_file, tmp_path, capsys, plan):
    config = {
        "architectures": ["Qwen3ForCausalLM"], "num_hidden_layers": 36, "num_attention_heads": 32,
        "num_key_value_heads": 8, "head_dim": 128, "hidden_size": 2560, "intermediate_size": 9728,
        "vocab_size": 151936, "tie_word_embeddings": True,
    }  # fmt: skip
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    trials = ["plan", "--budget", "9", "--traces", str(trace_file), "--trials", "1", "--json"]
    assert cli.main([*trials, "--model", "mine=qwen3-8b", str(path)]) == 0
    unnamed = capsys.readouterr().out
    assert cli.main([*trials, "--model", "mine=qwen3-8b", "other=qwen3-4b"]) == 0
    assert capsys.readouterr().out == unnamed
    assert cli.main([*trials, "--model", str(path)]) == 2
    message = "--model must read NAME=SHAPE unless the traces hold exactly one model without a shape; "
    told = capsys.readouterr().err
    assert f"{message}they hold 2 (mine, other); got '{str(path)[:36]}" in told
    assert told.endswith(f"{str(path)[-39:]}'\n")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--hardware", "h20"], "hardware 'h20' is not known; did you mean h200"),
        (["--weights", "fp9"], "precision of weights 'fp9' is not known; did you mean fp8"),
        (["--devices", "0"], "devices must be at least 1, at most a million; got 0"),
        (["--budget", "-3"], "budgets must be positive (device seconds); got [-3.0, 0.1, 5.0]"),
        (["--unit", "hours"], "unit 'hours' is not known; did you mean usd?"),
        (["--allocation", "best"], "allocation 'best' is not known; known: hindsight, oracle, uniform"),
        (["--topk", "fre"], "topk 'fre' is not known; did you mean free?"),
        (["--models", "qwen3-7b"], "model of the data 'qwen3-7b' is not known; did you mean qwen3-"),
        (["--policies", "quest"], "policies: among those of the data 'quest' is not known"),
        (["--trials", "64"], "no row has as many traces as trials=[64]; got 32"),
        (["--caps", "4096"], "caps must be empty for a summary, which cannot be cut anew; got [4096]"),
        (["--dense-layers", "-1"], "dense_layers must be 0..28 for qwen3-0.6b; got -1"),
        (["--batch", "0"], "batch must be a number above 0, 'fits', 'within' or 'endless'; got 0.0"),
        (["--batch", "full"], "batch must be a number above 0, 'fits', 'within' or 'endless'; got 'full'"),
        (["--strategy", "best"], "strategy 'best' is not known; did you mean best-of?"),
        (["--model", "a"], "--model must read NAME=SHAPE, or be a config.json alone; got 'a'"),
        (["--model", "c.json"], "--model must read NAME=SHAPE unless the traces hold exactly one model without a shape; they hold none"),
        (["--model", "a=qwen3-9b"], "model 'qwen3-9b' is not known; did you mean qwen3-"),
        (["--model", "a=none/config.json"], "No such file or directory: 'none/config.json'"),
        (["--traces", "none.jsonl"], "none.jsonl: no such file"),
    ],
)  # fmt: skip
def test_a_wrong_plan_is_one_line_and_exit_2(capsys, options, message):
    assert cli.main([*PLAN, *options]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert message in err.splitlines()[-1]
    assert err.splitlines()[-1].startswith("kinetics-lab: error: ")


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("", [], "no trials in it"),
        ('{"a": 1}\n', [], "no known format; say format=..."),
        ("x", ["--format", "csv"], "trace format 'csv' is not known"),
        ("x", ["--skip-bad", "-1"], "skip_bad must be >= 0; got -1"),
        ("x", ["--policy", "dens"], "policy 'dens' is not known; did you mean dense?"),
    ],
)
def test_traces_that_cannot_be_read_leave_no_table(tmp_path, capsys, text, options, message):
    (tmp_path / "a.jsonl").write_text(text)
    out = tmp_path / "out.parquet"
    assert cli.main(["traces", str(tmp_path / "a.jsonl"), "-o", str(out), *options]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
    assert not out.exists()


@pytest.mark.notebooks
def test_a_plan_as_a_chapter_and_a_page(trace_file, tmp_path, capsys):
    folder = tmp_path / "report"
    given = {"traces": f"['{trace_file}']", "models": "{mine: qwen3-8b, other: qwen3-4b}", "batch": "64",
             "weights": "fp8", "trials": "[1, 2]", "caps": "[1500]", "budgets": "[0.3, 2]", "dense_layers": "0",
             "n_boot": "50"}  # fmt: skip
    options = [part for name, value in given.items() for part in ("-p", name, value)]
    chapter = str(Path(__file__).parents[1] / "notebooks" / "35_plan_your_own.ipynb")
    assert cli.main(["run", chapter, *options, "--page", "-o", str(folder)]) == 0
    paths = capsys.readouterr().out.splitlines()
    assert paths == [str(folder / f"35_plan_your_own.{kind}") for kind in ("ipynb", "html")]
    used = json.loads((folder / "run.json").read_text())["parameters"]
    assert used["traces"] == [str(trace_file)]
    assert (used["budgets"], used["batch"], used["weights"], used["caps"]) == ([0.3, 2], 64, "fp8", [1500])
    page = (folder / "35_plan_your_own.html").read_text()
    assert "x mine, dense" in page
    for hidden in (".ipynb", "Exercises", "from IPython", "<script", 'src="http'):
        assert hidden not in page
    # what is true of the embedded table only
    embedded = ("embedded table", "one contest", "1.7B", "engine behind the table", "hundreds of", "are few")
    for claim in embedded:
        assert claim not in page
    told = re.sub(r"\s+", " ", page)
    assert "In these traces there are 2 problems, and models" in told
    assert "Each problem has 3 to 4 traces per model and policy." in told
    assert "Priced as dense whatever the policy: 0 layers, as told." in told
    assert ("at 100 % of the budgets in this table" in told) != ("Elsewhere two or more settings" in told)
    assert "N &gt; 1 takes more traces" not in told


def test_a_page_shows_results_and_loads_nothing(tmp_path, write_notebook):
    import nbformat

    from kinetics_lab.book.pages import pages

    cells = [
        ("markdown", "# How?"),
        (
            "markdown",
            "See [What more?](36_more.ipynb) and [Planner](../book/planner.md), [elsewhere](https://a.org), for $N$.",
        ),
        ("markdown", '<a id="eq-one"></a>\n\n$$\nx = 1\n\\tag{1}\n$$\n\n<a href="#eq-one">equation (1)</a>'),
        ("markdown", "for the book only", "book-only"),
        ("code", "from IPython.display import Markdown\nMarkdown('**5.0**')"),
    ]
    executed = write_notebook(tmp_path / "out" / "35_plan.ipynb", *cells)
    book = nbformat.read(executed, as_version=4)
    data = {"text/markdown": "**5.0**", "text/html": "<script>alert(1)</script><b>more</b>"}
    book.cells[-1].outputs = [
        nbformat.v4.new_output("display_data", {name: text}) for name, text in data.items()
    ]
    nbformat.write(book, executed)
    paths = pages(executed)
    assert paths == [executed, executed.with_suffix(".html")]
    page = paths[1].read_text(encoding="utf-8")
    for shown in (
        "<title>How?",
        "<strong>5.0</strong>",
        "<b>more</b>",
        'See “What more?” and “Planner”, <a href="https://a.org">elsewhere</a>, for <em>N</em>.',
        "x = 1\n(1)",
        '<a href="#eq-one">equation (1)</a>',
        '<a id="eq-one">',
    ):
        assert shown in page
    for hidden in ("book only", "$$", ".ipynb", "from IPython", "<script", 'src="http'):
        assert hidden not in page
    assert not list(tmp_path.rglob("*.part"))


def test_a_fitted_clock_times_the_layout_and_the_precision_that_fit(capsys):
    """Step, speed and time are the clock's, as the calculator's page shows them; a clock by its datasheet bounds them."""
    command = ["cost", "--model", "qwen3-32b", "--n-in", "512", "--n-out", "4096", "--batch", "8", "--json"]
    seconds = {}
    for text in ("h200", "fitted:h200:vllm"):
        for more in (["--devices", "1"], ["--devices", "4"], ["--devices", "4", "--weights", "fp8"]):
            assert cli.main([*command, *more, "--clock", text]) == 0
            told = json.loads(capsys.readouterr().out)
            step = told["step"]
            answer = step["seconds_to_an_answer"] - step["seconds_to_first_token"]
            assert told["clock"]["seconds"] == pytest.approx(answer)
            assert (step["parts"]["communication"] > 0) == (told["fits"]["devices"] > 1)
            assert f"step, speed and time by {told['clock']['name']}" in told["assumed"]
            seconds[text, told["fits"]["devices"], "fp8" in more] = step["seconds"]
    for (text, devices, fp8), each in seconds.items():
        assert seconds["h200", devices, fp8] <= seconds["fitted:h200:vllm", devices, fp8]
        assert seconds[text, 4, True] < seconds[text, 4, False] <= each or fp8


def test_a_layout_can_be_chosen_and_a_cheaper_one_is_named(capsys):
    """Without a choice it is the one with room for most; a refused one is told in one sentence."""
    asked = ["cost", "--model", "deepseek-v3", "--n-in", "512", "--n-out", "4096", "--json"]
    found = {}
    for layout in ("tensor:8", "tensor:1,data:8", None):
        assert cli.main([*asked, *(["--layout", layout] if layout else [])]) == 0
        found[layout] = json.loads(capsys.readouterr().out)
    assert found[None]["fits"] == found["tensor:1,data:8"]["fits"] != found["tensor:8"]["fits"]
    spent = {layout: told["step"]["device_seconds"] for layout, told in found.items()}
    less = 1 - spent["tensor:1,data:8"] / spent["tensor:8"]
    assert found["tensor:8"]["cheaper"] == {
        "devices": 8, "layout": "data parallel 8", "less": pytest.approx(less)
    }  # fmt: skip
    assert found[None]["cheaper"] is None
    assert cli.main([*asked[:-1], "--layout", "tensor:8"]) == 0
    line = f"on 8 devices (data parallel 8) an answer would cost {100 * less:.0f} % less"
    assert line in capsys.readouterr().out
    wrong = ["cost", "--model", "qwen2.5-7b", "--n-in", "512", "--n-out", "4096", "--layout"]
    for layout, sentence in (
        ("tensor:8", "qwen2.5-7b: 28 query heads do not split over 8 devices"),
        ("eight", "a layout reads tensor:N or tensor:N,data:M; got 'eight'"),
    ):
        assert cli.main([*wrong, layout]) == 2
        assert capsys.readouterr().err == f"kinetics-lab: error: {sentence}\n"


def test_a_clock_times_the_answers_by_measured_kernels(capsys):
    command = ["cost", "--model", "qwen3-8b", "--n-in", "512", "--n-out", "4096", "--batch", "8", "--json"]
    assert cli.main([*command, "--clock", "h200:vllm"]) == 0
    told = json.loads(capsys.readouterr().out)["clock"]
    assert told["measured"]
    assert told["batch"] == 8
    assert told["name"].endswith("measured by NVIDIA's collector")
    assert told["seconds"] == pytest.approx(sum(told["parts"].values()))
    assert 10 < told["seconds"] < 60
    assert cli.main([*command, "--clock", "h200:lmdeploy"]) == 2
    assert "engine 'lmdeploy' is not known" in capsys.readouterr().err
    assert (
        cli.main(["cost", "--model", "opt-13b", "--n-in", "1", "--n-out", "9", "--clock", "h200:vllm"]) == 2
    )
    assert "opt-13b has no measured kernels: attention on h200" in capsys.readouterr().err
