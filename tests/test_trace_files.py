"""Four kinds of trace file, each written here in its exact layout (synthetic), and everything that can be wrong."""

import gzip
import json
import math
import re
import sys
from collections import UserDict
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kinetics_lab.traces import read, sources
from kinetics_lab.traces import trial as trace_values
from kinetics_lab.traces.layout import layout_metadata, layout_name
from kinetics_lab.traces.read import read_traces
from kinetics_lab.traces.table import COLUMNS, check_traces, summarize
from kinetics_lab.traces.trial import problem_id

QUESTIONS = ["What is 2 + 2?", "Name  the\nlargest prime below 10.", "How many sides has a cube?"]


def words(text):
    """The tokenizer of these tests: one token a word."""
    return text.split()


def answer(length, seed):
    """Synthetic text of ``length`` words that no other seed repeats."""
    return " ".join(f"w{seed}-{i}" for i in range(length))


def kinetics_lines(trials=4, metadata=None):
    """The published layout: metadata, then one trial a line, questions in an order of their own. Synthetic."""
    lines = [{"task": "aime24", "pass@1": 50.0} | (metadata or {})]
    for trial in range(trials):
        for place, question in enumerate(QUESTIONS):
            lines.append(
                {
                    "query": question,
                    "choices": ["4"],
                    "prediction": [answer(50 + 10 * trial + place, f"{trial}.{place}")],
                    "score": 100.0 if (trial + place) % 2 else 0.0,
                }
            )
    return lines


def write(path, lines):
    """JSON lines; text goes in as it is."""
    text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


DENSE_NAME = "aime24_qwen3-8b_dense.jsonl"
TOPK = {"attn_local": 0, "attn_topk": 512, "attn_block_size": 16, "attn_block_topk": None}
TOPK_NAME = "aime24/topk/aime24_qwen3-0-6b_local0_topk512.jsonl"
KINETICS = {"tokenizer": words, "limit": 80}


def refused(message):
    return pytest.raises(ValueError, match=re.escape(message))


@pytest.mark.parametrize(
    ("name", "metadata", "model", "policy"),
    [
        ("aime24_qwen3-8b_dense", {}, "qwen3-8b", "dense"),
        ("aime24_qwen3-14b_dense", {"attn_local": None, "attn_block_size": 16}, "qwen3-14b", "dense"),
        ("aime24_qwen3-0-6b_local0_topk512", TOPK, "qwen3-0.6b", "topk:512"),
        ("aime24_qwen3-1-7b_local0_block128_blocktopk2", {"attn_local": 0, "attn_block_size": 128, "attn_block_topk": 2}, "qwen3-1.7b", "block_topk:256:128"),
        ("aime24_mymodel_local64", {"attn_local": 64}, "mymodel", "local:64"),
    ],
)  # fmt: skip
def test_the_published_layout(tmp_path, name, metadata, model, policy):
    path = write(tmp_path / f"{name}.jsonl", kinetics_lines(metadata={"total_example": 12} | metadata))
    table = read_traces(path, **KINETICS)
    assert list(table) == COLUMNS
    pd.testing.assert_frame_equal(check_traces(table), table)
    assert table[["model", "task", "policy"]].drop_duplicates().to_numpy().tolist() == [
        [model, "aime24", policy]
    ]
    first = table[table["problem"] == problem_id(QUESTIONS[0])]
    assert first["trial"].tolist() == [0, 1, 2, 3]
    assert first["tokens_out"].tolist() == [50, 60, 70, 80]
    assert first["truncated"].tolist() == [False, False, False, True]
    assert first["correct"].tolist() == [False, True, False, True]
    assert first["tokens_in"].unique().tolist() == [5]
    assert summarize(table)["n_correct"].tolist() == [2, 2, 2]


PUBLISHED = {
    "dense": "dense",
    "topk:512": "local0_topk512",
    "block_topk:256:128": "local0_block128_blocktopk2",
    "local:64": "local64",
}
OWN = {
    "topk:512:false": "topk-512-false",
    "block_topk:256:128:4": "block_topk-256-128-4",
    "block_topk:256:128:0:true": "block_topk-256-128-0-true",
    "strided_block_topk:256:128": "strided_block_topk-256-128",
    "quest:256:16": "quest-256-16",
    "local:64:4": "local-64-4",
}


def generation(policy, trials=3, **said):
    """A file of our own generation: metadata that speak for themselves, then one answer a line. Synthetic."""
    said = {"version": "0", "model": "qwen3-0.6b", "task": "aime24", "policy": policy, "seed": 1} | said
    lines = [layout_metadata(policy) | {"kinetics_lab": said}]
    for trial in reversed(range(trials)):
        for place, question in enumerate(QUESTIONS):
            stopped = ("end", "length", "repetition")[trial]
            lines.append(
                {
                    "query": question,
                    "prediction": [answer(250, "same")],  # equal samples are samples, too
                    "score": 100.0 * (trial == 0),
                    "error": None,
                    "problem": f"p{place}",
                    "trial": trial,
                    "tokens_in": 7 + place,
                    "tokens_out": 50 + 10 * trial + place,
                    "truncated": stopped != "end",
                    "stopped": stopped,
                }
            )
    return lines


