"""`llmjp generate` and `llmjp export` on a run with real checkpoints, and the choice of tokens."""

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.exporting import GPT2, LLAMA, MadeUpCheckpoint, make_run, save_tokenizer
from transformers import LlamaForCausalLM

from llmjp_train import cli
from llmjp_train.commands.export import parse_size
from llmjp_train.config.data import TokenizerConfig
from llmjp_train.config.model import Mlp
from llmjp_train.data.tokenizers import Tokenizer, load_tokenizer
from llmjp_train.errors import UserError
from llmjp_train.model.decoder import Decoder
from llmjp_train.publish import parity
from llmjp_train.publish.generate import Sampling, TextStream, choose_token, generate
from llmjp_train.publish.weights import load_decoder

PROMPT = "あいうえおかき"
SHIFT_JIS = PROMPT.encode("shift_jis").decode(errors="surrogateescape")
"""An argument whose bytes are not UTF-8, as Python gives it."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = save_tokenizer(tmp_path_factory.mktemp("tokenizer"), appends=True)
    return make_run(tmp_path_factory.mktemp("runs") / "toy", LLAMA, tokenizer)


@pytest.fixture(scope="module")
def exported(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("exported") / "model"
    assert cli.main(["export", str(run), "--out", str(out), "--dtype", "float32"]) == 0
    return out


@pytest.fixture(scope="module")
def tokenizer(run: Path) -> Tokenizer:
    return load_tokenizer(TokenizerConfig(name="toy", path=str(run / "tokenizer")))


def text_of(model: Path, sampling: Sampling, step: str = "latest") -> str:
    parts: list[str] = []
    count = generate(model, PROMPT, sampling, parts.append, step)
    assert 0 < count <= sampling.max_tokens
    return "".join(parts)


def test_greedy_text_is_the_same_from_run_and_export_and_every_time(run: Path, exported: Path) -> None:
    sampling = Sampling(greedy=True, max_tokens=24)
    found = text_of(run, sampling)
    assert found
    assert text_of(run, replace(sampling, seed=9)) == found
    assert text_of(exported, sampling) == found
    assert text_of(exported, replace(sampling, seed=9)) == found
    assert text_of(run, sampling, "10") != found


def test_greedy_means_greedy_whatever_the_folder_asks_for(exported: Path, tmp_path: Path) -> None:
    """A folder's own generation_config.json may hold penalties, beams and sampling."""
    folder = tmp_path / "model"
    shutil.copytree(exported, folder)
    path = folder / "generation_config.json"
    said = json.loads(path.read_text())
    said |= {
        "repetition_penalty": 3.0,
        "no_repeat_ngram_size": 1,
        "do_sample": True,
        "top_k": 3,
        "num_beams": 2,
    }
    path.write_text(json.dumps(said))
    sampling = Sampling(greedy=True, max_tokens=24)
    assert text_of(folder, sampling) == text_of(exported, sampling)
    drawn = Sampling(max_tokens=24, top_p=0.9, seed=1)
    assert text_of(folder, drawn) == text_of(exported, drawn)


