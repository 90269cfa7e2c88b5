"""Publishing a real release to a folder, through a real sshd, and at the boundary of huggingface_hub."""

import getpass
import importlib
import inspect
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.sshd import need, sshd
from huggingface_hub import HfApi, constants, errors

from llmjp_train import cli, exit_codes
from llmjp_train.errors import UserError
from llmjp_train.publish.release_folder import SUMS, files_of, read_manifest, write_sums
from llmjp_train.publish.upload import plan, publish, revision_name
from llmjp_train.publish.upload_folder import folder_target
from llmjp_train.publish.upload_hub import HubTarget

pytestmark = pytest.mark.slow


def answer(status: int) -> Any:
    """A server's answer in the classes of the HTTP library that huggingface_hub uses."""
    library = importlib.import_module(errors.Response.__module__.split(".")[0])
    return library.Response(status, request=library.Request("GET", "https://hub.example"))


@pytest.fixture
def earlier(trained: Path, tmp_path: Path) -> Path:
    """A release of the step before."""
    out = tmp_path / "earlier"
    assert cli.main(["release", str(trained), "--step", "10", "--out", str(out)]) == exit_codes.OK
    return out


def same(left: Path, right: Path) -> bool:
    return {p.relative_to(left): p.read_bytes() for p in left.rglob("*") if p.is_file()} == {
        p.relative_to(right): p.read_bytes() for p in right.rglob("*") if p.is_file()
    }


def test_a_folder_shows_whole_revisions_and_points_at_the_newest(
    released: Path, earlier: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    need("rsync")
    site = tmp_path / "a place with 'quotes' $(touch x)" / "site"
    words = ["publish", str(released), "--to", str(site)]
    assert cli.main([*words, "--dry-run"]) == exit_codes.OK
    assert "begins with it" in capsys.readouterr().out
    assert not site.parent.exists(), "a dry run makes nothing"
    assert cli.main(words) == exit_codes.OK
    name = revision_name(read_manifest(released))
    assert name == f"step-00000020-tokens-{20 * 6 * 32}"
    assert same(released, site / name)
    assert os.readlink(site / "latest") == name
    capsys.readouterr()
    assert cli.main(["publish", str(earlier), "--to", str(site)]) == exit_codes.OK
    assert "stays at step-00000020" in capsys.readouterr().out
    assert os.readlink(site / "latest") == name, "the pointer never goes back"
    assert {path.name for path in site.iterdir()} == {"latest", name, revision_name(read_manifest(earlier))}
    before = {path: path.stat().st_mtime_ns for path in site.rglob("*")}
    assert cli.main(words) == exit_codes.OK
    assert "is there already" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in site.rglob("*")} == before
    assert cli.main(["verify", str(site / "latest"), "--level", "hashes"]) == exit_codes.OK


def test_what_is_published_stays_as_it_is(released: Path, tmp_path: Path) -> None:
    need("rsync")
    site = tmp_path / "site"
    assert cli.main(["publish", str(released), "--to", str(site)]) == exit_codes.OK
    other = shutil.copytree(released, tmp_path / "other")
    (other / "report.html").write_text("another one")
    write_sums(other)
    with pytest.raises(UserError, match=r"holds another step-00000020.*1 files differ \(report\.html\)"):
        plan(other, folder_target(str(site), None, None))