@pytest.mark.parametrize(("policy", "suffix"), (PUBLISHED | OWN).items())
def test_our_own_generations_come_back_as_written(tmp_path, policy, suffix):
    assert layout_name("aime24", "qwen3-0.6b", policy) == f"aime24_qwen3-0-6b_{suffix}"
    lines = generation(policy)
    path = write(tmp_path / f"{layout_name('aime24', 'qwen3-0.6b', policy)}.jsonl", lines)
    table = read_traces(path)
    places, trials = [0, 1, 2] * 3, [2, 2, 2, 1, 1, 1, 0, 0, 0]
    assert table.to_dict("list") == {
        "model": ["qwen3-0.6b"] * 9,
        "task": ["aime24"] * 9,
        "problem": [f"p{place}" for place in places],
        "trial": trials,
        "policy": [policy] * 9,
        "tokens_in": [7 + place for place in places],
        "tokens_out": [50 + 10 * trial + place for trial, place in zip(trials, places, strict=True)],
        "correct": [trial == 0 for trial in trials],
        "truncated": [trial > 0 for trial in trials],
    }
    renamed = write(tmp_path / "any name.jsonl", lines)
    pd.testing.assert_frame_equal(read_traces(renamed), table)


@pytest.mark.parametrize("policy", PUBLISHED)
def test_a_published_name_and_its_metadata_say_the_policy_without_our_key(tmp_path, policy):
    name = layout_name("aime24", "qwen3-0.6b", policy)
    path = write(tmp_path / f"{name}.jsonl", kinetics_lines(metadata=layout_metadata(policy)))
    table = read_traces(path, **KINETICS)
    assert table[["model", "task", "policy"]].drop_duplicates().to_numpy().tolist() == [
        ["qwen3-0.6b", "aime24", policy]
    ]


@pytest.mark.parametrize("policy", OWN)
def test_a_policy_of_our_own_passes_for_no_published_one(tmp_path, policy):
    assert layout_metadata(policy) == {}
    path = write(tmp_path / f"{layout_name('aime24', 'qwen3-0.6b', policy)}.jsonl", kinetics_lines())
    with refused("the name must be TASK_MODEL_dense, "):
        read_traces(path, **KINETICS, format="kinetics")


def test_published_metadata_have_the_published_keys():
    keys = ["attn_local", "attn_topk", "attn_block_topk", "attn_block_size"]
    stated = {policy: [layout_metadata(policy)[key] for key in keys] for policy in PUBLISHED}
    assert stated == {
        "dense": [None, None, None, None],
        "topk:512": [0, 512, None, None],
        "block_topk:256:128": [0, None, 2, 128],
        "local:64": [64, None, None, None],
    }
    assert layout_metadata("topk:512:true") == layout_metadata("topk:512")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("a/b", "m", "dense"), "task must be letters, digits and . _ + - (it becomes part of a file's name)"),
        (("..", "m", "dense"), "task must be letters, digits and . _ + -"),
        (("t", "Qwen/Qwen3-8B", "dense"), "model must be letters, digits and . + -"),
        (("t", "my_model", "dense"), "model must be letters, digits and . + -"),
        (("t", "m", "topk"), "policy 'topk': topk needs budget"),
    ],
)  # fmt: skip
def test_names_that_no_file_can_have(names, message):
    with refused(message):
        layout_name(*names)