@pytest.mark.parametrize("model", ["run", "exported"])
def test_text_is_written_while_it_is_made(
    model: str, tokenizer: Tokenizer, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that the tokens so far make is there before the model is asked for the next one."""
    folder, calls, kept = request.getfixturevalue(model), [0], tokenizer.encode(PROMPT)
    seen: list[int] = []

    def counted(forward: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            calls[0] += 1
            return forward(*args, **kwargs)

        return call

    def write(part: str) -> None:
        assert tokenizer.decode(kept).endswith(part)
        seen.append(calls[0])

    def add(stream: TextStream, token: int, plain: Any = TextStream.add) -> None:
        kept.append(token)
        plain(stream, token)

    monkeypatch.setattr(Decoder, "hidden_states", counted(Decoder.hidden_states))
    monkeypatch.setattr(LlamaForCausalLM, "forward", counted(LlamaForCausalLM.forward))
    monkeypatch.setattr(TextStream, "add", add)
    count = generate(folder, PROMPT, Sampling(greedy=True, max_tokens=24), write)
    assert calls == [count]
    assert len(seen) == len(set(seen)) > 3  # most tokens are bytes, shown when their character is whole
    assert seen[0] == 1


@pytest.mark.parametrize("model", ["run", "exported"])
def test_draws_follow_the_seed(model: str, request: pytest.FixtureRequest) -> None:
    path = request.getfixturevalue(model)
    sampling = Sampling(max_tokens=24, top_p=0.9, seed=1)
    assert text_of(path, sampling) == text_of(path, sampling)
    assert text_of(path, sampling) != text_of(path, replace(sampling, seed=2))
    tight = Sampling(max_tokens=24, top_p=1e-6, seed=3)
    assert text_of(path, tight) == text_of(path, Sampling(greedy=True, max_tokens=24))


def test_the_text_stops_where_the_document_does(
    run: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llmjp_train.publish import generate as module

    monkeypatch.setattr(module, "choose_token", lambda logits, *_: tokenizer.eod_id)
    assert generate(run, PROMPT, Sampling(max_tokens=24), lambda _: None) == 1


def test_the_text_stops_where_the_context_is_full(run: Path, exported: Path) -> None:
    room = LLAMA.max_positions - len(PROMPT)
    for model in (run, exported):
        assert generate(model, PROMPT, Sampling(greedy=True, max_tokens=1000), lambda _: None) <= room
    with pytest.raises(UserError, match="context 96"):
        generate(run, "あ" * 200, Sampling(), lambda _: None)


def test_top_p_keeps_the_smallest_set_and_temperature_divides() -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()[[2, 0, 3, 1]]

    def drawn(**options: Any) -> list[int]:
        generator = torch.Generator().manual_seed(0)
        tokens = [choose_token(logits, Sampling(**options), generator) for _ in range(3000)]
        return [tokens.count(token) for token in range(4)]

    assert drawn(top_p=0.5) == [0, 3000, 0, 0]
    two = drawn(top_p=0.51)
    assert two[0] == two[2] == 0
    assert two[1] / 3000 == pytest.approx(0.625, abs=0.03)
    flat = drawn(top_p=1.0, temperature=1000.0)
    assert all(count == pytest.approx(750, abs=100) for count in flat)
    assert drawn(greedy=True) == [0, 3000, 0, 0]


def test_text_appears_character_by_character_and_bytes_when_whole(tokenizer: Tokenizer) -> None:
    written: list[str] = []
    prompt = tokenizer.encode("あ")
    stream = TextStream(tokenizer, prompt, written.append)
    for token in [*tokenizer.encode("い"), *tokenizer.encode("🌸"), *tokenizer.encode("う")]:
        stream.add(token)
    stream.end()
    assert written == ["い", "🌸", "う"]


def test_unfinished_bytes_are_shown_at_the_end(tokenizer: Tokenizer) -> None:
    written: list[str] = []
    stream = TextStream(tokenizer, tokenizer.encode("あ"), written.append)
    stream.add(tokenizer.encode("🌸")[0])
    assert written == []
    stream.end()
    assert "".join(written) == "\ufffd"


def test_the_decoder_is_the_checkpoint_rounded() -> None:
    checkpoint: Any = MadeUpCheckpoint(GPT2)
    decoder = load_decoder(checkpoint, GPT2, torch.bfloat16)
    assert decoder.head.weight is decoder.embedding.weight
    for name, value in decoder.named_parameters():
        assert torch.equal(value, checkpoint.tensors[f"master.{name}"].bfloat16().float())


def test_command_writes_prompt_and_text(
    exported: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["generate", str(exported), "--greedy", "--max-tokens", "12"]
    assert cli.main([*words, "--prompt", PROMPT]) == 0
    first = capsys.readouterr().out
    assert first.startswith(PROMPT)
    assert len(first) > len(PROMPT) + 1
    assert cli.main([*words[:2], PROMPT, *words[2:]]) == 0
    assert capsys.readouterr().out == first
    monkeypatch.setattr("sys.stdin", io.StringIO(PROMPT + "\n"))
    assert cli.main(words) == 0
    assert capsys.readouterr().out == first


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["generate", "{tmp}/nowhere", "--prompt", "あ"], "nowhere does not exist"),
        (["generate", "{tmp}", "--prompt", "あ"], "neither a run directory"),
        (["generate", "{run}", "--prompt", "あ", "--top-p", "0"], "--top-p 0"),
        (["generate", "{run}", "--prompt", "あ", "--temperature", "0"], "--temperature 0"),
        (["generate", "{run}", "--prompt", "あ", "--temperature", "nan"], "--temperature nan"),
        (["generate", "{run}", "--prompt", "あ", "--temperature", "inf"], "--temperature inf"),
        (["generate", "{run}", "--prompt", "あ", "--max-tokens", "0"], "--max-tokens 0"),
        (["generate", "{run}", SHIFT_JIS], "iconv -f SHIFT_JIS"),
        (["generate", "{run}", "--prompt", ""], "no prompt"),
        (["generate", "{run}", "い", "--prompt", "あ"], "given twice"),
        (["generate", "{run}", "--prompt", "あ", "--step", "11"], "no checkpoint of step 11"),
        (["export", "{tmp}/nowhere"], "nowhere does not exist"),
        (["export", "{tmp}"], "is no run directory"),
        (["export", "{run}", "--step", "soon"], "--step soon"),
        (["export", "{run}", "--max-shard", "huge"], "--max-shard huge"),
    ],
)
def test_bad_input_is_told(
    words: list[str], message: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([word.format(tmp=tmp_path, run=run) for word in words]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("errors", ["strict", "surrogateescape"])
def test_standard_input_that_is_not_utf_8_is_told(
    errors: str, run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Strict as in a UTF-8 locale, the other as in the C locale."""
    content = io.BytesIO(PROMPT.encode("shift_jis"))
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(content, encoding="utf-8", errors=errors))
    assert cli.main(["generate", str(run)]) == 2
    assert "iconv -f SHIFT_JIS" in capsys.readouterr().err


