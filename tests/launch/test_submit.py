"""Submitting: what is refused before anything is queued, what a snapshot holds, and schedulers that misbehave."""

import json
import os
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
from helpers.toy import small_run

from llmjp_train import cli, exit_codes
from llmjp_train.launch.bad_nodes import leave_out, left_out
from llmjp_train.launch.job import Job, JobFolder, find_run, folders
from llmjp_train.launch.schedulers import GridEngine, Pbs, Processes, Slurm, call, scheduler

JOB = Job(run_dir="/r", number=1, name="r", scheduler="slurm", nodes=1, ranks_per_node=1, submitted="")


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder first in PATH, for commands of schedulers that tests write."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder


def command(folder: Path, name: str, body: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/bash\n{body}\n")
    path.chmod(0o755)


def submit(run_dir: Path, prepared: Path, tokenizer_folder: Path, *words: str) -> int:
    overrides = small_run(run_dir, prepared, tokenizer_folder, "cluster=dev-slurm", "batch.global_batch=8")
    return cli.main(["submit", *overrides, *words])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["cluster=sakura-h10"], "group cluster has no such file"),
        (["cluster.time_limit=1", "cluster.signal_lead=60"], "no step would be taken"),
        (["--chain", "0"], "--chain 0 must be at least 1"),
        (["--chain", "2", "--requeue"], "take one of them"),
        (["cluster=local", "--requeue"], "--requeue is Slurm's"),
        (["cluster=local", "--bare"], "--bare needs srun or mpirun"),
        (["cluster.max_nodes=1", "nodes=2"], "nodes=2 is above max_nodes=1"),
        (["cluster.shared=[/elsewhere]", "nodes=2"], "lies in none of cluster.shared=['/elsewhere']"),
        (["cluster.account=a\tb"], "holds a line break or control character"),
        (["cluster.partition=a b"], "cannot stand in a line of a job script"),
        (["--plain"], "--plain has no effect without --print"),
        (["--after", "nowhere"], "is neither a run directory nor the name of one"),
        (["nodes=2", "parallel.data=3"], "3 ranks"),
        (["--include", "a1"], "--include a1: the run leaves no such node out; left out: none"),
        (["--exclude", "a1,a2"], "--exclude 'a1,a2' is no name of a host"),
        (["--exclude", "$(reboot)"], "is no name of a host"),
        (["--exclude", "a1", "cluster=local"], "--exclude has no effect with scheduler=local"),
    ],
)  # fmt: skip
def test_what_cannot_run_is_refused_and_leaves_nothing(
    words: list[str], said: str, tmp_path: Path, prepared: Path, tokenizer_folder: Path, fake: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    command(fake, "sbatch", "echo 1")
    assert submit(tmp_path / "run", prepared, tokenizer_folder, *words) == exit_codes.BAD_INPUT
    assert said in capsys.readouterr().err
    assert folders(tmp_path / "run") == []


@pytest.mark.slow
def test_a_lead_time_below_the_planned_step_and_save_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "experiment=llm-jp-3-172b-geniac",
        "cluster=sakura-h100",
        "run_dir=/data/r",
        "--print",
        "parallel.recompute=full",
    ]
    assert cli.main(["submit", *words, "cluster.signal_lead=100"]) == exit_codes.BAD_INPUT
    assert (
        "cluster.signal_lead=100 s is shorter than a step and a save of this run" in capsys.readouterr().err
    )
    assert (
        cli.main(["submit", *words, "cluster.time_limit=3", "cluster.signal_lead=170"])
        == exit_codes.BAD_INPUT
    )
    assert "cluster.time_limit=3 minutes do not reach the first save" in capsys.readouterr().err
    assert cli.main(["submit", *words]) == exit_codes.OK