BAD_GENERATED = [
    ({"score": None, "error": "it took over 10 s"}, ":5: this answer has no score: 'it took over 10 s'"),
    ({"score": 50.0}, ":5: score must be 0, 1 or 100 (or true, false); got 50.0"),
    ({"query": 3}, ":5: query must be the question's text; got 3"),
    ({"prediction": "a"}, ":5: prediction must be a list with one text; got 'a'"),
    ({"problem": 3}, ":5: problem must be the problem's id; got 3"),
    ({"trial": None}, ":5: trial must be a number; got None"),
    ({"tokens_in": 0}, ":5: tokens_in must be a whole number >= 1; got 0"),
    ({"tokens_out": True}, ":5: tokens_out must be a whole number >= 0; got True"),
    ({"truncated": 0}, ":5: truncated must be true or false; got 0"),
    ({"stopped": "length"}, ":5: stopped must be end (truncated false), length (truncated true) or repetition; "),
    ({"truncated": True}, "got 'end' with truncated true"),
    ({"stopped": "eos"}, "got 'eos' with truncated false"),
    ({"trial": 1}, ":5: the same trial of the same problem as "),
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:.* problems have fewer than")
@pytest.mark.parametrize(("values", "message"), BAD_GENERATED, ids=[m[:50] for _, m in BAD_GENERATED])
def test_a_bad_line_of_a_generation(tmp_path, values, message):
    lines = generation("dense", trials=2)
    lines[4] = lines[4] | values
    path = write(tmp_path / "g.jsonl", lines)
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        read_traces(path)
    assert str(error.value).startswith(f"{path}:5: ")
    with pytest.warns(UserWarning, match="skipped 1 bad lines"):
        assert len(read_traces(path, skip_bad=1)) == 5


def test_a_repetition_counts_as_truncated_whatever_is_said(tmp_path):
    lines = generation("dense")
    lines[1]["truncated"] = False
    assert read_traces(write(tmp_path / "g.jsonl", lines))["truncated"].tolist()[0] is True


@pytest.mark.parametrize(
    ("first", "options", "message"),
    [
        ({"kinetics_lab": 3}, {}, ":1: the first line: kinetics_lab must be an object with model, task and"),
        ({"kinetics_lab": {"model": "m"}}, {}, ":1: the first line: no 'task'; it must be a text (found: model)"),
        ({"kinetics_lab": {"model": "m", "task": "t", "policy": "topk"}}, {}, ":1: the first line: policy 'topk': topk needs budget"),
        ({"kinetics_lab": {"model": " ", "task": "aime24", "policy": "topk:512"}}, {}, "model is empty"),
        ({"attn_topk": 256}, {}, ":1: the first line says policy topk:512, its metadata say attn_topk=256"),
        ({}, {"task": "gsm8k"}, ":1: the first line: task='gsm8k' was given, but the first line says 'aime24'"),
        ({}, {"policy": "dense"}, "policy='dense' was given, but the first line says 'topk:512'"),
    ],
)  # fmt: skip
def test_a_generation_that_contradicts_itself_or_the_caller(tmp_path, first, options, message):
    lines = generation("topk:512")
    lines[0] |= first
    with refused(message):
        read_traces(write(tmp_path / "g.jsonl", lines), skip_bad=3, **options)


def test_problems_are_matched_by_their_text_never_by_order(tmp_path):
    assert problem_id(" Name the\tlargest prime below 10.\n") == problem_id(QUESTIONS[1])
    assert problem_id("x") == "2d711642b726b044"  # sha256 of x
    lines = kinetics_lines()
    dense = write(tmp_path / DENSE_NAME, lines)
    turned = [lines[0] | TOPK, *lines[:0:-1]]
    sparse = write(tmp_path / "aime24_qwen3-8b_local0_topk512.jsonl", turned)
    counts = summarize(read_traces([dense, sparse], **KINETICS)).set_index(["policy", "problem"])
    assert len(counts) == 6
    pd.testing.assert_frame_equal(counts.loc["dense"], counts.loc["topk:512"])


def test_a_folder_a_compressed_file_and_the_prompt_template(tmp_path):
    write(tmp_path / TOPK_NAME, kinetics_lines(metadata=TOPK))
    write(tmp_path / "aime24/dense/aime24_qwen3-8b_dense.jsonl.gz", kinetics_lines())
    table = read_traces(tmp_path, **KINETICS, prompt="Please solve: {}".format)
    assert len(table) == 24
    assert table["tokens_in"].min() == 7


@pytest.mark.parametrize(
    "tokenizer",
    [lambda text: len(text.split()), lambda text: UserDict(input_ids=text.split(), attention_mask=[])],
    ids=["a count", "what transformers return"],
)
def test_tokenizers_may_return_counts_ids_or_a_mapping(tmp_path, tokenizer):
    path = write(tmp_path / TOPK_NAME, kinetics_lines(metadata=TOPK))
    found = read_traces(path, tokenizer=tokenizer, limit=80)
    pd.testing.assert_frame_equal(found, read_traces(path, **KINETICS))


class FakeHub:
    """Stands in for the package tokenizers."""

    class Tokenizer:
        @staticmethod
        def from_pretrained(name):
            if name != "Qwen/Qwen3-8B":
                raise Exception("404 for this name")
            return FakeHub.Tokenizer()

        def encode(self, text, add_special_tokens):
            assert not add_special_tokens
            return type("Encoding", (), {"ids": text.split()})


def test_a_tokenizer_by_name(tmp_path, monkeypatch):
    path = write(tmp_path / TOPK_NAME, kinetics_lines(metadata=TOPK))

    def missing(name):
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(trace_values, "import_module", missing)
    with refused("tokenizer 'Qwen/Qwen3-8B' needs tokenizers: run `make torch` in the project's folder"):
        read_traces(path, tokenizer="Qwen/Qwen3-8B", limit=80)
    monkeypatch.setattr(trace_values, "import_module", lambda name: FakeHub)
    assert read_traces(path, tokenizer="Qwen/Qwen3-8B", limit=80)["tokens_out"].max() == 82
    with refused("tokenizer 'Qwen/None' could not be loaded: 404 for this name"):
        read_traces(path, tokenizer="Qwen/None", limit=80)


def change(line, **values):
    """Metadata and trials with line number ``line`` changed (None: the key is left out)."""
    lines = kinetics_lines(metadata=TOPK)
    made = {k: v for k, v in (lines[line - 1] | values).items() if v is not None}
    return [*lines[: line - 1], made, *lines[line:]]


def put(line, text):
    lines = kinetics_lines(metadata=TOPK)
    return [*lines[: line - 1], text, *lines[line:]]


BAD_LINES = [
    (put(5, '{"query": "What"'), ':5: not a JSON object but \'{"query": "What"\' ('),
    (put(5, "\x00\x01"), ":5: not a JSON object but"),
    (put(5, "[1, 2]"), ":5: each line must be a JSON object; got [1, 2]"),
    (put(5, "[" * 100_000), ":5: not a JSON object but"),
    (change(5, query=None), ":5: no 'query'; it must be the question's text (found: choices, prediction, score)"),
    (change(5, query=3), ":5: query must be the question's text; got 3"),
    (change(5, prediction=["a", "b"]), ":5: prediction must be a list with one text; got ['a', 'b']"),
    (change(5, prediction="a"), ":5: prediction must be a list with one text; got 'a'"),
    (change(5, score=37.5), ":5: score must be 0, 1 or 100 (or true, false); got 37.5"),
    (change(5, score=math.nan), ":5: score must be 0, 1 or 100 (or true, false); got nan"),
    (change(5, score="100"), ":5: score must be 0.0 or 100.0; got '100'"),
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:.* problems have fewer than")
@pytest.mark.parametrize(("lines", "message"), BAD_LINES, ids=[message[:30] for _, message in BAD_LINES])
def test_a_bad_line_is_an_error_or_counted(tmp_path, lines, message):
    path = write(tmp_path / TOPK_NAME, lines)
    with refused(f"{path}{message}"):
        read_traces(path, **KINETICS)
    with pytest.warns(UserWarning, match="skipped 1 bad lines") as warned:
        table = read_traces(path, **KINETICS, skip_bad=1)
    told = [one for one in warned if issubclass(one.category, UserWarning)]  # others may come from anywhere
    assert str(told[0].message).startswith(f"skipped 1 bad lines: {path}{message}")
    assert len(table) == 11
    assert "qwen3-0.6b, aime24, topk:512: 1 of 3 problems have fewer than 4 trials: " in str(told[1].message)


@pytest.mark.filterwarnings("ignore:.* problems have fewer than")
def test_more_bad_lines_than_allowed(tmp_path):
    lines = kinetics_lines(metadata=TOPK)
    lines[3] = lines[6] = lines[9] = "{"
    path = write(tmp_path / TOPK_NAME, lines)
    with refused(f"{path}:10: not a JSON object but '{{'"):
        read_traces(path, **KINETICS, skip_bad=2)
    with pytest.raises(ValueError, match=r"\(bad line 3; skip_bad=2 allows no more\)"):
        read_traces(path, **KINETICS, skip_bad=2)
    with pytest.warns(UserWarning, match="skipped 3 bad lines"):
        assert len(read_traces(path, **KINETICS, skip_bad=3)) == 9


@pytest.mark.filterwarnings("ignore:skipped 1 bad lines")
def test_a_bad_line_in_the_middle_of_a_large_file(tmp_path):
    lines = [json.dumps(row) for row in kinetics_lines(metadata=TOPK)[1:]]
    many = [json.dumps(TOPK)]
    for copy in range(300):
        many += [line.replace('["w', f'["copy{copy}-w') for line in lines]
    many[1801] = many[1801][:100]
    path = write(tmp_path / TOPK_NAME, many)
    with refused(f"{path}:1802: not a JSON object but"):
        read_traces(path, **KINETICS)
    with pytest.warns(UserWarning, match="have fewer than 1200 trials"):
        assert len(read_traces(path, **KINETICS, skip_bad=1)) == 3_599


TOPK_LINES = kinetics_lines(metadata=TOPK)
BAD_FILES = [
    ("aime24_qwen3-8b_local0_topk256.jsonl", TOPK_LINES, ":1: the file name says local=0, topk=256, the metadata say local=0, topk=512"),
    (DENSE_NAME, TOPK_LINES, "says dense, the metadata say local=0, topk=512"),
    ("aime24_qwen3-8b_local0_topk512.jsonl", kinetics_lines(metadata=TOPK | {"attn_stride": 8}), "the metadata say local=0, topk=512, attn_stride=8"),
    ("aime24_qwen3-8b_topk512.jsonl", TOPK_LINES, ":1: the name must be TASK_MODEL_dense, "),
    (DENSE_NAME, kinetics_lines()[1:], ":1: the first line must hold the metadata"),
    ("aime24_qwen3-8b_local128_topk512.jsonl", kinetics_lines(metadata=TOPK | {"attn_local": 128}), ":1: local=128, topk=512: no policy has a window of 128 recent tokens beside the chosen ones; say what"),
    (DENSE_NAME, kinetics_lines(metadata={"total_example": 13}), ": the metadata promise 13 trials, the file has 12; is it whole?"),
    (DENSE_NAME, kinetics_lines()[:1], ": no trials in it"),
    (DENSE_NAME, [], ": no trials in it"),
    (DENSE_NAME, ["{", "{"], "no trials are left in "),
    ("notes.jsonl", [{"a": 1, "b": 2}], ":1: no known format; say format=... (evalscope, inspect, kinetics, lm-eval, requests, table), or name its columns with --map THEIRS=OURS"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "lines", "message"), BAD_FILES, ids=[m[2][:30] for m in BAD_FILES])
def test_a_bad_file_is_never_skipped(tmp_path, name, lines, message):
    path = write(tmp_path / name, lines)
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        read_traces(path, **KINETICS, skip_bad=5)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokenizer": None}, ":2: token counts are not stored here"),
        ({"limit": None}, ":2: the file does not say which answers"),
        ({"model": "qwen3-4b"}, ":1: model='qwen3-4b' was given, but the file"),
        ({"policy": "topk:8"}, ":1: policy='topk:8' was given, but the file"),
    ],
)
def test_what_the_caller_must_say_and_must_not_contradict(tmp_path, options, message):
    path = write(tmp_path / DENSE_NAME, kinetics_lines())
    with refused(f"{path}{message}"):
        read_traces(path, **KINETICS | options, skip_bad=3)


