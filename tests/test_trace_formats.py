"""Logs of other people's tools, rewritten small: what each must become, and what must be said of lengths."""

import gzip
import itertools
import json
import random
import re
import warnings
import zipfile
from contextlib import contextmanager
from copy import deepcopy

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kinetics_lab.traces import read, sources
from kinetics_lab.traces.read import read_traces
from kinetics_lab.traces.table import check_traces, summarize, write_traces
from kinetics_lab.traces.trial import problem_id

SAID = {"model": "m", "task": "sums", "policy": "dense"}
WORDS = {"tokenizer": str.split, "limit": float("inf")}


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def refused(message):
    return pytest.raises(ValueError, match=re.escape(message))


@contextmanager
def told(*messages):
    """All warnings that say something of ours hold these texts, one each, and there are no others."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    said = [str(w.message) for w in caught if w.category is UserWarning]
    assert len(said) == len(messages), said
    for message in messages:
        assert any(message in one for one in said), said


def thoughts(n):
    """A text of ``n`` words. Synthetic."""
    return "".join(f"t{i} " for i in range(n))


def chat(*messages, usage=None, **values):
    """A server's answer to one request."""
    choices = [{"message": {"role": "assistant"} | m, "finish_reason": "stop"} for m in messages]
    body = {"id": "c1", "model": "Org/M", "choices": choices, "prompt": "What is 2 + 2?"}
    return body | ({"usage": usage} if usage else {}) | {"correct": [1] * len(messages)} | values


# --- reasoning -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "message",
    [
        {"content": "The answer", "reasoning_content": thoughts(50)},
        {"content": "The answer", "reasoning": thoughts(50)},
        {"content": "The answer", "reasoning": thoughts(50), "reasoning_content": thoughts(50)},
        {"content": "The answer", "thinking": thoughts(50)},
        {"content": [{"type": "thinking", "thinking": thoughts(50)}, {"type": "text", "text": "The answer"}]},
        {
            "content": [
                {"type": "reasoning", "reasoning": thoughts(50)},
                {"type": "text", "text": "The answer"},
            ]
        },
        {"content": f"<think>{thoughts(50)}</think> The answer"},
    ],
    ids=[
        "reasoning_content",
        "reasoning",
        "both names",
        "ollama",
        "thinking block",
        "reasoning block",
        "tags",
    ],
)
def test_reasoning_beside_the_answer_is_counted(tmp_path, message):
    path = write(tmp_path / "log.jsonl", [chat(message)])
    with told():
        table = read_traces(path, **SAID, **WORDS)
    assert table["tokens_out"].tolist() in ([52], [53])  # the tag is a word


def test_counts_of_several_answers_are_compared_with_what_the_server_counted(tmp_path):
    short = [{"content": "The answer is 7"}, {"content": "It is 7"}]
    path = write(
        tmp_path / "log.jsonl", [chat(*short, usage={"prompt_tokens": 9, "completion_tokens": 5007})]
    )
    with refused(f"{path}:1: the 2 answers have 7 tokens, but usage counts 5,007: reasoning was left out"):
        read_traces(path, **SAID, **WORDS)
    full = [m | {"reasoning_content": thoughts(n)} for m, n in zip(short, (3000, 2000), strict=True)]
    path = write(tmp_path / "log.jsonl", [chat(*full, usage={"prompt_tokens": 9, "completion_tokens": 5007})])
    with told():
        assert read_traces(path, **SAID, **WORDS)["tokens_out"].tolist() == [3004, 2003]


def test_a_single_answer_has_what_the_server_counted(tmp_path):
    line = chat({"content": "7"}, usage={"prompt_tokens": 9, "completion_tokens": 5000})
    with told():
        assert read_traces(write(tmp_path / "log.jsonl", [line]), **SAID)["tokens_out"].tolist() == [5000]
    line = chat(
        {"content": "7", "reasoning_content": thoughts(500)},
        usage={"prompt_tokens": 9, "completion_tokens": 3},
    )
    with told("1 of 1 answers have more text than the tokens counted for them can hold"):
        assert read_traces(write(tmp_path / "log.jsonl", [line]), **SAID)["tokens_out"].tolist() == [3]


BESIDE = "1 answers have tokens in the total, or in reasoning_tokens"
USAGES = [
    ({"prompt_tokens": 9, "completion_tokens": 50}, (9, 50), []),
    ({"input_tokens": 9, "output_tokens": 50}, (9, 50), []),
    ({"prompt_token_count": 9, "generated_tokens": 50}, (9, 50), []),
    ({"prompt_tokens": 9, "completion_tokens": 50, "total_tokens": 59, "completion_tokens_details": {"reasoning_tokens": 40}}, (9, 50), []),
    ({"prompt_tokens": 9, "completion_tokens": 50, "total_tokens": 459, "completion_tokens_details": {"reasoning_tokens": 400}}, (9, 450), [BESIDE]),
    ({"prompt_tokens": 9, "completion_tokens": 50, "total_tokens": 459}, (9, 450), [BESIDE]),
    ({"input_tokens": 9, "output_tokens": 50, "output_tokens_details": {"reasoning_tokens": 400}}, (9, 450), [BESIDE]),
    ({"input_tokens": 9, "output_tokens": 50, "cache_read_input_tokens": 80, "cache_creation_input_tokens": 11}, (100, 50), []),
    ({"input_tokens": 9, "output_tokens": 50, "total_tokens": 150, "input_tokens_cache_read": 91}, (100, 50), []),
    ({"input_tokens": 100, "output_tokens": 50, "total_tokens": 150, "input_tokens_cache_read": 91, "reasoning_tokens": 40}, (100, 50), []),
]  # fmt: skip


