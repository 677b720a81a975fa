"""math-verify's verdicts as this package asks for them, what becomes of its failures, and problems from files."""

import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

pytest.importorskip("math_verify")

from kinetics_lab.decode import grade as module
from kinetics_lab.decode import grader
from kinetics_lab.decode.grade import HUB, Grade, Problem, grade, problems
from kinetics_lab.traces.trial import problem_id


def refused(message):
    return pytest.raises(ValueError, match=re.escape(message))


@pytest.fixture
def fresh():
    """A child process of this test's own."""
    grader.stop()
    yield
    grader.stop()


RIGHT = [
    ("204", r"So the answer is \boxed{204}."),
    ("204", "The answer is 204."),
    ("204", r"**Final Answer** \[ \boxed{204} \]"),
    ("204", r"\boxed{204.0}"),
    ("204", r"\boxed{x = 204}"),
    ("204", r"\boxed{5} ... no: \boxed{204}"),  # math-verify alone reads 5204
    ("204", r"$\boxed{5}$ ... no: $\boxed{204}$ and that took 7 steps. Final answer is 7."),
    ("204", r"\boxed{\boxed{204}}"),
    ("204", r"\boxed{7}, \boxed{7}. So \boxed{\boxed{204}}"),
    ("204", r"The set \{1, 2\} { has \boxed{204} points."),
    ("204", r"\boxed{204} and then \boxed{20"),  # the last one that is complete
    ("204", r"\fbox{204}"),
    ("25", r"\boxed{025}"),
    ("025", r"\boxed{25}"),
    ("27", r"\boxed{3^3}"),
    ("1,234", r"\boxed{1234}"),
    ("1234", r"\boxed{1,234}"),
    ("1234", r"\boxed{1{,}234.00}"),
    ("1234", r"\boxed{1\,234}"),  # math-verify alone reads 1 + 234
    ("1234567", r"\boxed{\$1,\!234,\!567}"),
    ("1234", "#### 1,234"),
    ("-5", "\\boxed{−5}"),
    ("-5", "The answer is −5."),
    (r"\$18.90", r"\boxed{18.9}"),
    (r"\frac{3}{4}", r"\boxed{\dfrac{6}{8}}"),
    (r"\frac{3}{4}", r"\boxed{0.75}"),
    (r"\frac34", r"\boxed{3/4}"),
    ("27", r"\boxed{27\,\mathrm{cm}}"),
    ("27", r"\boxed{27 \text{ cm}^2}"),
    ("2", r"\boxed{2 apples}"),
    (r"90^\circ", r"\boxed{90}"),
    (r"10\%", r"\boxed{10}"),
    (r"10\%", r"\boxed{0.1}"),
    (r"\text{Evelyn}", r"\boxed{Evelyn}"),
    ("Evelyn", r"\boxed{\textbf{Evelyn}}"),
    ("June 20", r"\boxed{\text{June 20}}"),
    (r"\text{June 20}", r"\boxed{June 20}"),
    ("no solution", r"\boxed{\text{no solution}}"),
    (r"\text{(C)}", r"\boxed{C}"),
    ("(3, 4]", r"\boxed{x \in (3,4]}"),
    (r"(-\infty, 2) \cup (3, \infty)", r"\boxed{(3,\infty) \cup (-\infty,2)}"),
    ("1,-2", r"\boxed{-2, 1}"),
    ("1,-2", r"$\boxed{1}$ and $\boxed{-2}$"),
    ("1,-2", r"\boxed{5} was wrong. \boxed{1}, \boxed{-2}"),
    (r"11\sqrt2", r"\boxed{\sqrt{242}}"),
    ("x^3+3x-6", r"\boxed{x^3 - 6 + 3x}"),
    ("y = 2x + 3", r"\boxed{y = 3 + 2x}"),
    ("204", r"<think>so \boxed{7}</think> \boxed{204}"),
    ("204", r"so \boxed{7}</think> \boxed{204}"),
    ("204", r"a </think> \boxed{7} b </think> It is \boxed{204}"),
]
WRONG = [
    ("204", r"\boxed{203}"),
    ("204", r"\boxed{204} ... wait: \boxed{5}"),
    ("204", r"\boxed{204} or \boxed{5}"),
    ("204", "I cannot solve this."),
    ("204", ""),
    ("204", "   \n"),
    ("204", r"After 204 steps: \boxed{"),
    ("204", r"After 204 steps: \boxed{204"),
    ("204", r"<think>it must be \boxed{204}"),
    ("204", r"<think>a</think> Hm. <think>it must be \boxed{204}"),
    ("204", r"<think>it must be \boxed{204}</think>"),
    ("204", "204 points. " + "x " * 1000),  # only an answer's end is searched
    ("1234", r"\boxed{1, 234}"),
    (r"\frac{3}{4}", r"\boxed{\frac{4}{3}}"),
    ("0.33", r"\boxed{\frac13}"),
    ("50", r"\boxed{0.5}"),
    ("(3,4]", r"\boxed{[3,4]}"),
    ("1,-2", r"\boxed{1} \boxed{-2}"),
    ("1,-2", r"\boxed{1}"),
    ("Evelyn", r"\boxed{nylevE}"),  # not a product of letters
    ("Evelyn", r"\boxed{\text{Carla}}"),
    ("C", r"\boxed{B}"),
    ("5", r"\boxed{5!}"),
    ("5", r"\boxed{\infty}"),
    ("5", r"\boxed{\frac{1}{0}}"),
    ("5", "\\boxed{\ud800\x00}"),
]


