"""The command line: a thin face over the functions, which are imported when a command needs them."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from workbench import __version__


def main(arguments: Sequence[str] | None = None) -> int:
    """The `workbench` command. Exit status: 0 done, 1 some run failed, 2 a wrong command or input, 130 stopped."""
    given = parser().parse_args(arguments)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _interrupt)  # a scheduler's way to say Ctrl-C
    try:
        return given.call(given) or 0
    except BrokenPipeError:  # whoever read the output has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, OSError) as error:
        print(f"workbench {given.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"workbench {given.command}: stopped", file=sys.stderr)
        return 130


class _Command(argparse.ArgumentParser):
    """Takes its NAME=VALUE (any list of words) after options too, as in FILE --scale tiny steps=5."""

    words: str | None = None

    def add_argument(self, *names: str, **options: Any) -> argparse.Action:
        if options.get("nargs") in ("*", "+") and not names[0].startswith("-"):
            self.words = names[0]
        return super().add_argument(*names, **options)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[argparse.Namespace, list[str]]:
        given, left = super().parse_known_args(args, namespace)
        if self.words is None or any(word.startswith("-") for word in left):
            return given, left
        getattr(given, self.words).extend(left)
        return given, []


def _interrupt(number: int, frame: Any) -> None:
    raise KeyboardInterrupt


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="workbench",
        description="Compares sequence architectures on the same data and the same budget.",
        epilog="""A study is one Python file: its docstring says the question, its runs() what is run.

  workbench sizes experiments/phonebook.py      what would be compared, before anything runs
  workbench run experiments/phonebook.py        train, evaluate, report; again: resume, or do nothing
  workbench status runs/phonebook               how far every run is, from any terminal
  workbench report runs/phonebook               make the report again from the folders

`workbench COMMAND --help` explains each.""",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"workbench {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Command)

    def command(name, call, text, epilog):
        each = commands.add_parser(
            name,
            help=text,
            description=text[0].upper() + text[1:] + ".",
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        each.set_defaults(call=call)
        return each

    def experiment(each):
        each.add_argument("file", metavar="FILE", help="an experiment file, such as experiments/phonebook.py")
        each.add_argument("overrides", nargs="*", metavar="NAME=VALUE", help="changes to every run")
        each.add_argument("--scale", help="one of the file's SCALES (default: the first)")
        each.add_argument("--tiny", dest="scale", action="store_const", const="tiny", help="--scale tiny")

    each = command(
        "run",
        _run,
        "run what is not yet done of an experiment and make its report",
        """examples:
  workbench run experiments/phonebook.py                   the demo scale, two processes on two cores
  workbench run experiments/phonebook.py --scale full      the larger scale; stop and resume at will
  workbench run experiments/phonebook.py --tune            try the grid of learning rates, choose by the select split
  workbench run experiments/phonebook.py steps=200         every run with 200 steps, in a folder of its own
  workbench run experiments/phonebook.py optimizer.learning_rate=3e-3 model.symbols.M.state=64
  workbench run experiments/phonebook.py --launcher ray    on the Ray cluster that is there, or one of this machine
  SBATCH_PARTITION=cpu workbench run experiments/phonebook.py --launcher slurm

Overrides are name=value, names as in workbench/config.py; an unknown one is refused with the nearest.
A run that fails is named at the end and marked in the report; the others go on, and the same command retries it.
Launchers differ in where runs are executed, never in what they leave; every machine sees the same folders (extras ray,
slurm). SLURM's jobs, a run each, take sbatch's own SBATCH_ variables and outlive this command: again, it follows them.
Ctrl-C stops the runs, saved.""",
    )
    experiment(each)
    each.add_argument("--jobs", type=int, help="runs at a time (default: one a core, at most 8; one on a GPU)")
    each.add_argument(
        "--launcher",
        choices=("local", "ray", "slurm"),
        default="local",
        help="where runs are executed (default: local)",
    )
    each.add_argument("--layout", default="", help="devices and memory of a step, such as data=4,tensor=2,micro=2")
    each.add_argument("--tune", action="store_true", help="run the tuning runs and choose the learning rates")
    each.add_argument("--wandb", choices=("online", "offline", "disabled"), default="offline", help="default: offline")

    each = command(
        "estimate",
        _estimate,
        "print what a study will cost and could show, before it starts: time, memory, disk, detectable difference",
        """examples:
  workbench estimate experiments/phonebook.py --scale full
  workbench estimate experiments/text.py --measure                   run 20 steps of each distinct model first
  workbench estimate experiments/phonebook.py --scale full --like runs/phonebook
  workbench estimate experiments/budgets.py --alone                  seconds a step of each arm, for equal seconds