def test_a_run_that_does_not_fit_is_refused_in_the_plan_s_words_and_forced(
    capsys: pytest.CaptureFixture[str],
) -> None:
    from llmjp_train.config.compose import compose
    from llmjp_train.plan.account import unfit

    words = [
        "experiment=llm-jp-13b-v2-mdx",
        "parallel.recompute=none",
        "batch.micro_batch=4",
        "run_dir=/fast/r",
    ]
    said = unfit(compose("train", words, partial=True))
    assert "GiB too much" in said
    assert cli.main(["submit", "--print", *words]) == exit_codes.BAD_INPUT
    told = capsys.readouterr().err
    assert said in told
    assert "--force submits it all the same" in told
    assert cli.main(["submit", "--print", "--plain", "--force", *words]) == exit_codes.OK
    script = capsys.readouterr()
    assert said in script.err, "forced, not silenced"
    assert "submit --prepare --force" in script.out, "the script that submits itself is forced too"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("echo 'sbatch: error: invalid partition specified: x' >&2; exit 1", "invalid partition specified: x"),
        ("echo 'sbatch: error: Invalid account or account/partition combination' >&2; exit 1", "cluster.account"),
        ("echo 'Welcome to our cluster!'", "printed no job id but 'Welcome to our cluster!'"),
        ("head -c 300 /dev/urandom", "printed no job id"),
    ],
)  # fmt: skip
def test_a_scheduler_that_refuses_or_prints_garbage_is_quoted(
    body: str, said: str, tmp_path: Path, prepared: Path, tokenizer_folder: Path, fake: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    command(fake, "sbatch", body)
    assert submit(tmp_path / "run", prepared, tokenizer_folder) == exit_codes.BAD_INPUT
    assert said in capsys.readouterr().err
    kept = "printed no job id" in said
    assert len(folders(tmp_path / "run")) == int(kept), "only what may have been submitted leaves a trace"


def test_a_controller_that_is_down_is_not_a_job_that_has_ended(fake: Path) -> None:
    command(fake, "squeue", "echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1")
    with pytest.raises(ValueError, match="Unable to contact slurm controller") as caught:
        scheduler("slurm").states(["5"])
    assert "cluster.account" not in str(caught.value), "no advice for what nobody submits"
    command(fake, "squeue", "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")
    assert scheduler("slurm").states(["5"])["5"].state == "unknown"
    command(fake, "squeue", "echo '5|SUSPENDED|None|n[1-2]'")
    assert scheduler("slurm").states(["5"])["5"].state == "running", "it has steps to save"


def test_a_command_that_hangs_or_is_missing_is_told(fake: Path) -> None:
    command(fake, "squeue", "sleep 60")
    with pytest.raises(ValueError, match=r"squeue gave no answer in 0\.3 s: the scheduler may be down"):
        call(["squeue"], seconds=0.3)
    with pytest.raises(ValueError, match="no-such-qsub is not on this machine"):
        call(["no-such-qsub"])


def test_a_snapshot_holds_code_config_and_environment(
    tmp_path: Path,
    prepared: Path,
    tokenizer_folder: Path,
    fake: Path,
    root: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run_dir = tmp_path / "run"
    command(fake, "sbatch", f'echo "$@" >> {tmp_path}/calls; echo $(( $(wc -l < {tmp_path}/calls) + 40 ))')
    assert submit(run_dir, prepared, tokenizer_folder, "--chain", "2", "--after", "7") == exit_codes.OK
    first, second = folders(run_dir)
    assert (first.scheduler_id, second.scheduler_id) == ("41", "42")
    calls = (tmp_path / "calls").read_text().splitlines()
    assert "--dependency=afterany:7" in calls[0]
    assert "--dependency=afterany:41" in calls[1]
    for folder in (first, second):
        code = folder.path / "code"
        assert (code / "src/llmjp_train/cli.py").read_text() == (root / "src/llmjp_train/cli.py").read_text()
        assert (code / "configs/train.yaml").is_file()
        assert not list(code.rglob("__pycache__"))
        assert "name: dev-slurm" in (folder.path / "config.yaml").read_text()
    assert (second.path / "code").is_symlink(), "a chain shares one copy"
    environment = json.loads((first.path / "environment.json").read_text())
    assert environment["distributions"]["torch"]
    source = json.loads((first.path / "source.json").read_text())
    assert len(source["code"]) == len(source["config"]) == 64
    job = first.read()
    assert (job.nodes, job.ranks_per_node, job.minutes, job.lead, job.chain) == (1, 1, 10, 90, (1, 2))
    assert "watch it with: llmjp status" in capsys.readouterr().out
    command(fake, "squeue", "echo '42|PENDING|Dependency|'")
    assert submit(run_dir, prepared, tokenizer_folder) == exit_codes.BAD_INPUT
    assert "job 42 of" in capsys.readouterr().err


def test_nodes_are_left_out_until_they_are_taken_back(
    tmp_path: Path, prepared: Path, tokenizer_folder: Path, fake: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "run"
    command(fake, "sbatch", "echo 5")
    command(fake, "squeue", "echo '5|COMPLETED|None|'")

    def line() -> list[str]:
        script = folders(run_dir)[-1].path / "job.sh"
        return [one for one in script.read_text().splitlines() if "--exclude" in one]

    assert submit(run_dir, prepared, tokenizer_folder) == exit_codes.OK
    assert line() == []
    leave_out(run_dir, "a1", "GPU 3 must be reset", "0001")
    assert submit(run_dir, prepared, tokenizer_folder, "--exclude", "a2") == exit_codes.OK
    assert line() == ["#SBATCH --exclude=a1,a2"]
    capsys.readouterr()
    assert cli.main(["status", str(run_dir)]) == exit_codes.OK
    told = " ".join(capsys.readouterr().out.split())
    assert "a1 (GPU 3 must be reset)" in told
    assert "a2 (left out by a person)" in told
    assert submit(run_dir, prepared, tokenizer_folder, "--print", "--include", "a1") == exit_codes.OK
    assert "#SBATCH --exclude=a2\n" in capsys.readouterr().out
    assert list(left_out(run_dir)) == ["a1", "a2"], "looking changes nothing"
    assert submit(run_dir, prepared, tokenizer_folder, "--include", "a1", "--include", "a2") == exit_codes.OK
    assert line() == []
    assert left_out(run_dir) == {}


def test_too_few_hosts_without_those_left_out_is_told(
    tmp_path: Path, prepared: Path, tokenizer_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    leave_out(run_dir, "a1", "no space", "0001")
    hosts = ("cluster.scheduler=hosts", "cluster.launcher=ssh", "cluster.hosts=[a1,a2]", "nodes=2")
    assert submit(run_dir, prepared, tokenizer_folder, *hosts) == exit_codes.BAD_INPUT
    said = "cluster.hosts names 1 hosts without those left out (a1; --include HOST takes one back), the layout needs 2"
    assert said in capsys.readouterr().err


def test_ids_and_commands_of_each_scheduler() -> None:
    script = Path("/x/job.sh")
    assert Slurm().parse_id("12;cluster\n") == "12"
    assert Slurm().parse_id("") == ""
    assert Pbs().parse_id("1234.pbs1\n") == "1234.pbs1"
    assert Pbs().parse_id("1234[].pbs1\n") == "1234[].pbs1"
    assert Pbs().submit_command(JOB, script, ["9.pbs1"])[1:3] == ["-W", "depend=afterany:9.pbs1"]
    assert GridEngine().parse_id('Your job 77 ("a") has been submitted') == "77"
    assert GridEngine().parse_id("77\n") == "77"
    assert GridEngine().submit_command(JOB, script, ["5"], "us")[2:6] == ["-g", "us", "-hold_jid", "5"]
    assert isinstance(scheduler("local"), Processes)
    assert isinstance(scheduler("hosts"), Processes)


MACHINE = """
state="{folder}/state"; mkdir -p "$state"
case "$(basename "$0")" in
  qsub) n=$(( $(ls "$state" | wc -l) + 1 )); echo Q > "$state/$n"; echo "$n.pbs1";;
  qstat) n="${{@: -1}}"; n="${{n%%.*}}"; [ -e "$state/$n" ] || {{ echo "qstat: Unknown Job Id" >&2; exit 153; }}
         printf 'Job Id: %s.pbs1\\n    job_state = %s\\n    exec_host = a1/0*8+a2/0*8\\n' "$n" "$(cat "$state/$n")";;
  qdel) n="${{1%%.*}}"; [ "$(cat "$state/$n")" = F ] && exit 35; echo F > "$state/$n";;
esac
"""


def test_pbs_commands_against_a_small_state_machine(tmp_path: Path, fake: Path) -> None:
    for name in ("qsub", "qstat", "qdel"):
        command(fake, name, MACHINE.format(folder=tmp_path))
    api = Pbs()
    first = api.parse_id(call(api.submit_command(JOB, tmp_path / "job.sh", [])))
    assert first == "1.pbs1"
    assert api.states([first])[first].state == "pending"
    (tmp_path / "state" / "1").write_text("R")
    running = api.states([first])[first]
    assert (running.state, running.detail) == ("running", "a1/0*8+a2/0*8")
    api.cancel([first])
    assert api.states([first])[first].state == "ended"
    api.cancel([first])  # ended already: no error
    assert api.states(["9.pbs1"])["9.pbs1"].state == "unknown"


def test_grid_engine_lists_only_what_has_not_ended(fake: Path) -> None:
    rows = "job-ID prior name user state submit\\n-----\\n 5 0.5 a me r 01/01\\n 6 0.5 b me hqw 01/01\\n"
    command(fake, "qstat", f"printf '{rows}'")
    found = GridEngine().states(["5", "6", "7"])
    assert [found[one].state for one in ("5", "6", "7")] == ["running", "pending", "ended"]


def test_a_run_is_found_by_directory_or_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runs" / "mine" / "jobs" / "0001").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert find_run("mine") == find_run("runs/mine") == Path("runs/mine")
    with pytest.raises(ValueError, match="is neither a run directory nor the name of one under runs/"):
        find_run("other")
    folder = JobFolder(tmp_path / "runs" / "mine" / "jobs" / "0001")
    with pytest.raises(ValueError, match="was not submitted by 'llmjp submit'"):
        folder.read()
    (folder.path / "job.json").write_text('{"schema": 99}')
    with pytest.raises(ValueError, match="update llmjp-train"):
        folder.read()


def test_a_secret_of_the_environment_lands_nowhere(
    tmp_path: Path, prepared: Path, tokenizer_folder: Path, fake: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = f"hf_{uuid.uuid4().hex}"
    monkeypatch.setenv("HF_TOKEN", token)
    monkeypatch.setenv("WANDB_API_KEY", token)
    command(fake, "sbatch", "echo 5")
    assert submit(tmp_path / "run", prepared, tokenizer_folder) == exit_codes.OK
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file() and "code" not in path.parts]
    assert len(files) >= 6
    assert not [path for path in files if token.encode() in path.read_bytes()]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["submit", "status", "logs", "stop", "save", "cancel", "incidents", "note", "cluster"]
)
def test_login_nodes_load_no_torch(name: str, tmp_path: Path) -> None:
    words = {
        "submit": ["--dry-run", "experiment=tiny-cpu", "cluster=dev-slurm"],
        "status": [str(tmp_path)],
        "cluster": ["check", "abci-3"],
        "note": [str(tmp_path), "text"],
    }.get(name, [str(tmp_path)])
    job = tmp_path / "jobs" / "0001"
    job.mkdir(parents=True)
    JobFolder(job).write(JOB)
    code = (
        "import sys, contextlib; from llmjp_train.cli import main\n"
        "with contextlib.suppress(SystemExit): main(sys.argv[1:])\n"
        "heavy = {'torch', 'deepspeed', 'transformers', 'datasets'} & set(sys.modules)\n"
        "sys.exit(f'imports {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code, name, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr


def test_a_sweep_is_refused_whole_and_leaves_nothing(
    tmp_path: Path, prepared: Path, tokenizer_folder: Path, fake: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command(fake, "sbatch", "echo 7")
    for words, told in (
        (["optimizer.lr=1e-3,-1"], "optimizer.lr=-1: optimizer.lr=-1.0 must be above 0"),
        (["optimizer.lr=1e-3,2e-3", "--print"], "-m does not go with --print"),
        (["optimizer.lr=1e-3,2e-3", "--chain", "2"], "-m does not go with --chain"),
        (["cluster.time_limit=5,6"], "#SBATCH --time=00:05:00; #SBATCH --time=00:06:00"),
    ):
        assert submit(tmp_path / "sweep", prepared, tokenizer_folder, "-m", *words) == exit_codes.BAD_INPUT
        assert told in capsys.readouterr().err
        assert not list(tmp_path.glob("sweep/*"))
    words = ["-m", "optimizer.lr=1e-3,2e-3", "--dry-run"]
    assert submit(tmp_path / "sweep", prepared, tokenizer_folder, *words) == exit_codes.OK
    assert "2 runs, submitted together as one array" in capsys.readouterr().out
    command(fake, "sbatch", "echo no such partition >&2; exit 1")
    assert (
        submit(tmp_path / "sweep", prepared, tokenizer_folder, "-m", "optimizer.lr=1e-3,2e-3")
        != exit_codes.OK
    )
    assert "no such partition" in capsys.readouterr().err
    assert not list(tmp_path.glob("sweep/*"))
    command(fake, "sbatch", 'echo "$@" >>"$(dirname "$0")/asked"; echo 7')
    assert (
        submit(tmp_path / "sweep", prepared, tokenizer_folder, "-m", "optimizer.lr=1e-3,2e-3")
        == exit_codes.OK
    )
    (asked,) = (fake / "asked").read_text().splitlines()
    assert "--array=1-2" in asked
    made = [folders(path)[0] for path in sorted((tmp_path / "sweep").iterdir())]
    assert [one.scheduler_id for one in made] == ["7_1", "7_2"]
    array = (made[0].path / "array.sh").read_text()
    assert subprocess.run(["bash", "-n"], input=array, text=True).returncode == 0
