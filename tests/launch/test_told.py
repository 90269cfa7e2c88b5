"""What `status` and `logs` tell of a job that has failed, or that died without a word."""

import json
from pathlib import Path

import pytest
from helpers.job_scripts import a_job

from llmjp_train import cli, exit_codes
from llmjp_train.launch.job import JobFolder, new_folder
from llmjp_train.launch.status import status
from llmjp_train.runlog.record import RunRecord


@pytest.fixture
def folder(tmp_path: Path) -> JobFolder:
    """A job of this machine whose process is gone."""
    made = new_folder(tmp_path)
    made.write(a_job("local", minutes=60)[0])
    made.scheduler_id = "1-1"
    made.log.write_text(
        "llmjp: host n2: ssh lost it (code 255): see the job's log\nRuntimeError: no such kernel\n"
    )
    (made.path / "node-0000.txt").write_text("2026-01-01T00:00:00.000+00:00 0 RuntimeError: no such kernel\n")
    return made


def test_status_says_what_the_job_s_end_meant(folder: JobFolder) -> None:
    folder.note("begin", attempt="1")
    folder.note("end", attempt="1", action="halt", reason="bad input: nodes differ from node 0 (n0)")
    why = status(folder.run_dir).why
    assert "no job of it took a step; job 0001: halt: bad input: nodes differ from node 0 (n0)" in why
    assert f"llmjp logs {folder.run_dir}" in why


def test_a_job_that_was_killed_has_no_time_left(folder: JobFolder) -> None:
    folder.note("begin", attempt="1", job_began=0.0)
    assert status(folder.run_dir).job_seconds_left is None


@pytest.mark.parametrize("last", ["begin", "end", ""])
def test_logs_of_a_job_that_died_without_a_word_are_followed_to_their_end(
    last: str, folder: JobFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("llmjp_train.commands.logs._QUIET", 1)
    if last:
        folder.note(last, action="restart")
    assert cli.main(["logs", str(folder.run_dir), "--follow"]) == exit_codes.OK
    assert capsys.readouterr().out == folder.log.read_text()


def test_errors_are_those_of_the_ranks_and_of_what_started_them(
    folder: JobFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["logs", str(folder.run_dir), "--errors", "--json"]) == exit_codes.OK
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["rank"], line["text"]) for line in lines] == [
        ("", "llmjp: host n2: ssh lost it (code 255): see the job's log"),
        ("0", "RuntimeError: no such kernel"),
    ]


def test_status_names_the_job_that_waits_and_none_that_the_scheduler_has_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    RunRecord(tmp_path).create("{}")
    for number, action in ((11, "restart"), (12, "requeue")):
        folder = new_folder(tmp_path)
        folder.write(a_job("mdx")[0])
        folder.scheduler_id = str(number)
        folder.note("begin", attempt="1")
        folder.note("end", attempt="1", action=action, reason="")
    programs = tmp_path / "bin"
    programs.mkdir()
    squeue = programs / "squeue"  # what it prints of a job of this morning, and of one that waits
    squeue.write_text('#!/bin/sh\ncase "$*" in *12*) echo "12|PENDING|BadConstraints|";; esac\n')
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", str(programs), prepend=":")
    found = status(tmp_path)
    assert [job["id"] for job in found.jobs] == ["12"]
    assert found.state == "waiting"
    assert found.why.endswith("job 12 is queued (BadConstraints)")