def test_a_window_beside_top_k_counts_as_what_the_caller_says(tmp_path):
    path = tmp_path / "aime24_qwen3-4b_local128_topk128.jsonl"
    write(path, kinetics_lines(metadata={"attn_local": 128, "attn_topk": 128}))
    assert read_traces(path, **KINETICS, policy="topk:256")["policy"].unique().tolist() == ["topk:256"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"skip_bad": -1}, "skip_bad must be >= 0; got -1"),
        ({"format": "kinetic"}, "trace format 'kinetic' is not known; did you mean kinetics"),
        ({"policy": "topk"}, "policy 'topk': topk needs budget"),
        ({"tokenizer": lambda text: -1}, "the tokenizer's count must be a whole number >= 0; got -1"),
    ],
)
def test_options_that_make_no_sense(tmp_path, options, message):
    path = write(tmp_path / DENSE_NAME, kinetics_lines())
    with refused(message):
        read_traces(path, **KINETICS | options)


def test_paths_that_make_no_sense(tmp_path):
    path = write(tmp_path / DENSE_NAME, kinetics_lines())
    with refused(f"{path} was given twice"):
        read_traces([path, tmp_path / "." / path.name], **KINETICS)
    with refused("no trace file given"):
        read_traces([])
    with pytest.raises(FileNotFoundError, match="nothing.jsonl: no such file"):
        read_traces(tmp_path / "nothing.jsonl")
    (tmp_path / "empty").mkdir()
    with refused("empty: no .jsonl, .json, .csv, .tsv, .parquet or .eval file in it"):
        read_traces(tmp_path / "empty")


