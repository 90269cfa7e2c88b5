"""A site's first day on one node: what this project claims of a device, shown on the devices that are here."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from llmjp_train.config.compose import compose
from llmjp_train.config.training import Dtype
from llmjp_train.errors import UserError
from llmjp_train.launch.forked import warm
from llmjp_train.runlog.reading import step_rows
from llmjp_train.runlog.record import RunRecord
from llmjp_train.train.leak_test import allowed
from llmjp_train.verify import device as alone
from llmjp_train.verify.bounds import Verdict
from llmjp_train.verify.run import Verifier, prepared
from llmjp_train.verify.spec import FORMS, parse

SCHEMA = 1
CORPUS = "llmjp-small-ja"
STEPS, SAVED = 6, 3
LOSS, NORM = 1e-5, 1e-4
"""fp32: relative differences of the loss and gradient norm of a step, over six steps and other orders of reduction."""
ON_CPU = ("tp2-pp2-z1-sp-neox", "dp2-z3-gpt", "tp2-dp2-z2-llama")
"""Layouts for the CPU, where ranks share the cores: each axis and ZeRO stage once."""
_SMALL = (
    "model.num_layers=4", "model.hidden_size=64", "model.ffn_size=96", "model.num_heads=8", "model.num_kv_heads=4",
    "model.head_size=8", "model.vocab_size=1536", "model.max_positions=128", "batch.global_batch=8",
    "batch.micro_batch=1", "batch.sequence_length=64", "schedule=constant", "schedule.min_lr=0", "schedule.warmup=2",
    f"checkpoint.every_steps={SAVED}", "checkpoint.keep_last=5", "metrics.tensorboard=false", "evaluation.every=null",
)  # fmt: skip


@dataclass(frozen=True)
class Finding:
    """What came of one question."""

    part: str
    name: str
    state: str
    """ok, failed, or not run."""
    said: str
    """The figure with its bound, or why it was not run."""
    seconds: float = 0.0


@dataclass
class SelfTest:
    """The parts of a self test, each an iterator of findings."""

    folder: Path
    """For what is trained; its content is gone afterwards."""
    devices: int = field(default_factory=torch.cuda.device_count)
    """CUDA devices; 0: the CPU half is run."""
    _reference: list[dict[str, Any]] | None = None

    @property
    def device(self) -> torch.device:
        """The device that is asked."""
        return torch.device("cuda", 0) if self.devices else torch.device("cpu")

    def parts(self) -> dict[str, Callable[[], Iterator[Finding]]]:
        """By name, in order."""
        return {
            "parity": self.parity,
            "attention": self.attention,
            "leak": self.leak,
            "layouts": self.layouts,
            "checkpoint": self.checkpoint,
        }

    def dtypes(self) -> list[Dtype]:
        """Formats that the device computes in; on a CPU fp16 is not trained in."""
        fp16 = [Dtype.fp16] if self.devices else []
        bf16 = [Dtype.bf16] if not self.devices or torch.cuda.is_bf16_supported() else []
        return [Dtype.fp32, *bf16, *fp16]

    def _left_out(self, part: str) -> Iterator[Finding]:
        for dtype in Dtype:
            if dtype not in self.dtypes():
                why = (
                    "this machine has no GPU"
                    if dtype is Dtype.fp16
                    else "the device has no instructions for it"
                )
                yield Finding(part, dtype.value, "not run", why)

    def parity(self) -> Iterator[Finding]:
        """Logits and gradients of each form and format against fp32 on the CPU."""
        for form in FORMS:
            for dtype in self.dtypes():
                began = time.perf_counter()
                if dtype is Dtype.fp32 and not self.devices:
                    yield Finding("parity", f"{form} fp32", "not run", "the device is the CPU itself")
                    continue
                found, worst = alone.distance(form, self.device, dtype)
                bound = alone.BOUNDS[dtype]
                said = f"{worst} is {found:.1e} from fp32 on the CPU, {bound:g} is allowed"
                yield _judged("parity", f"{form} {dtype.value}", found <= bound, said, began)
        yield from self._left_out("parity")

    def attention(self) -> Iterator[Finding]:
        """Which implementation of attention torch really chose: told, not judged."""
        for dtype in self.dtypes():
            began = time.perf_counter()
            kernels = alone.attention_kernels(self.device, dtype)
            said = "; ".join(f"{what}: {', '.join(names)}" for what, names in kernels.items())
            yield _judged("attention", dtype.value, True, said, began)

    def leak(self) -> Iterator[Finding]:
        """Whether a document sees another one through the attention that was chosen."""
        for form in FORMS:
            for dtype in self.dtypes():
                began = time.perf_counter()
                found, bound = alone.leak(form, self.device, dtype), allowed(dtype)
                said = f"changing a document moved another's loss by {found:.1e} nats, {bound:g} is allowed"
                yield _judged("leak", f"{form} {dtype.value}", found <= bound, said, began)

    def layouts(self) -> Iterator[Finding]:
        """Layouts over the node's devices against one: on GPUs by training, on the CPU by `Verifier`."""
        if self.devices:
            yield from self.trained_layouts(_over(self.devices))
            return
        warm()
        verifier = Verifier(prepared(compose("train", ["experiment=tiny-cpu"], partial=True)), steps=2)
        for text in ON_CPU:
            began = time.perf_counter()
            row = verifier.verify(parse(text))
            wrong = row.verdict.failures
            said = wrong[0] if wrong else f"up to {_worst(row.verdict):.2g} of what is allowed"
            yield _judged("layouts", str(row.spec), not wrong, said, began)

    def trained_layouts(self, layouts: Sequence[Sequence[str]]) -> Iterator[Finding]:
        """Train some steps in each layout, as a user does, and compare losses and norms with one device's."""
        if not layouts:
            yield Finding("layouts", "all", "not run", "one device alone has one layout")
            return
        reference = self.reference()
        for words in layouts:
            began = time.perf_counter()
            name = " ".join(word.removeprefix("parallel.") for word in words)
            try:
                rows = self._train("layout-" + name.replace(" ", "-"), *words, f"schedule.length={SAVED}")
            except UserError as error:
                yield _judged("layouts", name, False, str(error), began)
                continue
            yield _compared("layouts", name, rows, reference[:SAVED], began)

    def checkpoint(self) -> Iterator[Finding]:
        """Save, load in another layout, go on, and export: against the run that was never interrupted."""
        reference = self.reference()
        several = ["parallel.data=2"] if self.devices != 1 else []
        began = time.perf_counter()
        self._train("resumed", f"schedule.length={SAVED}")
        rows = self._train("resumed", *several, "parallel.zero=2", f"schedule.length={STEPS}")
        name = "resumed with " + " ".join(
            word.removeprefix("parallel.") for word in (*several, "parallel.zero=2")
        )
        yield _compared("checkpoint", name, rows, reference, began)
        began = time.perf_counter()
        out = self.folder / "exported"
        self._llmjp("export", str(self.folder / "resumed"), "--out", str(out))
        certificate = json.loads((out / "parity.json").read_text(encoding="utf-8"))
        said = f"compared with transformers: {certificate['level']}"
        yield _judged("checkpoint", "export", certificate["passed"], said, began)

    def reference(self) -> list[dict[str, Any]]:
        """Rows of a run on one device, trained once."""
        if self._reference is None:
            words = ("vocab_size=1536", "character_coverage=0.98")
            self._llmjp("tokenizer", "train", f"input=[{CORPUS}]", f"output={self.folder}/tokenizer", *words)
            tokenizer = f"tokenizer.path={self.folder}/tokenizer"
            self._llmjp("prepare", f"input=[{CORPUS}]", f"output={self.folder}/data", tokenizer)
            self._reference = self._train("reference", f"schedule.length={STEPS}")
        return self._reference

    def _train(self, name: str, *words: str) -> list[dict[str, Any]]:
        run = self.folder / name
        device = ["cluster.device=cuda"] if self.devices else []
        places = [f"run_dir={run}", f"tokenizer.path={self.folder}/tokenizer"]
        places += [f"data.sources.small.path={self.folder}/data"]
        self._llmjp("train", "experiment=tiny-cpu", *places, *_SMALL, *device, *words)
        return step_rows(RunRecord(run).read_metrics())

    def _llmjp(self, *words: str) -> None:
        """Run a command as a user would.

        Raises:
            UserError: it failed; with the end of what it said.
        """
        # The project's own text is in the package: a folder of data is neither needed nor looked at.
        environment = {key: value for key, value in os.environ.items() if key != "LLMJP_DATA"}
        command = [sys.executable, "-m", "llmjp_train.cli", *words]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
        if done.returncode:
            said = (done.stderr or done.stdout).strip().splitlines()[-3:]
            raise UserError(f"llmjp {words[0]} ended with exit code {done.returncode}: {' / '.join(said)}")