Time is from what runs of the same model and sizes of data took on this machine; the spread over seeds from the study's
own folder, or from another one's (--like).""",
    )
    experiment(each)
    each.add_argument("--jobs", type=int, help="runs at a time (default: as workbench run)")
    each.add_argument("--measure", action="store_true", help="time and compile each distinct model first")
    each.add_argument("--like", metavar="STUDY_FOLDER", help="whose spread over seeds to expect")
    each.add_argument("--alone", action="store_true", help="time a step of each arm alone on this machine, no more")

    each = command(
        "report",
        _report,
        "make the report of a study again from its folders",
        """examples:
  workbench report runs/phonebook                     writes runs/phonebook/report.html, its figures and their numbers
  workbench report runs/phonebook --paste markdown    prints the tables alone, to paste; or latex""",
    )
    each.add_argument("folder", metavar="STUDY_FOLDER")
    each.add_argument("--paste", choices=("markdown", "latex"), help="print the tables in this form and make no page")

    each = command(
        "dashboard",
        _dashboard,
        "show a study on wandb's pages: a saved workspace and a report, as code",
        """examples:
  workbench dashboard runs/phonebook                    make both, check them and send nothing (dashboard.json)
  wandb sync runs/phonebook/{,*/}wandb/offline-run-*    send runs and report, which were logged offline
  workbench dashboard runs/phonebook --wandb online     save both on wandb's server, after `wandb login`

Needs pip install 'architecture-workbench[dashboard]'.""",
    )
    each.add_argument("folder", metavar="STUDY_FOLDER")
    each.add_argument("--wandb", choices=("online", "offline"), default="offline", help="default: offline")
    each.add_argument("--entity", default="", help="wandb's user or team (default: the login's)")

    each = command(
        "status",
        _status,
        "print how far every run of a study is",
        """examples:
  workbench status runs/phonebook
  workbench status runs/phonebook --watch      again every two seconds, until nothing runs any more

Told from the folder alone: from another terminal, or another machine that sees the folder.""",
    )
    each.add_argument("folder", metavar="STUDY_FOLDER")
    each.add_argument("--watch", action="store_true", help="again every two seconds, until nothing ran for a minute")
    each.add_argument("--json", action="store_true", help="a list of objects instead of a table")

    each = command(
        "seeds",
        _seeds,
        "print how many seeds a difference needs, from the spread over those that were run",
        """examples:
  workbench seeds runs/phonebook-full
  workbench seeds runs/text --difference 0.01      in bits per byte, or 0.01 of exact match""",
    )
    each.add_argument("folder", metavar="STUDY_FOLDER")
    each.add_argument("--difference", type=float, help="the one that is to be seen (default: each as it was seen)")

    each = command(
        "diff",
        _diff,
        "print what sets two runs apart: config, data, first weights, code, machine, result",
        """example:
  workbench diff runs/phonebook/phonebook-mamba-s3-1a2b3c4d runs/phonebook/phonebook-mamba-s4-5e6f7a8b

Exit status 0 where nothing differs, 1 where something does.""",
    )
    each.add_argument("first", metavar="RUN_FOLDER")
    each.add_argument("second", metavar="RUN_FOLDER")

    each = command(
        "verify",
        _verify,
        "check a study's certificate against its folders, and by doing part of its runs again",
        """examples:
  workbench verify runs/phonebook
  workbench verify runs/phonebook --replay 200     also: streams rebuilt, 200 steps twice a run, its test again

Names the first thing that does not hold, with exit status 1. Without --replay, files that were changed along with
their hashes pass where they agree with one another.""",
    )
    each.add_argument("folder", metavar="STUDY_FOLDER")
    each.add_argument(
        "--replay", type=int, default=0, metavar="N", help="train N steps of every run again (default: 0, none)"
    )

    each = command(
        "sizes",
        _sizes,
        "print parameters, FLOPs a token and state bytes of an experiment's architectures",
        """examples:
  workbench sizes experiments/waleffe_8b.py
  workbench sizes experiments/phonebook.py model.width=128
  workbench sizes experiments/phonebook.py --json --context 4096

Nothing is built or trained: the numbers follow from the configs alone.""",
    )
    experiment(each)
    each.add_argument("--context", type=int, default=4096, help="tokens at which the state is counted (default: 4096)")
    each.add_argument("--json", action="store_true", help="a list of objects instead of a table")

    each = command(
        "plan",
        _plan,
        "compile an experiment's training steps for devices that are not here: memory, FLOPs, bytes between them, time",
        """examples:
  workbench plan experiments/waleffe_8b.py --count 8
  workbench plan experiments/waleffe_8b.py --arm hybrid --layout data=8,fsdp=8,micro=4,remat=all
  workbench plan experiments/phonebook.py --device cpu --count 4

Without --layout a few are tried, and which fit is said. Nothing is run and no weight is made. Compiling for an H100
needs JAX's CUDA plugin, but no GPU: ./setup.sh sm90a installs it beside this environment.""",
    )
    experiment(each)
    each.add_argument("--arm", action="append", help="plan this arm alone (may be given again)")
    each.add_argument("--device", choices=("h100", "cpu"), default="h100", help="default: h100")
    each.add_argument("--count", type=int, help="devices (default: those of the layout, or 8)")
    each.add_argument("--layout", help="one layout, such as data=8,fsdp=8,micro=4,remat=all")
    each.add_argument("--mfu", type=float, default=0.4, help="fraction of the peak that a step's time assumes (0.4)")
    each.add_argument("--json", action="store_true", help="a list of objects instead of a table")

    each = command(
        "evaluate",
        _evaluate,
        "evaluate finished runs again: on another split, by another evaluation, by position in text, by tasks in text",
        """examples:
  workbench evaluate runs/phonebook/phonebook-hybrid-s3-1a2b3c4d
  workbench evaluate runs/phonebook/phonebook-*-s3-* entries=16,32,64 books=32
  workbench evaluate runs/phonebook/phonebook-hybrid-s3-1a2b3c4d --split select --step best
  workbench evaluate runs/released/smollm2 runs/text/text-hybrid-s1-* length=1024 --text "notes/**/*.md"

  workbench evaluate runs/text/text-*-s1-* length=4096 --by-position
  workbench evaluate runs/released/smollm2 length=32768 documents=8 --by-position --text "books/*.txt"

  workbench evaluate runs/text/text-hybrid-s1-1a2b3c4d --suite phonebook,ruler-small,recall
  workbench evaluate runs/text/text-hybrid-s1-1a2b3c4d --suite ruler essays="essays/*.txt" questions=squad.jsonl
  workbench evaluate runs/text/text-*-s1-* shots=5 count=100 --suite questions.jsonl
  workbench evaluate runs/text/text-hybrid-s1-1a2b3c4d --lm-eval waleffe,waleffe_mmlu_5
  workbench evaluate runs/text/text-*-s1-* --lm-eval niah_single_1,ruler_fwe --lengths 1024

Overrides change the run's evaluation (its fields: PhonebookEvaluation, TextEvaluation in workbench/config.py).
Prints a JSON object a run, one a line.

With --text it is bits per byte on those files, of imported models too: documents are cut at `length` tokens, and `rows`
of the pieces are read, none longer than a released model's positions. What was trained on them is not known here.

With --by-position it is bits per byte by the position in long documents, of the run's split or, with --text, of those
files: `documents` of them, `length` tokens of each from its beginning, in bins that double in width. Any length is
read, 16 times that of training too; bins past it are `extrapolated`: true (past the positions of an imported model;
null where nobody knows its length). Numbers and figure are kept in the run's folder, positions/, and go to wandb.

With --suite overrides change its tasks (their fields: workbench/evaluate/tasks). Suites are phonebook, recall,
ruler-small (256 to 2048 tokens) and ruler (4k to 128k): six of its tasks need nothing more, five hide needles in your
essays, two ask your questions ({"question": "...", "answers": ["..."], "documents": ["..."]} a line). Another .jsonl
file is multiple choice, asked in three forms. Every item is kept as parquet in the run's folder (needs the extra data);
what was answered is not asked again. Prints a line a task, in brackets where it cannot be told from chance, counts
items that share 13 words in a row with the training corpus, draws curves and heat maps (length by depth) beside the
items, and compares every other run with the first, item by item. Exit status 1 if a task failed: the others are
unharmed, and what no prompt is short enough for with this tokenizer is left out. Tables and figures go to wandb too
(--wandb), in the group of the run's study, as a run in the study's folder.

Prompts that are longer than a released model's positions allow are refused, with --suite and --lm-eval; --cut leaves
off their beginning instead, and says of how many.

With --lm-eval the tasks, metrics and standard errors are those of EleutherAI's lm-eval (needs the extra lm-eval, and
what its tasks download); waleffe holds the twelve of the paper, waleffe_mmlu_5 the one with five examples. Its items,
brackets, failures and comparisons are those of --suite, and what was answered is not asked again. --tasks names a
folder of YAML files, which may `include` one of lm-eval's own and read local files. Its LongBench and its RULER need
pip install 'lm-eval[longbench,ruler]' transformers.""",
    )
    each.add_argument("items", nargs="+", metavar="RUN_FOLDER | NAME=VALUE", help="run folders, then overrides")
    each.add_argument("--text", metavar="FILES", help="files and globs, with commas: their text, instead of a split")
    each.add_argument(
        "--by-position", action="store_true", help="loss by position in long documents, of a split or --text"
    )
    each.add_argument("--suite", help="suites and files of questions, with commas: phonebook,ruler-small,recall")
    each.add_argument("--lm-eval", metavar="TASKS", help="tasks of EleutherAI's lm-eval, with commas: waleffe,piqa")
    each.add_argument("--tasks", metavar="FOLDER", help="with --lm-eval: YAML files of further tasks")
    lengths = "tokens of a prompt, of tasks that are made to a length (lm-eval's RULER: 4096 unless said)"
    each.add_argument("--lengths", type=_numbers, default=(), metavar="TOKENS,...", help=lengths)
    each.add_argument("--cut", action="store_true", help="cut what is longer than a model's positions from the left")
    each.add_argument("--wandb", choices=("online", "offline", "disabled"), default="offline", help="default: offline")
    each.add_argument("--split", choices=("select", "test"), default="test", help="default: test")
    each.add_argument("--step", type=_step, help="of a checkpoint, or best (on select); default: the last")

    each = command(
        "speed",
        _speed,
        "predict and measure how fast an experiment's architectures generate, against context",
        """examples:
  workbench speed experiments/inference.py                       predict, then measure this machine
  workbench speed experiments/waleffe_8b.py --device h100 --batches 1,32 --contexts 4096,131072
                                                                 predict alone, in milliseconds

A prediction counts the bytes and FLOPs of a step against what the device can move and compute; of this machine both are
measured by themselves first, and the predictions are written before any step is timed.""",
    )
    experiment(each)
    each.add_argument("--device", help="predict for h100, h200, a100 or tpu-v5e, and measure nothing")
    each.add_argument("--prices", metavar="FILE", help='what an hour costs: {"h100": {"dollars_an_hour": 2.5}, ...}')
    each.add_argument("--batches", type=_numbers, default=(1, 8), help="sequences at a time (default: 1,8)")
    each.add_argument("--contexts", type=_numbers, default=(256, 1024, 4096, 16384, 65536), metavar="TOKENS,...")
    each.add_argument("--folder", type=Path, help="where the figures and numbers go (default: runs/STUDY-speed)")

    each = command(
        "generate",
        _generate,
        "write on from a prompt with a run that was trained on text, token by token",
        """examples:
  workbench generate runs/text/text-hybrid-s1-1a2b3c4d "def main(arguments):"
  workbench generate runs/text/text-hybrid-s1-1a2b3c4d "import" --tokens 400 --top-p 0.9 --seed 7
  cat prompt.txt | workbench generate runs/text/text-hybrid-s1-1a2b3c4d - --temperature 0

The prompt begins a document. The same seed gives the same text. Prompt and text that are longer together than a
released model's positions are refused.""",
    )
    each.add_argument("folder", metavar="RUN_FOLDER")
    each.add_argument("prompt", metavar="PROMPT", help="- for what stands on the standard input")
    each.add_argument("--tokens", type=int, default=128, help="at most (default: 128)")
    each.add_argument("--stop", action="append", default=[], metavar="TEXT", help="ends the text; may be given again")
    each.add_argument("--temperature", type=float, default=0.8, help="0 for the likeliest token (default: 0.8)")
    each.add_argument("--top-k", type=int, default=0, help="draw from the k likeliest tokens alone")
    each.add_argument("--top-p", type=float, default=1.0, help="draw from the likeliest that reach this probability")
    each.add_argument(
        "--min-p", type=float, default=0.0, help="draw from those this fraction as likely as the likeliest"
    )
    each.add_argument("--repetition", type=float, default=1.0, help="penalty of tokens that were there before, above 1")
    each.add_argument("--seed", type=int, default=0)
    each.add_argument("--cache", choices=("bfloat16", "int8"), help="keep keys and values so (default: as computed)")
    each.add_argument("--step", type=_step, help="of a checkpoint, or best (on select); default: the last")

    each = command(
        "serve",
        _serve,
        "answer OpenAI-style completions over HTTP with a run that was trained on text",
        """examples:
  workbench serve runs/text/text-hybrid-s1-1a2b3c4d
  workbench serve runs/text/text-hybrid-s1-1a2b3c4d --port 8001 --rows 16 --context 8192 --cache int8

  curl localhost:8000/v1/completions -d '{"prompt": "def main():", "max_tokens": 40, "seed": 1, "stream": true}'

Needs pip install 'architecture-workbench[serve]'. Requests of any lengths share a batch, and each is answered as it
would be alone; one that is longer, with its answer, than a released model's positions is refused with status 400.
Ctrl-C ends what was begun, then stops. Listens on this machine alone unless --host says otherwise; it
asks nobody for a password.""",
    )
    each.add_argument("folder", metavar="RUN_FOLDER")
    each.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
    each.add_argument("--port", type=int, default=8000, help="default: 8000")
    each.add_argument("--rows", type=int, default=8, help="answers that are written at a time (default: 8)")
    each.add_argument(
        "--waiting", type=int, default=64, help="requests that may wait; more get status 429 (default: 64)"
    )
    each.add_argument("--context", type=int, default=4096, help="tokens of a prompt and its answer (default: 4096)")
    each.add_argument("--cache", choices=("bfloat16", "int8"), help="keep keys and values so (default: as computed)")
    each.add_argument("--step", type=_step, help="of a checkpoint, or best (on select); default: the last")

    each = command(
        "extend",
        _extend,
        "continue a finished run at longer sequences, as a run of its own beside it",
        """examples:
  workbench extend runs/text/text-hybrid-s1-1a2b3c4d --length 1024 --steps 200
  workbench extend runs/text/text-transformer-s1-5e6f7a8b --length 1024 --tokens 1000000 --rotary-base 160000
  workbench extend runs/text/text-mamba-s1-9c0d1e2f optimizer.learning_rate=1e-3 --length 1024 --steps 200

Starts from the run's last weights, with an optimizer and a schedule of their own; the same command resumes.
Prints a JSON object. A study extends its runs in its file: workbench.study.extend.extended.""",
    )
    each.add_argument("folder", metavar="RUN_FOLDER")
    each.add_argument("overrides", nargs="*", metavar="NAME=VALUE", help="changes to the new run")
    each.add_argument("--length", type=int, required=True, help="tokens of a sequence")
    each.add_argument("--steps", type=int, default=0)
    each.add_argument("--tokens", type=int, default=0, help="read at least so many, instead of --steps")
    each.add_argument("--batch", type=int, help="rows a step (default: as many as keep the tokens of a step)")
    each.add_argument("--rotary-base", type=float, help="of rotary attention (default: as it was)")
    each.add_argument("--wandb", choices=("online", "offline", "disabled"), default="offline", help="default: offline")

    each = command(
        "branch",
        _branch,
        "continue a run from any step to another end, as a run of its own beside it",
        """examples:
  workbench branch runs/text/text-hybrid-s1-1a2b3c4d@2000 --steps 2500       decay from step 2000 to the end at 2500
  workbench branch runs/text/text-mamba-s1-9c0d1e2f@400 optimizer.clip=0.5   the same steps again, something changed

Starts from weights, optimizer and place in the data after the step; the same command resumes. Where only the end of a
warm-up-stable-decay run is another (--steps), it is the run of so many steps from the start, bit for bit. A step that
the run did not keep (it keeps its last checkpoints, and those that keep=500,1000 names) is trained again first.
Prints a JSON object. A study branches its runs in its file: workbench.study.extend.branched.""",
    )
    each.add_argument("parent", metavar="RUN_FOLDER@STEP")
    each.add_argument("overrides", nargs="*", metavar="NAME=VALUE", help="changes to the new run")
    each.add_argument("--steps", type=int, default=0, help="of all its updates (default: those of the run)")
    each.add_argument("--wandb", choices=("online", "offline", "disabled"), default="offline", help="default: offline")

    each = command(
        "import",
        _import,
        "make a run folder of a released model",
        """examples:
  workbench import models/SmolLM2-135M runs/released/smollm2
  workbench generate runs/released/smollm2 "The capital of France is"
  workbench import models/mamba2-hybrid-8b-3t-4k runs/released/hybrid num_attention_heads=32 num_query_groups=8

SOURCE is a folder with config.json, .safetensors and, to turn text into tokens, tokenizer.json, as Hugging Face's
transformers saved it: Llama (and SmolLM), Mistral, Qwen2, Qwen3, Nemotron, Mamba, Mamba-2, NemotronH or Bamba. Or a
folder of the mamba authors' own (config.json, pytorch_model.bin), a Llama's .gguf, or a checkpoint of Megatron-LM
(mp_rank_*/model_optim_rng.pt), of which NAME=VALUE are arguments that it does not hold. What cannot be expressed is
refused by name.""",
    )
    each.add_argument("source", metavar="SOURCE")
    each.add_argument("folder", metavar="RUN_FOLDER")
    each.add_argument("given", nargs="*", metavar="NAME=VALUE", help="Megatron's arguments, where it kept none")
    each.add_argument("--dtype", default="float32", help="of the computation: float32 or bfloat16 (default: float32)")

    each = command(
        "export",
        _export,
        "write a run's model as Hugging Face's transformers loads it",
        """example:
  workbench export runs/text/text-mamba2-s1-1a2b3c4d exported/mamba2

Written are *- repeated (SwiGLU; Llama, Mistral, Qwen; LayerNorm-1p: Nemotron), S repeated (Mamba), M repeated
(Mamba-2), M- and *- in any order (SwiGLU; Bamba), and M, * and - in any order (no positions; NemotronH).""",
    )
    each.add_argument("folder", metavar="RUN_FOLDER")
    each.add_argument("path", metavar="PATH")
    each.add_argument("--step", type=_step, help="of a checkpoint, or best (on select); default: the last")

    each = command(
        "check",
        _check,
        "test a layer of your own: causality, cutting, packing, counts and gradients",
        """example:
  workbench check experiments/my_mixer.py

The file defines a layer config (see experiments/my_mixer.py); every layer config in it is tested.""",
    )
    each.add_argument("file", metavar="FILE", help="a Python file with a layer config")
    return top


