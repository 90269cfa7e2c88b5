"""What a node measures of itself before it says hello: its devices, what their driver tells, and the run's file system.

Figures alone: what is bad is judged by the first node (`judging`). Nothing here raises, since a node that is
broken must be able to say so.
"""

import errno
import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

CHILD_SECONDS = 60.0
"""After which devices that gave no answer are taken to hang."""
DISK_BYTES = 4 * 2**20
"""Written and read back by every node at once; enough to tell a broken mount, too little to tell its rate."""
_MATMUL_SECONDS = 0.15
_MATMUL_SIZE = {"cpu": 256, "cuda": 8192}  # milliseconds, much longer than starting it
_QUERIES = (
    ("index", "ecc.errors.uncorrected.volatile.total", "clocks.sm", "clocks.max.sm",
     "clocks_throttle_reasons.hw_slowdown", "remapped_rows.failure"),
    ("index", "ecc.errors.uncorrected.volatile.total", "clocks.sm", "clocks.max.sm"),
)  # fmt: skip
"""What nvidia-smi is asked: one field that its version does not know fails the whole question."""
_XID = re.compile(r"NVRM: Xid \(PCI:[0-9A-Fa-f:.]+\): (\d+)")


def node_name() -> str:
    """This node as its scheduler calls it, so that it can be left out by that name."""
    names = (os.environ.get(key) for key in ("SLURMD_NODENAME", "LLMJP_HOST"))
    return next((name for name in names if name), socket.gethostname())


def probe(run_dir: Path, *, cuda: bool) -> dict[str, Any]:
    """Measure this node, in less than a second on a CPU; to be called before this process uses its devices.

    Returns:
        ``seconds`` that it took; ``devices``, for each ``tflops`` (bf16 on CUDA; fp32 of one core on a CPU),
        ``free_gib`` and ``total_gib``, or ``error``; ``gpus`` and ``xids`` as the driver tells them, empty where it
        tells nothing; ``disk`` as `disk` gives it.
    """
    import torch  # noqa: F401 - the ranks need it too, so that it is no cost of this

    began = time.monotonic()
    child = _Child(lambda: measure_devices(cuda=cuda))
    found = {
        "gpus": nvidia_smi() if cuda else [],
        "xids": xids(output_of("dmesg")) if cuda else {},
        "disk": disk(run_dir / f".preflight-{node_name()}"),
        "devices": child.answer(CHILD_SECONDS),
    }
    return {**found, "seconds": round(time.monotonic() - began, 2)}


def measure_devices(*, cuda: bool) -> list[dict[str, Any]]:
    """Matmul rate and memory of each device, all at the same time; one core of a CPU.

    Several cores that wait for each other would measure what else runs on a shared node.
    """
    import torch

    if not cuda:
        torch.set_num_threads(1)
        return [{"tflops": _matmul_tflops(torch.device("cpu"))}]
    count = torch.cuda.device_count()
    with ThreadPoolExecutor(max(1, count)) as pool:
        return list(pool.map(_measure_gpu, range(count)))


def _measure_gpu(index: int) -> dict[str, Any]:
    import torch

    try:
        device = torch.device("cuda", index)
        # Ranks that were killed a moment ago may still be giving their memory back.
        for _ in range(20):
            free, total = torch.cuda.mem_get_info(device)
            if free > 0.9 * total:
                break
            time.sleep(0.5)
        memory = {"free_gib": round(free / 2**30, 1), "total_gib": round(total / 2**30, 1)}
        return {**memory, "tflops": _matmul_tflops(device)}
    except RuntimeError as error:
        return {"error": str(error).splitlines()[0]}


def _matmul_tflops(device: Any) -> float:
    """Best of several products, so that a moment's neighbour does not count against a node."""
    import torch

    from llmjp_train.train.metrics import measured_flops

    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    size = _MATMUL_SIZE[device.type]
    measured_flops(dtype, size, 0, device)  # loads the kernel
    flops = measured_flops(dtype, size, _MATMUL_SECONDS, device)
    return float(f"{flops / 1e12:.3g}")


