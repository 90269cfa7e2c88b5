"""`llmjp doctor`: what this machine has, whether training works here, and what to do about what is missing.

Exits with 0 when training would work, with 1 when it would not.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmjp_train import exit_codes

if TYPE_CHECKING:
    import torch

SUMMARY = "what this machine has, whether training works here, and what to do about what is missing"
USES_CONFIG = False

NEEDED = {
    "torch": "torch",
    "deepspeed": "deepspeed",
    "transformers": "transformers",
    "datasets": "datasets",
    "hydra-core": "hydra",
    "lm-eval": "lm_eval",
}
"""Distributions that training and evaluation need, and what is imported of them."""
_PROBE_SECONDS = 180
_SPREAD = 8
_DEMO_GIB = 4.0
_DEMO_GB = 3.0


@dataclass(frozen=True)
class Finding:
    """A fact of the machine."""

    name: str
    state: str
    """ok, note (works, with less) or missing (training does not work)."""
    value: str
    remedy: str = ""
    """What to do, in one line; empty when there is nothing to do."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the command."""
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Look, measure, take one DeepSpeed step, and say what is missing."""
    findings = [*system(), *packages()]
    torch_here = find_spec("torch") is not None
    if not args.json:
        print(
            "measuring matrix products (under 2 s), then one DeepSpeed step in a process of its own …",
            flush=True,
        )
    findings += [*rates(), deepspeed_step()] if torch_here else []
    findings += [*build_tools(), *places()]
    works = all(finding.state != "missing" for finding in findings)
    if args.json:
        print(json.dumps({"works": works, "findings": [asdict(one) for one in findings]}, indent=2))
    else:
        _print(findings, works=works)
    return exit_codes.OK if works else exit_codes.FAILED


def system() -> list[Finding]:
    """Operating system, Python, processor and memory."""
    from llmjp_train.runlog.environment import cpu
    from llmjp_train.runlog.machine import memory

    linux, python = platform.system() == "Linux", sys.version_info >= (3, 11)
    always = [
        Finding(
            "system",
            "ok" if linux else "missing",
            f"{platform.system()} {platform.release()} {platform.machine()}",
            "" if linux else "training runs on Linux alone: use a Linux machine, a virtual one, or WSL 2",
        ),
        Finding(
            "Python",
            "ok" if python else "missing",
            platform.python_version(),
            "" if python else "install Python 3.11 or newer",
        ),
    ]
    if not linux:
        return always  # the rest is read from /proc
    processor = cpu()
    fast = [name for name in processor["features"] if name.startswith(("amx", "avx512_bf16"))]
    slow = "" if fast else "bf16 is emulated here and slow: train small models with precision=fp32"
    ram = memory()
    few = ram["free_gib"] < _DEMO_GIB
    return [
        *always,
        Finding("processor", "ok" if fast else "note", _processor(processor), slow),
        Finding(
            "memory",
            "note" if few else "ok",
            f"{ram['free_gib']:.1f} GiB free of {ram['total_gib']:.1f}",
            f"the demo wants about {_DEMO_GIB:.0f} GiB: close other programs" if few else "",
        ),
    ]


def _processor(found: dict[str, Any]) -> str:
    names = {"avx2": "AVX2", "avx512f": "AVX-512", "avx512_bf16": "AVX-512 bf16", "amx_bf16": "AMX bf16"}
    features = [names[name] for name in found["features"] if name in names]
    return (
        f"{found['model']}, {found['cores']} cores usable; {', '.join(features) or 'no AVX2, AVX-512 or AMX'}"
    )


def packages() -> list[Finding]:
    """Versions of what training and evaluation stand on."""
    from importlib.metadata import PackageNotFoundError, version

    found = []
    for name, module in NEEDED.items():
        try:
            found.append(Finding(name, "ok", version(name)))
        except PackageNotFoundError:
            there = find_spec(module) is not None
            remedy = (
                ""
                if there
                else "install the project with its dependencies: make demo in a checkout, or pip install its wheel"
            )
            value = "there, version unknown" if there else "not installed"
            found.append(Finding(name, "ok" if there else "missing", value, remedy))
    return found


def rates() -> list[Finding]:
    """GPUs, and the matrix-product rates of the fastest device; takes under 2 s on a processor."""
    try:
        import torch
    except (ImportError, OSError) as error:
        remedy = "its libraries do not fit this system: install another build of torch"
        return [Finding("matrix products", "missing", f"torch cannot be imported: {error}", remedy)]
    from llmjp_train.runlog.machine import nvidia_devices

    seen = nvidia_devices()
    if torch.cuda.is_available():
        count = torch.cuda.device_count()
        device = torch.device("cuda", 0)
        gpus = Finding("GPUs", "ok", f"{count} x {torch.cuda.get_device_name(0)}, {_gib(device)}")
    elif seen:
        device = torch.device("cpu")
        remedy = f"torch {torch.__version__} cannot use them: install the CUDA build of torch for this driver"
        gpus = Finding("GPUs", "note", f"{len(seen)} x {seen[0]}, unusable", remedy)
    else:
        device = torch.device("cpu")
        gpus = Finding("GPUs", "note", "none", "small models train on the processor; large ones want GPUs")
    began = time.perf_counter()
    try:
        figures = {name: matmul_rate(device, dtype) for name, dtype in _dtypes().items()}
    except RuntimeError as error:  # a GPU that this torch has no kernels for, or whose memory is taken
        remedy = "free the GPU, or install the torch build for it"
        return [gpus, Finding("matrix products", "missing", str(error).splitlines()[0], remedy)]
    seconds = time.perf_counter() - began
    text = ", ".join(f"{name} {rate / 1e12:.3g} TFLOP/s" for name, rate in figures.items())
    where = "GPU 0" if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    faster = max(figures, key=lambda name: figures[name])
    remedy = f"{faster} is the faster format here: precision={faster}"
    return [gpus, Finding("matrix products", "ok", f"{text} ({where}, {seconds:.1f} s)", remedy)]


def _dtypes() -> "dict[str, torch.dtype]":
    import torch

    return {"fp32": torch.float32, "bf16": torch.bfloat16}


def _gib(device: "torch.device") -> str:
    import torch

    return f"{torch.cuda.get_device_properties(device).total_memory / 2**30:.0f} GiB each"


def matmul_rate(device: "torch.device", dtype: "torch.dtype", seconds: float = 0.3) -> float:
    """Best rate of square matrix products in FLOP/s over about ``seconds``, after one that is not counted.

    The size is 4096 on a GPU and 1024 on a processor, or 256 where one product of 256 shows that a larger
    one would take too long (bf16 without instructions for it).
    """
    import torch

    cuda = device.type == "cuda"

    def once(size: int) -> float:
        left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        if cuda:
            torch.cuda.synchronize(device)
        began = time.perf_counter()
        torch.mm(left, right)
        if cuda:
            torch.cuda.synchronize(device)
        return time.perf_counter() - began

    once(256)
    size = 4096 if cuda else 1024 if once(256) * 64 < seconds / 2 else 256
    once(size)
    best, end = float("inf"), time.perf_counter() + seconds
    while best == float("inf") or time.perf_counter() < end:
        best = min(best, once(size))
    return 2 * size**3 / best


def deepspeed_step() -> Finding:
    """Whether DeepSpeed really starts here and takes a step: one process, in a process of its own."""
    began = time.perf_counter()
    environment = {
        key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    }
    try:
        done = subprocess.run(
            [sys.executable, "-m", "llmjp_train.commands.doctor"],
            capture_output=True,
            text=True,
            timeout=_PROBE_SECONDS,
            env=environment,
        )
    except subprocess.TimeoutExpired:
        remedy = "it hangs at the start: is a compiler at work? set TORCH_EXTENSIONS_DIR to a local disk"
        return Finding("DeepSpeed step", "missing", f"no step in {_PROBE_SECONDS} s", remedy)
    seconds = time.perf_counter() - began
    if done.returncode == 0 and done.stdout.strip():
        return Finding(
            "DeepSpeed step", "ok", f"{done.stdout.strip().splitlines()[-1]} ({seconds:.0f} s with imports)"
        )
    said = [line for line in done.stderr.strip().splitlines() if line.strip()][-_SPREAD:]
    remedy = "install the versions of constraints.txt (pip install -c constraints.txt llmjp-train); it said: "
    return Finding("DeepSpeed step", "missing", f"failed with {done.returncode}", remedy + " / ".join(said))


def probe() -> str:
    """One step of the project's own engine on random tokens; what ran."""
    import torch

    from llmjp_train.config.data import TokenizerConfig
    from llmjp_train.config.model import ModelConfig
    from llmjp_train.config.root import TrainConfig
    from llmjp_train.data.batches import MicroBatch
    from llmjp_train.engine.flat import FlatEngine
    from llmjp_train.parallel import layout as layouts
    from llmjp_train.parallel.world import World
    from llmjp_train.train.optimizer import parameter_groups

    model = ModelConfig(
        name="probe",
        num_layers=1,
        hidden_size=32,
        ffn_size=64,
        num_heads=2,
        num_kv_heads=2,
        head_size=16,
        vocab_size=64,
    )
    config = TrainConfig(name="probe", model=model, tokenizer=TokenizerConfig(name="probe"))
    layout = layouts.start(config.parallel, World(), cuda=torch.cuda.is_available())
    engine = FlatEngine(config, layout, 1, parameter_groups(config))
    tokens = torch.randint(0, model.vocab_size, (1, 16))
    place = torch.arange(16)[None]
    batch = MicroBatch(
        tokens, tokens.roll(-1, 1), torch.zeros_like(tokens), place, torch.zeros(1, dtype=torch.int64)
    )
    result = engine.step([batch], 1e-3)
    engine.close()
    layouts.stop()
    if result is None or not result.applied:
        raise RuntimeError(f"the step was not applied: {result.reason if result else 'interrupted'}")
    return f"ZeRO-{config.parallel.zero} took a step on {layout.device.type}"