def _over(devices: int) -> list[list[str]]:
    """Layouts that fill two, and where there are as many four and eight, devices of a node."""
    found = []
    if devices >= 2:
        found += [["parallel.tensor=2"], ["parallel.pipeline=2"]]
        found += [["parallel.data=2", f"parallel.zero={zero}"] for zero in (1, 2, 3)]
    if devices >= 4:
        found.append(["parallel.tensor=2", "parallel.pipeline=2", "parallel.sequence=true"])
    if devices >= 8:
        found.append(["parallel.tensor=2", "parallel.pipeline=2", "parallel.data=2"])
    return found


def _compared(
    part: str, name: str, rows: Sequence[dict[str, Any]], wanted: Sequence[dict[str, Any]], began: float
) -> Finding:
    """A run's steps beside the reference's."""
    if [row["step"] for row in rows] != [row["step"] for row in wanted]:
        return _judged(part, name, False, f"{len(rows)} steps were logged, not {len(wanted)}", began)
    loss, norm = (
        max(abs(row[key] - other[key]) / abs(other[key]) for row, other in zip(rows, wanted, strict=True))
        for key in ("loss", "grad_norm")
    )
    good = loss <= LOSS and norm <= NORM
    said = f"loss {loss:.1e} and gradient norm {norm:.1e} from one device, {LOSS:g} and {NORM:g} are allowed"
    return _judged(part, name, good, said, began)


def _judged(part: str, name: str, good: bool, said: str, began: float) -> Finding:
    return Finding(part, name, "ok" if good else "failed", said, time.perf_counter() - began)


def _worst(verdict: Verdict) -> float:
    return max(verdict.loss, verdict.norm, verdict.gradient, verdict.weight)
