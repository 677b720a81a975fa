"""What keeps a machine busy: measuring it, training and sampling tiny models, sampling a Hugging Face model."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from kinetics_lab.cli.shared import NONE, Policy, names
from kinetics_lab.errors import among, lookup, require


def measure(
    *,
    suite: Annotated[str, Option(help="all, or a list: roofline,dense,topk,layer,ragged,validate,fp8,model")] = "all",
    out: Annotated[Path, Option("-o", "--out", help="folder of the rows")] = Path("data", "measurements"),
    budget_seconds: Annotated[float, Option(help="start no case beyond")] = float("inf"),
    dry_run: Annotated[bool, Option("--dry-run", help="list cases, limits, seconds and memory; needs no GPU")] = False,
    gpu: Annotated[str, Option(help="of a dry run: nvidia-a100, nvidia-l40s (this machine's, or else nvidia-h200)")] = "",
    check: Annotated[Path | None, Option(help="a folder of rows, data/measurements/nvidia-l4, to check before you send it")] = None,
    device: Annotated[str, Option(help="cuda: the GPU; host: this computer's processor, in plain PyTorch (roofline,model); "
                                  "cpu: a rehearsal in Triton's interpreter, no measurement")] = "cuda",
) -> None:  # fmt: skip
    """Time this machine's GPU or processor. Suite by suite, and prints their files; a stopped run goes on."""
    from kinetics_lab.measure import suites
    from kinetics_lab.measure.runner import dry_run as listing

    among(("cuda", "host", "cpu"), device, "device")
    if check:
        from kinetics_lab.measure.rows import check as checked

        files = sorted(check.glob("*.parquet"))
        require(files != [], "--check must be a folder with Parquet files of rows", str(check))
        for file in files:
            checked(file)
            print(f"{file}: as it should be")
        return
    if dry_run:
        require(device == "cuda", "--dry-run is for a GPU: --device must be cuda", device)
        print(*listing(suites.chosen_suites(suite), out, gpu), sep="\n")
        return
    print(*suites.measure(suite, out, budget_s=budget_seconds, device=device), sep="\n")


def ladder(
    step: Annotated[str, Argument(help="train, sample, or all: traces, training and walks")],
    *,
    preset: Annotated[str, Option(help="cpu-small (a minute), cpu (an hour), h200", autocompletion=names("ladder", "PRESETS"))] = "cpu-small",
    folder: Annotated[Path, Option(help="models and tables, a folder for each preset; goes on")] = Path("_build", "ladder"),
    model: Annotated[list[str], Option(help="sample only this one, w64-s0; may be repeated")] = NONE,
    device: Annotated[str, Option(help="cpu or cuda")] = "cpu",
    out: Annotated[Path | None, Option("-o", "--out", help="Parquet file to write (in the folder)")] = None,
) -> None:  # fmt: skip
    """Train and sample tiny reasoners (Part IV). Dense and sparse; prints the files written."""
    from kinetics_lab.ladder.tables import KINDS, make_table

    kinds = lookup({"train": ["training"], "sample": ["traces"], "all": KINDS}, step, "step")
    if out and len(kinds) > 1:
        raise ValueError(f"-o names one file, and all makes {len(kinds)}: leave it out, or use --folder")
    for kind in kinds:
        print(make_table(kind, preset, folder, out=out, device=device, only=model, progress=True))


def generate(
    *,
    model: Annotated[str, Option(help="folder or hub name of a model (Qwen3, Qwen2.5, Llama)")],
    problems: Annotated[str, Option(help="JSON lines with problem and answer; aime24, aime25, math-500, gsm8k")],
    out: Annotated[Path, Option("-o", "--out", help="folder of the answers; a stopped run goes on")],
    task: Annotated[str | None, Option(help="what the traces call the problems (name of the file or set)")] = None,
    name: Annotated[str | None, Option(help="what the traces call the model (last part of its name, lower case)")] = None,
    policy: Policy = "dense",
    dense_layers: Annotated[int, Option(help="first layers that stay dense")] = 0,
    trials: Annotated[int, Option(help="answers to each problem; more may be asked for later")] = 1,
    max_tokens: Annotated[int, Option(help="longest answer")] = 32768,
    top_k: Annotated[int, Option(help="draw among the likeliest so many (0: all)")] = 20,
    seed: Annotated[int, Option(help="of all draws")] = 0,
    repeat_window: Annotated[int, Option(help="stop an answer whose last so many tokens repeat a block (0: never)")] = 0,
    repeat_block: Annotated[int, Option(help="longest block that repeats, tokens")] = 64,
    temperature: Annotated[float, Option(help="0: the likeliest token")] = 0.6,
    top_p: Annotated[float, Option(help="draw among the likeliest of this probability")] = 0.95,
    slots: Annotated[int | None, Option(help="answers side by side; changes none (as many as fit; CPU: 8)")] = None,
    device: Annotated[str | None, Option(help="cuda or cpu (cuda where there is one)")] = None,
    dtype: Annotated[str, Option(help="float32, bfloat16, ... (auto: the model's own)")] = "auto",
    compiled: Annotated[bool, Option("--compile", help="fuse the model's small kernels (a minute at start)")] = False,
) -> None:  # fmt: skip
    """Sample answers of a model and grade them. Under any policy; prints the file; a stopped run goes on."""
    given = locals()
    from kinetics_lab.decode import generate as engine
    from kinetics_lab.decode import grade, hf

    named = {field.name for field in fields(engine.Settings)}
    settings = engine.Settings(**{name: value for name, value in given.items() if name in named})
    asked = grade.problems(problems)
    device = device or ("cuda" if hf.torch.cuda.is_available() else "cpu")
    loaded, tokenizer = hf.load_model(model, device=device, dtype=dtype)
    task = task or Path(problems).name.removesuffix(".jsonl")
    name = name or Path(model).name.lower()
    path = engine.generate(loaded, tokenizer, asked, out, settings, task=task, name=name, slots=slots,
                           compiled=compiled)  # fmt: skip
    print(path)