def test_files_that_end_early(tmp_path):
    path = write(tmp_path / "aime24_qwen3-8b_dense.jsonl.gz", kinetics_lines(trials=300))
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(ValueError, match=r"dense.jsonl.gz:\d+: .*is the file whole\?"):
        read_traces(path, **KINETICS)
    path.write_bytes(b"plain text")
    with refused("dense.jsonl.gz:1: cannot be read on (Not a gzipped file"):
        read_traces(path, **KINETICS)
    parquet = tmp_path / "traces.parquet"
    parquet.write_bytes(b"no parquet")
    with refused(f"{parquet}: not a Parquet file"):
        read_traces(parquet)


def lm_eval_line(doc_id, verdict, seed=0, **values):
    """A line as lm-evaluation-harness logs it. Synthetic."""
    question = QUESTIONS[doc_id]
    text = answer(60 + doc_id, f"{seed}.{doc_id}")
    return {
        "doc_id": doc_id,
        "doc": {"Problem": question, "Answer": "4"},
        "target": "4",
        "arguments": {"gen_args_0": {"arg_0": f"Question: {question}\nAnswer:", "arg_1": {"until": []}}},
        "resps": [[text]],
        "filtered_resps": ["4"],
        "filter": "none",
        "metrics": ["exact_match"],
        "doc_hash": f"{doc_id:064x}",
        "prompt_hash": "0" * 64,
        "target_hash": "0" * 64,
        "exact_match": verdict,
    } | values


LM_EVAL = {"tokenizer": words, "limit": 1000, "model": "qwen3-8b", "policy": "dense"}
LM_NAME = "samples_aime24_2025-06-05T12-34-56.789012.jsonl"


def test_lm_evaluation_harness(tmp_path):
    paths = [
        write(tmp_path / f"run{run}" / LM_NAME, [lm_eval_line(i, float(i == run), run) for i in range(3)])
        for run in range(2)
    ]
    table = read_traces(paths, **LM_EVAL)
    assert table["task"].unique().tolist() == ["aime24"]
    first = table[table["problem"] == problem_id(QUESTIONS[0])]
    assert first[["trial", "tokens_in", "tokens_out", "correct"]].to_numpy().tolist() == [
        [0, 7, 60, True],
        [1, 7, 60, False],
    ]
    old = lm_eval_line(0, 1.0, arguments=[["Question: What?", {}]], doc={"text": "no question"})
    del old["metrics"], old["filter"]
    table = read_traces(write(tmp_path / "samples_sums.jsonl", [old]), **LM_EVAL)
    assert table[["task", "problem", "tokens_in"]].to_numpy().tolist() == [["sums", "0" * 16, 2]]


def test_one_value_per_answer_makes_one_trial_each(tmp_path):
    line = lm_eval_line(0, [1.0, 0.0], resps=[[answer(50, 1), answer(70, 2)]])
    table = read_traces(write(tmp_path / LM_NAME, [line]), **LM_EVAL)
    assert table[["trial", "tokens_out", "correct"]].to_numpy().tolist() == [[0, 50, True], [1, 70, False]]


def test_one_filter_is_chosen_as_in_the_harness_results(tmp_path):
    lines = []
    for name in ("strict-match", "flexible-extract"):
        lines += [lm_eval_line(i, float(name == "strict-match"), filter=name) for i in range(3)]
    path = write(tmp_path / LM_NAME, lines)
    table = read_traces(path, **LM_EVAL, metric="exact_match,flexible-extract")
    assert table["correct"].tolist() == [False] * 3
    message = f"{path}:4: two filters score the same answers (strict-match and flexible-extract); choose one"
    with refused(message):
        read_traces(path, **LM_EVAL)
    with refused(f"{path}: no trials in it scored as 'exact_match,strict'"):
        read_traces(path, **LM_EVAL, metric="exact_match,strict")


BAD_LM_EVAL = [
    ({"resps": [["a", "b"]]}, {}, ":2: 2 answers but 1 value of exact_match: which answers are right is not logged"),
    ({"resps": [[["-1.5", "False"]], [["-2", "True"]]]}, {}, ":2: resps must hold one list of generated texts"),
    ({"metrics": ["em", "f1"]}, {}, ":2: which score says that an answer is right? give metric=..., one of em, f1"),
    ({}, {"metric": "acc"}, ":1: no 'acc'; it must be the score (found: doc_id, doc,"),
    ({"exact_match": 0.5}, {}, ":2: exact_match must be 0, 1 or 100 (or true, false); got 0.5"),
    ({"doc": {"Problem": QUESTIONS[0]}}, {}, ":2: doc_id 1 asks what doc_id 0 asked before"),
    ({"arguments": {}}, {}, ":2: arguments must hold the prompt's text first; got {}"),
    ({"doc": {}, "doc_hash": None}, {}, ":2: doc_hash must be the document's hash; got None"),
    ({}, {"model": None}, ":1: the file does not say which model this is; give model=..."),
    ({}, {"policy": None}, ":1: the file does not say which policy this is; give policy=..."),
]  # fmt: skip