def build_tools() -> list[Finding]:
    """ninja, a compiler, schedulers and launchers: none is needed on one machine."""
    from llmjp_train.runlog.machine import launchers, schedulers, tools

    here = tools()
    found = []
    wanted = {"ninja": "pip install ninja", "compiler": "apt-get install g++, or the system's own"}
    for name, remedy in wanted.items():
        path = here[name]
        why = f"only parallel.compile=true and DeepSpeed's own kernels want it: {remedy}"
        found.append(Finding(name, "ok" if path else "note", path or "none", "" if path else why))
    names = [f"{command} ({whose})" for command, whose in schedulers().items()]
    remedy = "" if names else "nothing to do on one machine; on a cluster, run llmjp doctor on its login node"
    found.append(Finding("schedulers", "ok" if names else "note", ", ".join(names) or "none", remedy))
    found.append(Finding("launchers", "ok", ", ".join(launchers()) or "llmjp train's own"))
    return found


def places() -> list[Finding]:
    """Where runs and data go."""
    from llmjp_train.runlog.machine import disk

    here = Path.cwd()
    space = disk(here)
    small = space["free_gb"] < _DEMO_GB
    disk_remedy = ""
    if not space["writable"]:
        disk_remedy = "this folder cannot be written: go to another, or set run_dir="
    elif small:
        disk_remedy = f"the demo wants about {_DEMO_GB:.0f} GB: free some, or set run_dir= on another disk"
    root = os.environ.get("LLMJP_DATA", "")
    if not root:
        data = Finding(
            "LLMJP_DATA",
            "note",
            "not set",
            "set it to a folder of corpora and tokenizers, or use 'llmjp data get NAME'",
        )
    elif not Path(root).is_dir():
        data = Finding(
            "LLMJP_DATA", "note", f"{root} is no folder", "correct it, or unset it to download instead"
        )
    else:
        data = Finding("LLMJP_DATA", "ok", root)
    text = f"{space['free_gb']:.1f} GB free here" + ("" if space["writable"] else ", not writable")
    return [Finding("disk", "note" if disk_remedy else "ok", text, disk_remedy), data]


def _print(findings: list[Finding], *, works: bool) -> None:
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    styles = {"ok": "green", "note": "yellow", "missing": "red"}
    table = Table(box=SIMPLE, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for one in findings:
        table.add_row(Text(one.state, styles[one.state]), one.name, Text(one.value))
    console.print(table)
    for one in findings:
        if one.remedy:
            console.print(Text.assemble((one.name, styles[one.state]), ": ", one.remedy), soft_wrap=True)
    console.print(
        "\nTraining works here." if works else "\nTraining does not work here yet; see the red lines."
    )


if __name__ == "__main__":
    print(probe())
