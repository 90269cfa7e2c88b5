"""`llmjp demo`: the whole path on a small model, by the same commands that a user types."""

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from llmjp_train import exit_codes
from llmjp_train.errors import UserError
from llmjp_train.launch.local import PARENT

SUMMARY = "the whole path in minutes: text, tokenizer, training, resume, evaluation, export, report"
USES_CONFIG = False

OWN = "llmjp-small-ja"
LEAST_STEPS = 40
"""Its warm-up, its first validation and a stop half way need that many."""
PROMPT = "むかし、あるところに"
MARKER = ".llmjp-demo"
"""File that proves that a demo made the folder: its parts have names that anyone's folders may have."""
PARTS = {
    "tokenizer": "the tokenizer",
    "data": "token files and their manifest",
    "run": "the run: configuration, metrics, events, checkpoints, evaluations",
    "model": "the model in Hugging Face format with its parity certificate",
    "report.html": "the report: open it in a browser",
    "release": "all of it to publish, with checksums: llmjp verify checks it anywhere",
}
"""What a demo leaves in its folder."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the command."""
    parser.add_argument(
        "--output", type=Path, default=Path("demo"), help="folder for all that is made (default: demo)"
    )
    parser.add_argument(
        "--steps", type=int, help="length of the training (default: 240, or 480 with LLMJP_DATA)"
    )
    parser.add_argument(
        "--own-corpus", action="store_true", help="use the project's own text even if LLMJP_DATA is set"
    )
    parser.add_argument("--force", action="store_true", help="remove what an earlier demo made in the folder")
    parser.add_argument("--dry-run", action="store_true", help="print the commands and stop")


class _StoppedError(Exception):
    """The demo was asked to end by the signal that it carries, and its part has ended."""


@dataclass
class Demo:
    """The demo's settings and the seconds that each part took."""

    output: Path
    steps: int
    corpus: str
    """Name of the corpus in the catalogue."""
    dry_run: bool
    seconds: dict[str, float] = field(default_factory=dict)
    signal: int = 0
    """The signal that asked the demo to end; 0: none."""

    def take_signals(self) -> None:
        """Let a part that runs end as it does when it is asked to; what the caller ignores (nohup) stays ignored."""
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._caught)

    def _caught(self, number: int, frame: FrameType | None) -> None:
        self.signal = self.signal or number

    def llmjp(self, title: str, *words: str, accept: tuple[int, ...] = (0,)) -> None:
        """Run one `llmjp` command as a user would, its output passed through.

        Raises:
            UserError: it ended with another exit code.
        """
        process = self._start(title, words)
        if process is None:
            return
        code = self._wait(title, process)
        if code not in accept:
            raise UserError(
                f"the demo's part '{title}' ended with exit code {code}; its output above says why"
            )

    def stopped_half_way(self, title: str, *words: str, run: Path, step: int) -> None:
        """Run `llmjp train` and send SIGTERM once ``step`` steps are logged, as a scheduler would."""
        process = self._start(title, words)
        if process is None:
            return
        code = self._wait(title, process, lambda: _last_step(run) >= step)
        if code != exit_codes.STOPPED:
            raise UserError(
                f"the demo's part '{title}' ended with exit code {code}, not {exit_codes.STOPPED}, "
                "which says that it stopped with everything saved"
            )

    def _start(self, title: str, words: tuple[str, ...]) -> subprocess.Popen[bytes] | None:
        print(f"\n== {title}\n$ llmjp {shlex.join(words)}", flush=True)
        if self.dry_run:
            return None
        # A part dies with a demo that is killed: it would train on unseen.
        environment = {**os.environ, PARENT: str(os.getpid())}
        return subprocess.Popen([sys.executable, "-m", "llmjp_train.cli", *words], env=environment)

    def _wait(
        self, title: str, process: subprocess.Popen[bytes], half_way: Callable[[], bool] = lambda: False
    ) -> int:
        """The part's exit code; it gets SIGTERM half way, and once what the demo got.

        SIGTERM for a SIGINT: a terminal has sent the part its own, and a second one would cost the save.

        Raises:
            _StoppedError: the demo was asked to end.
        """
        began, stopped, passed = time.monotonic(), False, False
        while process.poll() is None:
            if self.signal and not passed:
                passed = True
                process.send_signal(signal.SIGTERM if self.signal == signal.SIGINT else self.signal)
            if not (stopped or passed) and half_way():
                stopped = True
                print("-- SIGTERM half way", flush=True)
                process.terminate()
            time.sleep(0.1)
        if self.signal:
            raise _StoppedError(self.signal)
        self.seconds[title] = time.monotonic() - began
        return process.returncode


def _last_step(run: Path) -> int:
    """Newest step of the run's metrics; 0 before the first."""
    path = run / "metrics.jsonl"
    if not path.exists():
        return 0
    for line in reversed(path.read_text(encoding="utf-8").splitlines()):
        try:
            return int(json.loads(line).get("step") or 0)
        except json.JSONDecodeError:
            continue  # the line is being written just now
    return 0


def run(args: argparse.Namespace) -> int:
    """Make the tokenizer, the data, the model, its evaluation, its export and its report."""
    out: Path = args.output
    corpus = OWN if args.own_corpus or not os.environ.get("LLMJP_DATA") else "aozora"
    steps = args.steps if args.steps is not None else 240 if corpus == OWN else 480
    if steps < LEAST_STEPS:
        raise UserError(
            f"--steps {steps}: give at least {LEAST_STEPS}, so that it can be stopped half way and validated"
        )
    if not args.dry_run:
        _check_corpus(corpus)
        _take(out, force=args.force)
    demo = Demo(out, steps, corpus, args.dry_run)
    began = time.monotonic()
    demo.take_signals()
    try:
        _path(demo)
    except _StoppedError:
        name = signal.Signals(demo.signal).name
        print(f"llmjp demo: ended by {name}; --force begins anew in {out}", file=sys.stderr)
        return 128 + demo.signal
    if not args.dry_run:
        _summary(demo, time.monotonic() - began)
    return exit_codes.OK


