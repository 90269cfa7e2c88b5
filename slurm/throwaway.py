#!/usr/bin/env python3
"""A Slurm of several nodes on this machine, in one folder: up in a second, gone without a trace.

  python slurm/throwaway.py up --nodes 4     then: eval "$(python slurm/throwaway.py env)"; sinfo
  python slurm/throwaway.py down

Needs the daemons of Debian's slurm-wlm and munge, and nothing else: no root, no systemd, no cgroups. Every
node is a slurmd of this machine under an address of its own (127.0.0.1, 127.0.0.2, ...), so that its name
resolves anywhere. One process, the keeper, starts the daemons and adopts whatever they leave behind; when it
ends, by SIGTERM or because its standard input closes, they all end. Standard library alone.
"""

import argparse
import contextlib
import ctypes
import os
import pwd
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "sinfo")
HOW_TO_INSTALL = "apt-get install slurm-wlm munge"
_SEARCH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin", "/usr/local/sbin"])
_SUBREAPER = 36  # prctl's PR_SET_CHILD_SUBREAPER: orphans of the daemons become ours

# Waits are short, so that tests of failures are; what a site has instead stands behind each.
SETTINGS = {
    "ClusterName": "throwaway",
    "ProctrackType": "proctrack/linuxproc",
    "TaskPlugin": "task/none",
    "JobAcctGatherType": "jobacct_gather/none",
    "AccountingStorageType": "accounting_storage/none",  # as at Sakura: sacct knows nothing
    "SwitchType": "switch/none",
    "MpiDefault": "none",
    "SelectType": "select/cons_tres",
    "SelectTypeParameters": "CR_CPU",
    "GresTypes": "gpu",
    "SchedulerType": "sched/backfill",
    "SchedulerParameters": "sched_interval=1,bf_interval=1,batch_sched_delay=0,sched_min_interval=0",
    "SlurmctldParameters": "idle_on_node_suspend",
    "SlurmdParameters": "config_overrides",  # more CPUs than this machine has
    "KillWait": "5",  # 30
    "MessageTimeout": "5",  # 10
    "SlurmctldTimeout": "10",  # 120
    "SlurmdTimeout": "8",  # 300
    "TCPTimeout": "2",
    "InactiveLimit": "0",
    "MinJobAge": "300",
    "ReturnToService": "2",
    "JobRequeue": "1",
    "KillOnBadExit": "0",
}


def missing_programs() -> list[str]:
    """Which of the daemons and commands are not installed."""
    return [name for name in PROGRAMS if shutil.which(name, path=_SEARCH) is None]


def default_root() -> Path:
    """Folder of the cluster that `up` starts: one a user and machine."""
    return Path(tempfile.gettempdir()) / f"llmjp-slurm-{os.getuid()}"


def environment(root: Path) -> dict[str, str]:
    """This process's environment with the cluster in ``root`` as its Slurm, and no job around it."""
    own = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SBATCH_", "PBS_"))}
    return {**own, "SLURM_CONF": str(root / "slurm.conf"), "PATH": _SEARCH}