@pytest.mark.parametrize(("values", "options", "message"), BAD_LM_EVAL, ids=[m[2][:40] for m in BAD_LM_EVAL])
def test_what_is_wrong_with_logged_samples(tmp_path, values, options, message):
    path = write(tmp_path / LM_NAME, [lm_eval_line(0, 1.0), lm_eval_line(1, 1.0, **values)])
    with refused(f"{path}{message}"):
        read_traces(path, **LM_EVAL | options)


# One request a line, one server each: two answers of 5 and 3 tokens to a prompt of 4, the first one cut.
VLLM = {
    "request_id": "7",
    "prompt": QUESTIONS[0],
    "prompt_token_ids": [1, 2, 3, 4],
    "outputs": [
        {
            "index": 0,
            "text": "a b",
            "token_ids": [5, 6, 7, 8, 9],
            "finish_reason": "length",
            "correct": False,
        },
        {"index": 1, "text": "c", "token_ids": [5, 6, 7], "finish_reason": "stop", "correct": True},
    ],
    "finished": True,
}
OPENAI = {
    "id": "cmpl-1",
    "model": "Qwen/Qwen3-8B",
    "prompt": QUESTIONS[0],
    "choices": [
        {"index": 0, "text": "v w x y z", "finish_reason": "length"},
        {"index": 1, "text": "v w x", "finish_reason": "stop"},
    ],
    "usage": {"prompt_tokens": 4, "completion_tokens": 8, "total_tokens": 12},
    "correct": [0, 1],
}
CHAT = {
    "custom_id": "request-1",
    "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": QUESTIONS[0]}],
    "response": {
        "status_code": 200,
        "body": {
            "model": "Qwen/Qwen3-8B",
            "choices": [
                {"message": {"role": "assistant", "content": "v w x y z"}, "finish_reason": "length"},
                {"message": {"role": "assistant", "content": "v w x"}, "finish_reason": "stop"},
            ],
            "usage": {"prompt_tokens": 4, "completion_tokens": 8},
        },
    },
    "score": [0.0, 100.0],
}
SGLANG = [
    {
        "text": "v w x y z",
        "prompt": QUESTIONS[0],
        "meta_info": {
            "id": f"{i}",
            "finish_reason": {"type": reason, "length": 5},
            "prompt_tokens": 4,
            "completion_tokens": tokens,
        },
        "score": score,
    }
    for i, (reason, tokens, score) in enumerate([("length", 5, 0), ("stop", 3, 1)])
]
REQUESTS = {"model": "qwen3-8b", "task": "sums", "policy": "topk:512"}


@pytest.mark.parametrize(
    "lines", [[VLLM], [OPENAI], [CHAT], SGLANG], ids=["vLLM", "OpenAI", "batch of chats", "SGLang"]
)
def test_what_servers_answer(tmp_path, lines):
    path = write(tmp_path / "log.jsonl", lines)
    table = read_traces(path, **REQUESTS, tokenizer=words)
    assert table.to_dict("list") == {
        "model": ["qwen3-8b"] * 2,
        "task": ["sums"] * 2,
        "problem": [problem_id(QUESTIONS[0])] * 2,
        "trial": [0, 1],
        "policy": ["topk:512"] * 2,
        "tokens_in": [4, 4],
        "tokens_out": [5, 3],
        "correct": [False, True],
        "truncated": [True, False],
    }


def test_a_copied_line_is_one_bad_line_however_many_answers_it_has(tmp_path):
    path = write(tmp_path / "log.jsonl", [CHAT | {"id": "batch_req_1"}] * 2)
    with pytest.warns(UserWarning, match="skipped 1 bad lines"):
        assert len(read_traces(path, **REQUESTS, tokenizer=words, skip_bad=1)) == 2


def one(tokens=5, **values):
    """A server's answer with one choice."""
    choice = {"index": 0, "text": "v w x", "finish_reason": "stop"}
    usage = {"prompt_tokens": 4, "completion_tokens": tokens}
    return {
        "id": f"c{tokens}",
        "prompt": QUESTIONS[0],
        "choices": [choice],
        "usage": usage,
        "correct": 1,
    } | values


def test_names_in_a_request(tmp_path):
    lines = [
        one(5, problem=17, model="Qwen/Qwen3-8B", task="sums"),
        one(6, problem_id="p-3", model="Qwen/Qwen3-8B"),
        one(7, problem=QUESTIONS[1], prompt=None, model="Qwen/Qwen3-8B"),
    ]
    table = read_traces(write(tmp_path / "log.jsonl", lines), task="sums", policy="dense")
    assert table["problem"].tolist() == ["17", "p-3", problem_id(QUESTIONS[1])]
    assert table["model"].unique().tolist() == ["qwen3-8b"]
    called = one(8, choices=[{"text": "v", "finish_reason": "tool_calls"}])
    table = read_traces(write(tmp_path / "log.jsonl", [called]), **REQUESTS)
    assert table["truncated"].tolist() == [False]
    no_reason = one(9, choices=[{"text": "v"}])
    table = read_traces(write(tmp_path / "log.jsonl", [no_reason]), **REQUESTS, limit=9)
    assert table["truncated"].tolist() == [True]