@pytest.mark.parametrize(("usage", "counts", "messages"), USAGES, ids=str)
def test_every_name_of_a_count_and_what_a_total_adds(tmp_path, usage, counts, messages):
    path = write(tmp_path / "log.jsonl", [chat({"content": "7"}, usage=usage)])
    with told(*messages):
        table = read_traces(path, **SAID)
    assert (table["tokens_in"][0], table["tokens_out"][0]) == counts


def lm_eval(doc, answer, right, **values):
    row = {
        "doc_id": doc,
        "doc": {"question": f"What is {doc} + 1?"},
        "arguments": {"gen_args_0": {"arg_0": f"Q: {doc} + 1?"}},
    }
    return (
        row
        | {
            "resps": [[answer]],
            "filtered_resps": [answer[-1:]],
            "filter": "strict",
            "metrics": ["em"],
            "em": right,
        }
        | values
    )


def test_thinking_that_was_cut_before_logging_is_reported(tmp_path):
    rows = [
        lm_eval(0, f"<think>{thoughts(90)}</think> 1", 1.0),
        lm_eval(1, "The answer is 2", 1.0),
        lm_eval(2, "", 0.0),
    ]
    path = write(tmp_path / "samples_sums.jsonl", rows)
    with told(
        "1 of 3 answers have no tokens at all",
        "2 of 3 lengths were counted from texts that show no thinking",
    ):
        table = read_traces(path, **SAID, **WORDS)
    assert table["tokens_out"].tolist() == [92, 4, 0]
    assert table["answer"].tolist() == ["1", "2", ""]


def test_the_harness_through_a_chat_api(tmp_path):
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What is 1 + 1?", "type": "text"},
    ]
    rows = [
        lm_eval(
            1, f"{thoughts(5)}</think> 2", 1.0, arguments={"gen_args_0": {"arg_0": [json.dumps(messages)]}}
        )
    ]
    table = read_traces(write(tmp_path / "samples_sums.jsonl", rows), **SAID, **WORDS)
    assert table[["tokens_in", "tokens_out"]].to_numpy().tolist() == [[7, 7]]
    bad = [lm_eval(1, "2", 1.0, arguments={"gen_args_0": {"arg_0": ["no JSON"]}})]
    with refused(":1: arguments must hold the prompt's text first; got {'gen_args_0'"):
        read_traces(write(tmp_path / "samples_sums.jsonl", bad), **SAID, **WORDS)


def test_a_metric_that_is_no_verdict(tmp_path):
    rows = [lm_eval(1, "2", ["gold", ["predicted"]])]
    with refused(":1: 1 answers but 2 value of em: which answers are right is not logged"):
        read_traces(write(tmp_path / "samples_sums.jsonl", rows), **SAID, **WORDS)


# --- verdicts, samples, prompts ------------------------------------------------------------------


def row(i, **values):
    base = {
        "problem": f"p{i % 2}",
        "tokens_in": 20,
        "tokens_out": 100 + i,
        "correct": i % 3 == 0,
        "truncated": False,
    }
    return SAID | base | values


@pytest.mark.parametrize("scores", [(1, 100), (0, 1, 0, 100.0), ("100", 0, "1")])
def test_one_of_one_and_one_of_a_hundred_in_one_file(tmp_path, scores):
    path = write(tmp_path / "t.jsonl", [row(i, correct=score) for i, score in enumerate(scores)])
    first = next(i for i, score in enumerate(scores, 1) if float(score))
    message = f"{path}:{len(scores)}: correct is {scores[-1]} here and {100 if float(scores[-1]) == 1 else 1} at {path}:{first}: "
    with refused(message):
        read_traces(path, skip_bad=9)


def test_each_file_has_its_own_scale(tmp_path):
    one = write(tmp_path / "a.jsonl", [row(0, correct=1), row(1, correct=0)])
    other = write(tmp_path / "b.jsonl", [row(0, correct=100), row(1, correct=0), row(2, correct=True)])
    assert read_traces([one, other])["correct"].tolist() == [True, False, True, False, True]


def test_equal_samples_are_samples_and_a_copied_line_is_not(tmp_path):
    long = thoughts(300)
    lines = [chat({"content": text}, usage={"prompt_tokens": 5, "completion_tokens": 300}, id=f"c{i}", correct=[i % 2])
             for i, text in enumerate([long, long, "other " + long, long])]  # fmt: skip
    with told("2 of 4 answers equal an earlier one to the same problem, word for word"):
        table = read_traces(write(tmp_path / "log.jsonl", lines), **SAID)
    assert summarize(table)[["n_traces", "n_correct"]].to_numpy().tolist() == [[4, 2]]
    path = write(tmp_path / "log.jsonl", [*lines, lines[1]])
    with refused(f"{path}:5: a copied line: the same answer to the same request as {path}:2"):
        read_traces(path, **SAID)
    rerun = [
        line | {"choices": chat({"content": "other"})["choices"]} for line in lines[:1]
    ]  # ids begin anew in a new run
    with told("2 of 5 answers equal"):
        assert len(read_traces(write(tmp_path / "log.jsonl", lines + rerun), **SAID)) == 5


