"""The catalogue against the real data, and downloads from a server that breaks off."""

import argparse
import gzip
import hashlib
import http.server
import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmjp_train.commands import data
from llmjp_train.data import catalogue
from llmjp_train.data.catalogue import Entry, FileEntry, Origin
from llmjp_train.data.converters import CONVERTERS
from llmjp_train.data.download import fetch
from llmjp_train.errors import UserError


class Server(http.server.ThreadingHTTPServer):
    """Serves bytes by path, with ranges, and breaks off when told to."""

    files: dict[str, bytes]
    breaks: dict[str, list[int]]
    """Bytes of the file after which the next answers end early."""
    ranges: bool
    """Whether it knows ranges."""
    errors: list[int]
    """Codes of the next answers."""
    asked: list[tuple[str, str | None]]


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.server.asked.append((self.path, wanted))
        wanted = wanted if self.server.ranges else None
        if self.server.errors:
            self.send_error(self.server.errors.pop(0))
            return
        content = self.server.files.get(self.path)
        if content is None:
            self.send_error(404)
            return
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        if wanted and start >= len(content):
            self.send_error(416)
            return
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        ends = self.server.breaks.get(self.path)
        self.wfile.write(content[start : ends.pop(0) if ends else len(content)])

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server(("127.0.0.1", 0), Handler)
    made.files, made.breaks, made.errors, made.asked, made.ranges = {}, {}, [], [], True
    thread = threading.Thread(target=made.serve_forever, daemon=True)
    thread.start()
    yield made
    made.shutdown()
    made.server_close()
    thread.join()


def at(server: Server) -> str:
    return f"http://127.0.0.1:{server.server_address[1]}"


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Entry]:
    """A catalogue of the test's own, nothing at hand, downloads in the test's folder."""
    found: dict[str, Entry] = {}
    monkeypatch.setattr(catalogue, "entries", lambda: found)
    monkeypatch.delenv("LLMJP_DATA", raising=False)
    monkeypatch.setenv("LLMJP_CACHE", str(tmp_path / "cache"))
    catalogue._check_all.cache_clear()
    return found


def facts(content: bytes) -> FileEntry:
    return FileEntry(len(content), hashlib.sha256(content).hexdigest())


def add(known: dict[str, Entry], name: str, files: dict[str, FileEntry], download: dict[str, Origin]) -> None:
    source = "https://github.com/someone/corpus"
    known[name] = Entry(name, "corpus", "about", "CC0", source, "abc123", "data/", name, files, download)


ADDRESS = "/{repository}/{revision}/{path}"


def test_every_file_of_the_real_data_is_in_the_catalogue(llmjp_data: Path) -> None:
    sums = dict(reversed(line.split()) for line in (llmjp_data / "SHA256SUMS").read_text().splitlines())
    sums.pop("tokenizer/LICENSE")
    sizes = {name: (llmjp_data / name).stat().st_size for name in sums}
    listed = {}
    for wanted in catalogue.entries().values():
        if wanted.name != catalogue.OWN_CORPUS:
            listed |= {f"{wanted.folder}/{file}": f for file, f in wanted.files.items() if f.sha256}
    assert {name: f.sha256 for name, f in listed.items()} == sums
    assert {name: f.size for name, f in listed.items()} == sizes


def test_every_entry_says_all_that_a_user_must_know() -> None:
    for wanted in catalogue.entries().values():
        assert wanted.kind in ("corpus", "tokenizer", "prompts", "benchmark"), wanted.name
        assert all((wanted.about, wanted.licence, wanted.source)), wanted.name
        if wanted.name == catalogue.OWN_CORPUS:
            continue
        if wanted.download or wanted.name != "alt":
            assert re.fullmatch(r"https://github\.com/[^/]+/[^/]+", wanted.source), wanted.name
            assert re.fullmatch(r"[0-9a-f]{12}|[0-9a-f]{40}", str(wanted.revision)), wanted.name
        assert set(wanted.download) <= set(wanted.files), wanted.name
        assert {o.convert for o in wanted.download.values()} <= {None, *CONVERTERS}, wanted.name
        assert wanted.changes or not wanted.missing, f"{wanted.name}: nothing tells how it was made"


def test_every_benchmark_is_fetched_and_converted_but_four() -> None:
    """JMMLU and JSeM are made from many files, ALT and chABSA come as archives; the rest is fetched file by file."""
    benchmarks = [wanted for wanted in catalogue.entries().values() if wanted.kind == "benchmark"]
    assert [wanted.name for wanted in benchmarks if wanted.missing] == ["jmmlu", "jsem", "alt", "chabsa"]


