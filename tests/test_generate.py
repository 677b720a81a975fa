"""Generation on a tiny random model: the library's tokens, one file whatever happens on the way, nothing lost."""

from __future__ import annotations

import gc
import json
import os
import signal
import string
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kinetics_lab.cost.families import from_hf_config

torch = pytest.importorskip("torch", reason="needs PyTorch (the extra 'generate')")
torch.set_num_threads(1)  # models this small lose time to a second thread
pytest.importorskip("transformers", reason="needs transformers (the extra 'generate')")
pytest.importorskip("math_verify", reason="needs math-verify (the extra 'generate')")

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when triton is imported, for the tests after these

from kinetics_lab.decode import answers, hf  # noqa: E402
from kinetics_lab.decode.generate import Settings, draw, generate, repeats  # noqa: E402
from kinetics_lab.decode.grade import Grade, Problem  # noqa: E402
from kinetics_lab.files import sole_writer  # noqa: E402
from kinetics_lab.traces.read import read_traces  # noqa: E402

LETTERS = string.ascii_letters + string.digits + string.punctuation + " \n"
PROBLEMS = [
    Problem(f"p{i}", text, "7")
    for i, text in enumerate(("What is 3+4?", "6+1?", "How many days has a week?"))
]
END = len(LETTERS)  # the token after the letters
FEW = Settings(trials=3, max_tokens=24, temperature=1.0, top_p=0.9, top_k=0, seed=5, instruction="")