def test_a_prompt_has_the_longest_length_that_is_reported(tmp_path):
    path = write(tmp_path / "t.jsonl", [row(i, tokens_in=[20, 0, 0, 20][i]) for i in range(4)])
    with told(f"the prompt has several lengths in 2 problems (a cache, or another template), the longest is taken: problem p1 has 0 tokens at {path}:2 and 20 elsewhere"):  # fmt: skip
        table = read_traces(path)
    assert table["tokens_in"].tolist() == [20] * 4
    with refused(f"{path}:1: tokens_in must be >= 1 in a trace of problem p0; got 0"):
        read_traces(write(path, [row(0, tokens_in=0), row(2, tokens_in=0)]))


# --- requests ------------------------------------------------------------------------------------


def batch(name, **values):
    body = chat({"content": "7"}, usage={"prompt_tokens": 9, "completion_tokens": 5})
    line = {
        "id": f"batch_req_{name}",
        "custom_id": name,
        "response": {"status_code": 200, "body": body},
        "error": None,
    }
    del body["prompt"], body["correct"]
    body["id"] = f"chatcmpl-{name}"
    return line | {"correct": 1} | values


def test_a_batch_names_its_problems_and_its_failed_requests(tmp_path):
    lines = [
        batch("q1"),
        batch("q2", response=None, error={"code": "rate_limit", "message": "slow down"}),
        batch("q3"),
    ]
    lines += [batch("q4", response={"status_code": 429, "body": {"error": {"message": "too many"}}})]
    path = write(tmp_path / "out.jsonl", lines)
    with refused(
        f"{path}:2: the request 'q2' failed ({{'code': 'rate_limit', 'message': 'slow down'}}); skip_bad leaves it out"
    ):
        read_traces(path, **SAID)
    with told("skipped 2 bad lines"):
        assert read_traces(path, **SAID, skip_bad=2)["problem"].tolist() == ["q1", "q3"]


def test_the_responses_api(tmp_path):
    items = [
        {"type": "reasoning", "summary": []},
        {"type": "message", "content": [{"type": "output_text", "text": "7"}]},
    ]
    body = {
        "id": "r1",
        "object": "response",
        "model": "o",
        "status": "completed",
        "output": items,
        "problem": "p",
    }
    usage = {
        "input_tokens": 9,
        "output_tokens": 900,
        "total_tokens": 909,
        "output_tokens_details": {"reasoning_tokens": 890},
    }
    cut = {
        "id": "r2",
        "status": "incomplete",
        "incomplete_details": {"reason": "max_output_tokens"},
        "correct": 0,
    }
    lines = [body | {"usage": usage, "correct": 1}, body | {"usage": usage} | cut]
    with told():
        table = read_traces(write(tmp_path / "log.jsonl", lines), **SAID)
    assert table[["tokens_out", "correct", "truncated"]].to_numpy().tolist() == [
        [900, True, False],
        [900, False, True],
    ]


def test_anthropic_messages_and_their_batches(tmp_path):
    content = [{"type": "thinking", "thinking": thoughts(9)}, {"type": "text", "text": "7"}]
    message = {"id": "msg_1", "model": "claude", "content": content, "stop_reason": "max_tokens"}
    message |= {"usage": {"input_tokens": 3, "output_tokens": 12, "cache_read_input_tokens": 30}}
    lines = [{"custom_id": "q1", "result": {"type": "succeeded", "message": message}, "correct": 0}]
    lines += [
        {"custom_id": "q2", "result": {"type": "errored", "error": {"type": "overloaded"}}, "correct": 0}
    ]
    path = write(tmp_path / "batch.jsonl", lines)
    with refused(f"{path}:2: the request 'q2' failed"):
        read_traces(path, **SAID)
    with told("skipped 1 bad lines"):
        table = read_traces(path, **SAID, skip_bad=1)
    assert table[["problem", "tokens_in", "tokens_out", "truncated"]].to_numpy().tolist() == [
        ["q1", 33, 12, True]
    ]
    alone = message | {"problem": "p", "correct": 1}
    assert read_traces(write(path, [alone]), **SAID)["tokens_in"].tolist() == [33]


def test_a_conversation_is_one_prompt_and_its_system_message_none(tmp_path):
    asked = [
        {"role": "user", "content": "How long?"},
        {"role": "assistant", "content": "12?"},
        {"role": "user", "content": "Yes."},
    ]
    system = {"role": "system", "content": "Be brief."}
    conversations = [asked, [{"role": "user", "content": "Yes."}], [system, *asked]]
    lines = [chat({"content": "7"}, prompt=None, messages=m, usage={"prompt_tokens": 9, "completion_tokens": 5}, id=str(i))
             for i, m in enumerate(conversations)]  # fmt: skip
    problems = read_traces(write(tmp_path / "log.jsonl", lines), **SAID)["problem"].tolist()
    assert problems == [
        problem_id("How long? 12? Yes."),
        problem_id("Yes."),
        problem_id("How long? 12? Yes."),
    ]