def _run(given: argparse.Namespace) -> int:
    from workbench.study.execute import run

    outcome = run(
        given.file,
        scale=given.scale,
        overrides=given.overrides,
        launcher=given.launcher,
        jobs=given.jobs,
        wandb=given.wandb,
        tune=given.tune,
        layout=given.layout,
    )
    return 1 if outcome.failures else 0


def _estimate(given: argparse.Namespace) -> None:
    from workbench.study.estimate import alone, estimate
    from workbench.study.experiment import load

    experiment = load(given.file, given.scale, given.overrides)
    if given.alone:
        print(alone(experiment))
        return
    print(estimate(experiment, jobs=given.jobs, like=given.like, measured=given.measure))


def _report(given: argparse.Namespace) -> None:
    if given.paste:
        from workbench.study.collect import collect
        from workbench.study.tables import pasted

        print(pasted(collect(given.folder), given.paste))
        return
    from workbench.study.execute import compare

    print(f"report: {compare(Path(given.folder))}")


def _dashboard(given: argparse.Namespace) -> None:
    try:
        import wandb_workspaces  # noqa: F401
    except ModuleNotFoundError:
        raise ValueError("wandb-workspaces is not installed; pip install 'architecture-workbench[dashboard]'") from None
    from workbench.study import dashboard

    if given.wandb == "offline":
        print(f"checked, not sent: {dashboard.check(given.folder)}")
        return
    for address in dashboard.push(given.folder, given.entity):
        print(address)


