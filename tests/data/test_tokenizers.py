"""Tokenizers: exact round trips, equality with SentencePiece, habits, and what does not fit."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from llmjp_train.config.data import TokenizerConfig
from llmjp_train.data.reading import records
from llmjp_train.data.sentencepieces import from_sentencepiece, sample, train_unigram
from llmjp_train.data.tokenizers import Tokenizer, check_special_tokens, fingerprint, load_tokenizer
from llmjp_train.errors import UserError

HARD = [
    "",
    " ",
    "\n",
    "  字下げ　全角\n\n改行\r\nタブ\t終 ",
    "😀👨\u200d👩\u200d👧 𠮷野家 ▁下線▁ ▁",
    "</s>と<s>と<unk>と<pad>と<0x41>",
    "ＡＢＣ１２３①㍻ e\u0301 か\u3099",
    "\x00\x7f\ufeff\u200b",
    "x = {'a': 10}  # 注\n\treturn",
]


@pytest.mark.parametrize("text", HARD)
def test_the_trained_tokenizer_gives_every_text_back(tokenizer: Any, text: str) -> None:
    (ids,) = tokenizer.encode_many([text])
    assert tokenizer.decode(ids) == text
    assert not tokenizer.special_ids & set(ids)


@settings(max_examples=300)
@given(text=st.text(max_size=40))
def test_the_trained_tokenizer_gives_any_text_back(tokenizer: Any, text: str) -> None:
    assert tokenizer.decode(next(tokenizer.encode_many([text]))) == text


def test_the_trained_tokenizer_is_what_other_tools_load(tokenizer_folder: Path, tokenizer: Any) -> None:
    other = AutoTokenizer.from_pretrained(str(tokenizer_folder))
    text = "  春が来る。\n😀 x1"
    assert other(text)["input_ids"] == tokenizer.encode(text)
    assert other.decode(other(text)["input_ids"]) == text
    assert (other.unk_token_id, other.bos_token_id, other.eos_token_id, other.pad_token_id) == (0, 1, 2, 3)
    assert len(other) == tokenizer.vocab_size == 400
    assert "\n" in other.get_vocab()


def test_a_saved_tokenizer_is_the_same(tokenizer: Any, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "copy")
    again = load_tokenizer(TokenizerConfig(name="copy", path=str(tmp_path / "copy")))
    assert again.fingerprint == tokenizer.fingerprint
    assert again.eod_id == tokenizer.eod_id


def test_training_is_repeatable_and_the_fingerprint_tells_vocabularies_apart(texts: list[str]) -> None:
    one, two, other = (Tokenizer(train_unigram(texts, size, 0.999)) for size in (380, 380, 390))
    assert one.fingerprint == two.fingerprint != other.fingerprint


def test_the_fingerprint_is_of_what_decides_ids_and_of_nothing_else(tokenizer_folder: Path) -> None:
    def changed(change: Callable[[dict[str, Any]], object] = lambda content: None) -> str:
        content = json.loads((tokenizer_folder / "tokenizer.json").read_text(encoding="utf-8"))
        change(content)
        fast = tokenizers.Tokenizer.from_str(json.dumps(content, indent=3))
        return fingerprint(PreTrainedTokenizerFast(tokenizer_object=fast))

    prepends = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
    }
    known = changed()
    assert changed(lambda c: c.update(post_processor=prepends)) == known, "a habit decides nothing here"
    assert changed(lambda c: c.update(truncation=None, decoder=None)) == known
    others = [
        changed(lambda c: c["model"]["vocab"][300].__setitem__(1, -99.0)),
        changed(lambda c: c["model"]["vocab"][300].__setitem__(0, "別")),
        changed(lambda c: c.update(normalizer={"type": "NFKC"})),
        changed(lambda c: c.update(pre_tokenizer={"type": "Whitespace"})),
        changed(lambda c: c["added_tokens"][3].update(lstrip=True)),
    ]
    assert len({known, *others}) == 6


def test_a_vocabulary_that_does_not_fit_the_text_is_refused_with_the_remedy(texts: list[str]) -> None:
    with pytest.raises(UserError, match="a vocabulary of 4000 could not be trained on 6 characters"):
        train_unigram(["春が来る。\n猫"], 4000, 0.999)
    with pytest.raises(UserError, match=r"no more than [\d,]+ pieces to offer: give more text or a smaller"):
        train_unigram(texts, 20_000, 0.999)
    with pytest.raises(
        UserError, match=r"alone need [\d,]+ ids: set vocab_size well above that, or a smaller"
    ):
        train_unigram(texts, 290, 1.0)
    with pytest.raises(UserError, match="there is no text"):
        train_unigram(["", "\n"], 4000, 0.999)


def test_a_sample_is_even_bounded_and_repeatable() -> None:
    documents = ["い" * 1000] * 400 + ["う" * 100_000] * 4
    chosen = sample(iter(documents), 600_000, seed=1)
    size = sum(len(text.encode()) for text in chosen)
    assert 600_000 <= size < 600_000 + 12_000
    assert chosen == sample(iter(documents), 600_000, seed=1) != sample(iter(documents), 600_000, seed=2)
    assert 0.35 < sum(len(text.encode()) for text in chosen if text[0] == "い") / size < 0.65
    assert max(map(len, chosen)) <= 4000
    assert sample(iter(documents), 10**9, seed=1) == [
        text[a : a + 4000] for text in documents for a in range(0, len(text), 4000)
    ]


def spm(path: Path, kind: str, texts: list[str], **options: Any) -> Path:
    known = {
        "byte_fallback": True,
        "character_coverage": 0.995,
        "minloglevel": 2,
        "num_threads": 1,
        "vocab_size": 600,
    }
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter("".join(texts).splitlines()),
        model_prefix=str(path.with_suffix("")),
        model_type=kind,
        **(known | options),
    )
    return path


FORMS = {
    "plain": {"normalization_rule_name": "identity", "remove_extra_whitespaces": False},
    "no prefix": {
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "add_dummy_prefix": False,
    },
    "defaults": {},
}


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
@pytest.mark.parametrize("form", FORMS)
def test_a_sentencepiece_model_keeps_its_ids(tmp_path: Path, texts: list[str], kind: str, form: str) -> None:
    path = spm(tmp_path / "x.model", kind, texts, **FORMS[form])
    processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
    ours = Tokenizer(from_sentencepiece(path))
    assert ours.vocab_size == processor.get_piece_size()
    draw = random.Random(0)
    tried = [
        *texts,
        "  空白  二つ",
        "猫 犬 ",
        "😀 鬱",
        "１２カ",
        *("".join(draw.sample(texts[9], 9)) for _ in range(50)),
    ]
    wrong = [
        text
        for text, ids in zip(tried, ours.encode_many(tried), strict=True)
        if ids != processor.encode(text)
    ]
    assert wrong == []
    if form != "defaults":  # whose normaliser changes text
        assert [ours.decode(ids) for ids in ours.encode_many(tried)] == tried
    assert ours.habit() == "adds nothing"
    assert ours.eod_id == processor.eos_id()


def test_models_that_would_lose_text_are_refused(tmp_path: Path, texts: list[str]) -> None:
    with pytest.raises(UserError, match="has no byte fallback"):
        from_sentencepiece(spm(tmp_path / "x.model", "unigram", texts, byte_fallback=False, vocab_size=150))
    with pytest.raises(UserError, match="of type 4: only Unigram and BPE"):
        from_sentencepiece(spm(tmp_path / "y.model", "char", texts, byte_fallback=False, vocab_size=80))
    (tmp_path / "z.model").write_bytes(b"nothing of the kind")
    with pytest.raises(UserError, match=r"z\.model is no SentencePiece model"):
        from_sentencepiece(tmp_path / "z.model")


def test_a_folder_with_one_model_is_a_tokenizer(tmp_path: Path, texts: list[str]) -> None:
    path = spm(tmp_path / "x.model", "unigram", texts, **FORMS["plain"])
    folder, file = (load_tokenizer(TokenizerConfig(name="x", path=str(p))) for p in (tmp_path, path))
    assert folder.fingerprint == file.fingerprint


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "habit", "eod", "size"),
    [
        ("llm-jp-v2.2-50k", "appends <EOD|LLM-jp>", 7, 48_586),
        ("llm-jp-v3", "prepends <s>", 2, 99_574),
    ],
)
def test_llm_jp_tokenizers_by_name(llmjp_data: Path, name: str, habit: str, eod: int, size: int) -> None:
    """Trap T1: their ordinary encode() adds a token, ours does not; and ids are SentencePiece's."""
    found = load_tokenizer(TokenizerConfig(name=name, vocab_size=size))
    assert (found.habit(), found.eod_id, found.vocab_size) == (habit, eod, size)
    path = llmjp_data / "text" / "wikipedia_annotated_corpus.jsonl.xz"
    texts = [json.loads(line)["text"] for line, _ in records(path, "text")][:300]
    texts += ["東京都\n\n  千代田区 ", "😀𠮷"]
    model = next((llmjp_data / "tokenizer").glob("*50k/*.model" if "50k" in name else "*100k/*.model"))
    processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
    converted = Tokenizer(from_sentencepiece(model))
    for text, ids, same in zip(texts, found.encode_many(texts), converted.encode_many(texts), strict=True):
        assert ids == found.encode(text) == same == processor.encode(text)
        assert not found.special_ids & set(ids)
        assert found.decode(ids) == text