def test_a_row_with_a_text_in_response_is_no_request(tmp_path):
    path = write(tmp_path / "t.jsonl", [{"q": "What?", "response": thoughts(7), "score": 1}])
    with refused("no known format; say format=... (evalscope, inspect,"):
        read_traces(path, **SAID, **WORDS)
    with told("1 of 1 lengths were counted from texts"):
        table = read_traces(
            path, **SAID, **WORDS, columns={"q": "prompt", "response": "text", "score": "correct"}
        )
    assert table[["problem", "tokens_in", "tokens_out"]].to_numpy().tolist() == [[problem_id("What?"), 1, 7]]


# --- Inspect, evalscope --------------------------------------------------------------------------


def sample(name, epoch, value, **values):
    message = {
        "role": "assistant",
        "content": [{"type": "reasoning", "reasoning": thoughts(40)}, {"type": "text", "text": "ANSWER: 7"}],
    }
    usage = {"input_tokens": 30, "output_tokens": 44, "total_tokens": 74, "reasoning_tokens": 40}
    made = {
        "id": name,
        "epoch": epoch,
        "uuid": f"u{name}-{epoch}",
        "input": "What?",
        "target": "7",
        "metadata": {},
    }
    made |= {"messages": [{"role": "user", "content": "What is 3 + 4?"}, message], "attachments": {}}
    made |= {
        "output": {
            "model": "m-2025",
            "choices": [{"message": message, "stop_reason": "stop"}],
            "usage": usage,
        }
    }
    made |= {
        "model_usage": {
            "lab/M": usage,
            "lab/judge": {"input_tokens": 900, "output_tokens": 80, "total_tokens": 980},
        }
    }
    return made | {"scores": {"match": {"value": value, "answer": "7"}}} | values


LOG = {
    "version": 2,
    "status": "success",
    "eval": {"task": "sums", "model": "lab/M", "run_id": "r"},
    "stats": {},
}


def inspect_file(path, samples):
    if path.suffix == ".eval":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("header.json", json.dumps(LOG))
            archive.writestr("summaries.json", "[]")
            for one in samples:
                archive.writestr(f"samples/{one['id']}_epoch_{one['epoch']}.json", json.dumps(one))
    else:
        path.write_text(json.dumps(LOG | {"samples": samples}, indent=2))
    return path


@pytest.mark.parametrize("kind", ["json", "eval"])
def test_inspect(tmp_path, kind):
    samples = [sample("a", 1, "C"), sample("a", 2, "I"), sample(7, 1, 1.0), sample(7, 2, "N")]
    samples[1]["output"]["choices"][0]["stop_reason"] = "max_tokens"
    path = inspect_file(tmp_path / f"log.{kind}", samples)
    with told():
        table = read_traces(path, policy="dense")
    assert table.to_dict("list") == {
        "model": ["m"] * 4, "task": ["sums"] * 4, "problem": ["a", "a", "7", "7"], "trial": [0, 1, 0, 1], "policy": ["dense"] * 4,
        "tokens_in": [30] * 4, "tokens_out": [44] * 4, "correct": [True, False, True, False],
        "truncated": [False, True, False, False], "answer": ["7"] * 4,
    }  # fmt: skip
    again = inspect_file(tmp_path / f"copy.{kind}", samples)
    with refused(f"{again}:1: a copied line: the same answer to the same request as {path}:1"):
        read_traces([path, again], policy="dense")


BAD_SAMPLES = [
    ({"scores": {}}, "sample a has no score: score the log first (inspect score LOG)"),
    ({"scores": None}, "sample a has no score"),
    ({"scores": {"match": {"value": "P"}}}, "match must be 0, 1 or 100 (or true, false); got 'P'"),
    ({"scores": {"match": {"value": "C"}, "judge": {"value": "I"}}}, "which score says that an answer is right? give metric=..., one of match, judge"),
    ({"error": {"message": "timed out"}}, "sample a failed ({'message': 'timed out'}); skip_bad leaves it out"),
    ({"messages": [{"role": "assistant", "content": "x"}] * 3}, "sample a called its model 3 times: that is no one answer to a prompt"),
    ({"output": {"choices": []}}, "output.choices must hold one answer; got []"),
    ({"output": "none"}, "output must be a JSON object; got 'none'"),
]  # fmt: skip


@pytest.mark.parametrize(("values", "message"), BAD_SAMPLES, ids=[m[:40] for _, m in BAD_SAMPLES])
def test_what_is_wrong_with_a_sample(tmp_path, values, message):
    path = inspect_file(tmp_path / "log.json", [sample("b", 1, "C"), sample("a", 1, "C", **values)])
    with refused(f"{path}:2: {message}"):
        read_traces(path, policy="dense")