def _check_corpus(name: str) -> None:
    """See that the text is here or can be had, before anything is made or removed.

    Raises:
        UserError: it is not, as in a data root that holds something else.
    """
    from llmjp_train.data.catalogue import entry, located

    wanted = entry(name)
    if wanted.missing and located(name) is None:
        raise UserError(
            f"LLMJP_DATA={os.environ.get('LLMJP_DATA')} lacks {wanted.folder}/ with {', '.join(wanted.files)}: "
            "put it there, or add --own-corpus to train on the project's own text (make demo: unset LLMJP_DATA)"
        )


def _take(out: Path, *, force: bool) -> None:
    """Make the folder and mark it, or clear one that a demo made.

    Raises:
        UserError: it cannot be made, it holds what no demo made, or what one made and ``force`` is not given.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        if any(out.iterdir()):
            _clear(out, force=force)
        (out / MARKER).write_text(
            "Made by llmjp demo. While this file is here, --force removes what a demo makes beside it: "
            + ", ".join(PARTS)
            + "\n",
            encoding="utf-8",
        )
    except OSError as error:
        raise UserError(
            f"--output {out} cannot be used ({error.strerror}: {error.filename}): name another folder"
        ) from error


def _clear(out: Path, *, force: bool) -> None:
    """Remove a demo's parts; the folder and what else is in it stay."""
    if not (out / MARKER).is_file():
        raise UserError(
            f"{out} is not empty and no demo made it (it lacks {MARKER}): nothing was removed; "
            "take another --output"
        )
    if not force:
        raise UserError(
            f"{out} holds an earlier demo: --force removes what it made ({', '.join(PARTS)}) and begins anew, "
            "or take another --output"
        )
    import shutil

    for path in map(out.joinpath, PARTS):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _path(demo: Demo) -> None:
    out, steps = demo.output, demo.steps
    text = demo.corpus
    size = 1536 if text == OWN else 4096  # a small text has few words that come often
    run, model = str(out / "run"), str(out / "model")
    demo.llmjp(
        "a tokenizer from the text",
        "tokenizer",
        "train",
        f"input=[{text}]",
        f"output={out}/tokenizer",
        f"vocab_size={size}",
        "character_coverage=0.98" if demo.corpus == OWN else "character_coverage=0.995",
    )
    demo.llmjp(
        "text to token files",
        "prepare",
        f"input=[{text}]",
        f"output={out}/data",
        f"tokenizer.path={out}/tokenizer",
        f"validation_share={0.08 if text == OWN else 0.02}",
    )
    overrides = [
        "experiment=tiny-cpu",
        f"run_dir={run}",
        f"tokenizer.path={out}/tokenizer",
        f"data.sources.small.path={out}/data",
        f"schedule.length={steps}",
        f"model.vocab_size={size}",
        "evaluation.stop_at_best=3",
    ]
    demo.llmjp("what would be trained", "train", *overrides, "--dry-run")
    demo.stopped_half_way(
        "training on one process, stopped half way", "train", *overrides, run=out / "run", step=steps // 2
    )
    demo.llmjp(
        "going on with two processes and another ZeRO stage",
        "train",
        run,
        "parallel.data=2",
        "parallel.zero=2",
        "batch.micro_batch=2",
    )
    demo.llmjp("evaluation", "evaluate", run, "suite=demo")
    demo.llmjp("export to Hugging Face format", "export", run, "--out", model)
    demo.llmjp("text from the exported model", "generate", model, PROMPT, "--max-tokens", "40")
    demo.llmjp("report and model card", "report", run, "--out", str(out / "report.html"))
    demo.llmjp("a release", "release", run, "--out", str(out / "release"))
    demo.llmjp("the release, checked as a stranger would", "verify", str(out / "release"))


def _summary(demo: Demo, seconds: float) -> None:
    out = demo.output
    print(f"\n== made in {seconds:.0f} s")
    for title, value in demo.seconds.items():
        print(f"  {value:5.0f} s  {title}")
    print(_margin(out))
    for name, what in PARTS.items():
        print(f"  {out / name}: {what}")
    print(f"  {out / 'run' / 'README.en.md'}: the model card, in Japanese beside it")


def _margin(out: Path) -> str:
    """The exported step's validation loss beside a unigram's on the same text."""
    from llmjp_train.runlog.reading import validations
    from llmjp_train.runlog.record import RunRecord

    certificate = json.loads((out / "model" / "parity.json").read_text(encoding="utf-8"))
    step = int(certificate["source"]["step"])
    losses = {point.step: point.loss for point in validations(RunRecord(out / "run").read_metrics())}
    if step not in losses:
        return f"the exported step {step} was not validated"
    unigram = _unigram(out)
    return (
        f"validation loss of the exported step {step}: {losses[step]:.3f} nats a token; on the same text a unigram "
        f"fitted on the training text has {unigram:.3f}: {unigram - losses[step]:.3f} better"
    )


def _unigram(out: Path) -> float:
    from llmjp_train.config.compose import load_config
    from llmjp_train.data.stream import ValidationStream
    from llmjp_train.data.unigram import unigram_cross_entropy
    from llmjp_train.train.hooks import validation_samples

    config = load_config(out / "run" / "config.yaml")
    stream = ValidationStream(config.data, config.batch.sequence_length, config.model.vocab_size)
    batch = stream.batch(0, validation_samples(config, stream))
    return unigram_cross_entropy(out / "data" / "train", batch.targets.numpy())
