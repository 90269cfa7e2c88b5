"""Job scripts: every cluster's, by hand readable, checked by bash, and nothing in them unquoted."""

import os
import shlex
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.job_scripts import CLUSTERS, a_job, rendered
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llmjp_train import cli, exit_codes
from llmjp_train.config.machine import Container, Launcher
from llmjp_train.errors import UserError
from llmjp_train.launch.job import Job, job_name
from llmjp_train.launch.scripts import TEMPLATES, directive, quoted, render, wall_time

GOLDEN = Path(__file__).parent / "golden"
HOSTILE = st.text(min_size=1, max_size=30).filter(lambda text: "\0" not in text)


@pytest.mark.parametrize("name", CLUSTERS)
def test_each_is_a_sound_script(name: str, tmp_path: Path) -> None:
    for bare in (False, True) if name in ("sakura-h100", "abci-3") else (False,):
        script = tmp_path / "job.sh"
        script.write_text(rendered(name, bare=bare))
        done = subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
        assert ("train_rank" in script.read_text()) is bare


@pytest.mark.parametrize("name", ["abci-3", "abci-2", "tsubame4", "sakura-h100"])
def test_golden_scripts(name: str) -> None:
    """`LLMJP_WRITE_GOLDEN=1` writes them anew."""
    text = rendered(name)
    path = GOLDEN / f"{name}.sh"
    if os.environ.get("LLMJP_WRITE_GOLDEN"):
        GOLDEN.mkdir(exist_ok=True)
        path.write_text(text)
    assert text == path.read_text()


def test_pbs_and_grid_engine_speak_their_own_language() -> None:
    pbs = rendered("abci-3").splitlines()
    for line in (
        "#PBS -l select=2:mpiprocs=8",
        "#PBS -l walltime=24:00:00",
        "#PBS -q rt_HF",
        "#PBS -v USE_SSH=1",
    ):
        assert line in pbs
    assert not any(line.startswith("#SBATCH") for line in pbs)
    grid = rendered("tsubame4").splitlines()
    for line in ("#$ -l node_f=2", "#$ -l h_rt=24:00:00", "#$ -cwd"):
        assert line in grid


def run_setup(job: Job, cluster: object, folder: Path, shown: str) -> str:
    """The script up to its launch, and then a command of the test instead."""
    text = render(job, cluster, folder=str(folder), python="python3", cwd=str(folder)).split("launch() {")[0]
    done = subprocess.run(
        ["bash", "-c", f"{text}\nprintf '%s' {shown}"],
        capture_output=True,
        text=True,
        env={"PATH": os.environ["PATH"]},
    )
    assert done.returncode == 0, done.stderr
    return (folder / "log.txt").read_text()


@settings(max_examples=6)
@given(name=st.text("a b$`'\"\\;&|<>(){}*?!#~\n\té日", min_size=1, max_size=20), value=HOSTILE)
@example(name="$(touch pwned)", value="`touch pwned`")
@example(name="x'; touch pwned; '", value='"; touch pwned; "')
@example(name="-rf", value="\n#SBATCH --uid=0\ntouch pwned")
def test_hostile_names_and_values_arrive_as_they_are(
    tmp_path_factory: pytest.TempPathFactory, name: str, value: str
) -> None:
    value = value.encode("utf-8", "ignore").decode().replace("\r", "")
    folder = tmp_path_factory.mktemp("hostile") / name.replace("/", "-")
    folder.mkdir()
    job, cluster = a_job("dev-slurm")
    cluster = replace(cluster, environment={"HOSTILE": value})  # type: ignore[type-var]
    assert run_setup(job, cluster, folder, '"$HOSTILE"') == value
    assert {path.name for path in folder.iterdir()} == {"log.txt"}


@given(text=st.text(max_size=40))
def test_words_are_one_word_and_directives_are_refused_when_they_are_not(text: str) -> None:
    if "\0" in text:
        with pytest.raises(UserError, match="NUL"):
            quoted(text)
    else:
        assert shlex.split(quoted(text)) == [text]
    if not text or set(text) & set(" \t\n'\"\\$`;&|<>#!{}?"):
        with pytest.raises(UserError, match="cannot stand in a line of a job script"):
            directive(text)
    assert directive(job_name(text)) == job_name(text)


@pytest.mark.parametrize("key", ["account", "partition", "options"])
def test_a_directive_that_would_be_two_is_refused(key: str) -> None:
    job, cluster = a_job("sakura-h100")
    hostile = "x;touch" if key != "options" else ["--comment='a b'"]
    with pytest.raises(UserError, match=r"correct cluster\.account, cluster\.partition or cluster\.options"):
        render(job, replace(cluster, **{key: hostile}), folder="/f", python="p", cwd="/")  # type: ignore[type-var]


def test_a_template_cannot_print_without_quoting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "slurm").mkdir()
    (tmp_path / "slurm" / "job.sh.j2").write_text("echo {{ job.name }}\n")
    monkeypatch.setattr("llmjp_train.launch.scripts.resource", lambda name: tmp_path / name)
    with pytest.raises(TypeError, match="without a filter that quotes it"):
        rendered("dev-slurm")


