"""The self test's CPU half: what it says of a sound machine, and that each part can fail."""

import getpass
import json
import socket
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from llmjp_train import cli, exit_codes
from llmjp_train.config.training import Dtype
from llmjp_train.model import attention
from llmjp_train.train.leak_test import allowed
from llmjp_train.verify.device import BOUNDS, attention_kernels, distance, leak
from llmjp_train.verify.selftest import SelfTest, _over
from llmjp_train.verify.spec import FORMS

CPU = torch.device("cpu")


@pytest.mark.parametrize("form", FORMS)
def test_bf16_is_inside_its_bound_and_a_wrong_device_is_not(form: str) -> None:
    found, _ = distance(form, CPU, Dtype.bf16)
    assert 0 < found <= BOUNDS[Dtype.bf16]
    plain = torch.nn.functional.linear

    def wrong(x: torch.Tensor, weight: torch.Tensor, bias: Any = None) -> torch.Tensor:
        product = plain(x, weight, bias)
        return product * 1.1 if weight.dtype is torch.bfloat16 else product

    with patch("torch.nn.functional.linear", wrong):
        assert distance(form, CPU, Dtype.bf16)[0] > BOUNDS[Dtype.bf16]


def test_the_kernel_that_torch_chose_is_told() -> None:
    assert attention_kernels(CPU, Dtype.fp32) == {"causal": ["flash"], "documents": ["flash"]}
    with sdpa_kernel(SDPBackend.MATH):
        assert attention_kernels(CPU, Dtype.fp32) == {"causal": ["math"], "documents": ["math"]}


@pytest.mark.parametrize("form", FORMS)
def test_attention_that_crosses_documents_is_seen(form: str) -> None:
    assert leak(form, CPU, Dtype.fp32) <= allowed(Dtype.fp32)
    plain = attention.make_context

    def blind(config: Any, documents: Any, positions: Any, **kwargs: Any) -> Any:
        return plain(config, None, positions, **kwargs)

    with patch("llmjp_train.model.decoder.make_context", blind):
        assert leak(form, CPU, Dtype.fp32) > allowed(Dtype.fp32)


def test_layouts_fit_the_devices_of_the_node() -> None:
    assert _over(1) == []
    for devices in (2, 4, 8):
        for words in _over(devices):
            sizes = [
                int(word.partition("=")[2]) for word in words if "zero" not in word and "sequence" not in word
            ]
            assert torch.tensor(sizes).prod() <= devices


def test_bad_input_and_a_machine_that_is_not_the_cluster_s(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["selftest", "--only", "parity,speed"]) == exit_codes.BAD_INPUT
    assert "--only speed: give some of parity, attention" in capsys.readouterr().err
    assert cli.main(["selftest", "--only", "attention", "cluster=mdx"]) == exit_codes.OK
    out = capsys.readouterr().out
    assert (
        "not run  cluster     devices: mdx has GPUs, this machine has none: run it on one of its nodes" in out
    )


@pytest.mark.full
@pytest.mark.timeout(600)
def test_the_cpu_half_passes_and_its_json_names_nobody(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "selftest.json"
    assert cli.main(["selftest", "--output", str(out)]) == exit_codes.OK, capsys.readouterr().out
    text = out.read_text(encoding="utf-8")
    found = json.loads(text)
    assert found["passed"]
    assert {finding["part"] for finding in found["findings"]} == {
        "parity", "attention", "leak", "layouts", "checkpoint",
    }  # fmt: skip
    left_out = {f["name"]: f["said"] for f in found["findings"] if f["state"] == "not run"}
    assert left_out["fp16"] == "this machine has no GPU"
    assert "compared with transformers: whole" in text
    for name in (socket.gethostname(), getpass.getuser(), str(Path.home()), str(tmp_path)):
        assert name == "root" or name not in text


@pytest.mark.full
@pytest.mark.timeout(600)
def test_layouts_by_training_as_on_gpus(tmp_path: Path) -> None:
    """The path that GPUs take, on CPU ranks: a layout that is equal, and one that trains something else."""
    test = SelfTest(tmp_path, devices=0)
    found = list(test.trained_layouts([["parallel.tensor=2"], ["parallel.data=2", "optimizer.beta1=0.5"]]))
    assert [finding.state for finding in found] == ["ok", "failed"], found
    (nothing,) = test.trained_layouts([])
    assert nothing.state == "not run"