def test_export_of_a_run_goes_beside_its_checkpoints(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["export", str(run), "--step", "10", "--parity", "layers", "--max-shard", "12kB"]) == 0
    out = run / "export" / "step-00000010"
    certificate = json.loads((out / "parity.json").read_text())
    assert (certificate["passed"], certificate["level"]) == (True, "layers")
    assert certificate["source"] == {"run": "toy", "step": 10, "checkpoint": "step-00000010.epoch-0001"}
    assert len(list(out.glob("model-*.safetensors"))) > 2
    said = capsys.readouterr().out
    assert f"step 10 written to {out.absolute()}" in said
    assert "level layers" in said
    assert "appends </s>" in said
    assert cli.main(["export", str(run), "--step", "10"]) == 2
    assert "--force" in capsys.readouterr().err


def test_dry_run_writes_nothing(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["export", str(run), "--out", str(tmp_path / "model"), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "llama (LlamaForCausalLM)" in said
    assert "step 30" in said
    assert "model.safetensors" in said
    assert list(tmp_path.iterdir()) == []


def test_a_failed_export_exits_with_1(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parity, "LAYER_BOUND", 0.0)
    assert cli.main(["export", str(run), "--out", str(tmp_path / "model")]) == 1
    assert "do not publish" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["model.failed"]


def test_a_run_that_no_family_holds_still_generates(tmp_path: Path) -> None:
    tokenizer = save_tokenizer(tmp_path / "tokenizer")
    run = make_run(tmp_path / "run", replace(LLAMA, mlp=Mlp.gelu), tokenizer, steps=(5,))
    assert generate(run, PROMPT, Sampling(greedy=True, max_tokens=4), lambda _: None) > 0
    assert cli.main(["export", str(run)]) == 2


@pytest.mark.parametrize(
    ("text", "size"),
    [("5GB", 5 * 10**9), ("500MB", 5 * 10**8), ("4GiB", 4 * 2**30), ("1.5 kb", 1500), ("12000", 12000)],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "big", "0", "-5GB", "5 parsecs"])
def test_no_sizes(text: str) -> None:
    with pytest.raises(UserError, match="--max-shard"):
        parse_size(text)
