"""What a run directory says of its run: state, figures, and events in words. Reads only; loads no torch."""

import os
import socket
import statistics
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from llmjp_train.config.derive import Derived, derived, flops_until
from llmjp_train.config.phases import phases
from llmjp_train.errors import UserError
from llmjp_train.runlog.lease import STALE_SECONDS, Epoch, read_epochs
from llmjp_train.runlog.machine import alive
from llmjp_train.runlog.record import RunRecord

STARTS = ("start", "resume", "fork")
INCIDENTS = ("fault", "spike", "straggler", "save_failed", "tracker_failed", "incident")
_DEPTH = 4


@dataclass(frozen=True)
class Point:
    """A validation loss."""

    step: int
    loss: float
    """Nats a token."""
    bits_per_byte: float | None
    """None where the validation text's bytes are unknown."""


@dataclass(frozen=True)
class Summary:
    """A run in a few figures; none wherever the record holds nothing."""

    name: str
    path: Path
    state: str
    """running, ended, stopped, failed, or new (never started)."""
    reason: str
    """Why it is in that state, in the record's words."""
    model: str
    derived: Derived | None
    """What the configuration asks for; none when this version cannot read it."""
    step: int
    samples: int | None
    tokens: int | None
    flops: float | None
    """Model FLOPs of the steps that were taken."""
    loss: float | None
    """Training loss of the newest step, nats a token."""
    tokens_per_s: float | None
    """Median over the newest 50 rows."""
    mfu: float | None
    """Median over the newest 50 rows."""
    validation: Point | None
    best_validation: Point | None
    starts: int
    incidents: int
    began: str | None
    """UTC, ISO 8601, of the first start."""
    changed: str | None
    """UTC, ISO 8601, of the newest event or row, notes and what supervisors wrote among them."""
    written: str | None
    """Time of the newest entry of the training itself."""
    problems: list[str] = field(default_factory=list)
    """What of the record could not be read."""

    @property
    def parameters(self) -> int | None:
        """True parameters."""
        return self.derived.parameters if self.derived else None

    @property
    def total_steps(self) -> int | None:
        """Steps of the whole run."""
        return self.derived.steps if self.derived else None

    @property
    def total_tokens(self) -> int | None:
        """Tokens of the whole run."""
        return self.derived.tokens if self.derived else None

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it."""
        return asdict(self) | {"path": str(self.path)}


def open_run(path: Path) -> RunRecord:
    """The record of a run directory.

    Raises:
        UserError: there is none at ``path``.
    """
    if not path.exists():
        raise UserError(f"{path} does not exist: 'llmjp run list DIR' shows the runs under a folder")
    if not (path / "config.yaml").is_file():
        raise UserError(
            f"{path} holds no config.yaml, so it is not a run; 'llmjp run list {path}' looks below it"
        )
    return RunRecord(path)


def config_values(record: RunRecord) -> dict[str, Any]:
    """The resolved configuration as plain values.

    Raises:
        UserError: config.yaml is damaged.
    """
    path = record.path / "config.yaml"
    try:
        values = yaml.safe_load(record.config_text)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is damaged ({error}): restore it from a copy") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} is damaged (it holds no keys): restore it from a copy")
    return values


def find_runs(folder: Path) -> list[Path]:
    """Run directories in ``folder``, by name; runs are not looked into.

    Raises:
        UserError: there is no such folder.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: name the one that holds your runs")
    found: list[Path] = []
    for place, folders, files in os.walk(folder):
        path = Path(place)
        if "config.yaml" in files and "run_dir:" in (path / "config.yaml").read_text(errors="replace"):
            found.append(path)
            folders.clear()
        elif len(path.relative_to(folder).parts) >= _DEPTH:
            folders.clear()
        folders[:] = [name for name in folders if not name.startswith(".")]
    return sorted(found)