def test_a_release_that_is_not_sound_is_not_sent(
    released: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    need("rsync")
    broken = shutil.copytree(released, tmp_path / "broken")
    (broken / "README.md").write_text("made up")
    assert cli.main(["publish", str(broken), "--to", str(tmp_path / "site")]) == exit_codes.BAD_INPUT
    said = capsys.readouterr().err
    assert "is not sound, nothing was sent" in said
    assert "README.md was altered" in said
    assert not (tmp_path / "site").exists()


def test_places_without_room_or_rights(
    released: Path, tmp_path: Path, small_disk: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    need("rsync")
    disk = small_disk("100k")
    assert cli.main(["publish", str(released), "--to", str(disk / "site")]) == exit_codes.BAD_INPUT
    said = capsys.readouterr().err
    assert "make room there. Nothing was sent" in said
    assert list(disk.iterdir()) == []
    assert cli.main(["publish", str(released), "--to", "/proc/site"]) == exit_codes.BAD_INPUT
    assert "/proc" in capsys.readouterr().err
    (tmp_path / "file").write_text("x")
    assert cli.main(["publish", str(released), "--to", str(tmp_path / "file")]) == exit_codes.BAD_INPUT
    assert "is no folder" in capsys.readouterr().err
    assert cli.main(["publish", str(released), "--to", "/tmp/x", "--private"]) == exit_codes.BAD_INPUT
    assert "are the hub's" in capsys.readouterr().err


def test_a_disk_that_fills_on_the_way_loses_nothing(released: Path, small_disk: Any) -> None:
    """The room is there when it is looked at, and gone when the files come."""
    need("rsync")
    size = sum(path.stat().st_size for path in files_of(released))
    disk = small_disk(f"{size // 1024 + 400}k")
    target = folder_target(str(disk / "site"), None, None)
    planned = plan(released, target)
    (disk / "filler").write_bytes(b"0" * (size * 3 // 4 + 400_000))
    with pytest.raises(UserError, match=r"No space left.*Make room there and run the same command again"):
        publish(released, target, planned, lambda text: None)
    assert [path.name for path in (disk / "site").iterdir()] == [f".{planned.revision}.partial"]
    (disk / "filler").unlink()
    publish(released, target, plan(released, target), lambda text: None)
    assert same(released, disk / "site" / "latest")


@pytest.fixture
def ssh(tmp_path: Path) -> Iterator[str]:
    """The ssh command that reaches a real sshd."""
    need("rsync")
    with sshd(tmp_path / "sshd") as found:
        yield found.command


def test_an_upload_over_ssh_that_is_cut_goes_on(released: Path, ssh: str, tmp_path: Path) -> None:
    """Killed half way: nothing is shown; the same command sends the rest."""
    site = tmp_path / "remote 'site'"
    big = shutil.copytree(released, tmp_path / "big")
    (big / "extra.bin").write_bytes(os.urandom(3_000_000))
    write_sums(big)
    host = f"{getpass.getuser()}@127.0.0.1"
    words = [
        sys.executable,
        "-m",
        "llmjp_train.cli",
        "publish",
        str(big),
        "--to",
        f"{host}:{site}",
        "--ssh",
        ssh,
    ]
    name = revision_name(read_manifest(big))
    cut = subprocess.Popen([*words, "--limit", "500"], start_new_session=True, stdout=subprocess.DEVNULL)
    part = site / f".{name}.partial" / "extra.bin"
    for _ in range(600):
        if part.exists() and part.stat().st_size > 500_000:
            break
        time.sleep(0.1)
    os.killpg(cut.pid, signal.SIGKILL)
    cut.wait()
    time.sleep(1)  # the server's end of the line finds out
    got = part.stat().st_size
    assert 500_000 < got < 3_000_000
    assert [path.name for path in site.iterdir()] == [f".{name}.partial"], "nothing is shown"
    node = part.stat().st_ino
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "goes on where an earlier try ended" in done.stdout
    assert same(big, site / "latest")
    assert (site / name / "extra.bin").stat().st_ino == node, "the part was gone on with"
    again = subprocess.run(words, capture_output=True, text=True)
    assert "is there already" in again.stdout


def test_hosts_that_cannot_be_reached_say_why(released: Path, ssh: str, tmp_path: Path) -> None:
    user = getpass.getuser()
    with pytest.raises(UserError, match=r"Permission denied.*Make `ssh HOST` work without a question"):
        plan(released, folder_target(f"{user}@127.0.0.1:/x", ssh.replace("/user ", "/host "), None))
    target = folder_target(f"ssh://{user}@127.0.0.1:1{tmp_path}/x/", None, None)
    assert (target.host, target.path, target.ssh[-2:]) == (f"{user}@127.0.0.1", f"{tmp_path}/x", ["-p", "1"])
    with pytest.raises(UserError, match="Connection refused"):
        plan(released, target)


class Hub:
    """Stands for the hub's server behind `HfApi`: refs and commits in memory. Calls must fit the real signatures."""

    def __init__(self, cache: Path) -> None:
        self.branches: dict[str, dict[str, bytes]] = {}
        self.log: list[str] = []
        self.stored: set[str] = set()
        self.cache = cache
        self.cut_after: int | None = None
        self.refuse: int | None = None
        self.settings: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        signature = inspect.signature(getattr(HfApi, name))
        own = getattr(self, f"_{name}")

        def call(*args: Any, **kwargs: Any) -> Any:
            bound = signature.bind(None, *args, **kwargs)
            if self.refuse:
                raise errors.HfHubHTTPError("refused", response=answer(self.refuse))
            return own(**{key: value for key, value in bound.arguments.items() if key != "self"})

        return call

    def _whoami(self) -> dict[str, str]:
        return {"name": "team"}

    def _branch(self, name: str) -> dict[str, bytes]:
        if not self.branches:
            raise errors.RepositoryNotFoundError("no repository", response=answer(404))
        if name not in self.branches:
            raise errors.RevisionNotFoundError("no revision", response=answer(404))
        return self.branches[name]

    def _hf_hub_download(self, repo_id: str, filename: str, revision: str) -> str:
        held = self._branch(revision)
        if filename not in held:
            raise errors.EntryNotFoundError("no such file")
        path = self.cache / revision / filename
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(held[filename])
        return str(path)

    def _create_repo(self, repo_id: str, private: bool, exist_ok: bool) -> None:
        self.settings["private"] = private
        self.branches.setdefault("main", {".gitattributes": b"", "old.txt": b"old"})

    def _update_repo_settings(self, repo_id: str, gated: str) -> None:
        self.settings["gated"] = gated

    def _create_branch(
        self, repo_id: str, branch: str, revision: str = "main", exist_ok: bool = False
    ) -> None:
        assert exist_ok or branch not in self.branches
        if branch not in self.branches:
            self.branches[branch] = dict(self._branch(revision))
            self.log.append(f"branch {branch}")

    def _delete_branch(self, repo_id: str, branch: str) -> None:
        del self.branches[branch]

    def _preupload_lfs_files(
        self, repo_id: str, additions: list[Any], revision: str, free_memory: bool
    ) -> None:
        for addition in additions:
            digest = addition.upload_info.sha256.hex()
            if digest not in self.stored:
                if self.cut_after is not None and len(self.stored) >= self.cut_after:
                    raise ConnectionError("the line was cut")
                self.stored.add(digest)
                self.log.append(f"upload {addition.path_in_repo}")

    def _list_repo_files(self, repo_id: str, revision: str) -> list[str]:
        return sorted(self._branch(revision))

    def _create_commit(self, repo_id: str, operations: list[Any], commit_message: str, revision: str) -> None:
        held = dict(self._branch(revision))
        for operation in operations:
            if type(operation).__name__ == "CommitOperationDelete":
                del held[operation.path_in_repo]
            else:
                with operation.as_file() as file:
                    held[operation.path_in_repo] = file.read()
        self.branches[revision] = held
        self.log.append(f"commit {revision}")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return Hub(tmp_path / "cache")


def send(release: Path, hub: Hub, **settings: Any) -> Any:
    target = HubTarget("team/model", api=hub, **settings)  # type: ignore[arg-type]
    planned = plan(release, target)
    publish(release, target, planned, lambda text: None)
    return planned


def test_the_hub_gets_one_commit_a_revision_and_main_moves_last(
    released: Path, earlier: Path, hub: Hub
) -> None:
    """At the boundary of huggingface_hub: what is asked of it, not the hub itself."""
    first, second = revision_name(read_manifest(earlier)), revision_name(read_manifest(released))
    planned = send(earlier, hub, private=True, gated="manual")
    assert (planned.there, planned.points) == (False, True)
    assert hub.settings == {"private": True, "gated": "manual"}
    assert [line for line in hub.log if not line.startswith("upload")] == [
        f"branch incoming-{first}", f"commit incoming-{first}", f"branch {first}", "commit main",
    ]  # fmt: skip
    files = {path.relative_to(earlier).as_posix(): path.read_bytes() for path in files_of(earlier)}
    files |= {SUMS: (earlier / SUMS).read_bytes(), ".gitattributes": b""}
    assert hub.branches == {"main": files, first: files}, (
        "nothing else is left, also of what main held before"
    )
    send(released, hub)
    assert set(hub.branches) == {"main", first, second}
    assert hub.branches["main"][SUMS] == hub.branches[second][SUMS] != hub.branches[first][SUMS]
    assert hub.branches[first] == files
    hub.log.clear()
    planned = send(earlier, hub)
    assert (planned.there, planned.points, hub.log) == (True, False, [])


def test_an_upload_to_the_hub_that_is_cut_shows_nothing_and_goes_on(released: Path, hub: Hub) -> None:
    name = revision_name(read_manifest(released))
    hub.cut_after = 4
    with pytest.raises(UserError, match=r"cannot be reached .* it goes on"):
        send(released, hub)
    assert name not in hub.branches
    assert SUMS not in hub.branches["main"]
    stored = len([line for line in hub.log if line.startswith("upload")])
    hub.cut_after = None
    send(released, hub)
    assert name in hub.branches
    uploads = [line for line in hub.log if line.startswith("upload")]
    assert stored == 4
    assert len(uploads) == len(set(uploads)), "nothing was sent twice"


def test_what_the_hub_refuses_is_told_with_what_to_do(
    released: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    for status, remedy in ((403, "the right to write"), (507, "make room"), (500, "goes on")):
        hub.refuse = status
        with pytest.raises(UserError, match=remedy):
            send(released, hub)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set"):
        send(released, hub)