def test_containers_and_network_variables(root: Path) -> None:
    job, cluster = a_job("sakura-h100")
    apptainer = replace(cluster, container=Container.apptainer, image="/img/a b.sif")  # type: ignore[type-var]
    text = render(job, apptainer, folder="/f", python="python3", cwd="/")
    assert "python=(apptainer exec --nv '/img/a b.sif' python3)" in text
    pyxis = replace(cluster, container=Container.pyxis, image="/img/a b.sqsh")  # type: ignore[type-var]
    assert "'--container-image=/img/a b.sqsh'" in render(job, pyxis, folder="/f", python="python3", cwd="/")
    assert "export NCCL_IB_GID_INDEX=3" in rendered("sakura-h100")
    assert "NCCL_IB" not in rendered("sakura-h100", nodes=1), "one node needs no network"
    assert wall_time(10_080) == "168:00:00"
    assert sorted({path.split("/")[0] for path in TEMPLATES.values()}) == [
        "grid_engine",
        "hosts",
        "pbs",
        "slurm",
    ]


def test_nodes_are_left_out_as_each_scheduler_has_it() -> None:
    def text(name: str, **changed: object) -> str:
        job, cluster = a_job(name)
        where = {"folder": "/f", "python": "p", "cwd": "/"}
        return render(job, replace(cluster, **changed), left_out=["a1", "a3"], **where)  # type: ignore[type-var]

    assert "#SBATCH --exclude=a1,a3\n" in text("sakura-h100")
    assert "#SBATCH --exclude=b[1-3],a1,a3\n" in text("sakura-h100", options=["-x b[1-3]"]), (
        "Slurm takes the last"
    )
    assert "#$ -l h=!a1&!a3\n" in text("tsubame4")
    assert not {"a1", "a3"} & set(text("abci-3").split()), "PBS has no word for it"
    assert "exclude" not in rendered("sakura-h100").replace("$excluded", "")


def test_a_script_for_plain_hosts_is_sound_with_whatever_it_exports(tmp_path: Path) -> None:
    job, cluster = a_job("dev-slurm", scheduler="hosts")
    cluster = replace(cluster, launcher=Launcher.ssh, environment={"A": "two words"})  # type: ignore[type-var]
    text = render(job, cluster, folder="/f", python="p", cwd="/")
    assert 'carried+=(A="$A")' in text
    done = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_controller_that_is_down_does_not_end_a_job_that_queues_itself_again(tmp_path: Path) -> None:
    job, cluster = a_job("dev-slurm", requeue=True)
    programs = tmp_path / "bin"
    programs.mkdir()
    (tmp_path / "log.txt").touch()
    for name, text in {
        "python": 'case "$3" in begin) echo 1;; end) exit 11;; excluded) echo n7;; esac',
        "srun": "exit 75",
        "sleep": "exit 0",
        "scontrol": f'echo "$@" >>{tmp_path}/asked; [ "$(wc -l <{tmp_path}/asked)" -ge 3 ]',
    }.items():
        (programs / name).write_text(f"#!/bin/bash\n{text}\n")
        (programs / name).chmod(0o755)
    script = render(job, cluster, folder=str(tmp_path), python=str(programs / "python"), cwd="/")
    env = {"PATH": f"{programs}:{os.environ['PATH']}", "SLURM_JOB_ID": "5"}
    assert subprocess.run(["bash", "-c", script], env=env).returncode == 75, (
        tmp_path / "log.txt"
    ).read_text()
    asked = (tmp_path / "asked").read_text().splitlines()
    assert asked == ["requeue 5"] * 3 + ["update jobid=5 excnodelist=n7"]


EXAMPLES = {
    "llm-jp-3-13b-sakura": ["experiment=llm-jp-3-13b", "cluster=sakura-h100", "run_dir=/data/runs/llm-jp-3-13b"],
    "llm-jp-13b-v2-mdx": ["experiment=llm-jp-13b-v2-mdx", "run_dir=/fast/runs/llm-jp-13b-v2"],
    "tiny-dev": [
        "experiment=tiny-cpu", "cluster=dev-slurm", "nodes=2", "batch.global_batch=8", "batch.micro_batch=1",
        "tokenizer.path=my-tokenizer", "data.sources.small.path=my-data",
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_examples_are_what_submit_prints(
    name: str, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`LLMJP_WRITE_GOLDEN=1` writes them anew."""
    path = root / "slurm" / "examples" / f"{name}.sbatch"
    code = cli.main(["submit", "--print", "--plain", *EXAMPLES[name]])
    text = capsys.readouterr().out
    assert code == exit_codes.OK
    if os.environ.get("LLMJP_WRITE_GOLDEN"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert text == path.read_text()
    assert sorted(one.stem for one in path.parent.glob("*.sbatch")) == sorted(EXAMPLES)


@pytest.mark.parametrize("name", [one for one in CLUSTERS if one != "local"])
def test_submit_prints_script_and_commands_for_every_cluster(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [
        "experiment=tiny-cpu", f"cluster={name}", "nodes=2", "run_dir=/groups/x/r", "cluster.account=us",
        "cluster.shared=[]", "batch.global_batch=64", "batch.micro_batch=1",
    ]  # fmt: skip
    assert cli.main(["submit", "--print", "--chain", "2", *words]) == exit_codes.OK
    lines = capsys.readouterr().out.splitlines()
    assert len([line for line in lines if line.startswith(("# sbatch", "# qsub"))]) == 2
    assert any("JOB1" in line for line in lines[:2]), "the second waits for the first"
    assert list(tmp_path.iterdir()) == []