def _status(given: argparse.Namespace) -> None:
    from workbench.study import status

    quiet = 0  # looks since something ran
    while True:
        found = status.states(given.folder)
        text = status.as_json(found) if given.json else status.table(found)
        if not given.watch:
            print(text)
            return
        print(f"\x1b[2J\x1b[H{text}" if sys.stdout.isatty() else text, flush=True)
        quiet = 0 if any(each.state == "running" for each in found) else quiet + 1
        if quiet > (status.PATIENCE if any(each.state == "waiting" for each in found) else 0):
            return
        time.sleep(2)


def _seeds(given: argparse.Namespace) -> None:
    from workbench.study.seeds import seeds

    print(seeds(given.folder, given.difference))


def _diff(given: argparse.Namespace) -> int:
    from workbench.study import diff

    found = diff.diff(given.first, given.second)
    print(diff.describe(found))
    return 1 if any(found.values()) else 0


def _verify(given: argparse.Namespace) -> int:
    from workbench.study.verify import describe, verify

    broken = []
    for finding in verify(given.folder, given.replay):
        print(describe(finding), flush=True)
        broken += [finding] if finding.holds is False else []
    print(f"\nThe first that does not hold: {broken[0].what}: {broken[0].detail}" if broken else "\nIt holds.")
    return 1 if broken else 0