def letters_tokenizer():
    """One token a character, an end token beside them."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocab = {letter: i for i, letter in enumerate(LETTERS)} | {"<end>": END}
    plain = Tokenizer(models.WordLevel(vocab, unk_token="?"))
    plain.pre_tokenizer = pre_tokenizers.Split(Regex("[\\s\\S]"), "isolated")
    plain.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=plain, eos_token="<end>")


def tiny_model():
    shape = from_hf_config({
        "architectures": ["Qwen3ForCausalLM"], "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "head_dim": 16, "hidden_size": 48, "intermediate_size": 96, "vocab_size": END + 1,
    })  # fmt: skip
    model = hf.random_model(shape, seed=1)
    for p in model.parameters():
        p.data *= 5 if p.ndim > 1 else 1
    return model


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def tokenizer():
    return letters_tokenizer()


def short(text: str, reference: str, *, finished: bool) -> Grade:
    """A stand-in for the grader: fast, and right for some answers."""
    return Grade(correct=len(text) % 2 == 0)


def run(model, tokenizer, out, settings=FEW, problems=PROBLEMS, **options):
    options = {"task": "tiny-task", "name": "tiny", "slots": 4, "progress": False, "grade": short} | options
    return generate(model, tokenizer, problems, out, settings, **options)


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_greedy_answers_are_the_library_s(model, tokenizer, tmp_path) -> None:
    settings = replace(FEW, temperature=0.0, trials=1)
    found = lines(run(model, tokenizer, tmp_path, settings))[1:]
    model.set_attn_implementation("sdpa")
    for problem, line in zip(PROBLEMS, found, strict=True):
        ids = torch.tensor([tokenizer.encode(problem.text)])
        wanted = model.generate(ids, max_new_tokens=24, do_sample=False, eos_token_id=END, pad_token_id=END)
        assert line["prediction"] == [tokenizer.decode(wanted[0, ids.shape[1] :], skip_special_tokens=True)]
        assert line["tokens_in"] == ids.shape[1] == len(problem.text)
        assert line["tokens_out"] == wanted.shape[1] - ids.shape[1]


def test_a_file_reads_back_as_traces(model, tokenizer, tmp_path) -> None:
    path = run(model, tokenizer, tmp_path, replace(FEW, policy="block_topk:8:4", dense_layers=1))
    assert path.name == "tiny-task_tiny_local0_block4_blocktopk2.jsonl"
    head, *rows = lines(path)
    assert (head["attn_block_size"], head["attn_block_topk"]) == (4, 2)
    assert head["kinetics_lab"]["dense_layers"] == 1
    table = read_traces(path)
    assert len(table) == len(rows) == 9
    assert (table["policy"] == "block_topk:8:4").all()
    assert (table["model"] == "tiny").all()
    for name in ("problem", "trial", "tokens_in", "tokens_out", "truncated"):
        assert table[name].tolist() == [row[name] for row in rows]
    assert table["correct"].tolist() == [row["score"] == 100 for row in rows]
    assert 0 < table["truncated"].sum() < 9  # both kinds of end occur
    assert {row["stopped"] for row in rows} == {"end", "length"}
    summary = json.loads(answers.summary_of(path).read_text())
    assert summary["accuracy"] == table["correct"].mean()
    assert summary["answers"] == 9
    assert summary["last_run"]["device"] == "cpu"


@pytest.mark.parametrize(("slots", "policy"), [(1, "topk:6"), (2, "dense"), (50, "topk:6")])
def test_the_number_of_slots_changes_no_answer(model, tokenizer, tmp_path, slots, policy) -> None:
    settings = replace(FEW, policy=policy)
    a = run(model, tokenizer, tmp_path / "a", settings)
    b = run(model, tokenizer, tmp_path / "b", settings, slots=slots)
    assert a.read_bytes() == b.read_bytes()


def test_answers_depend_on_seed_problem_and_trial_alone(model, tokenizer, tmp_path) -> None:
    def by_key(path):
        return {(row["problem"], row["trial"]): row["prediction"][0] for row in lines(path)[1:]}

    all_of_them = by_key(run(model, tokenizer, tmp_path / "a"))
    assert len(set(all_of_them.values())) == 9
    assert (
        by_key(run(model, tokenizer, tmp_path / "b", problems=PROBLEMS[1:2])).items() <= all_of_them.items()
    )
    fewer = by_key(run(model, tokenizer, tmp_path / "c", replace(FEW, trials=1)))
    assert fewer.items() <= all_of_them.items()
    other = by_key(run(model, tokenizer, tmp_path / "d", replace(FEW, seed=6)))
    assert all(other[key] != text for key, text in all_of_them.items())


class BreakDownError(RuntimeError):
    pass


@pytest.mark.parametrize("after", [0, 5])
def test_a_stopped_run_goes_on_and_ends_with_the_same_file(model, tokenizer, tmp_path, after) -> None:
    whole = run(model, tokenizer, tmp_path / "whole")
    count = iter(range(100))

    def break_down(text: str, reference: str, *, finished: bool) -> Grade:
        if next(count) >= after:
            raise BreakDownError
        return short(text, reference, finished=finished)

    with pytest.raises(BreakDownError):
        run(model, tokenizer, tmp_path / "part", grade=break_down)
    path = tmp_path / "part" / whole.name
    assert len(lines(path)) == 1 + after + 1  # the one without a verdict as well
    with path.open("a") as handle:
        handle.write('{"query": "torn')  # the machine went down in the middle of a line
    count = iter([after - 1, after])
    with pytest.raises(BreakDownError):
        run(model, tokenizer, tmp_path / "part", grade=break_down)
    assert len(lines(path)) == 1 + after + 2  # every line is whole again
    seen = Counter()

    def counted(text: str, reference: str, *, finished: bool) -> Grade:
        seen["graded"] += 1
        return short(text, reference, finished=finished)

    assert run(model, tokenizer, tmp_path / "part", grade=counted).read_bytes() == whole.read_bytes()
    assert seen["graded"] == 9 - after - 1  # the last answer's verdict among them
    run(model, tokenizer, tmp_path / "part", grade=counted)  # all there: nothing is done again
    assert seen["graded"] == 9 - after - 1


def test_more_trials_can_be_asked_for_later(model, tokenizer, tmp_path) -> None:
    whole = run(model, tokenizer, tmp_path / "whole")
    run(model, tokenizer, tmp_path / "part", replace(FEW, trials=1))
    path = run(model, tokenizer, tmp_path / "part")
    assert path.read_bytes() == whole.read_bytes()
    assert json.loads(answers.summary_of(path).read_text())["answers"] == 9


KILLED = """
import sys; sys.path[:0] = [{tests!r}]
import torch; torch.set_num_threads(1)
from test_generate import run, tiny_model, letters_tokenizer
run(tiny_model(), letters_tokenizer(), {out!r})
"""


def test_killed_outright_it_goes_on(model, tokenizer, tmp_path) -> None:
    whole = run(model, tokenizer, tmp_path / "whole")
    path = tmp_path / "killed" / whole.name
    code = KILLED.format(tests=str(Path(__file__).parent), out=str(tmp_path / "killed"))
    child = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE)
    deadline = time.monotonic() + 90
    while not (path.exists() and path.read_bytes().count(b"\n") >= 3) and child.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert path.exists(), child.stderr.read().decode()
    assert run(model, tokenizer, tmp_path / "killed").read_bytes() == whole.read_bytes()


def test_another_process_is_kept_out(model, tokenizer, tmp_path) -> None:
    path = tmp_path / "tiny-task_tiny_dense.jsonl"
    with sole_writer(path), pytest.raises(FileExistsError, match="another process writes"):
        run(model, tokenizer, tmp_path)
    assert not path.exists()


def test_other_settings_are_not_mixed_in(model, tokenizer, tmp_path) -> None:
    path = run(model, tokenizer, tmp_path, replace(FEW, trials=1))
    before = path.read_bytes()
    with pytest.raises(
        ValueError, match=r"other settings \(temperature: 1.0 there, 0.5 here\); give another folder"
    ):
        run(model, tokenizer, tmp_path, replace(FEW, temperature=0.5))
    with pytest.raises(ValueError, match=r"must hold problems that are given; got 'p0'"):
        run(model, tokenizer, tmp_path, problems=PROBLEMS[1:])
    with pytest.raises(ValueError, match=r"must hold the texts of the problems that are given; got 'p0'"):
        run(model, tokenizer, tmp_path, problems=[replace(PROBLEMS[0], text="Another?"), *PROBLEMS[1:]])
    model.config._name_or_path = "elsewhere"
    with pytest.raises(ValueError, match=r"other settings \(weights: '' there, 'elsewhere' here\)"):
        run(model, tokenizer, tmp_path)
    model.config._name_or_path = ""
    assert path.read_bytes() == before
    path.write_text("no JSON\n")
    with pytest.raises(ValueError, match=r"is no file of this command \(.*\); give another folder"):
        run(model, tokenizer, tmp_path)


def test_a_grader_that_breaks_down_leaves_an_error_and_a_second_chance(model, tokenizer, tmp_path) -> None:
    def broken(text: str, reference: str, *, finished: bool) -> Grade:
        return (
            Grade(None, "RecursionError: too deep")
            if len(text) % 3 == 0
            else short(text, reference, finished=finished)
        )

    with pytest.warns(UserWarning, match="answers have no verdict .* the same command grades them again"):
        path = run(model, tokenizer, tmp_path, grade=broken)
    bad = [row for row in lines(path)[1:] if row["score"] is None]
    assert 0 < len(bad) < 9
    assert bad[0]["error"] == "RecursionError: too deep"
    assert json.loads(answers.summary_of(path).read_text())["graded"] == 9 - len(bad)
    with pytest.raises(ValueError, match="RecursionError: too deep"):
        read_traces(path)
    with pytest.warns(UserWarning, match=f"skipped {len(bad)} bad lines"):
        assert len(read_traces(path, skip_bad=len(bad))) == 9 - len(bad)
    assert run(model, tokenizer, tmp_path).read_bytes() == run(model, tokenizer, tmp_path / "b").read_bytes()
    assert json.loads(answers.summary_of(path).read_text())["graded"] == 9


def test_what_repeats_is_stopped(model, tokenizer, tmp_path) -> None:
    settings = Settings(temperature=0.0, max_tokens=400, repeat_window=24, repeat_block=12, instruction="")
    found = lines(run(model, tokenizer, tmp_path, settings))[1:]
    looped = [row for row in found if row["stopped"] == "repetition"]
    assert looped  # likeliest tokens of a random model fall into a circle
    assert all(row["truncated"] and 24 <= row["tokens_out"] < 400 for row in looped)
    ids = [1, 2, 3] * 8
    assert repeats([9, *ids], 24, 3)
    assert not repeats(ids[:-1], 24, 3)  # not that long yet
    assert not repeats([9, *ids[1:]], 24, 12)
    assert not repeats(ids, 24, 2)
    assert not repeats(ids, 0, 3)


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"), [(1.0, 0, 1.0), (0.7, 0, 0.8), (1.5, 7, 1.0), (0.8, 9, 0.6)]
)
def test_tokens_are_drawn_as_the_library_would(temperature, top_k, top_p) -> None:
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    logits = 2 * torch.randn(40, generator=torch.Generator().manual_seed(0))
    scores = TemperatureLogitsWarper(temperature)(None, logits[None])
    if top_k:
        scores = TopKLogitsWarper(top_k)(None, scores)
    scores = TopPLogitsWarper(top_p)(None, scores) if top_p < 1 else scores
    wanted = scores.softmax(-1)[0].numpy()
    settings = Settings(temperature=temperature, top_k=top_k, top_p=top_p)
    uniforms = (np.arange(20_000) + 0.5) / 20_000
    drawn = draw(logits.expand(20_000, -1), uniforms, settings)
    share = np.bincount(drawn, minlength=40) / 20_000
    np.testing.assert_allclose(share, wanted, atol=1e-4)
    assert set(np.flatnonzero(wanted > 1e-4)) <= set(drawn) <= set(np.flatnonzero(wanted))
    assert draw(logits[None], [1 - 1e-16], settings)[0] in np.flatnonzero(wanted)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"policy": "topk"}, "needs budget"),
        ({"trials": 0}, "trials must be a whole number of at least 1; got 0"),
        ({"temperature": -1.0}, "temperature must be 0 or more"),
        ({"temperature": 0.0, "trials": 2}, "trials must be 1 where temperature is 0.*; got 2"),
        ({"top_p": 0.0}, "top_p must be above 0 and at most 1"),
        ({"repeat_window": 100}, "repeat_window must be 0 or at least twice repeat_block=64; got 100"),
        ({"max_tokens": 2.5}, "max_tokens must be a whole number"),
    ],
)
def test_wrong_settings_are_named(wrong, message) -> None:
    with pytest.raises(ValueError, match=message):
        Settings(**wrong)


def test_logits_that_are_no_numbers_are_no_answer() -> None:
    logits = torch.zeros(2, 5)
    logits[1, 3] = torch.nan
    for temperature in (0.0, 1.0):
        with pytest.raises(ValueError, match="logits are not numbers"):
            draw(logits, [0.5, 0.5], Settings(temperature=temperature))


def test_an_answer_is_in_the_file_before_its_verdict(model, tokenizer, tmp_path) -> None:
    path = tmp_path / "tiny-task_tiny_dense.jsonl"
    seen = []

    def look(text: str, reference: str, *, finished: bool) -> Grade:
        seen.append(lines(path)[1:])
        return short(text, reference, finished=finished)

    run(model, tokenizer, tmp_path, grade=look)
    for count, found in enumerate(seen):
        assert len(found) == count + 1
        assert found[-1]["error"] == "not graded yet"
        assert all(row["error"] is None and row["score"] is not None for row in found[:-1])


def test_a_trial_under_way_does_not_hold_its_prompt_twice(model, tokenizer, tmp_path, monkeypatch) -> None:
    held = []
    take = hf.Decoder.step

    def step(self, *args):
        held.append(sum(len(thing.layers) for thing in gc.get_objects() if type(thing) is hf.Prompt))
        return take(self, *args)

    monkeypatch.setattr(hf.Decoder, "step", step)
    run(model, tokenizer, tmp_path, replace(FEW, trials=1), slots=3)
    assert max(held) <= model.config.num_hidden_layers  # the newest prompt, whose trials may go on


def test_wrong_calls_are_named(model, tokenizer, tmp_path) -> None:
    with pytest.raises(
        ValueError, match="max_tokens must leave room for the prompt of 25 tokens within the model's 131072"
    ):
        run(model, tokenizer, tmp_path, replace(FEW, max_tokens=131072))
    with pytest.raises(ValueError, match="problems must hold at least one"):
        run(model, tokenizer, tmp_path, problems=[])
    with pytest.raises(ValueError, match="slots must be at least 1; got 0"):
        run(model, tokenizer, tmp_path, slots=0)
    assert not list(tmp_path.iterdir())


def test_a_chat_template_and_the_instruction_make_the_prompt(model, tokenizer, tmp_path) -> None:
    chat = letters_tokenizer()
    chat.chat_template = (
        "{% for m in messages %}[{{ m.content }}]{% endfor %}{% if add_generation_prompt %}>{% endif %}"
    )
    row = lines(
        run(model, chat, tmp_path, replace(FEW, trials=1, instruction="Think."), problems=PROBLEMS[1:2])
    )[1]
    assert row["tokens_in"] == len("[6+1?\nThink.]>")


def test_the_grader_hears_what_was_cut_and_where_thinking_began(model, tokenizer, tmp_path) -> None:
    heard = []

    def listen(text: str, reference: str, *, finished: bool) -> Grade:
        heard.append((text, reference, finished))
        return Grade(None, "first time") if len(heard) == 1 else Grade(correct=False)

    chat = letters_tokenizer()
    chat.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}<think>\n"
    with pytest.warns(UserWarning, match="1 answers have no verdict"):
        path = run(model, chat, tmp_path, grade=listen)
    wanted = {("<think>" + row["prediction"][0], "7", row["stopped"] == "end") for row in lines(path)[1:]}
    assert set(heard) == wanted
    assert {finished for _, _, finished in heard} == {True, False}
    run(model, chat, tmp_path, grade=listen)  # the one without a verdict
    assert heard[-1] == heard[0]
    assert len(heard) == 10


def test_from_the_command_line(model, tokenizer, tmp_path, capsys) -> None:
    from kinetics_lab.cli import main

    model.save_pretrained(tmp_path / "tiny")
    tokenizer.save_pretrained(tmp_path / "tiny")
    (tmp_path / "mine.jsonl").write_text('{"problem": "What is 3+4?", "answer": 7}\n')
    given = ["generate", "--model", str(tmp_path / "tiny"), "--problems", str(tmp_path / "mine.jsonl"), "--policy", "topk:6",
             "--trials", "2", "--max-tokens", "12", "-o", str(tmp_path / "out")]  # fmt: skip
    assert main(given) == 0
    path = Path(capsys.readouterr().out.strip())
    assert path == tmp_path / "out" / "mine_tiny_local0_topk6.jsonl"
    table = read_traces(path)
    assert (len(table), table["policy"].unique().tolist()) == (2, ["topk:6"])
    assert main([*given, "--seed", "1"]) == 2
    assert "seed: 0 there, 1 here" in capsys.readouterr().err
    assert (
        main(
            [
                "generate",
                "--model",
                str(tmp_path),
                "--problems",
                str(tmp_path / "none.jsonl"),
                "-o",
                str(tmp_path),
            ]
        )
        == 2
    )
    assert "none.jsonl" in capsys.readouterr().err
