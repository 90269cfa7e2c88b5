"""`llmjp prepare` on one worker against the tokenizer library alone, on the same text.

The ratio is of CPU seconds (one thread each, so it is the rate a core, whatever else the machine does) and of seconds
on the clock (reading, writing and syncing included). Both load their tokenizer in every round.
With LLMJP_DATA the tokenizer is LLM-jp's v3 and the text Aozora's; without, both are the project's own.
"""

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

from benchmarks.common import interleaved, ratios, report, timed
from llmjp_train.data.tokenizers import Tokenizer


def main(words: list[str]) -> None:
    """Measure."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--mb", type=int, default=72, help="size of the text")
    args = parser.parse_args(words)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    import tokenizers

    from llmjp_train.config.data import TokenizerConfig
    from llmjp_train.config.prepare import PrepareConfig
    from llmjp_train.data import catalogue
    from llmjp_train.data.inputs import find_files
    from llmjp_train.data.prepare import prepare
    from llmjp_train.data.reading import texts
    from llmjp_train.data.sentencepieces import train_unigram
    from llmjp_train.data.tokenizers import load_tokenizer

    corpus = "aozora" if os.environ.get("LLMJP_DATA") else "llmjp-small-ja"
    documents = list(texts(find_files([str(catalogue.get(corpus))]), "text", print))
    documents *= max(1, round(args.mb * 1e6 / sum(len(text.encode()) for text in documents)))
    size = sum(len(text.encode()) for text in documents)
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        if os.environ.get("LLMJP_DATA"):
            settings = TokenizerConfig(name="llm-jp-v3")
        else:
            train_unigram(documents, 2048, 0.995).save_pretrained(str(here / "tokenizer"))
            settings = TokenizerConfig(name="bench", path=str(here / "tokenizer"))
        lines = (json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in documents)
        (here / "text.jsonl").write_text("".join(lines), encoding="utf-8")
        config = PrepareConfig(
            input=[str(here / "text.jsonl")], output=str(here / "out"), tokenizer=settings, workers=1
        )
        stored = here / "library.json"
        load_tokenizer(settings).hf.backend_tokenizer.save(str(stored))

        inside: list[float] = []

        def ours() -> None:
            shutil.rmtree(here / "out", ignore_errors=True)
            with inside_library() as spent:
                prepare(config)
            inside.append(sum(spent))

        def alone() -> None:
            library = tokenizers.Tokenizer.from_file(str(stored))
            for start in range(0, len(documents), 64):
                found = library.encode_batch_fast(documents[start : start + 64], add_special_tokens=False)
                assert all(each.ids for each in found)

        found = interleaved({"ours": timed(ours), "alone": timed(alone)}, args.rounds, warm=0)
    rows = ratios(
        "rate of prepare / rate of the library", found["alone"], found["ours"], "goal >= 0.9 per core"
    )
    shares = [library / cpu for library, (_, cpu) in zip(inside, found["ours"], strict=True)]
    share = statistics.median(shares)
    rows.append(
        (
            "share of prepare's CPU seconds in the library",
            f"{share:.3f} ({min(shares):.3f} to {max(shares):.3f})",
            "",
        )
    )
    rate = size / statistics.median(cpu for _, cpu in found["ours"]) / 1e6
    rows.append(("prepare, one worker", f"{rate:.2f} MB of text per CPU second", ""))
    report("prepare", rows)


@contextmanager
def inside_library() -> Iterator[list[float]]:
    """Processor seconds that `prepare` spends on ids, in the same run, so that a noisy neighbour meets both alike."""
    spent: list[float] = []
    whole = Tokenizer.encode_many

    def counted(self: Tokenizer, texts: Sequence[str]) -> Iterator[list[int]]:
        each = whole(self, texts)
        while True:
            began = time.process_time()
            ids = next(each, None)
            spent.append(time.process_time() - began)
            if ids is None:
                return
            yield ids

    with patch.object(Tokenizer, "encode_many", counted):
        yield spent