def test_an_inspect_log_without_counts_is_counted(tmp_path):
    bare = sample("a", 1, "C")
    bare["output"]["usage"] = None
    bare["attachments"] = {"f00": "one two three"}
    bare["messages"][0]["content"] = "attachment://f00"
    with told():  # its reasoning is in it
        table = read_traces(inspect_file(tmp_path / "log.json", [bare]), policy="dense", **WORDS)
    assert table[["tokens_in", "tokens_out"]].to_numpy().tolist() == [[3, 42]]


def test_archives_that_are_no_logs(tmp_path):
    path = tmp_path / "log.eval"
    path.write_bytes(b"no archive")
    with refused(f"{path}: no log of Inspect that can be read here (File is not a zip file)"):
        read_traces(path, policy="dense")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("other.json", "{}")
    with refused("an archive without header.json is no log of Inspect"):
        read_traces(path, policy="dense")
    inspect_file(path, [sample("a", 1, "C")])
    data = bytearray(path.read_bytes())
    for at in [m.start() + 10 for m in re.finditer(rb"PK\x01\x02", data)]:
        data[at : at + 2] = (93).to_bytes(2, "little")  # Zstandard
    path.write_bytes(data)
    with refused("to convert one: inspect log convert LOG --to json"):
        read_traces(path, policy="dense")


def test_archives_that_are_encrypted_or_damaged_are_one_sentence(tmp_path):
    """Whatever zipfile and the four packings of its members raise: a few bytes are changed in each."""
    path = tmp_path / "log.eval"
    inspect_file(path, [sample("a", 1, "C"), sample("b", 1, "I")])
    data = bytearray(path.read_bytes())
    for at in [m.start() + 8 for m in re.finditer(rb"PK\x01\x02", data)]:
        data[at] |= 1
    path.write_bytes(data)
    with refused(
        "is encrypted, password required for extraction); to convert one: inspect log convert LOG --to json"
    ):
        read_traces(path, policy="dense")
    draw = random.Random(1)
    for packing in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        inspect_file(path, [sample("a", 1, "C")])
        with zipfile.ZipFile(path) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        with zipfile.ZipFile(path, "w", packing) as archive:
            for name, content in members.items():
                archive.writestr(name, content)
        whole, found = path.read_bytes(), set()
        for _ in range(60):
            data = bytearray(whole)
            data[draw.randrange(len(data))] = draw.randrange(256)
            path.write_bytes(data)
            try:
                found.add(len(read_traces(path, policy="dense")))
            except ValueError as error:
                found.add("refused" if str(error).startswith(f"{path}:") else str(error))
        assert found == {1, "refused"}


def review(index, right, text="It is 7."):
    score = {"value": {"acc": right}, "extracted_prediction": "7", "prediction": text}
    return {
        "index": index,
        "input": f"What is {index} + 1?",
        "target": "7",
        "sample_score": {"score": score, "sample_id": index},
    }


def prediction(index, tokens):
    message = {
        "id": f"m{index}",
        "content": [
            {"type": "reasoning", "reasoning": thoughts(tokens)},
            {"type": "text", "text": "It is 7."},
        ],
    }
    usage = {"input_tokens": 12, "output_tokens": tokens, "total_tokens": 12 + tokens}
    return {
        "index": index,
        "model": "M",
        "model_output": {"choices": [{"message": message, "stop_reason": "stop"}], "usage": usage},
    }


def test_evalscope_counts_what_its_predictions_say(tmp_path):
    reviews = write(tmp_path / "reviews" / "M-7B" / "sums.jsonl", [review(5, 1.0), review(3, 0.0)])
    with told("2 of 2 lengths were counted from texts that show no thinking"):
        alone = read_traces(reviews, policy="dense", **WORDS)
    assert alone["tokens_out"].tolist() == [3, 3]
    predictions = write(
        tmp_path / "predictions" / "M-7B" / "sums.jsonl", [prediction(3, 900), prediction(5, 4000)]
    )
    with told():
        table = read_traces(reviews, policy="dense")
    assert table[["model", "task", "tokens_in", "tokens_out", "correct", "answer"]].to_numpy().tolist() == [
        ["m-7b", "sums", 12, 4000, True, "7"],
        ["m-7b", "sums", 12, 900, False, "7"],
    ]
    with refused(f"{predictions}:1: evalscope's predictions hold no verdicts; give reviews/MODEL/TASK.jsonl"):
        read_traces(predictions, policy="dense")


def test_evalscope_before_1_0(tmp_path):
    choice = {
        "message": {"content": f"{thoughts(20)}</think> 7"},
        "finish_reason": "stop",
        "review": {"gold": "7", "pred": "7", "result": True},
    }
    line = {
        "choices": [choice],
        "model": "M",
        "messages": [{"role": "user", "content": "What is 3 + 4?"}],
        "index": 0,
    }
    table = read_traces(write(tmp_path / "t.jsonl", [line]), task="sums", policy="dense", **WORDS)
    assert table[["model", "tokens_in", "tokens_out", "correct"]].to_numpy().tolist() == [["m", 5, 22, True]]


# --- documents, tables, what is not read ---------------------------------------------------------

ROWS = [row(i) for i in range(6)]