def test_special_tokens_must_fit_the_model(tokenizer: Any) -> None:
    check_special_tokens(tokenizer, 400)
    check_special_tokens(tokenizer, 512)
    with pytest.raises(
        UserError, match=r"has 400 ids, but model\.vocab_size is 399: set model\.vocab_size=400"
    ):
        check_special_tokens(tokenizer, 399)
    with pytest.raises(UserError, match=r"among them end of document 2, padding 3"):
        check_special_tokens(tokenizer, 2)


def test_what_is_no_tokenizer_is_refused(tmp_path: Path, tokenizer_folder: Path) -> None:
    def load(path: Path, size: int | None = None) -> Tokenizer:
        return load_tokenizer(TokenizerConfig(name="x", path=str(path), vocab_size=size))

    with pytest.raises(UserError, match="does not exist: train one with 'llmjp tokenizer train'"):
        load(tmp_path / "absent")
    with pytest.raises(UserError, match=r"holds no tokenizer\.json and no SentencePiece"):
        load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="is no tokenizer that transformers can read"):
        load(tmp_path)
    with pytest.raises(UserError, match=r"tokenizer\.vocab_size is 48586, but .* has 400 ids"):
        load(tokenizer_folder, 48_586)
    with pytest.raises(UserError, match="the catalogue has no 'llm-jp-3'; did you mean"):
        load_tokenizer(TokenizerConfig(name="llm-jp-3"))