class Cluster:
    """The daemons, for the keeper."""

    def __init__(self, root: Path, nodes: int, cpus: int, gpus: int) -> None:
        self.root, self.cpus, self.gpus = root, cpus, gpus
        self.names = [f"127.0.0.{number + 1}" for number in range(nodes)]
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, seconds: float = 30) -> None:
        """Write the configuration, start everything, and wait until every node is idle.

        Raises:
            RuntimeError: a daemon died or was not ready in time; its log's end is in the message.
        """
        ctypes.CDLL(None).prctl(_SUBREAPER, 1, 0, 0, 0)
        self._configure()
        munge = self.root / "munge"
        key = munge / "key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        # --force: munged refuses a folder below one that others may write, as the temporary one is.
        options = [f"--{name}={munge / name}" for name in ("pid-file", "log-file", "seed-file")]
        self._spawn("munged", "munged", "-F", "--force", f"--key-file={key}", f"--socket={munge / 'socket'}",
                    "--num-threads=2", *options)  # fmt: skip
        self._wait((munge / "socket").exists, seconds, "munged")
        for name in ("slurmctld", *self.names):
            self.start_daemon(name)
        self._wait(lambda: self._idle() == len(self.names), seconds, "idle nodes")

    def start_daemon(self, name: str) -> None:
        """Start the controller, or the daemon of a node."""
        conf = str(self.root / "slurm.conf")
        if name == "slurmctld":
            self._spawn(name, "slurmctld", "-D", "-f", conf)
        else:
            self._spawn(name, "slurmd", "-D", "-N", name, "-f", conf)

    def kill_daemon(self, name: str) -> None:
        """SIGKILL to the controller or to a node's daemon; what it runs goes on."""
        self.processes[name].kill()
        self.processes[name].wait()

    def lose_node(self, name: str) -> None:
        """SIGKILL to a node's daemon and to everything that it runs, as when its power goes."""
        log = self.root / "log" / f"{name}.log"
        # A step's daemon leaves its parent, but it writes into its node's log.
        steps = [pid for pid in descendants(os.getpid()) if _holds_open(pid, log)]
        for pid in {below for step in steps for below in (step, *descendants(step))}:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.kill_daemon(name)

    def stop(self) -> None:
        """End jobs, daemons and everything that descends from them; remove the folder."""
        if self._alive("slurmctld"):
            self._call("scancel", "--signal=KILL", "--full", f"--user={_user()}")
            self._call("scancel", f"--user={_user()}")
        for name in (*(n for n in self.processes if n != "munged"), "munged"):
            if self._alive(name):
                self.processes[name].terminate()
        end = time.monotonic() + 5
        while time.monotonic() < end and any(map(self._alive, self.processes)):
            time.sleep(0.02)
        end = time.monotonic() + 5
        while (left := descendants(os.getpid())) and time.monotonic() < end:
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            time.sleep(0.02)
        shutil.rmtree(self.root, ignore_errors=True)

    def _configure(self) -> None:
        folders = ("state", "run", "log", "munge", "dev", *(f"spool/{name}" for name in self.names))
        for folder in folders:
            (self.root / folder).mkdir(parents=True, exist_ok=True)
        controller, *ports = _free_ports(1 + len(self.names))
        host = socket.gethostname().split(".")[0]
        lines = {
            "SlurmctldHost": f"{host}(127.0.0.1)",
            "SlurmUser": _user(),
            "SlurmdUser": _user(),
            "SlurmctldPort": controller,
            "AuthType": "auth/munge",
            "CredType": "cred/munge",
            # cred_expire is also how long a requeued job waits; 5 is the least that Slurm takes (120).
            "AuthInfo": f"socket={self.root}/munge/socket,cred_expire=5",
            "StateSaveLocation": self.root / "state",
            "SlurmdSpoolDir": f"{self.root}/spool/%n",
            "SlurmctldPidFile": self.root / "run/slurmctld.pid",
            "SlurmdPidFile": f"{self.root}/run/%n.pid",
            "SlurmctldLogFile": self.root / "log/slurmctld.log",
            "SlurmdLogFile": f"{self.root}/log/%n.log",
            "JobCompType": "jobcomp/none",
            **SETTINGS,
        }
        text = [f"{key}={value}" for key, value in lines.items()]
        gres = f" Gres=gpu:{self.gpus}" if self.gpus else ""
        for name, port in zip(self.names, ports, strict=True):
            text.append(
                f"NodeName={name} NodeHostname={host} NodeAddr={name} Port={port} CPUs={self.cpus} "
                f"RealMemory=1000{gres} State=UNKNOWN"
            )
        text.append("PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP")
        text.append("PartitionName=short Nodes=ALL Default=NO MaxTime=00:05:00 State=UP")
        (self.root / "slurm.conf").write_text("\n".join(text) + "\n")
        (self.root / "gres.conf").write_text(self._devices())

    def _devices(self) -> str:
        """gres.conf; a device must be a character device, and /dev/null is one that every user has."""
        if not self.gpus:
            return "AutoDetect=off\n"
        for index in range(self.gpus):
            (self.root / f"dev/nvidia{index}").symlink_to("/dev/null")
        files = f"{self.root}/dev/nvidia[0-{self.gpus - 1}]" if self.gpus > 1 else f"{self.root}/dev/nvidia0"
        return f"AutoDetect=off\nNodeName={','.join(self.names)} Name=gpu File={files}\n"

    def _spawn(self, name: str, program: str, *arguments: str) -> None:
        path = shutil.which(program, path=_SEARCH)
        assert path is not None, f"{program} is not installed: {HOW_TO_INSTALL}"
        with (self.root / "log" / f"{name}.out").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [path, *arguments], env=environment(self.root), cwd=self.root, start_new_session=True,
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip

    def _alive(self, name: str) -> bool:
        return name in self.processes and self.processes[name].poll() is None

    def _idle(self) -> int:
        return self._call("sinfo", "-hN", "-p", "main", "-o", "%t").split().count("idle")

    def _call(self, *command: str) -> str:
        done = subprocess.run(
            command, env=environment(self.root), cwd=self.root, capture_output=True, text=True, timeout=20
        )
        return done.stdout

    def _wait(self, ready: Callable[[], bool], seconds: float, what: str) -> None:
        end = time.monotonic() + seconds
        while not ready():
            dead = [name for name in self.processes if not self._alive(name)]
            if dead or time.monotonic() > end:
                raise RuntimeError(f"no {what}; dead: {', '.join(dead) or 'none'}\n{self._logs()}")
            time.sleep(0.02)

    def _logs(self) -> str:
        logs = sorted((self.root / "log").iterdir())
        return "\n".join(f"{log.name}: {log.read_text(errors='replace')[-1500:]}" for log in logs)


