"""Exports under the last transformers 4, in a process of its own, both ways; packages: tests/transformers4.txt."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.exporting import (
    GPT2,
    LLAMA,
    NEOX,
    QWEN2,
    MadeUpCheckpoint,
    save_byte_tokenizer,
    save_tokenizer,
    train_config,
)
from safetensors.torch import load_file
from torch import Tensor

from llmjp_train.config.model import Bias
from llmjp_train.model.decoder import Decoder
from llmjp_train.model.hf import from_hf_config, from_hf_tensors
from llmjp_train.publish.export import export

pytestmark = pytest.mark.full

FORMS = {
    "llama": LLAMA,
    "llama-biased-tied": replace(LLAMA, bias=Bias.all, tied_embeddings=True, num_kv_heads=1, head_size=18),
    "gpt2": GPT2,
    "gpt2-untied": replace(GPT2, tied_embeddings=False),
    "gpt_neox": replace(NEOX, rope_theta=777.0),
    "gpt_neox-quarter-tied": replace(NEOX, head_size=16, num_heads=3, num_kv_heads=3, rope_fraction=0.25,
                                     tied_embeddings=True, rope_theta=30000.0),
    "qwen2": QWEN2,
    "qwen3": replace(LLAMA, qk_norm=True),
}  # fmt: skip
TEXT = "むかし、あるところに"
PROGRAM = """
import json, sys
from pathlib import Path
import torch, transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
assert transformers.__version__.startswith("4."), transformers.__version__
root, text = Path(sys.argv[1]), sys.argv[2]
tokens = torch.arange(3, 90)[None]
for folder in sorted(root.glob("exported/*")):
    model, info = AutoModelForCausalLM.from_pretrained(folder, torch_dtype=torch.float32, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"], info
    tokenizer = AutoTokenizer.from_pretrained(folder)
    result = {"ids": tokenizer.encode(text, add_special_tokens=False), "eos": model.generation_config.eos_token_id}
    with torch.no_grad():
        result["logits"] = model.eval()(tokens).logits
    torch.manual_seed(7)
    other = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder), torch_dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.normal_(0.0, 0.25)
        result["its_own_logits"] = other(tokens).logits
    other.save_pretrained(root / "made_by_4" / folder.name)
    torch.save(result, root / f"{folder.name}.pt")
for folder in sorted(root.glob("without/*")):
    model = AutoModelForCausalLM.from_pretrained(folder, torch_dtype=torch.float32)
    with torch.no_grad():
        torch.save(model.eval()(tokens).logits, root / f"without-{folder.name}.pt")
"""
LEGACY = ("rope_theta", "rotary_pct", "rotary_emb_base")


def _without_legacy_keys(folder: Path, out: Path) -> None:
    """A copy as transformers 5 alone would have written it."""
    out.mkdir(parents=True)
    for path in folder.iterdir():
        (out / path.name).symlink_to(path)
    config = json.loads((folder / "config.json").read_text())
    (out / "config.json").unlink()
    (out / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k not in LEGACY}))


def _overlay(folder: Path) -> None:
    """Install transformers 4 into a folder of its own."""
    wanted = Path(__file__).parent.parent / "transformers4.txt"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    done = subprocess.run(
        [*pip, "--target", str(folder), "-r", str(wanted)], capture_output=True, text=True, timeout=200
    )
    if done.returncode:
        if os.environ.get("LLMJP_CI"):
            pytest.fail(f"CI compares with transformers 4, which cannot be installed: {done.stderr}")
        pytest.skip(f"transformers 4 cannot be installed here (no network?): {done.stderr.strip()[-300:]}")


@dataclass
class Made:
    """Results of the process with transformers 4 beside what it was given."""

    root: Path
    checkpoints: dict[str, MadeUpCheckpoint]

    def of_4(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = torch.load(self.root / f"{name}.pt")
        return found


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Every form exported here, and one process with transformers 4 that has loaded them all."""
    packages = tmp_path_factory.mktemp("transformers4")
    _overlay(packages)
    root = tmp_path_factory.mktemp("forms")
    llamas, qwens = save_tokenizer(root / "tokenizer"), save_byte_tokenizer(root / "byte_tokenizer")
    checkpoints = {name: MadeUpCheckpoint(form) for name, form in FORMS.items()}
    for name, form in FORMS.items():
        tokenizer = qwens if name == "qwen2" else llamas
        checkpoint: Any = checkpoints[name]
        folder = root / "exported" / name
        export(checkpoint, train_config(form, tokenizer), tokenizer, folder, dtype="float32")
        if "gpt2" not in name:
            _without_legacy_keys(folder, root / "without" / name)
    environment = os.environ | {"PYTHONPATH": str(packages)}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(root), TEXT],
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return Made(root, checkpoints)


def apart(found: Tensor, wanted: Tensor) -> float:
    """Largest difference over the largest value."""
    return float((found - wanted).abs().max() / wanted.abs().max())


def ours(form: Any, weights: dict[str, Tensor]) -> Tensor:
    """Logits of our decoder."""
    decoder = Decoder(form)
    decoder.load_state_dict(weights, strict=not form.tied_embeddings)
    with torch.no_grad():
        logits: Tensor = decoder.eval()(torch.arange(3, 90)[None])
    return logits


@pytest.mark.parametrize("name", list(FORMS))
def test_transformers_4_computes_our_logits_from_our_export(name: str, made: Made) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    weights = {key.removeprefix("master."): value for key, value in made.checkpoints[name].tensors.items()}
    found = made.of_4(name)
    assert apart(found["logits"], ours(FORMS[name], weights)) < 5e-6
    folder = made.root / "exported" / name
    newest = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        assert apart(found["logits"], newest(torch.arange(3, 90)[None]).logits) < 5e-6
    assert found["ids"] == AutoTokenizer.from_pretrained(folder).encode(TEXT, add_special_tokens=False)
    assert found["eos"] == newest.generation_config.eos_token_id == 2


@pytest.mark.parametrize("name", list(FORMS))
def test_we_compute_the_logits_of_a_model_that_transformers_4_saved(name: str, made: Made) -> None:
    """Its config.json knows nothing of ``rope_parameters``."""
    from transformers import AutoConfig

    folder = made.root / "made_by_4" / name
    read = from_hf_config(AutoConfig.from_pretrained(folder))
    assert read == replace(FORMS[name], name=read.name)
    stored = load_file(folder / "model.safetensors")
    weights = dict(from_hf_tensors(read, stored.__getitem__))
    assert apart(ours(read, weights), made.of_4(name)["its_own_logits"]) < 5e-6


@pytest.mark.parametrize("name", [name for name in FORMS if "gpt2" not in name])
def test_without_the_legacy_keys_transformers_4_is_wrong_in_silence(name: str, made: Made) -> None:
    """Why they are written, and that this comparison would see it if they were not."""
    logits = torch.load(made.root / f"without-{name}.pt")
    assert apart(logits, made.of_4(name)["logits"]) > 1e-3