def disk(path: Path) -> dict[str, Any]:
    """Write, read and rename a file at ``path``, and remove it.

    Returns:
        ``write_s``, ``read_s``, ``rename_s``, ``free_gb`` and ``total_gb`` (10^9 bytes), or ``error`` and whether the
        disk or a quota is ``full``, with ``total_gb`` where that is known.
    """
    moved = path.with_name(f"{path.name}.moved")
    content = os.urandom(DISK_BYTES)
    what = "write"
    try:
        times = [time.perf_counter()]
        with path.open("wb", buffering=0) as file:
            left = memoryview(content)
            while left:  # a disk with some room takes a part, and only then says that it is full
                left = left[file.write(left) :]
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        times.append(time.perf_counter())
        what = "read back what it wrote"
        if path.read_bytes() != content:
            raise OSError(0, "other bytes came back")
        times.append(time.perf_counter())
        what = "rename"
        path.rename(moved)
        times.append(time.perf_counter())
        what = "remove"
        moved.unlink()
        took = [round(after - before, 4) for before, after in pairwise(times)]
        return {**dict(zip(("write_s", "read_s", "rename_s"), took, strict=True)), **_room(path.parent)}
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        found = {"error": f"cannot {what} in {path.parent}: {error.strerror}", "full": full}
        with suppress(OSError):
            found["total_gb"] = _room(path.parent)["total_gb"]
        return found
    finally:
        for mine in (path, moved):
            with suppress(OSError):
                mine.unlink(missing_ok=True)


def _room(folder: Path) -> dict[str, float]:
    usage = shutil.disk_usage(folder)
    return {"free_gb": round(usage.free / 1e9, 3), "total_gb": round(usage.total / 1e9, 3)}


def nvidia_smi() -> list[dict[str, Any]]:
    """What the driver tells of the GPUs of this job; empty where nvidia-smi is absent or fails."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    chosen = ["-i", visible] if visible else []
    for fields in _QUERIES:
        text = output_of(
            "nvidia-smi", *chosen, f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"
        )
        if text and "not a valid field" not in text:
            return parse_gpus(text, fields)
    return []


def parse_gpus(text: str, fields: tuple[str, ...]) -> list[dict[str, Any]]:
    """Figures of each GPU, a line each, by the names of the fields.

    A figure that the driver does not have (``[N/A]``, ``[Not Supported]``) is none; one that it cannot get
    (``ERR!``, ``[Unknown Error]``, ``[GPU requires reset]``) stays as its words. Other lines are passed over.
    """
    found = []
    for line in text.splitlines():
        values = [value.strip() for value in line.split(",")]
        if len(values) != len(fields) or not values[0].isdigit():
            continue
        found.append({name: _figure(value) for name, value in zip(fields, values, strict=True)})
    return found


def _figure(value: str) -> int | float | str | bool | None:
    clean = value.strip("[]")
    if clean.lower() in ("n/a", "not supported", ""):
        return None
    if clean.lower() in ("yes", "active", "no", "not active"):
        return clean.lower() in ("yes", "active")
    try:
        number = float(clean)
    except ValueError:
        return clean
    return int(number) if number.is_integer() else number


def xids(text: str) -> dict[str, int]:
    """Xid errors in a kernel's log: how often each number stands there."""
    found: dict[str, int] = {}
    for number in _XID.findall(text):
        found[number] = found.get(number, 0) + 1
    return found


def output_of(*words: str) -> str:
    """What a command prints; empty when it is absent, forbidden or slow."""
    try:
        done = subprocess.run(
            words, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=30
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


class _Child:
    """A forked process that uses the devices and ends: one that has used CUDA could not fork ranks any more."""

    def __init__(self, function: Any) -> None:
        self._reading, writing = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            try:
                os.close(self._reading)
                for number in (signal.SIGTERM, signal.SIGUSR1):
                    signal.signal(number, signal.SIG_DFL)
                with os.fdopen(writing, "w") as file:
                    json.dump(function(), file)
            finally:
                os._exit(0)
        os.close(writing)

    def answer(self, seconds: float) -> list[dict[str, Any]]:
        """Its answer; an error where it died or is not there in time."""
        text, end = b"", time.monotonic() + seconds
        while select.select([self._reading], [], [], max(0.0, end - time.monotonic()))[0]:
            part = os.read(self._reading, 65536)
            if not part:
                break
            text += part
        else:
            os.kill(self._pid, signal.SIGKILL)  # not waited for: a driver that hangs keeps it alive
            return [{"error": f"no answer from the devices in {seconds:g} s"}]
        os.close(self._reading)
        status = os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])
        try:
            found: list[dict[str, Any]] = json.loads(text)
        except ValueError:
            return [
                {"error": f"the process that measured the devices ended with code {status} and no figure"}
            ]
        return found