def step_rows(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of optimizer steps."""
    return [row for row in rows if "loss" in row]


def validations(rows: list[dict[str, Any]]) -> list[Point]:
    """Validation losses by step, without those that were not finite."""
    found = [(row["step"], row["validation"]) for row in rows if "validation" in row]
    return [Point(step, v["loss"], v.get("bits_per_byte")) for step, v in found if v.get("loss") is not None]


def summary(record: RunRecord) -> Summary:
    """The run in a few figures.

    Raises:
        UserError: config.yaml or a file of the record is damaged, or of a newer version.
    """
    values = config_values(record)
    events, rows = record.read_events(), record.read_metrics()
    steps, points = step_rows(rows), validations(rows)
    state, reason = run_state(record.path, events)
    last = steps[-1] if steps else {}
    step = int(last.get("step", events[-1].get("step", 0) if events else 0))
    numbers, flops, problems = _derived(record, step)
    own = record.read_lines("events.jsonl")
    written = [str(row["time"]) for row in (*own[-1:], *rows[-1:]) if "time" in row]
    changed = [*written, *(str(event["time"]) for event in events[-1:] if "time" in event)]
    return Summary(
        name=str(values.get("name", record.path.name)),
        path=record.path,
        state=state,
        reason=reason,
        model=str((values.get("model") or {}).get("name", "")),
        derived=numbers,
        step=step,
        samples=last.get("samples"),
        tokens=last.get("tokens"),
        flops=flops,
        loss=last.get("loss"),
        tokens_per_s=median(steps[-50:], "tokens_per_s"),
        mfu=median(steps[-50:], "mfu"),
        validation=points[-1] if points else None,
        best_validation=min(points, key=lambda point: point.loss) if points else None,
        starts=sum(event["kind"] in STARTS for event in events),
        incidents=sum(is_incident(event) for event in events),
        began=next((event["time"] for event in events if event["kind"] in STARTS), None),
        changed=max(changed, default=None),
        written=max(written, default=None),
        problems=problems,
    )


def median(rows: list[dict[str, Any]], key: str) -> float | None:
    """Median of a figure over the rows that have it."""
    found = [row[key] for row in rows if row.get(key) is not None]
    return float(statistics.median(found)) if found else None


def _derived(record: RunRecord, step: int) -> tuple[Derived | None, float | None, list[str]]:
    """What the configuration asks for and the FLOPs up to a step, or why this version cannot read it."""
    from llmjp_train.config.compose import load_config  # imports Hydra: not for who only wants a state

    try:
        config = load_config(record.path / "config.yaml")
        return derived(config), flops_until(config.model, phases(config), step), []
    except UserError as error:
        return None, None, [str(error)]


def run_state(run_dir: Path, events: list[dict[str, Any]]) -> tuple[str, str]:
    """State and reason, from the lease and the last start or end among the events."""
    epochs = read_epochs(run_dir)
    if epochs:
        age = holder_age(run_dir, epochs[-1])
        if age is not None:
            return "running", f"sign of life {age:.0f} s ago, start {epochs[-1].number}"
    marks = [event for event in events if event["kind"] in (*STARTS, "stop", "end")]
    if not marks:
        return "new", "it has not taken a step"
    last = marks[-1]
    reason = str(last.get("reason") or "")
    if last["kind"] == "end":
        return "ended", reason
    if last["kind"] == "stop":
        if last.get("outcome") == "failed":
            return "failed", reason
        if last.get("outcome") == "unhealthy":
            faults = [str(event.get("message", "")) for event in events if event["kind"] == "fault"]
            return "failed", faults[-1] if faults else reason
        return "stopped", reason
    return (
        "failed",
        f"its {last['kind']} of {last['time'][:19]} never said how it ended (killed, or an error)",
    )


def holder_age(run_dir: Path, epoch: Epoch) -> float | None:
    """Seconds since the holder's last sign of life; none when it gave the lease back or is gone."""
    beat = run_dir / "lease" / f"alive-{epoch.number:04d}"
    try:
        age = max(0.0, time.time() - beat.stat().st_mtime)
    except FileNotFoundError:
        return None
    if age > STALE_SECONDS or (_same_place(epoch) and not alive(epoch.pid)):
        return None
    return age


def _same_place(epoch: Epoch) -> bool:
    """Whether the holder's pid means something here: the same host and pid namespace."""
    namespace = Path("/proc/self/ns/pid")
    if epoch.host != socket.gethostname() or not namespace.is_symlink():
        return False
    return epoch.machine.endswith(os.readlink(namespace))


def is_incident(event: dict[str, Any]) -> bool:
    """Whether a person should look at it."""
    return event["kind"] in INCIDENTS or event.get("outcome") in ("unhealthy", "failed")


def describe(event: dict[str, Any]) -> str:
    """An event in words, without its time, kind and step."""
    kind = event["kind"]
    if kind in STARTS:
        return _start(event)
    if kind == "save":
        size = float(event.get("bytes") or 0) / 1e6
        took = f"{size:,.1f} MB in {event.get('seconds') or 0:.1f} s"
        return f"{event.get('folder', '?')}, {took} ({event.get('reason')})"
    if kind == "prune":
        left = f"; could not be removed: {', '.join(event['left'])}" if event.get("left") else ""
        return f"removed {', '.join(map(str, event.get('removed', []))) or 'nothing'}{left}"
    if kind in ("spike", "straggler") and event.get("action"):
        return f"{event.get('evidence')}; {event['action']}"
    if kind == "rewind":
        count = sum(int(pair[1]) for pair in event.get("left_out") or [])
        return f"went back to {event.get('folder', '?')}; {count:,} samples are left out of the data in all"
    if kind == "early_stop":
        left = f"; no longer counting: {', '.join(event['left'])}" if event.get("left") else ""
        return f"{event.get('folder', '?')} is the newest, since {event.get('reason')}{left}"
    if kind == "spike":
        score = _number(event.get("score"), ".1f")
        return f"loss {_number(event.get('loss'))}, {score} deviations above its mean"
    if kind == "validation_best":
        return f"loss {_number(event.get('loss'))}"
    if kind == "change":
        return _change(event)
    if kind == "incident":
        where = "" if event.get("node") is None else f" on {event['node']}"
        cost = f"{event.get('lost_steps', '?')} steps lost"
        return (
            f"{event.get('what', '?')}{where}: {event.get('evidence', '')}; {event.get('action', '')}, {cost}"
        )
    if kind == "note" and event.get("text"):
        return str(event["text"])
    if kind in ("fault", "save_failed", "tracker_failed"):
        return str(event.get("message", ""))
    if kind == "preflight":
        told = "; ".join(map(str, event.get("warnings") or [])) or "nothing odd"
        return f"{len(event.get('nodes') or {})} nodes in {_number(event.get('seconds'), '.1f')} s: {told}"
    if kind in ("stop", "end"):
        return str(event.get("reason", ""))
    rest = {k: v for k, v in event.items() if k not in ("schema", "time", "kind", "step")}
    return ", ".join(f"{key} {value}" for key, value in rest.items())


def _start(event: dict[str, Any]) -> str:
    layout, origin = event.get("layout") or {}, event.get("origin") or {}
    ranks = layout.get("ranks", "?")
    text = f"{ranks} process{'' if ranks == 1 else 'es'} on {event.get('device', '?')}"
    text += f", ZeRO-{layout.get('zero', '?')}, {event.get('dtype', '?')}"
    if origin.get("checkpoint"):
        text += f", from {origin['checkpoint']}"
    if origin.get("fork_of"):
        text += f" of {origin['fork_of']}"
    if event.get("left"):
        text += f"; no longer counting: {', '.join(event['left'])}"
    if event.get("allow_changed"):
        text += f"; allowed to differ: {', '.join(event['allow_changed'])}"
    if event.get("changed"):
        text += f"; settings changed: {changed(event)}"
    return text


def changed(event: dict[str, Any]) -> str:
    """The settings in which a start differs from the one before, as key before → after; nothing for none."""
    found = event.get("changed") or {}
    return ", ".join(f"{key} {_short(before)} → {_short(after)}" for key, (before, after) in found.items())


def _short(value: Any) -> str:
    return "(none)" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _change(event: dict[str, Any]) -> str:
    parts = [
        f"batch {event.get('global_batch')}",
        f"length {event.get('sequence_length')}",
        f"lr {event.get('lr')}",
    ]
    weights = event.get("weights")
    if weights:
        parts.append(f"weights {weights}")
    if event.get("reason"):
        parts.append(str(event["reason"]))
    return ", ".join(parts)


def _number(value: Any, form: str = ".4f") -> str:
    return "not finite" if value is None else format(value, form)
