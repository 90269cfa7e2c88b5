"""A real sshd for the present user alone, on a port and with keys of its own."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from helpers.processes import to_each_below

from llmjp_train.launch.local import free_port


def need(*programs: str) -> None:
    """Skip where programs are not installed; CI has them."""
    missing = [
        name for name in programs if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") is None
    ]
    if missing and os.environ.get("LLMJP_CI"):
        pytest.fail(f"CI must have {', '.join(missing)}")
    if missing:
        pytest.skip(f"needs {', '.join(missing)} (apt-get install rsync openssh-server openmpi-bin)")


@dataclass
class Sshd:
    """A server, and how it is reached."""

    folder: Path
    port: int
    server: "subprocess.Popen[bytes]"

    @property
    def options(self) -> dict[str, str]:
        """Settings of ssh."""
        return {
            "Port": str(self.port),
            "IdentityFile": f"{self.folder}/user",
            "BatchMode": "yes",
            "StrictHostKeyChecking": "no",
            "UserKnownHostsFile": f"{self.folder}/known",
            "LogLevel": "ERROR",
        }

    @property
    def command(self) -> str:
        """The ssh command that reaches it at 127.0.0.1."""
        return "ssh -F none " + " ".join(f"-o {name}={value}" for name, value in self.options.items())

    def silence(self) -> None:
        """Stop what serves its connections, which stay open: the network is gone, and nobody says so."""
        to_each_below(self.server.pid, psutil.Process.suspend, "sshd")

    def speak(self) -> None:
        """Undo `silence`."""
        to_each_below(self.server.pid, psutil.Process.resume, "sshd")

    def lose(self) -> None:
        """Let the host die: the server and all that was started through it."""
        psutil.Process(self.server.pid).suspend()  # nothing new comes of it
        to_each_below(self.server.pid, psutil.Process.kill)
        self.server.kill()
        self.server.wait(10)


@contextmanager
def sshd(folder: Path) -> Iterator[Sshd]:
    """Started in a folder of its own, ended at the end."""
    need("sshd", "ssh", "ssh-keygen")
    folder.mkdir(mode=0o700)
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    shutil.copy(folder / "user.pub", folder / "authorized")
    port = free_port()
    (folder / "config").write_text(
        f"ListenAddress 127.0.0.1\nPort {port}\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/authorized\n"
        f"PidFile {folder}/pid\nStrictModes no\nUsePAM no\nPasswordAuthentication no\n"
    )
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    program = shutil.which("sshd", path="/usr/sbin:/usr/bin") or "sshd"
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen([program, "-D", "-e", "-f", str(folder / "config")], stderr=log)
    try:
        for _ in range(200):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        yield Sshd(folder, port, server)
    finally:
        if server.poll() is None:
            server.terminate()
        server.wait(10)
