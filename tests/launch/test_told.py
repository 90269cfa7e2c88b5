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


def two_jobs(run_dir: Path, monkeypatch: pytest.MonkeyPatch, squeue: str, **first: str) -> None:
    """Jobs 11 and 12 of a Slurm whose `squeue` is a few lines of sh."""
    for number, end in ((11, first), (12, {"action": "requeue"})):
        folder = new_folder(run_dir)
        folder.write(a_job("mdx")[0])
        folder.scheduler_id = str(number)
        folder.note("begin", attempt="1")
        folder.note("end", attempt="1", reason="", **end)
    program = run_dir / "bin" / "squeue"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\ncase "$*" in {squeue} esac\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")


def test_status_names_the_job_that_waits_and_none_that_the_scheduler_has_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    RunRecord(tmp_path).create("{}")
    # What it prints of a job of this morning, and of one that waits.
    two_jobs(tmp_path, monkeypatch, '*12*) echo "12|PENDING|BadConstraints|";;', action="restart")
    found = status(tmp_path)
    assert [job["id"] for job in found.jobs] == ["12"]
    assert found.state == "waiting"
    assert found.why.endswith("job 12 is queued (BadConstraints)")


@pytest.mark.parametrize(
    ("squeue", "told"),
    [
        (
            '*11*) echo slurm is away >&2; exit 1;; *12*) echo "12|PENDING|Priority|";;',
            ("queued", "job 12 (Priority)"),
        ),
        ('*11*) echo "11|PENDING|Priority|";; *12*) echo "12|RUNNING|n1|";;', ("starting", "job 12")),
    ],
)
def test_before_the_first_step_the_job_that_is_nearest_to_it_is_told(
    squeue: str, told: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    two_jobs(tmp_path, monkeypatch, squeue, action="requeue")
    found = status(tmp_path)
    assert [job["id"] for job in found.jobs] == ["11", "12"]
    assert (found.state, found.why) == told
