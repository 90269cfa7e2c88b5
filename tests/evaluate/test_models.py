"""Our adapters give the scores of the harness's own class on the same weights, item by item."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.evaluating import requests_of

from llmjp_train.config.model import ModelConfig
from llmjp_train.errors import UserError
from llmjp_train.evaluate.folder import FolderLM, folder_bos
from llmjp_train.evaluate.models import DecoderLM, TokenLogprobsLM, decoder_from, micro_batch
from llmjp_train.model.decoder import Decoder

CPU = torch.device("cpu")


def scorer(decoder: Decoder) -> Any:
    """Log-probabilities of targets as an engine gives them."""

    @torch.no_grad()
    def score(batch: Any) -> torch.Tensor:
        sums = decoder(batch.tokens, batch.documents, batch.positions, batch.targets)
        return -sums.token_nll

    return score


@pytest.fixture(scope="module")
def folder_lm(hf_folder: Path) -> FolderLM:
    return FolderLM(hf_folder, device=CPU, batch_size=7, progress=False)


def decoder_lm(decoder: Decoder, tokenizer: Any, batch_size: int = 5, max_length: int = 256) -> DecoderLM:
    return DecoderLM(decoder, tokenizer, max_length, batch_size=batch_size, progress=False)


@pytest.mark.parametrize("name", ["own_choice", "own_reading"])
def test_choices_score_as_in_the_harness_s_class(
    name: str, decoder: Decoder, tokenizer: Any, folder_lm: FolderLM
) -> None:
    requests = requests_of(name, 6)
    ours = decoder_lm(decoder, tokenizer)
    found, wanted = ours.loglikelihood(requests), folder_lm.loglikelihood(requests)
    assert len(found) == 24
    assert [score for score, _ in found] == pytest.approx([score for score, _ in wanted], abs=2e-4)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in wanted]
    if name == "own_reading":
        assert ours.encoder.counts.truncated > 0  # inputs beyond the context are cut alike


def test_whole_texts_score_as_in_the_harness_s_class(
    decoder: Decoder, tokenizer: Any, folder_lm: FolderLM
) -> None:
    requests = requests_of("own_texts", 4)
    found = decoder_lm(decoder, tokenizer).loglikelihood_rolling(requests)
    wanted = folder_lm.loglikelihood_rolling(requests)
    assert found == pytest.approx(wanted, rel=1e-6)
    tokens = len(tokenizer.encode(requests[0].args[0]))
    assert tokens > 100
    assert -found[0] > tokens  # a random model is worse than one nat a token


def test_the_plain_harness_class_agrees_where_no_trap_is_set(
    hf_folder: Path, decoder: Decoder, tokenizer: Any
) -> None:
    from lm_eval.models.huggingface import HFLM

    class Plain(HFLM):
        def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
            return list(self.tokenizer.encode(string, add_special_tokens=False))

    plain = Plain(pretrained=str(hf_folder), device="cpu", dtype="float32", batch_size=3)
    requests = requests_of("own_choice", 4)
    ours = decoder_lm(decoder, tokenizer)
    found, wanted = ours.loglikelihood(requests), plain.loglikelihood(requests, disable_tqdm=True)
    clean = [ours.encoder.pair(*r.args).context == tuple(plain._encode_pair(*r.args)[0]) for r in requests]
    assert sum(clean) > 8
    for (score, _), (other, _), same in zip(found, wanted, clean, strict=True):
        assert not same or score == pytest.approx(other, abs=2e-4)


def test_greedy_flags_are_true_where_the_model_writes_the_continuation(
    decoder: Decoder, tokenizer: Any
) -> None:
    context = "雨の日に"
    ids = tokenizer.encode(context)
    with torch.no_grad():
        best = int(decoder(torch.tensor([ids]))[0, -1].argmax())
    lm = decoder_lm(decoder, tokenizer)
    scores = lm._loglikelihood_tokens(
        [((context, ""), ids, [best]), ((context, ""), ids, [(best + 1) % 600])]
    )
    assert [greedy for _, greedy in scores] == [True, False]
    assert scores[0][0] > scores[1][0]


def test_scores_do_not_depend_on_the_batch(decoder: Decoder, tokenizer: Any) -> None:
    requests = requests_of("own_choice", 5)
    one = decoder_lm(decoder, tokenizer, batch_size=1).loglikelihood(requests)
    many = decoder_lm(decoder, tokenizer, batch_size=16).loglikelihood(requests)
    assert [score for score, _ in one] == pytest.approx([score for score, _ in many], abs=1e-4)


def test_a_choice_s_score_does_not_depend_on_its_place(decoder: Decoder, tokenizer: Any) -> None:
    requests = requests_of("own_choice", 3)
    lm = decoder_lm(decoder, tokenizer)
    forward = lm.loglikelihood(requests)
    backward = lm.loglikelihood(requests[::-1])[::-1]
    assert [score for score, _ in forward] == pytest.approx([score for score, _ in backward], abs=1e-4)


def test_a_scorer_of_targets_gives_the_decoder_s_scores(decoder: Decoder, tokenizer: Any) -> None:
    engine = TokenLogprobsLM(tokenizer, scorer(decoder), 256, batch_size=4, progress=False)
    lm = decoder_lm(decoder, tokenizer)
    for name in ("own_choice", "own_reading"):
        requests = requests_of(name, 3)
        wanted = [score for score, _ in lm.loglikelihood(requests)]
        assert [score for score, _ in engine.loglikelihood(requests)] == pytest.approx(wanted, abs=1e-4)
    texts = requests_of("own_texts", 3)
    assert engine.loglikelihood_rolling(texts) == pytest.approx(lm.loglikelihood_rolling(texts), rel=1e-6)


def test_a_micro_batch_predicts_the_continuation_alone() -> None:
    batch = micro_batch([([5, 6, 7, 8], 2), ([9, 10], 1)])
    assert batch.tokens.tolist() == [[5, 6, 7], [9, 0, 0]]
    assert batch.targets.tolist() == [[-100, 7, 8], [10, -100, -100]]
    assert batch.positions.tolist() == [[0, 1, 2]] * 2
    assert batch.documents.sum() == 0


def test_generation_is_refused_with_the_way_to_do_it(decoder: Decoder, tokenizer: Any) -> None:
    with pytest.raises(UserError, match="llmjp export RUN"):
        decoder_lm(decoder, tokenizer).generate_until([])


def test_bad_settings_are_refused(decoder: Decoder, tokenizer: Any) -> None:
    with pytest.raises(UserError, match="batch_size=0"):
        decoder_lm(decoder, tokenizer, batch_size=0)
    silent = SimpleNamespace(encode=tokenizer.encode, decode=tokenizer.decode, eod_id=2, bos_id=None)
    with pytest.raises(UserError, match="no BOS"):
        DecoderLM(decoder, silent, 256, bos=True, progress=False)


class FakeReader:
    """A checkpoint in memory."""

    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        self.tensors = {f"master.{name}": tensor for name, tensor in tensors.items()}

    def names(self) -> list[str]:
        return list(self.tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.tensors[name].shape)

    def read(self, name: str) -> torch.Tensor:
        return self.tensors[name]


def test_a_decoder_is_filled_from_masters(
    model_config: ModelConfig, tensors: dict[str, torch.Tensor], decoder: Decoder
) -> None:
    filled = decoder_from(FakeReader(tensors), model_config, CPU, torch.float32)
    tokens = torch.arange(12)[None]
    assert torch.equal(filled(tokens), decoder(tokens))


def test_a_checkpoint_of_another_model_is_refused(
    model_config: ModelConfig, tensors: dict[str, torch.Tensor]
) -> None:
    fewer = {name: tensor for name, tensor in tensors.items() if name != "norm.weight"}
    with pytest.raises(UserError, match=r"no master\.norm\.weight"):
        decoder_from(FakeReader(fewer), model_config, CPU, torch.float32)
    other = tensors | {"norm.weight": torch.ones(31)}
    with pytest.raises(UserError, match=r"master.norm.weight is \(31,\).*\(32,\)"):
        decoder_from(FakeReader(other), model_config, CPU, torch.float32)


def test_bos_of_a_folder_follows_its_tokenizer_unless_it_is_ours(
    tokenizer: Any, tokenizer_folder: Path, tmp_path: Path
) -> None:
    assert not folder_bos(tokenizer_folder, tokenizer)  # this one appends EOD, and puts nothing in front
    prepending = SimpleNamespace(bos_id=1, hf=lambda text: {"input_ids": [1, 5]})
    assert folder_bos(tmp_path, prepending)
    (tmp_path / "parity.json").write_text("{}")
    assert not folder_bos(tmp_path, prepending)
