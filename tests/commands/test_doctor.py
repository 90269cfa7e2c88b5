"""`llmjp doctor`: it measures, it really starts DeepSpeed, and it fails when something needed is missing."""

import json
import time
from pathlib import Path

import pytest
import torch

from llmjp_train import cli
from llmjp_train.commands import doctor
from llmjp_train.commands.doctor import Finding


@pytest.mark.slow
def test_training_works_here(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["works"] is True
    by_name = {one["name"]: one for one in found["findings"]}
    wanted = {
        "system",
        "Python",
        "processor",
        "memory",
        "torch",
        "deepspeed",
        "transformers",
        "datasets",
        "hydra-core",
        "lm-eval",
        "GPUs",
        "matrix products",
        "DeepSpeed step",
        "ninja",
        "compiler",
        "schedulers",
        "disk",
        "LLMJP_DATA",
    }
    assert wanted <= set(by_name)
    assert by_name["torch"]["value"] == torch.__version__
    assert "took a step on" in by_name["DeepSpeed step"]["value"]
    assert all(one["remedy"] for one in found["findings"] if one["state"] != "ok")


@pytest.mark.slow
def test_a_deepspeed_that_does_not_start_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "deepspeed"
    broken.mkdir()
    (broken / "__init__.py").write_text("raise ImportError('built for another torch')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found = doctor.deepspeed_step()
    assert found.state == "missing"
    assert "built for another torch" in found.remedy
    assert "constraints.txt" in found.remedy


def test_a_rate_is_measured_for_each_precision() -> None:
    rates = [doctor.matmul_rate(torch.device("cpu"), dtype) for dtype in (torch.float32, torch.bfloat16)]
    assert all(1e8 < rate < 1e14 for rate in rates)


def test_a_measured_rate_is_operations_by_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(0.5 * tick for tick in range(10_000))
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    # Each product seems to take half a second, so the small size is chosen.
    assert doctor.matmul_rate(torch.device("cpu"), torch.float32) == 2 * 256**3 / 0.5


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(doctor.NEEDED, "no-such-package-of-ours", "no_such_package_of_ours")
    found = doctor.packages()[-1]
    assert (found.name, found.state) == ("no-such-package-of-ours", "missing")
    assert found.remedy


def test_the_exit_code_tells(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(doctor, "rates", list)
    monkeypatch.setattr(
        doctor, "deepspeed_step", lambda: Finding("DeepSpeed step", "missing", "failed", "do this")
    )
    assert cli.main(["doctor"]) == 1
    text = capsys.readouterr().out
    assert "DeepSpeed step: do this" in text
    assert "Training does not work here yet" in text


def test_where_data_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def data() -> Finding:
        return doctor.places()[1]

    monkeypatch.delenv("LLMJP_DATA", raising=False)
    assert data().state == "note"
    assert "llmjp data get" in data().remedy
    monkeypatch.setenv("LLMJP_DATA", str(tmp_path))
    assert data() == Finding("LLMJP_DATA", "ok", str(tmp_path))
    monkeypatch.setenv("LLMJP_DATA", str(tmp_path / "none"))
    assert "is no folder" in data().value


def test_unusable_gpus_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    from llmjp_train.runlog import machine

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(machine, "nvidia_devices", lambda: ["Card A, 80 GiB"])
    monkeypatch.setattr(doctor, "matmul_rate", lambda device, dtype: 1e12)
    gpus, products = doctor.rates()
    assert gpus.state == "note"
    assert "CUDA build of torch" in gpus.remedy
    assert "fp32 1 TFLOP/s, bf16 1 TFLOP/s" in products.value


def test_a_device_that_cannot_multiply_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(device: torch.device, dtype: torch.dtype) -> float:
        raise RuntimeError("no kernel image is available\nmore")

    monkeypatch.setattr(doctor, "matmul_rate", fail)
    assert doctor.rates()[1].state == "missing"
    assert doctor.rates()[1].value == "no kernel image is available"