@pytest.mark.parametrize(
    "document",
    [
        ROWS,
        {"results": ROWS, "accuracy": 0.5, "config": {"seed": 1}},
        {"model": "m", "runs": [{k: v for k, v in r.items() if k != "model"} for r in ROWS]},
        {str(i): r for i, r in enumerate(ROWS)},
        {name: [r[name] for r in ROWS] for name in ROWS[0]},
    ],
    ids=["list", "object around a list", "its model", "object of objects", "columns"],
)
@pytest.mark.parametrize("indent", [None, 2])
def test_whole_documents(tmp_path, document, indent):
    want = read_traces(write(tmp_path / "t.jsonl", ROWS))
    path = tmp_path / "t.json"
    path.write_text(json.dumps(document, indent=indent))
    pd.testing.assert_frame_equal(read_traces(path), want)
    packed = tmp_path / "t.json.gz"
    packed.write_bytes(gzip.compress(b"\xef\xbb\xbf" + path.read_bytes()))
    pd.testing.assert_frame_equal(read_traces(packed), want)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"eval": {"task": "t"}, "samples": [7]}', ":1: each entry must be a JSON object; got 7"),
        ('{"rows": [{"a": 1}, 7]}', ":1: no known format; say"),
        ("[1, 2]", ":1: each entry must be a JSON object; got 1"),
        ("3", ":1: each line must be a JSON object; got 3"),
        ("[{\n", ":1: not a JSON object but '[{' ("),
        ("\n \n", ": no trials in it"),
    ],
)
def test_documents_that_hold_no_records(tmp_path, text, message):
    path = tmp_path / "t.json"
    path.write_text(text)
    with refused(f"{path}{message}"):
        read_traces(path)