def test_every_tokenizer_option_is_in_the_catalogue(root: Path) -> None:
    options = {path.stem for path in (root / "configs" / "tokenizer").glob("*.yaml")} - {"own"}
    assert options == {name for name, wanted in catalogue.entries().items() if wanted.kind == "tokenizer"}


def test_real_entries_are_found_and_checked(llmjp_data: Path) -> None:
    assert catalogue.get("aozora") == llmjp_data / "text" / "aozora_pd.jsonl.xz"
    assert catalogue.get("jcommonsenseqa", llmjp_data) == llmjp_data / "eval" / "jcommonsenseqa"
    assert catalogue.get("llm-jp-v3") == llmjp_data / "tokenizer" / "llmjp-ver3.0-100k"


def test_the_project_s_own_text_needs_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("LLMJP_DATA", raising=False)
    monkeypatch.setenv("LLMJP_CACHE", str(tmp_path))
    folder = Path(catalogue.__file__).with_name("corpus")
    assert catalogue.get("llmjp-small-ja") == folder
    assert set(catalogue.entry("llmjp-small-ja").files) == {path.name for path in folder.iterdir()}


def test_an_unknown_name_has_suggestions() -> None:
    with pytest.raises(UserError, match="has no 'aozra'; did you mean aozora"):
        catalogue.get("aozra")
    with pytest.raises(UserError, match="'llmjp data list' shows all"):
        catalogue.get("☃")


def test_changed_data_are_refused(known: dict[str, Entry], tmp_path: Path) -> None:
    add(known, "x", {"a": facts(b"right")}, {})
    (tmp_path / "root" / "x").mkdir(parents=True)
    (tmp_path / "root" / "x" / "a").write_bytes(b"wrong")
    with pytest.raises(UserError, match=r"x/a has sha256 .* the catalogue says"):
        catalogue.get("x", tmp_path / "root")
    (tmp_path / "root" / "x" / "a").write_bytes(b"longer than it")
    with pytest.raises(UserError, match=r"x/a has 14 bytes, the catalogue says 5"):
        catalogue.get("x", tmp_path / "root")
    (tmp_path / "root" / "x" / "a").write_bytes(b"right")
    assert catalogue.get("x", tmp_path / "root") == tmp_path / "root" / "x" / "a"


def test_what_cannot_be_fetched_says_where_it_comes_from(known: dict[str, Entry]) -> None:
    add(known, "x", {"a": facts(b"1"), "b": facts(b"2")}, {"a": Origin("a")})
    with pytest.raises(
        UserError, match=r"b cannot be downloaded as it is \(made from .*abc123.*set LLMJP_DATA"
    ):
        catalogue.get("x")


def test_a_download_is_checked_told_and_kept(known: dict[str, Entry], server: Server, tmp_path: Path) -> None:
    rows = [{"q": "問い", "n": n} for n in range(5)]
    ours = b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows[:3])
    server.files = {
        "/someone/corpus/abc123/data/a.bin": b"plain bytes",
        "/someone/corpus/abc123/data/b.json.gz": gzip.compress(json.dumps(rows).encode()),
    }
    add(
        known,
        "x",
        {"a": facts(b"plain bytes"), "b.jsonl": facts(ours)},
        {"a": Origin("data/a.bin"), "b.jsonl": Origin("data/b.json.gz", "rows", 3)},
    )
    told: list[str] = []
    found = catalogue.get("x", told=told.append, address=at(server) + ADDRESS)
    assert found == tmp_path / "cache" / "x"
    assert (found / "a").read_bytes() == b"plain bytes"
    assert (found / "b.jsonl").read_bytes() == ours
    assert sorted(path.name for path in found.iterdir()) == ["a", "b.jsonl"]
    assert told[0] == "x: licence CC0; from https://github.com/someone/corpus at abc123"
    server.files.clear()
    assert catalogue.get("x", address=at(server) + ADDRESS) == found, "what is there is not asked for again"
    assert len(server.asked) == 2


def test_a_download_with_other_bytes_is_refused_and_removed(
    known: dict[str, Entry], server: Server, tmp_path: Path
) -> None:
    server.files = {"/someone/corpus/abc123/a": b"wrong"}
    add(known, "x", {"a": facts(b"right")}, {"a": Origin("a")})
    with pytest.raises(UserError, match="has sha256"):
        catalogue.get("x", address=at(server) + ADDRESS)
    assert list((tmp_path / "cache" / "x").iterdir()) == []


