"""How fast and in how much memory traces are read and summarised: `python benchmarks/traces.py [--full]`.

Three jobs, each in a process of its own, so that its peak memory is its own: a trace table of 10^6 rows is
summarised at 16 caps; a file in the published layout (long texts) is read; a server's log (short lines, counts
only) is read; chats with reasoning beside the answer are read. The files are synthetic, 200 MB each, with --full 2 GB,
written to a temporary folder. Seconds are a processor's, so that other work on the machine does not count. Exits with 1
where a limit of the project is missed: 20 s and 2 GB for the table, 1 GB of memory for a file of any size.
"""

import argparse
import json
import multiprocessing
import resource
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd

from kinetics_lab.traces.read import read_traces
from kinetics_lab.traces.table import summarize

N_PROBLEMS = 30


def peak_memory():
    """Largest memory this process ever held, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def summarize_a_million():
    rng, n = np.random.default_rng(0), 10**6
    table = pd.DataFrame(
        {
            "model": rng.choice(["qwen3-0.6b", "qwen3-8b", "qwen3-32b"], n),
            "task": "synthetic",
            "problem": rng.choice([f"p{i:03}" for i in range(100)], n),
            "trial": np.arange(n),
            "policy": rng.choice(["dense", "topk:512", "block_topk:512:32"], n),
            "tokens_in": 200,
            "tokens_out": rng.integers(1, 32_768, n),
            "correct": rng.random(n) < 0.4,
            "truncated": False,
        }
    )
    start = time.process_time()
    found = summarize(table, caps=range(2048, 32_769, 2048))
    return f"{n:,} rows, 16 caps -> {len(found):,} rows", time.process_time() - start, peak_memory()


def write_published_layout(folder, size):
    """Long texts: about 40 kB a line, all different."""
    path = folder / "synthetic_qwen3-8b_dense.jsonl"
    words = " ".join(f"word{i}" for i in range(5000))
    with path.open("w") as file:
        file.write(json.dumps({"task": "synthetic", "pass@1": 50.0}) + "\n")
        line = 0
        while file.tell() < size or line % N_PROBLEMS:
            answer = {"prediction": [f"{line} {words}"], "score": 100.0 * (line % 2)}
            row = {"query": f"Question number {line % N_PROBLEMS}?", "choices": ["4"]} | answer
            file.write(json.dumps(row) + "\n")
            line += 1
    return path


def write_server_log(folder, size):
    """Short lines: counts only, about 250 bytes each."""
    path = folder / "log.jsonl"
    with path.open("w") as file:
        line = written = 0
        while written < size or line % N_PROBLEMS:
            usage = f'{{"prompt_tokens": 200, "completion_tokens": {1 + line % 32_000}, "total_tokens": 0}}'
            written += file.write(
                f'{{"id": "cmpl-{line:09}-0123456789abcdef", "object": "text_completion", "model": "tiny", "problem": '
                f'{line % N_PROBLEMS}, "choices": [{{"index": 0, "finish_reason": "stop"}}], "usage": {usage}, '
                f'"correct": {line % 2}}}\n'
            )
            line += 1
    return path


def write_chats(folder, size):
    """Lines of about 8 kB: reasoning and answer of a chat, with the server's counts."""
    path = folder / "chats.jsonl"
    thoughts = " ".join(f"thought{i}" for i in range(700))
    with path.open("w") as file:
        line = written = 0
        while written < size or line % N_PROBLEMS:
            message = {
                "role": "assistant",
                "reasoning_content": f"{line} {thoughts}",
                "content": f"It is {line % 7}.",
            }
            usage = {
                "prompt_tokens": 200,
                "completion_tokens": 2100 + line % 99,
                "total_tokens": 2300 + line % 99,
            }
            row = {
                "id": f"chat-{line}",
                "model": "tiny",
                "problem": line % N_PROBLEMS,
                "usage": usage,
                "correct": line % 2,
            }
            row["choices"] = [{"index": 0, "message": message, "finish_reason": "stop"}]
            written += file.write(json.dumps(row) + "\n")
            line += 1
    return path


def read(path):
    start = time.process_time()
    options = {"tokenizer": lambda text: text.count(" "), "limit": 30_000}
    if path.name in ("log.jsonl", "chats.jsonl"):
        options = {"task": "synthetic", "policy": "dense"}
    table = read_traces(path, **options)
    seconds = time.process_time() - start
    size = path.stat().st_size
    share = f"peak memory {peak_memory() / size:.2f} of the file"
    return (
        f"{size / 1e6:,.0f} MB, {len(table):,} trials, {size / 1e6 / seconds:.0f} MB/s, {share}",
        seconds,
        peak_memory(),
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true", help="files of 2 GB instead of 200 MB")
    size = 2 * 10**9 if parser.parse_args().full else 2 * 10**8
    missed = False

    def run(name, most_seconds, most_bytes, job, *arguments):
        nonlocal missed
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            what, seconds, memory = pool.submit(job, *arguments).result()
        kept = seconds <= most_seconds and memory <= most_bytes
        missed |= not kept
        limit = f"limit {most_seconds:g} s, {most_bytes / 1e9:g} GB: {'kept' if kept else 'MISSED'}"
        print(f"{name}: {what}; {seconds:.1f} s, peak {memory / 1e9:.2f} GB ({limit})", flush=True)

    run("table", 20, 2e9, summarize_a_million)
    kinds = {"published layout": write_published_layout, "server log": write_server_log, "chats": write_chats}
    for name, write in kinds.items():
        with tempfile.TemporaryDirectory() as folder:
            run(name, float("inf"), 1e9, read, write(Path(folder), size))
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
