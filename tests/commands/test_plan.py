"""`llmjp plan` as a user types it."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from llmjp_train import exit_codes
from llmjp_train.cli import main
from llmjp_train.resources import resource

BIG = "experiment=llm-jp-175b-abci"


def plan(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = main(["plan", *words])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def as_json(capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    code, out, err = plan(capsys, "--json", *words)
    assert code == exit_codes.OK, err
    return json.loads(out)


def test_the_175b_on_392_devices_is_planned_in_seconds_without_torch() -> None:
    code = (
        "import sys; from llmjp_train.cli import main; "
        f"code = main(['plan', '{BIG}']); "
        "assert not {'torch', 'deepspeed', 'transformers'} & set(sys.modules); sys.exit(code)"
    )
    began = time.monotonic()
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert found.returncode == 0, found.stderr
    assert time.monotonic() - began < 10  # 1.4 s on an idle machine
    for words in (
        "memory of a rank",
        "pipeline bubble",
        "GPU hours",
        "stop lead time",
        "storage",
        "--calibrate",
    ):
        assert words in found.stdout


def test_on_a_cluster_that_closed_the_plan_shows_its_successor_too(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["plan", "experiment=llm-jp-175b-abci"]) == exit_codes.OK
    told = capsys.readouterr().out
    assert "abci-2 has closed; on 49 nodes of abci-3 (cluster=abci-3 nodes=49 parallel=auto)" in told
    assert (
        main(["plan", "experiment=llm-jp-175b-abci", "cluster=abci-3", "nodes=49", "parallel=auto"])
        == exit_codes.OK
    )
    alone = capsys.readouterr().out
    layout = next(line for line in alone.splitlines() if line.startswith("  layout"))
    assert layout.partition("layout")[2].partition(";")[0].strip() in told
    assert "has closed" not in alone
    assert main(["plan", "experiment=llm-jp-175b-abci", "--json"]) == exit_codes.OK
    assert json.loads(capsys.readouterr().out)["successor"]["nodes"] == 49


def test_json_holds_every_stage_and_its_terms_add_up(capsys: pytest.CaptureFixture[str]) -> None:
    found = as_json(capsys, BIG)
    assert len(found["ranks"]) == 49
    for rank in found["ranks"]:
        assert sum(term["bytes"] for term in rank["terms"]) == rank["bytes"] < found["device_bytes"]
    assert found["fits"] is True
    assert sum(part["seconds"] for part in found["step"]) == pytest.approx(found["step_s"]["high"])
    assert found["layout"] == {
        "tensor": 4, "pipeline": 49, "data": 2, "zero": 1, "micro_batch": 2, "recompute": "full", "ranks": 392,
    }  # fmt: skip
    assert found["unknown"] == ["storage_gbs"]


def test_explain_gives_every_term_its_formula_and_source(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = plan(capsys, "--explain", BIG)
    assert code == 0
    names = {term["name"] for term in as_json(capsys, BIG)["ranks"][1]["terms"]}
    for name in names:
        assert any(line.strip().startswith(f"{name} [") and "Source:" in line for line in out.splitlines()), (
            name
        )


def test_what_does_not_fit_says_by_how_much_and_what_to_change(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = plan(
        capsys, "experiment=llm-jp-13b-v2-mdx", "parallel.recompute=none", "batch.micro_batch=4"
    )
    assert code == exit_codes.BAD_INPUT
    assert "GiB too much" in err
    remedy = next(line for line in err.splitlines() if "would fit" in line)
    again = [word for word in remedy.split() if "=" in word]
    code, *_ = plan(
        capsys, "experiment=llm-jp-13b-v2-mdx", "parallel.recompute=none", "batch.micro_batch=4", *again
    )
    assert code == exit_codes.OK


@pytest.mark.slow
def test_a_model_that_fits_on_no_layout(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--search"], ["parallel=auto"]):
        code, _, err = plan(capsys, *words, BIG, "nodes=2", "batch.global_batch=1024")
        assert code == exit_codes.BAD_INPUT
        assert "fits on no layout of 16 devices" in err
        assert "GiB over 40.0 GiB" in err
        assert "cluster.nodes=" in err


def test_an_open_layout_needs_nodes(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = plan(capsys, BIG, "parallel=auto")
    assert code == exit_codes.BAD_INPUT
    assert "cluster.nodes=N" in err


def test_zero_nodes(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["nodes=0"], ["cluster.nodes=0"], ["--search", "nodes=0"], ["nodes=0", "parallel=auto"]):
        code, _, err = plan(capsys, BIG, *words)
        assert code == exit_codes.BAD_INPUT
        assert "cluster.nodes=0" in err


def test_a_batch_that_no_data_parallel_size_divides(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = plan(capsys, BIG, "batch.global_batch=1537")
    assert code == exit_codes.BAD_INPUT
    assert "1537" in err
    assert "multiple of" in err
    code, _, err = plan(capsys, "--search", "experiment=llm-jp-4-8b", "nodes=64", "batch.global_batch=7")
    assert code == exit_codes.BAD_INPUT
    assert "batch.global_batch=7" in err


@pytest.mark.slow
def test_a_cluster_file_that_lacks_a_field(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = yaml.safe_load(resource("configs", "cluster", "abci-3.yaml").read_text(encoding="utf-8"))
    (tmp_path / "cluster").mkdir()
    for key in ("network_gbs", "device_memory_gib", "devices_per_node"):
        own = {name: value for name, value in values.items() if name != key}
        (tmp_path / "cluster" / "ours.yaml").write_text(yaml.safe_dump(own), encoding="utf-8")
        code, _, err = plan(capsys, "--config-dir", str(tmp_path), BIG, "cluster=ours")
        assert code == exit_codes.BAD_INPUT
        assert f"lacks {key}" in err
    code, out, _ = plan(
        capsys, "--config-dir", str(tmp_path), BIG, "cluster=ours", "cluster.devices_per_node=8",
        "cluster.network_gbs=unknown",
    )  # fmt: skip
    assert code == exit_codes.OK
    assert "does not know network_gbs" in out
    assert " to " in next(line for line in out.splitlines() if "tokens/s" in line)


def test_a_figure_that_is_no_number(capsys: pytest.CaptureFixture[str]) -> None:
    for value in ("fast", "-3"):
        code, _, err = plan(capsys, BIG, f"cluster.network_gbs={value}")
        assert code == exit_codes.BAD_INPUT
        assert "network_gbs" in err


@pytest.mark.slow
@pytest.mark.parametrize(
    "cluster", sorted(path.stem for path in resource("configs", "cluster").glob("*.yaml"))
)
def test_every_shipped_cluster_can_be_planned_for(cluster: str, capsys: pytest.CaptureFixture[str]) -> None:
    if cluster == "local":
        code, out, _ = plan(capsys, "experiment=tiny-cpu")
        assert code == 0
        assert "peak of CPU" in out
        return
    code, out, err = plan(
        capsys, "experiment=llm-jp-3-13b", f"cluster={cluster}", "nodes=32", "parallel=auto"
    )
    assert code == exit_codes.OK, err
    # What is unknown gives bounds and no verdict: the throw-away cluster's nodes have no memory of their own.
    assert ("fits, to spare" in out) is (cluster != "dev-slurm")
    assert ("does not know device_memory_gib" in out) is (cluster == "dev-slurm")


def test_nodes_give_as_many_replicas(capsys: pytest.CaptureFixture[str]) -> None:
    assert as_json(capsys, "experiment=llm-jp-3-13b", "nodes=16")["layout"]["data"] == 32
    code, _, err = plan(capsys, BIG, "nodes=50")
    assert code == exit_codes.BAD_INPUT
    assert "196" in err


@pytest.mark.slow
def test_search_writes_a_preset_that_plans_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "parallel" / "found.yaml"
    code, out, err = plan(capsys, "--search", "--write", str(file), "experiment=llm-jp-3-13b")
    assert code == exit_codes.OK, err
    fastest = out.splitlines()[2]
    micro = file.read_text(encoding="utf-8").split("micro_batch=")[1].split()[0]
    found = as_json(
        capsys,
        "--config-dir",
        str(tmp_path),
        "experiment=llm-jp-3-13b",
        "parallel=found",
        f"batch.micro_batch={micro}",
    )
    layout = found["layout"]
    assert f"{found['step_s']['high']:.2f}" in fastest
    assert f"tensor {layout['tensor']} x pipeline {layout['pipeline']} x data {layout['data']}" in fastest
    auto = as_json(capsys, "experiment=llm-jp-3-13b", "parallel=auto", "nodes=32")
    assert auto["layout"] == layout


@pytest.mark.slow
def test_the_front_is_a_front(capsys: pytest.CaptureFixture[str]) -> None:
    began = time.monotonic()
    found = as_json(capsys, "--search", BIG, "cluster=abci-3")
    assert time.monotonic() - began < 60  # 2 s on an idle machine
    figures = [(one["step_s"]["high"], one["headroom_bytes"]) for one in found["front"]]
    assert len(figures) > 2
    assert figures == sorted(figures)
    assert [free for _, free in figures] == sorted(free for _, free in figures)
    assert found["fitting"] <= found["tried"]


@pytest.mark.slow
def test_a_search_on_a_cluster_with_unknowns_gives_bounds(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["experiment=llm-jp-13b-v2-mdx", "nodes=16"]
    code, out, _ = plan(capsys, "--search", *words)
    assert code == exit_codes.OK
    assert "cluster mdx does not know network_gbs, storage_gbs" in out
    rows = out[out.index("layout\n") :].splitlines()[1:-3]
    assert all(re.match(r" *[\d.]+ to [\d.]+ +[\d.]+ to [\d.]+ ", row) for row in rows)
    code, out, _ = plan(capsys, "--search", *words, "cluster.network_gbs=100", "cluster.storage_gbs=2")
    assert " to " not in out


def test_write_without_search_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = plan(capsys, "--write", str(tmp_path / "x.yaml"), BIG)
    assert code == exit_codes.BAD_INPUT
    assert "--search" in err


def test_the_picture_needs_nothing_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "plan.html"
    code, *_ = plan(capsys, "--picture", str(file), BIG)
    assert code == 0
    page = file.read_text(encoding="utf-8")
    assert page.count("<svg") == 2
    assert "stage 48: weights" in page
    assert "pipeline bubble 7" in page
    for outside in ("http://", "https://", "<script", "src="):
        assert outside not in page


def test_a_dry_run_tells_it_in_the_same_words(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["experiment=llm-jp-13b-v2-mdx", "parallel.recompute=none", "batch.micro_batch=4"]
    _, _, planned = plan(capsys, *words)
    planned = planned.removeprefix("llmjp plan: ").strip()
    assert "GiB too much" in planned
    assert main(["train", "--dry-run", *words]) == exit_codes.OK
    assert planned in capsys.readouterr().out
    from llmjp_train.config.compose import compose
    from llmjp_train.plan.account import unfit

    assert unfit(compose("train", words, partial=True)) == planned


TIGHT = [
    "experiment=tiny-cpu", "cluster.device=cuda", "cluster.device_memory_gib=0.01", "cluster.devices_per_node=1",
    "parallel.data=1", "model.vocab_size=4096",
]  # fmt: skip


def test_a_start_that_does_not_fit_is_refused_and_forced(
    capsys: pytest.CaptureFixture[str], prepared: Path, tokenizer_folder: Path, tmp_path: Path
) -> None:
    paths = [f"tokenizer.path={tokenizer_folder}", f"data.sources.small.path={prepared}"]
    given = [*TIGHT, *paths, f"run_dir={tmp_path / 'run'}"]
    assert main(["train", *given]) == exit_codes.BAD_INPUT
    told = capsys.readouterr().err
    assert "does not fit" in told
    assert "--force" in told
    assert not (tmp_path / "run").exists()
    assert main(["train", "--force", *given]) == exit_codes.BAD_INPUT
    told = capsys.readouterr().err
    assert "does not fit" not in told  # it went on to look for the device, which this machine has not
    assert "CUDA" in told