@pytest.mark.parametrize(("reference", "answer"), RIGHT, ids=[f"{r} {a}"[:60] for r, a in RIGHT])
def test_right_answers(reference, answer):
    assert grade(answer, reference) == Grade(True)


@pytest.mark.parametrize(("reference", "answer"), WRONG, ids=range(len(WRONG)))
def test_wrong_answers(reference, answer):
    assert grade(answer, reference) == Grade(False)


def test_of_an_answer_cut_by_the_limit_only_a_box_counts():
    assert grade("First, 2 + 2 = 4", "4") == Grade(True)
    assert grade("First, 2 + 2 = 4", "4", finished=False) == Grade(False)
    assert grade(r"So \boxed{4}. Let me check: 5", "4", finished=False) == Grade(True)


def test_long_answers_take_no_long_time():
    start = time.monotonic()
    assert grade("the number of $x$ is 5, (1+2) \\[ " * 20_000, "5").correct is False
    assert grade("\\boxed{" * 50_000, "5").correct is False
    assert grade("\\boxed{5} " * 50_000, "5").correct is True
    assert grade("{" * 100_000 + "\\boxed{5}", "5").correct is True
    assert time.monotonic() - start < 20


def test_an_answer_that_takes_forever_is_an_error_and_the_next_is_graded(fresh):
    start = time.monotonic()
    assert grade(r"\boxed{9^{9^{9^{9}}}}", "5", timeout=0.5) == Grade(None, "math-verify took over 0.5 s")
    assert time.monotonic() - start < 20
    assert grade(r"\boxed{5}", "5") == Grade(True)