BAD_REQUESTS = [
    (one(6, correct=None), ":2: correct must be 0, 1 or 100 (or true, false); got None"),
    ({k: v for k, v in one(6).items() if k != "correct"}, ":2: no verdict: the line needs correct (or score), 1 for right and 0 for wrong"),
    (OPENAI | {"correct": 1}, ":2: 2 answers but 1 verdicts: the line needs correct (or score), "),
    (OPENAI, ":2: token counts are not stored here"),
    (one(6, choices=[{"text": "v", "finish_reason": "abort"}]), ":2: finish_reason must be 'stop' or 'length'"),
    (one(6, choices=[{"text": "v"}]), ":2: the file does not say which answers the generation limit cut; give limit"),
    (one(6, choices=[]), ":2: outputs (or choices) must be a list of answers; got []"),
    (one(6, choices=[{"finish_reason": "stop"}], usage={"prompt_tokens": 4}), ":2: no token_ids, usage.completion_tokens, "),
    (one(2.5), ":2: completion_tokens must be a whole number >= 0; got 2.5"),
    (one(10**400), ":2: completion_tokens must be a whole number >= 0; got 1000"),
    (one(6, usage={"prompt_tokens": -1, "completion_tokens": 6}), ":2: prompt_tokens must be a whole number >= 0; got -1"),
    (one(6, prompt_token_ids="abc"), ":2: prompt_token_ids must be a list of token ids; got 'abc'"),
    (one(6, prompt_token_ids=[]), ":2: prompt_token_ids must be a list of token ids; got []"),
    (one(6, prompt=None), ":2: no problem: give each line a problem (its id), or its prompt"),
    (one(6, prompt=None, problem=3, usage={"completion_tokens": 6}), ":2: no prompt_tokens (or input_tokens, "),
    (one(6, model="b/other"), ":3: answers of two models in one file (a/tiny and b/other); one file per model"),
    (one(5), ":2: a copied line: the same answer to the same request as "),
    (one(6, response={"status_code": 500}), ":2: the request 'c6' failed ('status 500'); skip_bad leaves it out"),
    (one(6, response={"body": 3}), ":2: response must hold the server's answer (or it as body); got 3"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "message"), BAD_REQUESTS, ids=[message[:45] for _, message in BAD_REQUESTS])
def test_what_is_wrong_with_requests(tmp_path, line, message):
    path = write(tmp_path / "log.jsonl", [one(5), line, one(8, model="a/tiny")])
    with refused(f"{path}{message}"):
        read_traces(path, **REQUESTS)


def test_a_model_must_be_named_somewhere(tmp_path):
    path = write(tmp_path / "log.jsonl", [one(5)])
    for name in REQUESTS:
        with refused(f"{path}:1: the file does not say which {name} this is; give {name}=..."):
            read_traces(path, **{k: v for k, v in REQUESTS.items() if k != name})


PLAIN = pd.DataFrame(
    {
        "model": ["a", "a", "b"],
        "task": "sums",
        "problem": ["00123456", "00123456", "1e5"],
        "policy": ["dense", "dense", "topk:512:true"],
        "tokens_in": [7, 7, 9],
        "tokens_out": [100, 200, 300],
        "correct": [1, 0, 1],
        "truncated": [False, True, False],
    }
)


@pytest.mark.parametrize("kind", ["csv", "csv.gz", "parquet", "jsonl"])
def test_plain_tables(tmp_path, kind):
    path = tmp_path / f"traces.{kind}"
    if kind == "parquet":
        PLAIN.to_parquet(path)
    elif kind == "jsonl":
        PLAIN.to_json(path, orient="records", lines=True)
    else:
        PLAIN.to_csv(path, index=False)
    table = read_traces(path)
    assert table["trial"].tolist() == [0, 1, 0]
    assert table["problem"].tolist() == ["00123456", "00123456", "1e5"]  # names, not numbers
    assert table["policy"].tolist() == ["dense", "dense", "topk:512"]
    pd.testing.assert_frame_equal(table, check_traces(PLAIN.assign(trial=[0, 1, 0])))


@pytest.mark.parametrize(
    ("changed", "at_once"),
    [
        ({}, True),
        ({"trial": [1, 7, 3]}, True),
        ({"tokens_in": [5, 5, 0]}, False),
        ({"correct": [1, 0, 100]}, False),
        ({"problem": [" p", "p", "q"]}, False),
        ({"policy": ["dense", "dense", "topk:512:true"]}, True),
        ({"tokens_out": [1, 2, -3]}, False),
        ({"model": ["a", "a", None]}, False),
        ({"model": ["a", "a", "b\x1b"]}, False),
        ({"problem": ["p", "p", "q\x1b"]}, False),
        ({"trial": [0, 0, 0]}, False),
    ],
    ids=str,
)
def test_rows_of_a_parquet_file_are_taken_at_once_or_one_by_one_and_mean_the_same(
    tmp_path, monkeypatch, changed, at_once
):
    """A file in the table's own types is taken in parts; whatever has a value to be looked at is read row by row."""
    rows = PLAIN.assign(trial=[0, 1, 0], correct=[True, False, True])[COLUMNS].assign(**changed)
    path, taken = tmp_path / "traces.parquet", []
    rows.to_parquet(path)
    take = read._Trials.take
    monkeypatch.setattr(
        read._Trials, "take", lambda self, *given: taken.append(len(given[1])) or take(self, *given)
    )

    def found():
        try:
            return read_traces(path).to_dict("records")
        except ValueError as error:
            return str(error)

    fast = found()
    assert taken == ([3] if at_once else [])
    monkeypatch.setattr(sources, "_checked", lambda batch: None)
    assert fast == found()
    assert len(taken) == at_once