def test_a_file_without_a_recorded_sha256_says_so(known: dict[str, Entry], server: Server) -> None:
    server.files = {"/someone/corpus/abc123/a": b"bytes"}
    add(known, "x", {"a": FileEntry(5)}, {"a": Origin("a")})
    told: list[str] = []
    catalogue.get("x", told=told.append, address=at(server) + ADDRESS)
    assert (
        told[-1]
        == f"a: the catalogue has no sha256 to compare with; it is {hashlib.sha256(b'bytes').hexdigest()}"
    )


def test_a_broken_download_goes_on_where_it_ended(server: Server, tmp_path: Path) -> None:
    content = bytes(range(256)) * 4000
    server.files, server.breaks = {"/big": content}, {"/big": [300_000]}
    told: list[str] = []
    fetch(f"{at(server)}/big", tmp_path / "big.part", told.append, pause=0)
    assert (tmp_path / "big.part").read_bytes() == content
    assert server.asked == [("/big", None), ("/big", "bytes=300000-")]
    assert [line.split()[0] for line in told] == ["downloading", "going"]


def test_a_server_without_ranges_sends_all_again(server: Server, tmp_path: Path) -> None:
    content = bytes(range(256)) * 40
    server.files, server.breaks, server.ranges = {"/big": content}, {"/big": [3000]}, False
    fetch(f"{at(server)}/big", tmp_path / "big.part", pause=0)
    assert (tmp_path / "big.part").read_bytes() == content
    assert server.asked == [("/big", None), ("/big", "bytes=3000-")]


def test_get_goes_on_over_several_commands_and_checks_the_whole(
    known: dict[str, Entry],
    server: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """`llmjp data get` on a line that breaks in every try, then again; as a user sees it."""
    content = bytes(range(256)) * 4000
    server.files = {"/someone/corpus/abc123/a.bin": content}
    server.breaks = {"/someone/corpus/abc123/a.bin": [100_000, 250_000, 400_000]}
    add(known, "x", {"a": facts(content)}, {"a": Origin("a.bin")})
    monkeypatch.setattr("llmjp_train.data.download.PAUSE", 0.0)
    monkeypatch.setattr(catalogue, "RAW", at(server) + ADDRESS)
    args = argparse.Namespace(action="get", name="x", sources=[], out=None, root=None, json=False)
    with pytest.raises(UserError, match="run the command again: it goes on where this try ended"):
        data.run(args)
    assert (tmp_path / "cache" / "x" / "a.part").stat().st_size == 400_000
    assert data.run(args) == 0
    assert (tmp_path / "cache" / "x" / "a").read_bytes() == content
    assert [wanted for _, wanted in server.asked] == [
        None,
        "bytes=100000-",
        "bytes=250000-",
        "bytes=400000-",
    ]
    said = capsys.readouterr()
    assert "x: licence CC0; from https://github.com/someone/corpus at abc123" in said.err
    assert f"going on with {at(server)}/someone/corpus/abc123/a.bin" in said.err
    assert "1 of 1 files compared with the catalogue's sha256" in said.out


def test_a_part_of_an_earlier_process_is_used(server: Server, tmp_path: Path) -> None:
    server.files = {"/big": b"0123456789"}
    (tmp_path / "p").write_bytes(b"0123")
    fetch(f"{at(server)}/big", tmp_path / "p", size=10)
    assert (tmp_path / "p").read_bytes() == b"0123456789"
    fetch(f"{at(server)}/big", tmp_path / "p", size=10)
    assert server.asked == [("/big", "bytes=4-")]
    (tmp_path / "p").write_bytes(b"0123456789 and more")
    fetch(f"{at(server)}/big", tmp_path / "p", pause=0)
    assert (tmp_path / "p").read_bytes() == b"0123456789", "a part beyond the end is thrown away"


def test_busy_servers_are_asked_again_and_others_are_not(server: Server, tmp_path: Path) -> None:
    server.files, server.errors = {"/x": b"1"}, [503, 429]
    fetch(f"{at(server)}/x", tmp_path / "x", pause=0)
    assert (tmp_path / "x").read_bytes() == b"1"
    server.asked.clear()
    with pytest.raises(UserError, match="the server answers HTTP Error 404"):
        fetch(f"{at(server)}/absent", tmp_path / "y", pause=0)
    assert len(server.asked) == 1


def test_offline_says_what_to_do(
    known: dict[str, Entry], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llmjp_train.data.download.TRIES", 1)
    add(known, "x", {"a": facts(b"right")}, {"a": Origin("a")})
    with pytest.raises(UserError) as raised:
        catalogue.get("x", address="http://127.0.0.1:9" + ADDRESS)
    said = str(raised.value)
    assert "could not be downloaded" in said
    assert "set LLMJP_DATA to a data root that holds x/a" in said
    assert str(tmp_path / "cache" / "x" / "a") in said