def _sizes(given: argparse.Namespace) -> None:
    from workbench.study import sizes
    from workbench.study.experiment import load

    rows = sizes.rows(load(given.file, given.scale, given.overrides).runs, given.context)
    print(json.dumps(rows, indent=1) if given.json else sizes.table(rows))


def _plan(given: argparse.Namespace) -> None:
    from workbench.config import Layout
    from workbench.study import plans
    from workbench.study.experiment import load

    layout = None if given.layout is None else Layout.read(given.layout)
    count = given.count or (layout.devices if layout else 8)
    if layout and layout.devices != count:
        raise ValueError(f"the layout uses {layout.devices} devices and --count is {count}; leave out one of them")
    runs = plans.arms(load(given.file, given.scale, given.overrides).runs, given.arm)
    made = plans.make(runs, layout, given.device, count)
    if given.json:
        print(json.dumps([plans.row(each, given.mfu) for each in made], indent=1))
    else:
        print(plans.table(made, given.mfu))


def _evaluate(given: argparse.Namespace) -> int:
    folders = [item for item in given.items if "=" not in item]
    overrides = [item for item in given.items if "=" in item]
    if not folders:
        raise ValueError("no run folder given; they are in a study's folder, such as runs/phonebook")
    if given.by_position:
        if given.suite is not None or given.lm_eval is not None:
            raise ValueError("--by-position reads text, not tasks; leave out --suite and --lm-eval")
        return _by_position(folders, given, overrides)
    if given.suite is not None:
        return _suite(folders, given, overrides)
    if given.lm_eval is not None:
        return _lm_eval(folders, given, overrides)
    if given.text is not None:
        return _text(folders, given.text, overrides, given.step)
    from workbench.config import override
    from workbench.train.checkpoint import load_model

    for folder in folders:
        run, model = load_model(folder, given.step)
        evaluation = override(run.evaluation, *overrides)
        values = evaluation.build(dataclasses.replace(run, evaluation=evaluation))(model, given.split)
        print(json.dumps({"run": run.name, "folder": folder, "split": given.split, **values}), flush=True)
    return 0