def test_the_time_limit_holds_in_any_thread(fresh):
    """math-verify's own limit is a signal, which a thread cannot set."""
    answers = [(r"\boxed{99999999!}", 0.5), *[(rf"\boxed{{{n}}}", 10) for n in range(20)]]
    found = {}

    def work(answer, timeout):
        found[answer] = grade(answer, "7", timeout=timeout)

    threads = [threading.Thread(target=work, args=pair) for pair in answers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found.pop(answers[0][0]) == Grade(None, "math-verify took over 0.5 s")
    assert found == {answer: Grade(answer == r"\boxed{7}") for answer, _ in answers[1:]}


FAILURES = {
    "raise ValueError('no way')": "math-verify failed: ValueError: no way",
    "raise KeyboardInterrupt": "math-verify failed: KeyboardInterrupt: ",
    "print('{\"correct\": true}'); raise MemoryError": "math-verify failed: MemoryError: ",
    "import os; os._exit(3)": "math-verify ended with status 3",
    "import os; os.kill(os.getpid(), 11)": "math-verify ended with status -11",
    "while True: pass": "math-verify took over 0.5 s",
    "import time; time.sleep(100)": "math-verify took over 0.5 s",
}


@pytest.mark.parametrize(("verify", "message"), FAILURES.items(), ids=FAILURES)
def test_a_crash_of_the_grader_is_an_error(tmp_path, monkeypatch, fresh, verify, message):
    fake = f"def parse(text, **options):\n    return [5]\ndef verify(*a, **k):\n    {verify}\n"
    (tmp_path / "math_verify.py").write_text(fake)
    monkeypatch.syspath_prepend(tmp_path)
    assert grade(r"\boxed{5}", "5", timeout=0.5) == Grade(None, message)
    assert grade("", "5") == Grade(False)


def test_a_crash_while_an_answer_is_parsed_is_an_error(tmp_path, monkeypatch, fresh):
    """The real parser hides its errors, and reads no answer then, unless it is told to raise them."""
    (tmp_path / "math_verify.py").write_text(
        "def parse(text, *, parsing_timeout, raise_on_error):\n"
        "    if text == r'\\boxed{6}' and raise_on_error:\n        raise RecursionError('deep')\n"
        "    return [] if text == r'\\boxed{6}' else [5]\n"
        "def verify(*a, **k):\n    return True\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert grade(r"\boxed{5}", "5") == Grade(True)
    assert grade(r"\boxed{6}", "5") == Grade(None, "math-verify failed: RecursionError: deep")
    assert grade(r"\boxed{5}", "6").error == "math-verify failed: RecursionError: deep"


def test_a_grader_that_cannot_be_loaded_is_an_error(tmp_path, monkeypatch, fresh):
    (tmp_path / "math_verify.py").write_text("raise ImportError('no sympy')")
    monkeypatch.syspath_prepend(tmp_path)
    assert grade(r"\boxed{5}", "5") == Grade(None, "math-verify failed: ImportError: no sympy")


def test_a_reference_that_says_nothing_is_an_error():
    found = grade(r"\boxed{5}", r"\frac{1}{")
    assert found.correct is None
    assert "no number, expression or word in the reference" in found.error


def test_an_interrupted_question_leaves_no_reply_for_the_next(fresh):
    """Ctrl-C while the child works: its verdict must not be taken for that on the next answer."""
    assert grade(r"\boxed{5}", "5").correct

    def alarm(number, frame):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, alarm)
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    try:
        with pytest.raises(KeyboardInterrupt):
            grade(r"\boxed{99999999!}", "5", timeout=3)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert grade(r"\boxed{5}", "5") == Grade(True)


def child():
    """The process that grades."""
    (found,) = (one for one in multiprocessing.active_children() if type(one) is grader._Child)
    return found


def test_a_killed_child_is_replaced_and_a_fork_starts_its_own(fresh):
    assert grade(r"\boxed{5}", "5").correct
    os.kill(child().pid, signal.SIGKILL)
    child().join()
    assert grade(r"\boxed{5}", "5") == Grade(True)
    ours = child()
    assert grade(r"\boxed{5}", "5", timeout=0.5) == Grade(True)
    time.sleep(0.7)  # the limit is for an answer's work, not for the time between two
    assert ours.is_alive()
    if (forked := os.fork()) == 0:
        fine = grader._pool is None and grade(r"\boxed{5}", "5").correct
        grader.stop()
        os._exit(0 if fine else 1)
    assert os.waitpid(forked, 0)[1] == 0
    assert child() is ours
    assert grade(r"\boxed{6}", "5") == Grade(False)


SCRIPT = r"""
import multiprocessing, sys
from kinetics_lab.decode.grade import grade

print(grade(r"\boxed{5}", "5").correct, [one.pid for one in multiprocessing.active_children()], flush=True)
grade(r"\boxed{99999999!}", "5", timeout=3)
"""


def test_a_script_is_not_run_by_its_child_and_leaves_none_behind(tmp_path):
    """Without a guard around its start, as spawned processes ask for; killed in the middle of a verdict."""
    (tmp_path / "script.py").write_text(SCRIPT)
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    parent = subprocess.Popen([sys.executable, tmp_path / "script.py"], stdout=subprocess.PIPE, env=env)
    said = parent.stdout.readline().decode()
    assert said.startswith("True [")
    parent.kill()
    assert parent.communicate()[0] == b""
    pid, deadline = int(said.split("[")[1].rstrip("]\n")), time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            with open(f"/proc/{pid}/stat") as stat:
                if stat.read().rpartition(")")[2].split()[0] == "Z":  # ended, and nobody has asked how
                    return
        except FileNotFoundError:
            return
        time.sleep(0.1)
    pytest.fail("the child outlives its parent")


def test_without_math_verify_and_with_a_wrong_limit(tmp_path, monkeypatch):
    with refused("timeout must be positive (seconds); got 0"):
        grade("5", "5", timeout=0)
    monkeypatch.setattr(grader, "find_spec", lambda name: None)
    message = "this needs math_verify: run `make torch` in the project's folder, elsewhere `pip install math-verify`"
    for call in (lambda: grade("", "5"), lambda: problems("aime24")):
        with pytest.raises(ValueError, match="math_verify") as error:
            call()
        assert str(error.value) == message


def jsonl(path, *rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def test_problems_of_a_file(tmp_path):
    path = jsonl(
        tmp_path / "sums.jsonl",
        {"problem": "What is 2 + 2?", "answer": 4},
        "",
        {"question": "Half of 3?", "answer": "<<3/2=1.5>> It is\n#### 1.5", "id": "half"},
        {"query": "Who?", "answer": r"\text{Evelyn}", "id": 7, "level": 3},
        {"problem": "How small?", "answer": 0.00001},
    )
    assert problems(path) == [
        Problem(problem_id("What is 2 + 2?"), "What is 2 + 2?", "4"),
        Problem("half", "Half of 3?", "1.5"),
        Problem("7", "Who?", r"\text{Evelyn}"),
        Problem(problem_id("How small?"), "How small?", "0.00001"),
    ]
    with pytest.raises(AttributeError):
        problems(path)[0].answer = "5"


GOOD = {"problem": "What is 2 + 2?", "answer": "4", "id": "a"}
BAD = [
    ("{", "not a JSON object but '{'"),
    ([], "each line must be a JSON object; got []"),
    ({"answer": "4"}, "one of problem, question and query must hold the text; got {'answer': '4'}"),
    (
        {"problem": 1, "question": "x?", "answer": "4"},
        "one of problem, question and query must hold the text; got problem, question",
    ),
    ({"problem": 17, "answer": "4"}, "problem must be the question's text; got 17"),
    ({"query": " ", "answer": "4"}, "query must be the question's text; got ' '"),
    ({"problem": "x?"}, "answer must be a text or a number; got None"),
    ({"problem": "x?", "answer": True}, "answer must be a text or a number; got True"),
    ({"problem": "x?", "answer": "so 4 ####"}, "answer must be a text or a number; got 'so 4 ####'"),
    ({"problem": "x?", "answer": "4", "id": 1.5}, "id must be a text or a whole number; got 1.5"),
    ({"problem": "x?", "answer": "4", "id": ""}, "id must be a text or a whole number; got ''"),
    ({"problem": "x?", "answer": "4", "id": "a"}, "the id is that of line 1: 'a'"),
    ({"problem": "What  is\n2 + 2?", "answer": "4", "id": "b"}, "the text is that of line 1: 'b'"),
    (
        {"problem": "x?", "answer": r"\frac{1}{"},
        r"answer '\\frac{1}{' cannot be graded: math-verify failed: ValueError: no number, expression or word in",
    ),
]


@pytest.mark.parametrize(("row", "message"), BAD, ids=[message[:40] for _, message in BAD])
def test_what_is_wrong_with_a_problem(tmp_path, row, message):
    path = jsonl(tmp_path / "sums.jsonl", GOOD, row if isinstance(row, str) else json.dumps(row))
    with refused(f"{path}:2: {message}"):
        problems(path)


def test_what_is_wrong_with_a_source(tmp_path):
    empty = jsonl(tmp_path / "sums.jsonl")
    with refused(f"{empty}: must hold 1 problem; got 0"):
        problems(empty)
    with refused("problem set (no file either) 'aime2024' is not known; did you mean aime24, aime25?"):
        problems("aime2024")
    with pytest.raises(FileNotFoundError, match="none.jsonl: no such file"):
        problems("none.jsonl")


class FakeHub:
    """Stands in for huggingface_hub: rows of the right kind and number, and what was asked for."""

    def __init__(self, folder, columns, rows):
        self.folder, self.columns, self.rows, self.asked = folder, columns, rows, []

    def hf_hub_download(self, *where, **options):
        self.asked.append((where, options))
        table = pd.DataFrame([{k: v.format(i) for k, v in self.columns.items()} for i in range(self.rows)])
        path = self.folder / where[1].replace("/", "-")
        if path.suffix == ".parquet":
            table.to_parquet(path)
        else:
            table.to_json(path, orient="records", lines=True)
        return str(path)


AIME = {"id": "{}", "problem": "Problem {}?", "solution": "So", "answer": "0{}", "url": "u", "year": "2024"}
MATH = {"problem": "Problem {}?", "solution": "So", "answer": r"\frac{{{}}}{{7}}", "unique_id": "test/{}"}
GSM8K = {"question": "Problem {}?", "answer": "So it is <<1=1>>1.\n#### 1,{}"}


@pytest.mark.parametrize(
    ("name", "columns", "answer"),
    [
        ("aime24", AIME, "07"),
        ("aime25", {k: AIME[k] for k in ("problem", "answer", "id")}, "07"),
        ("math-500", MATH, r"\frac{7}{7}"),
        ("gsm8k", GSM8K, "1,7"),
    ],
)
def test_problems_of_the_hub(tmp_path, monkeypatch, name, columns, answer):
    known = replace(HUB[name], size=9)  # of up to 1319 problems
    monkeypatch.setitem(HUB, name, known)
    hub = FakeHub(tmp_path, columns, known.size)
    monkeypatch.setattr(module, "import_module", lambda wanted: hub if wanted == "huggingface_hub" else None)
    found = problems(name)
    assert hub.asked == [((known.repo, known.file), {"repo_type": "dataset", "revision": known.revision})]
    assert len(found) == known.size
    assert found[7] == Problem(problem_id("Problem 7?"), "Problem 7?", answer)
    hub.rows -= 1
    with refused(f"{name}: must hold {known.size} problems; got {known.size - 1}"):
        problems(name)


def test_problems_of_the_hub_without_a_network_or_its_package(monkeypatch):
    def offline(*where, **options):
        raise OSError("We couldn't connect\nto the hub")

    monkeypatch.setattr(module, "import_module", lambda name: type("Hub", (), {"hf_hub_download": offline}))
    with pytest.raises(ValueError, match="aime25") as error:
        problems("aime25")
    assert str(error.value) == (
        "aime25 could not be fetched from the hub (data set math-ai/aime25: We couldn't connect); without a "
        "network, give a JSONL file with a problem and an answer a line"
    )

    def missing(name):
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(module, "import_module", missing)
    with refused(
        "this needs huggingface_hub: run `make torch` in the project's folder, elsewhere `pip install huggingface-hub`"
    ):
        problems("aime25")


def test_the_search_for_the_last_box_takes_memory_in_proportion_to_the_answer():
    """128 kB of nested boxes took 1.1 GB: the content of each was copied."""
    deep = r"\boxed{" * 18_000 + "7" + "}" * 18_000
    tracemalloc.start()
    found = module._final(deep, True)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found is not None
    assert peak < 20e6
    assert module._final(r"so \boxed{1} and \boxed{2}, \boxed{3}", True) == r"\boxed{1, 2, 3}"


def test_an_answer_may_not_nest_beyond_what_is_read():
    def nested(depth):
        return grade(r"\boxed{" * depth + "7" + "}" * depth, "7")

    assert nested(201) == Grade(None, "the answer nests 201 braces, and at most 200 are read")
    assert nested(18_000).error == "the answer nests 18,000 braces, and at most 200 are read"
    assert "at most" not in str(nested(200).error)
    assert nested(3).correct


def test_the_child_may_not_take_all_memory(fresh):
    assert grade(r"\boxed{7}", "7").correct
    [child] = multiprocessing.active_children()
    limits = Path("/proc", str(child.pid), "limits").read_text(encoding="ascii")
    assert str(grader.MOST_MEMORY) in limits