def test_blank_lines_are_no_records_but_count_as_lines(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text("\n" + "\n \n".join(map(json.dumps, ROWS)) + "\n\n")
    assert len(read_traces(path)) == len(ROWS)
    path.write_text("\n" + json.dumps(ROWS[0]) + "\n\n" + json.dumps(ROWS[1] | {"tokens_out": "x"}))
    with refused(f"{path}:4: tokens_out must be a whole number >= 0; got 'x'"):
        read_traces(path)


def test_any_table_by_a_map_of_its_columns(tmp_path):
    theirs = {
        "question_id": "q7",
        "gen": {"usage": {"prompt_tokens": 9, "completion_tokens": 50}, "stop": "length"},
        "is_right": "True",
        "pred": "070",
    }
    path = write(tmp_path / "t.jsonl", [theirs, theirs | {"is_right": "False", "pred": "70."}])
    columns = {"question_id": "problem", "is_right": "correct", "gen.usage.prompt_tokens": "tokens_in"}
    columns |= {"gen.usage.completion_tokens": "tokens_out", "gen.stop": "finish_reason", "pred": "answer"}
    table = read_traces(path, **SAID, columns=columns)
    assert table[
        ["problem", "tokens_in", "tokens_out", "correct", "truncated", "answer"]
    ].to_numpy().tolist() == [
        ["q7", 9, 50, True, True, "70"],
        ["q7", 9, 50, False, True, "70"],
    ]
    with refused(
        f"{path}:1: no column 'gen.tokens' to map to tokens_out (found: question_id, gen, is_right, pred)"
    ):
        read_traces(path, **SAID, columns=columns | {"gen.tokens": "tokens_out"})
    with refused("columns: a column of ours 'token' is not known; did you mean tokens_in, tokens_out?"):
        read_traces(path, **SAID, columns={"pred": "token"})


def test_a_row_may_hold_all_answers_to_its_problem(tmp_path):
    many = {
        "problem": "p",
        "prompt": "one two",
        "text": ["a b", "a b c </think>", ""],
        "correct": [1, 0, 0],
        "answer": ["1", "2", None],
    }
    path = write(tmp_path / "t.jsonl", [many, many | {"problem": "q", "text": ["a"]}])
    with refused(f"{path}:2: text must have a value for each of the 3 verdicts; got 1"):
        read_traces(path, **SAID, **WORDS)
    pd.DataFrame([many]).to_parquet(tmp_path / "t.parquet")
    for one in (write(path, [many]), tmp_path / "t.parquet"):
        with told("1 of 3 answers have no tokens", "2 of 3 lengths were counted"):
            table = read_traces(one, **SAID, **WORDS)
        assert table[["trial", "tokens_in", "tokens_out", "correct", "answer"]].to_numpy().tolist() == [
            [0, 2, 2, True, "1"], [1, 2, 4, False, "2"], [2, 2, 0, False, ""],
        ]  # fmt: skip


def test_tables_with_tabs(tmp_path):
    path = tmp_path / "t.tsv"
    pd.DataFrame(ROWS).to_csv(path, sep="\t", index=False)
    pd.testing.assert_frame_equal(read_traces(path), read_traces(write(tmp_path / "t.jsonl", ROWS)))


OTHERS = [
    ({"custom_id": "a", "method": "POST", "url": "/v1", "body": {}}, "the requests of a batch: not read; give the batch's output"),
    ({"request_throughput": 3.5, "input_lens": [1], "output_lens": [2]}, "a serving benchmark of vLLM or SGLang, which grades nothing"),
    ({"id": "x", "conversations": []}, "training conversations (ShareGPT)"),
    ({"request_states": [], "adapter_spec": {}}, "HELM's scenario state"),
    ({"0": {"origin_prompt": "q", "prediction": "p", "gold": 1}, "1": {"origin_prompt": "q", "prediction": "p"}}, "OpenCompass predictions"),
    ({"spec": {"completion_fns": ["m"]}, "run_id": 1}, "a log of OpenAI evals"),
    ({"problem": "p", "n": 8, "correct": 3, "mean tokens": 50}, "counts, not traces: plan --traces takes this file as it is"),
    ({"instance_id": "x", "model_patch": ""}, "SWE-bench predictions"),
    ({"task_id": "HumanEval/0", "completion": "", "passed": True}, "HumanEval samples"),
    ({"results": {}, "configs": {}, "versions": {}, "date": 1.5}, "results of lm-evaluation-harness: not read; run it with --log_samples"),
    ({"question_id": 81, "answer_id": "x", "choices": [{"index": 0, "turns": ["a"]}]}, "answers of MT-bench"),
    ({"task_id": 1, "reward": 0.0, "info": {}, "traj": [], "trial": 0}, "trajectories of tau-bench"),
    ({"full_prompt": "", "gold": "", "predictions": ""}, "details of lighteval"),
    (LOG, "an Inspect log without samples: not read"),
]  # fmt: skip


@pytest.mark.parametrize(("record", "message"), OTHERS, ids=[m[:30] for _, m in OTHERS])
def test_what_is_not_read_is_refused_by_name(tmp_path, record, message):
    path = tmp_path / "t.json"
    path.write_text(json.dumps(record))
    with refused(f"{path}:1: {message}"):
        read_traces(path, **SAID, **WORDS, skip_bad=9)


# --- limits of memory ----------------------------------------------------------------------------


def test_one_sentence_where_memory_would_not_do(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "LONGEST", 2**20)
    how = "which would have to be in memory; a document can be written as lines: jq -c"
    for name, text in (("t.jsonl", '{"a": 1}\n{"a": "%s"}\n'), ("t.csv", 'problem\n"%s"\n')):
        path = tmp_path / name
        path.write_text(text % ("x" * 2**20))
        with refused(f"{path}: line 2 is longer than 1 MiB, {how}"):
            read_traces(path, skip_bad=9, **SAID)
    path = tmp_path / "t.json"
    path.write_text(json.dumps(ROWS * 2000))
    with refused(f"{path}: line 1 is longer than 1 MiB, {how}"):
        read_traces(path)
    path.write_text(json.dumps(ROWS * 2000, indent=1))
    with refused(f"{path}: line 1 is no JSON object, and as a document the file has over 1 MiB, {how}"):
        read_traces(path)
    small = tmp_path / "t.jsonl.gz"  # what counts is what comes out of it
    small.write_bytes(gzip.compress(b'{"a": 1}\n{"a": "' + b"x" * 2**20 + b'"}\n'))
    assert small.stat().st_size < 2**12
    with refused(f"{small}: line 2 is longer than 1 MiB, {how}"):
        read_traces(small, skip_bad=9, **SAID)
    log = tmp_path / "t.eval"
    with zipfile.ZipFile(log, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("header.json", '{"eval": {}}')
        archive.writestr("samples/a.json", json.dumps({"a": "x" * 2**20}))
    with refused(f"{log}:1: samples/a.json is larger than 1 MiB"):
        read_traces(log)
    with zipfile.ZipFile(log, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("header.json", '{"eval": {"a": "%s"}}' % ("x" * 2**20))
    with refused("header.json is larger than 1 MiB"):
        read_traces(log)
    monkeypatch.setattr(sources, "MOST", 5)
    pd.DataFrame(ROWS).to_parquet(tmp_path / "t.parquet")
    with refused("6 rows; at most 5 fit into the memory of one table"):
        read_traces(tmp_path / "t.parquet")


def test_a_text_that_every_row_repeats_does_not_fill_the_memory(tmp_path, monkeypatch):
    """A dictionary of one text of 300 kB, named by each of 20,000 rows, would be 6 GB of them at once."""
    monkeypatch.setattr(sources, "LONGEST", 2**20)
    path, text = tmp_path / "t.parquet", "x" * 300_000
    for packed, version in itertools.product(("snappy", "zstd"), ("1.0", "2.0")):
        table = pa.table(
            {"n": range(20_000), "text": pa.DictionaryArray.from_arrays([1] * 19_999 + [0], ["", text])}
        )
        pq.write_table(table, path, compression=packed, data_page_version=version)
        assert path.stat().st_size < 2**18
        read, most = 0, 0
        with path.open("rb") as file:
            parquet = pq.ParquetFile(file)
            size = sources._rows_at_once(file, parquet.metadata)
            batch = next(parquet.iter_batches(batch_size=size))
            most = batch.nbytes
        with path.open("rb") as file:
            read = sum(record["n"] for _, record in itertools.islice(sources.records(file), 100))
        assert size == 4 * 2**20 // 300_008
        assert most <= 4 * 2**20 + 2**12
        assert read == sum(range(100))
    monkeypatch.setattr(sources, "LONGEST", 2**18)
    with refused("column 'text' has a dictionary of more than 0 MiB"):
        read_traces(path)
    pq.write_table(pa.table({"text": ["x" * 1000 + str(i) for i in range(5000)]}), path, use_dictionary=False, compression="zstd")  # fmt: skip
    with refused("column 'text' holds 4 MiB in one row group, over 100 times its size in the file, which no text does; above 2 MiB"):  # fmt: skip
        read_traces(path)


def test_too_many_different_answers_leave_the_column_out(tmp_path, monkeypatch):
    path = write(tmp_path / "t.jsonl", [row(i, answer=str(i)) for i in range(6)])
    assert read_traces(path)["answer"].tolist() == list("012345")
    monkeypatch.setattr(read, "_MOST_ANSWERS", 5)
    with told("more than 5 different final answers: the table has no column answer"):
        assert "answer" not in read_traces(path)


@pytest.mark.parametrize("problem", ["a\x1b[31m", "\ud800"])
def test_names_that_no_terminal_should_show(tmp_path, problem):
    path = write(tmp_path / "t.jsonl", [row(0), row(1, problem=problem)])
    with refused(f"{path}:2: problem must be text without escapes or surrogates; got {problem!r}"):
        read_traces(path)


# --- properties ----------------------------------------------------------------------------------

TRACES = st.lists(
    st.tuples(st.integers(0, 2), st.integers(0, 9000), st.booleans(), st.booleans(), st.sampled_from(["", "7", "x y"])),
    min_size=1, max_size=12,
)  # fmt: skip


@given(traces=TRACES)
def test_reading_writing_and_reading_again_changes_nothing(tmp_path_factory, traces):
    rows = [
        row(0, problem=f"p{p}", tokens_in=9 + p, tokens_out=n, correct=c, truncated=t, answer=a)
        for p, n, c, t, a in traces
    ]
    folder = tmp_path_factory.mktemp("again")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        first = read_traces(write(folder / "t.jsonl", rows))
        again = read_traces(write_traces(first, folder / "t.parquet"))
        first.to_csv(folder / "t.csv", index=False)
        third = read_traces(folder / "t.csv")
    for table in (again, third):
        pd.testing.assert_frame_equal(table, check_traces(first))
    assert first["tokens_out"].tolist() == [n for _, n, *_ in traces]


FILES = {
    "table": [row(i, tokens_in=[20, 0, 5][i % 3]) for i in range(8)],
    "lm-eval": [lm_eval(i, thoughts(10 + i), float(i % 2)) for i in range(6)],
    "requests": [chat({"content": thoughts(i)}, usage={"prompt_tokens": 9 - i % 2, "completion_tokens": i + 1}, id=f"c{i}", correct=[i % 2]) for i in range(6)],
    "evalscope": [review(i % 3, float(i % 2), thoughts(i + 3)) for i in range(6)],
}  # fmt: skip


@pytest.mark.parametrize("kind", FILES)
@given(seed=st.integers(0, 999))
def test_the_order_of_lines_does_not_matter(tmp_path_factory, kind, seed):
    folder, lines = tmp_path_factory.mktemp("order"), list(FILES[kind])
    name = folder / "samples_sums.jsonl"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        want = summarize(read_traces(write(name, lines), **SAID, **WORDS))
        random.Random(seed).shuffle(lines)
        found = summarize(read_traces(write(name, lines), **SAID, **WORDS))
    pd.testing.assert_frame_equal(found, want)
    assert want["n_traces"].sum() == len(lines)


def places(value, at=()):
    """The places of all values in a record."""
    yield at
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in inside:
        yield from places(part, (*at, key))


RECORDS = [
    lm_eval(1, "a b", 1.0), chat({"content": "7", "reasoning": "x"}, usage={"prompt_tokens": 9, "completion_tokens": 5}), batch("q"),
    sample("a", 1, "C") | {"eval": LOG["eval"]}, review(1, 1.0), row(1),
    {"object": "response", "output": [{"content": [{"text": "7"}]}], "usage": {"input_tokens": 1, "output_tokens": 2}, "status": "completed", "problem": "p", "correct": 1},
]  # fmt: skip
JUNK = st.sampled_from(
    [None, True, 3, -1.5, float("nan"), 10**400, "", "x", "\ud800", [], {}, [[]], [None], {"a": {}}, ["x", 3]]
)


@given(record=st.sampled_from(RECORDS), value=JUNK, which=st.integers(0, 10**6))
def test_a_value_of_any_kind_in_any_place_is_no_more_than_a_bad_line(tmp_path_factory, record, value, which):
    every = list(places(record))[1:]
    *way, last = every[which % len(every)]
    broken = deepcopy(record)
    part = broken
    for step in way:
        part = part[step]
    part[last] = value
    path = write(tmp_path_factory.mktemp("junk") / "samples_sums.jsonl", [record, broken])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            read_traces(path, **SAID, **WORDS)
        except ValueError as error:
            assert str(error).startswith(str(path.parent)) and "\n" not in str(error)  # noqa: PT018, PT017