def _text(folders: list[str], files: str, overrides: list[str], step: int | str | None) -> int:
    from workbench.config import Files, TextEvaluation, override
    from workbench.evaluate.score import subject
    from workbench.evaluate.text import on_files

    evaluation = override(TextEvaluation(), *overrides)
    for folder in folders:
        examined = subject(folder, step)
        examined.check()
        values = on_files(*examined, Files(_listed(files)), evaluation)
        print(json.dumps({"run": Path(folder).resolve().name, "folder": folder, "text": files, **values}), flush=True)
    return 0


def _by_position(folders: list[str], given: argparse.Namespace, overrides: list[str]) -> int:
    from workbench.config import Files, PositionEvaluation, override
    from workbench.evaluate.draw import positions
    from workbench.evaluate.position import of_run
    from workbench.train.track import log_positions

    evaluation = override(PositionEvaluation(), *overrides)
    texts = None if given.text is None else Files(_listed(given.text))
    of = {"split": given.split} if texts is None else {"text": given.text}
    for folder in folders:
        values, place = of_run(folder, evaluation, texts, split=given.split, step=given.step)
        name, figure = Path(folder).resolve().name, place.with_suffix(".png")
        positions({name: values}).savefig(figure, dpi=130)
        log_positions(Path(folder), place, given.wandb, values, figure)
        print(json.dumps({"run": name, "folder": folder, **of, "figure": str(figure), **values}), flush=True)
    return 0


