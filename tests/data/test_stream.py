"""Batches: what they hold, and that they are pure functions of sample numbers."""

import itertools
import json
import math
import re
import threading
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llmjp_train.config.data import DataConfig, SourceConfig
from llmjp_train.config.phases import Phase
from llmjp_train.data.stream import TrainingStream, ValidationStream
from llmjp_train.data.token_files import HEADER, MAGIC, TokenFile, TokenFileWriter, pair
from llmjp_train.errors import UserError


def phase(
    length: int, first_step: int = 0, first_sample: int = 0, weights: dict[str, float] | None = None
) -> Phase:
    return Phase(first_step, None, first_sample, 0, 4, length, 1e-3, weights or {})


def write(prefix: Path, documents: list[list[int]], vocab_size: int = 1000) -> Path:
    with TokenFileWriter(prefix, vocab_size) as writer:
        for document in documents:
            writer.add(document)
    return prefix


@pytest.fixture
def files(tmp_path: Path) -> list[list[list[int]]]:
    """Two sources: ids say which source, document and place they come from."""
    draw = np.random.default_rng(0)
    found = []
    for source in range(2):
        lengths = draw.integers(1, 30, 60).tolist()
        starts = np.cumsum([0, *lengths]).tolist()
        found.append([list(range(a, b)) for a, b in itertools.pairwise(starts)])
        write(tmp_path / f"s{source}", found[-1], 10_000)
    return found


def config(tmp_path: Path, **changes: Any) -> DataConfig:
    sources = {f"s{s}": SourceConfig(path=str(tmp_path / f"s{s}"), weight=w) for s, w in ((0, 0.7), (1, 0.3))}
    return DataConfig(name="test", **({"sources": sources} | changes))


def test_a_batch_holds_its_windows_with_documents_kept_apart(tmp_path: Path, files: Any) -> None:
    stream = TrainingStream(config(tmp_path), [phase(16)], 10_000)
    batch = stream.batch(3, 40, 16)
    assert (
        batch.tokens.shape
        == batch.targets.shape
        == batch.documents.shape
        == batch.positions.shape
        == (40, 16)
    )
    assert {t.dtype for t in vars(batch).values()} == {torch.int64}
    for row in range(40):
        source = int(batch.sources[row])
        start = int(batch.tokens[row, 0])  # ids are places in the file
        assert start % 16 == 0
        assert batch.tokens[row].tolist() == list(range(start, start + 16))
        document_of = [d for d, document in enumerate(files[source]) for _ in document]
        first = document_of[start]
        for t in range(16):
            here, after = document_of[start + t], document_of[start + t + 1]
            assert batch.documents[row, t] == here - first
            begin = max(start, files[source][here][0])
            assert batch.positions[row, t] == start + t - begin
            assert batch.targets[row, t] == (start + t + 1 if here == after else -100)


def test_without_a_mask_documents_are_one(tmp_path: Path, files: Any) -> None:
    stream = TrainingStream(config(tmp_path, document_mask=False), [phase(16)], 10_000)
    batch = stream.batch(0, 20, 16)
    assert not batch.documents.any()
    assert (batch.positions == torch.arange(16)).all()
    assert (batch.targets == batch.tokens + 1).all()