def test_what_pandas_wrote_about_a_parquet_file_is_not_believed(tmp_path):
    """Its note on types and index can be damaged where the rows are whole; types that Arrow does not know are a sentence."""
    path, rows = tmp_path / "traces.parquet", PLAIN.assign(trial=[0, 1, 0])[COLUMNS]
    rows.to_parquet(path)
    said = path.read_bytes()
    for old, new in (
        (b'"pandas_type"', b'"pandas_tipe"'),
        (b'"numpy_type": "int64"', b'"numpy_type": "inti4"'),
    ):
        assert old in said
        path.write_bytes(said.replace(old, new))
        pd.testing.assert_frame_equal(read_traces(path), check_traces(rows))
    with pytest.MonkeyPatch.context() as patch:
        wrong = pa.ArrowNotImplementedError("Integers with more than 64 bits not implemented")
        patch.setattr(pq, "ParquetFile", lambda data: (_ for _ in ()).throw(wrong))
        with refused(f"{path}: not a Parquet file (Integers with more than 64 bits"):
            read_traces(path)


def test_missing_columns_of_a_table(tmp_path):
    path = tmp_path / "traces.csv"
    PLAIN[:2].drop(columns=["model", "task", "policy", "truncated"]).to_csv(path, index=False)
    table = read_traces(path, model="a", task="sums", policy="dense", limit=200)
    pd.testing.assert_frame_equal(table, check_traces(PLAIN[:2].assign(trial=[0, 1])))


def test_numbered_trials_stay_and_repeats_are_named(tmp_path):
    path, copy = tmp_path / "traces.csv", tmp_path / "more.csv"
    PLAIN.assign(trial=[3, 8, 0]).to_csv(path, index=False)
    PLAIN.assign(trial=[4, 8, 1]).to_csv(copy, index=False)
    assert read_traces(path)["trial"].tolist() == [3, 8, 0]
    with refused(f"{copy}:3: the same trial of the same problem as {path}:3"):
        read_traces([path, copy])
    with pytest.warns(UserWarning, match="skipped 1 bad lines"):
        assert read_traces([path, copy], skip_bad=1)["trial"].tolist() == [3, 8, 0, 4, 1]


BAD_CELLS = [
    ("tokens_out", "many", ":3: tokens_out must be a whole number >= 0; got 'many'"),
    ("tokens_out", "", ":3: tokens_out must be a whole number >= 0; got ''"),
    ("tokens_in", "-1", ":3: tokens_in must be a whole number >= 0; got '-1'"),
    ("correct", "yes", ":3: correct must be 0, 1 or 100 (or true, false); got 'yes'"),
    ("truncated", "nan", ":3: truncated must be 0, 1 or 100 (or true, false); got 'nan'"),
    ("policy", "top:5", ":3: policy 'top' is not known"),
    ("problem", " ", ":3: problem is empty"),
    ("model", "a,b", None),
    ("model", '"a', ":4: the row must have 8 cells like the header; got "),
]


@pytest.mark.parametrize(("column", "cell", "message"), BAD_CELLS, ids=[f"{c} {v}" for c, v, _ in BAD_CELLS])
def test_what_is_wrong_with_a_table(tmp_path, column, cell, message):
    path = tmp_path / "traces.csv"
    rows = PLAIN.astype(str).to_numpy().tolist()
    rows[1][list(PLAIN).index(column)] = cell
    path.write_text("\n".join(",".join(row) for row in [list(PLAIN), *rows]) + "\n")
    with refused(f"{path}{message or ':3: the row must have 8 cells like the header; got 9'}"):
        read_traces(path)


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ("tokens_out", "no column tokens_out; the trace table needs model, task"),
        ("problem", "no column problem; the trace table needs model, task"),
        ("policy", "the file does not say which policy this is; give policy=..."),
        ("truncated", "the file does not say which answers the generation limit cut; give limit=..."),
    ],
)
def test_a_table_without_a_column(tmp_path, column, message):
    path = tmp_path / "traces.csv"
    PLAIN.drop(columns=column).to_csv(path, index=False)
    with refused(f"{path}:2: {message}"):
        read_traces(path)


def test_what_the_caller_says_must_not_contradict_a_column(tmp_path):
    path = tmp_path / "traces.csv"
    PLAIN.to_csv(path, index=False)
    with refused(f"{path}:2: model='z' was given, but the column says 'a'"):
        read_traces(path, model="z")
    with refused(f"{path}:4: policy='dense' was given, but the column says 'topk:512'"):
        read_traces(path, policy="dense")


def test_progress_is_shown_in_a_terminal(tmp_path, capsys, monkeypatch):
    paths = [write(tmp_path / f"aime24_qwen3-{size}_dense.jsonl", kinetics_lines()) for size in ("4b", "8b")]
    table = read_traces(paths, **KINETICS)
    assert capsys.readouterr().err == ""  # this is no terminal
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    pd.testing.assert_frame_equal(read_traces(paths, **KINETICS), table)
    shown = capsys.readouterr().err
    size = f"{paths[0].stat().st_size / 1000:.2f}k"
    assert [path.name for path in paths if f"{path.name}: 100%" in shown] == [path.name for path in paths]
    assert f"{size}/{size} [" in shown


def test_a_stem_keeps_the_dots_of_a_name():
    assert trace_values.stem_of(Path("runs", "qwen2.5-7b.jsonl.gz")) == "qwen2.5-7b"