def _listed(words: str) -> tuple[str, ...]:
    """What stands between commas."""
    return tuple(word.strip() for word in words.split(",") if word.strip())


def _suite(folders: list[str], given: argparse.Namespace, overrides: list[str]) -> int:
    from workbench.evaluate import suite

    tasks = suite.tasks(_listed(given.suite), overrides, given.lengths)

    def ask(examined: Any, place: Path) -> dict[str, dict]:
        return suite.evaluate(examined, tasks, place, cut=given.cut, progress=sys.stderr.isatty())

    return _asked(folders, given.step, given.wandb, ask)


def _lm_eval(folders: list[str], given: argparse.Namespace, overrides: list[str]) -> int:
    from workbench.evaluate.lm_eval.ask import evaluate

    if overrides:
        raise ValueError(f"{overrides[0]!r}: tasks of lm-eval are changed in their YAML; give your own with --tasks")

    def ask(examined: Any, place: Path) -> dict[str, dict]:
        wanted = {"tasks": given.tasks, "cut": given.cut, "lengths": given.lengths}
        return evaluate(examined, _listed(given.lm_eval), place, **wanted)

    return _asked(folders, given.step, given.wandb, ask, "lm-eval")


def _asked(
    folders: list[str], step: int | str | None, wandb: str, ask: Callable[..., dict[str, dict]], below: str = ""
) -> int:
    """Asks every run and shows, draws, logs and compares what came out.

    ask: (its model and tokenizer, folder of its items) -> results by task. below: a folder in that of its suites.
    """
    from workbench.evaluate import suite
    from workbench.evaluate.compare import against_first
    from workbench.evaluate.contamination import documents_of
    from workbench.evaluate.draw import draw
    from workbench.evaluate.score import subject
    from workbench.train.track import log_suite

    kept, failed, names = {}, False, {}
    for folder in folders:
        examined = subject(Path(folder), step)
        home = suite.place(examined, folder)
        kept[folder] = place = home / below
        results = ask(examined, place)
        names |= dict.fromkeys(results)
        failed |= any("error" in found for found in results.values()) or all("left_out" in f for f in results.values())
        documents, why = documents_of(folder)
        if documents is not None:
            results |= suite.scan(place, list(results), documents)
        print(f"{folder}\n{suite.table(results, every=bool(below))}\nitems: {place}", flush=True)
        if why:
            print(f"not scanned for overlap with the training corpus: {why}")
        figures = [] if below else draw(place)
        for path in figures:
            print(f"figure: {path}")
        log_suite(Path(folder), home, wandb, results, figures)
    if len(kept) > 1:
        print("\n".join(against_first(kept, list(names))))
    return 1 if failed else 0


def _extend(given: argparse.Namespace) -> int:
    from workbench.study.extend import extend

    names = ("length", "steps", "tokens", "batch", "rotary_base", "overrides", "wandb")
    return _gone_on(lambda: extend(given.folder, **{name: getattr(given, name) for name in names}))


def _branch(given: argparse.Namespace) -> int:
    from workbench.study.extend import branch

    folder, at, step = given.parent.rpartition("@")
    if not (at and step.isdigit()):
        raise ValueError(f"{given.parent!r} names no step; give RUN_FOLDER@STEP, such as {given.parent}@500")
    options = {"steps": given.steps, "overrides": given.overrides, "wandb": given.wandb}
    return _gone_on(lambda: branch(folder, int(step), **options))