def descendants(pid: int) -> list[int]:
    """Living processes below ``pid``."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
            if state != "Z":
                children.setdefault(int(parent), []).append(int(stat.parent.name))
    found, to_do = [], [pid]
    while to_do:
        below = children.get(to_do.pop(), [])
        found += below
        to_do += below
    return found


def _holds_open(pid: int, path: Path) -> bool:
    with contextlib.suppress(OSError):
        return any(link.resolve() == path.resolve() for link in Path(f"/proc/{pid}/fd").iterdir())
    return False


def _user() -> str:
    return pwd.getpwuid(os.getuid()).pw_name


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [int(probe.getsockname()[1]) for probe in probes]


def keep(args: argparse.Namespace) -> int:
    """Hold a cluster until a signal or the end of standard input; takes `kill`, `lose` or `start NAME` from it."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(0))
    args.root.mkdir(mode=0o755, parents=True, exist_ok=True)
    cluster = Cluster(args.root, args.nodes, args.cpus, args.gpus)
    try:
        cluster.start()
        (args.root / "keeper").write_text(str(os.getpid()))
        print("ready", flush=True)
        if args.detached:
            signal.pause()
        _obey(cluster)
    except RuntimeError as error:
        print(error, file=sys.stderr, flush=True)
        return 1
    finally:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        cluster.stop()
    return 0


def _obey(cluster: Cluster) -> None:
    with selectors.DefaultSelector() as selector:
        selector.register(sys.stdin, selectors.EVENT_READ)
        while selector.select():
            line = sys.stdin.readline()
            if not line:
                return
            word, name = line.split()
            acts = {"kill": cluster.kill_daemon, "lose": cluster.lose_node, "start": cluster.start_daemon}
            acts[word](name)
            print("done", flush=True)


def up(args: argparse.Namespace) -> int:
    """Start a keeper in the background and say how to use its cluster."""
    if _keeper(args.root):
        print(f"a cluster is up in {args.root}: 'make slurm-down' ends it", file=sys.stderr)
        return 1
    began = time.monotonic()
    command = [sys.executable, __file__, "keep", "--detached", "--root", str(args.root)]
    command += ["--nodes", str(args.nodes), "--cpus", str(args.cpus), "--gpus", str(args.gpus)]
    errors = tempfile.TemporaryFile()  # noqa: SIM115 - the keeper writes into it, and we read it
    keeper = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, start_new_session=True
    )
    assert keeper.stdout is not None
    if keeper.stdout.readline() != b"ready\n":
        keeper.wait()
        errors.seek(0)
        print(errors.read().decode(errors="replace"), file=sys.stderr)
        return 1
    print(
        f"# {args.nodes} nodes, idle after {time.monotonic() - began:.1f} s; end them with 'make slurm-down'"
    )
    return show(args)


def show(args: argparse.Namespace) -> int:
    """The shell lines that make the cluster this shell's Slurm."""
    print(f"export SLURM_CONF={args.root}/slurm.conf")
    return 0


def down(args: argparse.Namespace) -> int:
    """End the keeper and with it everything else; also what a keeper that was killed left behind."""
    pid = _keeper(args.root)
    if not pid and not args.root.exists():
        print("no cluster is up")
        return 0
    if pid:
        os.kill(pid, signal.SIGTERM)
    end = time.monotonic() + 15
    while _keeper(args.root) and time.monotonic() < end:
        time.sleep(0.02)
    for stray in _strays(args.root):
        with contextlib.suppress(ProcessLookupError):
            os.kill(stray, signal.SIGKILL)
    shutil.rmtree(args.root, ignore_errors=True)
    print("down")
    return 0


def _keeper(root: Path) -> int:
    """Pid of the living keeper of a cluster; 0 without one."""
    with contextlib.suppress(OSError, ValueError):
        pid = int((root / "keeper").read_text())
        if str(root).encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
            return pid
    return 0


def _strays(root: Path) -> list[int]:
    """Processes that know the cluster from their command or environment."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
            if f"{root}/slurm.conf".encode() in words and int(process.name) != os.getpid():
                found.append(int(process.name))
    return found


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("action", choices=("up", "down", "env", "keep"))
    parser.add_argument("--root", type=Path, default=default_root(), help="folder of the cluster")
    parser.add_argument("--nodes", type=int, default=4)
    parser.add_argument("--cpus", type=int, default=16, help="CPUs that each node claims to have")
    parser.add_argument("--gpus", type=int, default=8, help="GPUs that each node claims to have")
    parser.add_argument("--detached", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    missing = missing_programs()
    if missing:
        print(f"{', '.join(missing)} not found: {HOW_TO_INSTALL}", file=sys.stderr)
        return 2
    return {"up": up, "down": down, "env": show, "keep": keep}[args.action](args)


if __name__ == "__main__":
    sys.exit(main())