def test_any_batch_is_the_same_in_any_order_size_and_thread(tmp_path: Path, files: Any) -> None:
    stream = TrainingStream(config(tmp_path), [phase(8)], 10_000)
    whole = stream.batch(0, 64, 8)
    found: dict[int, Any] = {}

    def work(numbers: list[int]) -> None:
        for number in numbers:
            found[number] = stream.batch(4 * number, 4, 8)

    order = np.random.default_rng(1).permutation(16).tolist()
    threads = [threading.Thread(target=work, args=(order[k::3],)) for k in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    again = TrainingStream(config(tmp_path), [phase(8)], 10_000)
    for number, batch in found.items():
        rows = slice(4 * number, 4 * number + 4)
        for key, value in vars(batch).items():
            assert torch.equal(value, getattr(whole, key)[rows])
            assert torch.equal(value, getattr(again.batch(4 * number, 4, 8), key))


def test_samples_have_their_sources_in_proportion(tmp_path: Path, files: Any) -> None:
    stream = TrainingStream(config(tmp_path), [phase(8)], 10_000)
    assert stream.source_names == ["s0", "s1"]
    for first in (0, 13, 1000):
        share = stream.batch(first, 100, 8).sources.bincount(minlength=2)
        assert abs(int(share[0]) - 70) <= 1


def test_epochs_weigh_sources_by_their_windows(tmp_path: Path, files: Any) -> None:
    sources = {f"s{s}": SourceConfig(path=str(tmp_path / f"s{s}"), epochs=e) for s, e in ((0, 1.0), (1, 3.0))}
    stream = TrainingStream(config(tmp_path, sources=sources), [phase(8)], 10_000)
    windows = [(stream.source_tokens[name] - 1) // 8 for name in ("s0", "s1")]
    total = windows[0] + 3 * windows[1]
    counts = stream.batch(0, total, 8).sources.bincount().tolist()
    assert counts == [windows[0], 3 * windows[1]]
    assert stream.mixture.epochs(total) == [1.0, 3.0]


def test_phases_change_length_and_weights_without_repeats(tmp_path: Path, files: Any) -> None:
    table = [phase(4), phase(16, 5, 20), phase(16, 6, 30, {"s1": 1.0})]
    stream = TrainingStream(config(tmp_path), table, 10_000)
    seen: set[tuple[int, int]] = set()
    for first, count, length in ((0, 20, 4), (20, 10, 16), (30, 10, 16)):
        batch = stream.batch(first, count, length)
        for source, row in zip(batch.sources.tolist(), batch.tokens.tolist(), strict=True):
            assert not seen & {(source, token) for token in row}
            seen |= {(source, token) for token in row}
        if first == 30:
            assert set(batch.sources.tolist()) == {1}
    with pytest.raises(ValueError, match="not all of length"):
        stream.batch(19, 2, 4)


def test_lengths_must_divide_the_longest(tmp_path: Path, files: Any) -> None:
    with pytest.raises(UserError, match="sequence length 6 at step 9 does not divide the run's longest, 16"):
        TrainingStream(config(tmp_path), [phase(16), phase(6, 9, 30)], 10_000)


@pytest.mark.parametrize(
    ("sources", "vocab_size", "said"),
    [
        ({}, 10_000, "data.sources is empty"),
        ({"x": {"path": "absent"}}, 10_000, r"absent\.bin does not exist"),
        ({"x": {"path": "s0", "tokens": 5}}, 10_000, r"data\.sources\.x\.tokens is 5, but"),
        ({"x": {"path": "s0"}}, 100, r"model\.vocab_size is 100: the files were made with another tokenizer"),
        ({"x": {"path": "s0", "weight": 0.0}}, 10_000, "has weight 0"),
        ({"x": {"path": "s0", "weight": -1.0}}, 10_000, r"data\.sources\.x\.weight is -1\.0"),
        ({"x": {"path": "s0", "epochs": math.inf}}, 10_000, r"data\.sources\.x\.epochs is inf"),
        ({"x": {"path": "tiny"}}, 10_000, "has 8 tokens, too few for a sequence of 8"),
    ],
)
def test_bad_sources_are_refused(
    tmp_path: Path, files: Any, sources: Any, vocab_size: int, said: str
) -> None:
    write(tmp_path / "tiny", [[1] * 8])
    made = {n: SourceConfig(**(s | {"path": str(tmp_path / s["path"])})) for n, s in sources.items()}
    with pytest.raises(UserError, match=said):
        TrainingStream(config(tmp_path, sources=made), [phase(8)], vocab_size)


def test_a_change_to_an_unknown_source_is_refused(tmp_path: Path, files: Any) -> None:
    with pytest.raises(UserError, match="gives weight to wiki"):
        TrainingStream(config(tmp_path), [phase(8), phase(8, 4, 16, {"wiki": 1.0})], 10_000)


def test_the_fingerprint_names_what_decides_the_order(tmp_path: Path, files: Any) -> None:
    def fingerprint(**changes: Any) -> Any:
        return TrainingStream(config(tmp_path, **changes), [phase(8)], 10_000).fingerprint

    before = fingerprint()
    assert json.loads(json.dumps(before)) == before
    assert fingerprint(prefetch=9) == before
    heavier = config(tmp_path).sources | {"s1": SourceConfig(path=str(tmp_path / "s1"), weight=0.6)}
    assert fingerprint(sources=heavier)["sources"]["s1"] != before["sources"]["s1"]
    write(tmp_path / "s1", [[token + 1 for token in document] for document in files[1]], 10_000)
    assert fingerprint()["sources"]["s1"]["fingerprint"] != before["sources"]["s1"]["fingerprint"]
    assert fingerprint()["sources"]["s0"] == before["sources"]["s0"]


def test_another_tokenizer_than_the_data_were_made_with_is_refused(prepared: Path, tokenizer: Any) -> None:
    data = DataConfig(name="test", sources={"small": SourceConfig(path=str(prepared))})
    stream = TrainingStream(data, [phase(32)], 400)
    stream.check_tokenizer(tokenizer.fingerprint, "toy", tokenizer.eod_id)
    assert stream.fingerprint["sources"]["small"]["tokenizer"] == tokenizer.fingerprint
    with pytest.raises(
        UserError, match=r"source small .* was prepared with tokenizer toy .* the run has other \(ffff"
    ):
        stream.check_tokenizer("f" * 64, "other", tokenizer.eod_id)


def test_another_end_of_document_than_the_data_have_is_refused(prepared: Path, tokenizer: Any) -> None:
    """Tokenizers that differ in their eos_token alone have the same fingerprint, and other documents."""
    data = DataConfig(name="test", sources={"small": SourceConfig(path=str(prepared))})
    stream = TrainingStream(data, [phase(32)], 400)
    with pytest.raises(
        UserError, match="prepared with id 2 at the end of each document, where the tokenizer has 1"
    ):
        stream.check_tokenizer(tokenizer.fingerprint, "toy", 1)


def test_epochs_are_told_as_they_will_be(tmp_path: Path, files: Any) -> None:
    sources = {f"s{s}": SourceConfig(path=str(tmp_path / f"s{s}"), epochs=e) for s, e in ((0, 1.0), (1, 3.0))}
    data = config(tmp_path, sources=sources)
    stream = TrainingStream(data, [phase(8)], 10_000)
    windows = [(stream.source_tokens[name] - 1) // 8 for name in ("s0", "s1")]
    total = windows[0] + 3 * windows[1]
    told, warned = stream.epochs(data, total)
    assert told[1] == f"source s1: 3 epochs of {stream.source_tokens['s1']:,} tokens"
    assert warned == []
    _, warned = stream.epochs(data, 2 * total)
    assert warned[1].startswith("data.sources.s1.epochs is 3, but this run passes over it 6 times")


class TestValidation:
    def test_another_tokenizer_is_refused(self, prepared: Path, tokenizer: Any) -> None:
        sources = {"a": SourceConfig(path="none", validation=str(prepared))}
        stream = ValidationStream(DataConfig(name="t", sources=sources), 32, 400)
        stream.check_tokenizer(tokenizer.fingerprint, "toy", tokenizer.eod_id)
        assert stream.fingerprint["a"]["fingerprint"] == TokenFile(prepared / "validation").fingerprint
        with pytest.raises(UserError, match=r"the validation of source a .* was prepared with tokenizer toy"):
            stream.check_tokenizer("f" * 64, "other", tokenizer.eod_id)

    def test_every_target_comes_once(self, prepared: Path) -> None:
        data = DataConfig(name="test", sources={"small": SourceConfig(path=str(prepared))})
        stream = ValidationStream(data, 32, 400)
        file = TokenFile(prepared / "validation")
        rows = [stream.batch(first, 1) for first in range(stream.num_samples)]
        targets = sum(int((row.targets != -100).sum()) for row in rows)
        assert targets == file.num_tokens - file.num_documents
        text = torch.cat([row.targets[row.targets != -100] for row in rows]).sort().values
        offsets = file.document_offsets
        expected = np.delete(file.read(0, file.num_tokens), offsets[:-1])
        assert text.tolist() == sorted(expected.tolist())

    def test_the_end_of_a_file_is_filled_up_without_targets(self, tmp_path: Path) -> None:
        write(tmp_path / "v", [[5, 6, 7], [8, 9, 10, 11]])
        data = DataConfig(name="t", sources={"a": SourceConfig(path="none", validation=str(tmp_path / "v"))})
        batch = ValidationStream(data, 4, 1000).batch(0, 2)
        assert ValidationStream(data, 4, 1000).num_samples == 2
        last = int(batch.tokens[:, 0].argmax())
        assert batch.tokens[last].tolist() == [9, 10, 11, 0]
        assert batch.targets[last].tolist() == [10, 11, -100, -100]
        assert batch.documents[last].tolist() == [0, 0, 0, 1]
        assert batch.targets[1 - last].tolist() == [6, 7, -100, 9]

    def test_sources_without_validation_are_left_out(self, tmp_path: Path, files: Any) -> None:
        stream = ValidationStream(config(tmp_path), 8, 10_000)
        assert stream.num_samples == 0
        assert stream.bytes_per_token(Undecided()) == 0.0
        with pytest.raises(IndexError, match="of 0"):
            stream.batch(0, 1)

    def test_bits_per_byte_count_the_bytes_of_targets_alone(self, prepared: Path, tokenizer: Any) -> None:
        data = DataConfig(name="test", sources={"small": SourceConfig(path=str(prepared))})
        found = ValidationStream(data, 32, 400).bytes_per_token(tokenizer)
        file = TokenFile(prepared / "validation")
        offsets = file.document_offsets
        size = targets = 0
        for start, end in itertools.pairwise(offsets):
            ids = file.read(int(start), int(end - start)).tolist()
            size += len(tokenizer.decode(ids).encode()) - tokenizer.leading_bytes(ids[0])
            targets += len(ids) - 1
        assert found == pytest.approx(size / targets)

    def test_foreign_files_are_decoded_for_an_estimate(self, tmp_path: Path) -> None:
        write(tmp_path / "v", [[5, 6, 7], [8, 9, 10, 11]])
        data = DataConfig(name="t", sources={"a": SourceConfig(path="none", validation=str(tmp_path / "v"))})
        assert ValidationStream(data, 4, 1000).bytes_per_token(Undecided()) == pytest.approx(3.0)

    def test_ids_outside_the_model_are_refused(self, prepared: Path) -> None:
        data = DataConfig(name="test", sources={"small": SourceConfig(path=str(prepared))})
        with pytest.raises(UserError, match="the validation of source small"):
            ValidationStream(data, 32, 50)


class Undecided:
    """A tokenizer whose every token is one Japanese character."""

    def decode(self, ids: list[int]) -> str:
        return "猫" * len(ids)


def hollow(prefix: Path, documents: int, tokens: int) -> None:
    """Files of any size that are holes in the disk but for the ends that the reader checks."""
    bin_path, idx_path = pair(prefix)
    with idx_path.open("wb") as file:
        file.write(HEADER.pack(MAGIC, 1, 8, documents, documents + 1))
        for at, width, value in (
            (4 * (documents - 1), 4, 1000),
            (4 * documents + 8 * (documents - 1), 8, 2 * (tokens - 1000)),
            (12 * documents + 8 * documents, 8, documents),
        ):
            file.seek(HEADER.size + at)
            file.write(value.to_bytes(width, "little"))
    with bin_path.open("wb") as file:
        file.truncate(2 * tokens)


def pages_held(part: str) -> int:
    """KiB of memory-mapped files under ``part`` that this process has in memory."""
    held, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            inside = part in line
        elif inside and line.startswith("Rss:"):
            held += int(line.split()[1])
    return held


def test_ten_trillion_tokens_open_by_a_few_pages(tmp_path: Path) -> None:
    """Four sources of 2.5e12 tokens in 2.5e9 documents: opening and the first batch read next to nothing."""
    for source in range(4):
        hollow(tmp_path / f"s{source}", 2_500_000_000, 2_500_000_000_000)
    sources = {f"s{s}": SourceConfig(path=str(tmp_path / f"s{s}"), weight=1.0 + s) for s in range(4)}
    tracemalloc.start()
    stream = TrainingStream(DataConfig(name="large", sources=sources), [phase(4096)], 1000)
    batch = stream.batch(10**9, 8, 4096)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sum(stream.source_tokens.values()) == 10**13
    assert batch.tokens.shape == (8, 4096)
    assert peak < 64 << 20, "an array grew with the data"
    assert 0 < pages_held(str(tmp_path)) < 64 << 10, "the index was read through"