def _gone_on(train: Callable[[], tuple[Path, dict[str, Any]]]) -> int:
    from workbench.train.loop import TrainingFailed

    try:
        place, result = train()
    except TrainingFailed as error:
        print(error, file=sys.stderr)
        return 1
    kept = {name: result[name] for name in ("run", "parents", "final_loss", "evaluation")}
    print(json.dumps(kept | {"folder": str(place)}))
    return 0


def _step(text: str) -> int | str:
    return text if text == "best" else int(text)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(","))


def _speed(given: argparse.Namespace) -> None:
    from workbench.devices import device
    from workbench.study import speed
    from workbench.study.experiment import load
    from workbench.study.speed_figures import decoding

    runs = load(given.file, given.scale, given.overrides).runs
    models = speed.models(runs)
    folder = given.folder or Path("runs") / f"{runs[0].study}-speed"
    chosen = device(given.device) if given.device else None
    rows = speed.speed(models, folder, chosen, batches=given.batches, contexts=given.contexts, prices=given.prices)
    print(speed.table(rows, next(iter(models))))
    decoding(rows).savefig(folder / "decoding.png", dpi=150)
    print(f"figure and numbers: {folder}")


def _generate(given: argparse.Namespace) -> None:
    from workbench.evaluate.score import subject
    from workbench.generate import Sampling, check_positions, complete, encoded, with_cache

    prompt = sys.stdin.read() if given.prompt == "-" else given.prompt
    model, tokenizer = subject(given.folder, given.step)
    model = with_cache(model, given.cache) if given.cache else model
    how = Sampling(given.repetition, given.temperature, given.top_k, given.top_p, given.min_p)
    check_positions(model.config, "the prompt", len(encoded(tokenizer, [prompt])[0]), given.tokens)  # before any output
    print(prompt, end="", flush=True)
    show = lambda row, text: print(text, end="", flush=True)  # noqa: E731
    complete(model, tokenizer, [prompt], given.tokens, sampling=how, stop=given.stop, seed=given.seed, on_text=show)
    print()


def _serve(given: argparse.Namespace) -> None:
    try:
        import uvicorn

        from workbench.serve.app import application
    except ModuleNotFoundError as error:
        raise ValueError(f"{error.name} is not installed; pip install 'architecture-workbench[serve]'") from None
    from workbench.evaluate.score import subject
    from workbench.generate import with_cache
    from workbench.serve.engine import Engine

    model, tokenizer = subject(given.folder, given.step)
    model = with_cache(model, given.cache) if given.cache else model
    engine = Engine(model, tokenizer, rows=given.rows, waiting=given.waiting, context=given.context)
    uvicorn.run(application(engine, Path(given.folder).resolve().name), host=given.host, port=given.port)


def _import(given: argparse.Namespace) -> None:
    from workbench.train.exchange import import_run

    arguments = {}
    for item in given.given:
        name, equals, value = item.partition("=")
        if not equals:
            raise ValueError(f"{item!r} needs the form name=value")
        try:
            arguments[name] = json.loads(value)
        except ValueError:  # a word
            arguments[name] = value
    result = import_run(given.source, given.folder, given.dtype, **arguments)
    print(f"{result['parents'][0]['architecture']}, {result['parameters']:,} parameters: {given.folder}")


def _export(given: argparse.Namespace) -> None:
    from workbench.train.exchange import export_run

    kind = export_run(given.folder, given.path, given.step)
    left = "" if (Path(given.path) / "tokenizer.json").is_file() else " (without a tokenizer: the run has none for it)"
    print(f"{kind}: {given.path}{left}")


def _check(given: argparse.Namespace) -> int:
    from workbench.config import LayerConfig, load_file

    module = load_file(given.file)
    layers = [
        value
        for value in vars(module).values()
        if isinstance(value, type)
        and dataclasses.is_dataclass(value)
        and value.__module__ == module.__name__
        and issubclass(value, LayerConfig)
    ]
    if not layers:
        raise ValueError(
            f"{given.file} defines no layer config: a frozen dataclass with build, parameters, operations and "
            "state_bytes, such as the one in experiments/my_mixer.py"
        )
    from workbench.study.contract import check

    broken = 0
    for layer in layers:
        needed = [
            f.name
            for f in dataclasses.fields(layer)
            if f.init and f.default is f.default_factory is dataclasses.MISSING
        ]
        if needed:
            raise ValueError(
                f"{layer.__name__} cannot be made without {', '.join(needed)}; give every field a default, which is "
                "what is checked"
            )
        print(layer.__name__, flush=True)
        for result in check(layer()):
            print(f"  {'holds ' if result.held else 'BROKEN'}  {result.promise}: {result.seen}")
            broken += not result.held
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