def test_eod_token_comes_before_the_end_of_a_turn(tokenizer_folder: Path, tmp_path: Path) -> None:
    """LLM-jp v4's eos_token ends a turn of a chat, its eod_token a document."""
    for path in tokenizer_folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"eod_token": "<pad>"}))
    found = load_tokenizer(TokenizerConfig(name="x", path=str(tmp_path)))
    assert (found.eod_id, found.hf.eos_token_id) == (3, 2)
    found.save(tmp_path / "saved")
    assert load_tokenizer(TokenizerConfig(name="x", path=str(tmp_path / "saved"))).eod_id == 3


def test_leading_bytes(tokenizer: Any) -> None:
    for text in ("春が", " 春", "😀", "a"):
        ids = tokenizer.encode(text)
        bytes_ = [tokenizer.leading_bytes(i) for i in ids]
        assert sum(bytes_) == len(text.encode())
    assert tokenizer.leading_bytes(tokenizer.eod_id) == 0


def test_a_given_end_of_document_is_saved_with_the_tokenizer(tmp_path: Path, texts: list[str]) -> None:
    """LLM-jp's older SentencePiece models end documents with <EOD>, which nothing in them tells."""
    path = spm(tmp_path / "x.model", "unigram", texts, **FORMS["plain"], control_symbols=["<EOD>"])
    found = Tokenizer(from_sentencepiece(path), "<EOD>")
    found.save(tmp_path / "saved")
    assert (
        found.eod_id == found.hf.convert_tokens_to_ids("<EOD>") != Tokenizer(from_sentencepiece(path)).eod_id
    )
    again = load_tokenizer(TokenizerConfig(name="x", path=str(tmp_path / "saved")))
    assert (again.eod_id, again.fingerprint) == (found.eod_id, found.fingerprint)
