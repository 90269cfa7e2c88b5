"""Chat templates: items in turns, special tokens and all, as the plain harness writes them; none is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from helpers.evaluating import llmjp

from llmjp_train.errors import UserError

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m['role'] }}:{{ m['content'] }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
WORDS = ("tasks=[own_choice]", "limit=3", "num_fewshot=2", "device=cpu", "--json", "chat=true")


@pytest.fixture
def chat_folder(hf_folder: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "chat"
    shutil.copytree(hf_folder, folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE, "utf-8")
    return folder


def test_items_are_written_as_turns_and_scored_as_in_the_plain_harness(
    chat_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from lm_eval.models.huggingface import HFLM

    from llmjp_train.evaluate.fast import FastLM

    asked: list[Any] = []
    scored: list[tuple[float, bool]] = []
    kept = FastLM.loglikelihood

    def listen(self: FastLM, requests: Any, *more: Any) -> Any:
        asked.extend(requests)
        scored.extend(found := kept(self, requests))
        return found

    monkeypatch.setattr(FastLM, "loglikelihood", listen)
    assert llmjp(str(chat_folder), *WORDS) == 0
    settings = json.loads(capsys.readouterr().out)["settings"]
    assert settings["chat"] is True
    assert len(settings["chat_template_sha256"]) == 64
    assert settings["bos"] is False, "the template writes it"
    text = asked[0].args[0]
    assert text.startswith("<s>user:")
    assert text.endswith("</s>assistant:")
    assert text.count("assistant:") == 3

    plain = HFLM(
        str(chat_folder), device="cpu", dtype="float32", batch_size=4, max_length=256, add_bos_token=False
    )
    plain.tokenizer.backend_tokenizer.post_processor = None  # its habit of appending EOD (T1)
    assert plain.tok_encode(text)[0] == 1, "a special token that is spelled out is one"
    found = plain.loglikelihood(asked, disable_tqdm=True)
    assert [score for score, _ in scored] == pytest.approx([score for score, _ in found], abs=2e-4)


@pytest.mark.parametrize("runner", ["fast", "harness"])
def test_a_tokenizer_without_a_template_is_refused(hf_folder: Path, runner: str) -> None:
    with pytest.raises(UserError, match=r"chat=true, but the tokenizer of .* has no chat template"):
        llmjp(str(hf_folder), *WORDS, f"runner={runner}")


def test_a_template_that_refuses_the_turns_is_named(chat_folder: Path) -> None:
    (chat_folder / "chat_template.jinja").write_text("{{ raise_exception('no turns, please') }}", "utf-8")
    with pytest.raises(UserError, match="chat template refuses turns of user, assistant: no turns, please"):
        llmjp(str(chat_folder), *WORDS)
