"""The fast runner: shared examples run once, an item's choices in one pass, the head where a token is scored.

Scores are those of lm-evaluation-harness's own transformers class within rounding; what is saved is tokens.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar

import torch

from llmjp_train.data.tokenizers import Tokenizer
from llmjp_train.errors import UserError
from llmjp_train.evaluate.encoding import Counts, Row
from llmjp_train.evaluate.generation import Asked, generate, wanted
from llmjp_train.evaluate.journal import Journal, key_of
from llmjp_train.evaluate.likelihood import RowsLM, Score, Share, progress, score_key
from llmjp_train.evaluate.network import NOTHING, Network, Prefix
from llmjp_train.evaluate.packing import Item, batches_of, common_prefix, dealt, items_of

T = TypeVar("T")
V = TypeVar("V")
SUMMED = ("truncated", "tokens_run", "tokens_plain", "unfinished")
"""Counts of a process's own items, added up over all processes."""
CPU_OUT_OF_MEMORY = ("DefaultCPUAllocator", "not enough memory", "can't allocate memory")


class FastLM(RowsLM):
    """A model of transformers for every kind of task."""

    def __init__(
        self,
        network: Network,
        tokenizer: Tokenizer,
        max_length: int,
        *,
        batch_tokens: int = 4096,
        bos: bool = False,
        journal: Journal | None = None,
        share: Share | None = None,
        show: bool = True,
    ) -> None:
        """
        Args:
            max_length: tokens that the model takes at once.
            batch_tokens: tokens of a batch, padding included; halved whenever memory runs out.
            bos: put BOS before every input.
            journal: where scores are kept as they come; none: nowhere.
            share: this process's part of the items; none: all of them.
            show: draw a progress bar.

        Raises:
            UserError: BOS is asked for and the tokenizer has none, or a size is not positive.
        """
        super().__init__(tokenizer, max_length, bos=bos, batch_tokens=batch_tokens)
        self.network = network
        self.batch_tokens = batch_tokens
        self.bos = bos
        self.journal = journal
        self.share = share or Share()
        self.show = show and self.share.rank == 0

    def _score(self, rows: Sequence[Row]) -> list[Score]:
        counts = self.encoder.counts
        before = replace(counts)
        # Dealt out before anything else: what an earlier process left must not change who has which item.
        every = items_of(rows, range(len(rows)), self.max_length)
        numbers = dealt([item.length(0) for item in every], self.share.ranks)[self.share.rank]
        mine = sorted(place for number in numbers for place in every[number].places)
        keys = {place: score_key(rows[place]) for place in mine}
        found: dict[int, Score] = {}
        seconds: dict[int, float] = {}
        for place in mine:
            if self.journal is not None and (kept := self.journal.get(keys[place])) is not None:
                found[place] = (float(kept[0]), bool(kept[1]))
            size = len(rows[place].context) + len(rows[place].continuation)
            counts.truncated += size > self.max_length + 1
            counts.tokens_plain += min(size - 1, self.max_length)
        left = [place for place in mine if place not in found]
        items = items_of([rows[place] for place in left], left, self.max_length)
        for part, prefix in self._parts(items, [item.context for item in items]):
            lengths = [item.length(prefix.length) for item in part]

            def run(batch: list[Item], prefix: Prefix = prefix) -> None:
                began = time.perf_counter()
                scores = self.network.score(batch, prefix)
                counts.tokens_run += len(batch) * max(item.length(prefix.length) for item in batch)
                places = [place for item in batch for place in item.places]
                found.update(zip(places, scores, strict=True))
                seconds.update(dict.fromkeys(places, (time.perf_counter() - began) / len(places)))
                self._keep((keys[place], found[place]) for place in places)

            self._batches(part, lengths, self.batch_tokens, run)
        every_score = self._together(found, seconds, before)
        return [every_score[place] for place in range(len(rows))]

    def _together(self, mine: dict[int, V], seconds: dict[int, float], before: Counts) -> dict[int, V]:
        """Every process's results by place; its counts and seconds are summed up. Collective.

        Args:
            before: the counts at the beginning of the call.
        """
        counts = self.encoder.counts
        added = {name: getattr(counts, name) - getattr(before, name) for name in SUMMED}
        found: dict[int, V] = {}
        took: dict[int, float] = {}
        total = dict.fromkeys(SUMMED, 0)
        for results, spent, more in self.share.gather((mine, seconds, added)):
            found |= results
            took |= spent
            total = {name: total[name] + more[name] for name in SUMMED}
        for name in SUMMED:
            setattr(counts, name, getattr(before, name) + total[name])
        # One that was kept from an earlier process took no time now.
        self.took = [took.get(place, 0.0) for place in range(len(found))]
        return found

    def _parts(
        self, inputs: list[T], contexts: Sequence[tuple[int, ...]]
    ) -> Iterator[tuple[list[T], Prefix]]:
        """Inputs with the prefix that they share, then those that start otherwise (cut from the left)."""
        start = common_prefix(contexts)
        prefix = NOTHING
        with out_of_memory():
            prefix = self.network.run_prefix(start)
        start = start[: prefix.length]
        self.encoder.counts.tokens_run += prefix.length
        parts: tuple[list[T], list[T]] = ([], [])
        for each, context in zip(inputs, contexts, strict=True):
            parts[context[: len(start)] != start].append(each)
        for part, shared in zip(parts, (prefix, NOTHING), strict=True):
            if part:
                yield part, shared

    def _batches(
        self,
        inputs: list[T],
        lengths: list[int],
        budget: int,
        run: Callable[[list[T]], None],
        most: int = 1024,
    ) -> None:
        """Run the inputs in batches of at most ``budget`` tokens; where memory runs out, halve and go on."""
        waiting = deque(batches_of(lengths, budget, most))
        with progress(len(inputs), self.show) as advance:
            while waiting:
                batch = waiting.popleft()
                with out_of_memory() as failed:
                    run([inputs[place] for place in batch])
                if not failed:
                    advance(len(batch))
                    continue
                if len(batch) == 1:
                    raise UserError(
                        f"memory does not hold one input of {lengths[batch[0]]} tokens: use dtype=bfloat16, a smaller "
                        "max_length or a larger device"
                    )
                middle = len(batch) // 2
                waiting.extendleft([batch[middle:], batch[:middle]])
                self.batch_tokens = max(1, self.batch_tokens // 2)
                # What is still waiting was cut for the old size.
                later = [place for each in list(waiting)[2:] for place in each]
                again = batches_of([lengths[place] for place in later], max(1, budget // 2), most)
                waiting = deque([waiting[0], waiting[1], *([later[i] for i in each] for each in again)])
                budget = max(1, budget // 2)

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Greedy text after each (context, settings) request, up to a stop string or the greatest length.

        Raises:
            UserError: the settings ask for sampling, or for more tokens than the model takes.
        """
        counts = self.encoder.counts
        before = replace(counts)
        found: dict[int, str] = {}
        seconds: dict[int, float] = {}
        left: list[tuple[int, Asked]] = []
        keys: dict[int, str] = {}
        asked = [wanted(r.args, self._context(r.args[0]), self.max_length) for r in requests]
        lengths = [len(each.tokens) + each.most for each in asked]
        for place in dealt(lengths, self.share.ranks)[self.share.rank]:
            each = asked[place]
            counts.truncated += each.truncated
            keys[place] = key_of("text", each.tokens, each.stops, each.most)
            kept = None if self.journal is None else self.journal.get(keys[place])
            if kept is None:
                left.append((place, each))
            else:
                found[place] = str(kept[0])
                counts.unfinished += int(kept[1])
        ends = self._ends()
        for part, prefix in self._parts(left, [each.tokens for _, each in left]):
            sizes = [len(each.tokens) - prefix.length + each.most for _, each in part]

            def run(batch: list[tuple[int, Asked]], prefix: Prefix = prefix) -> None:
                began = time.perf_counter()
                answers = generate(
                    self.network, [each for _, each in batch], prefix, self.tokenizer.decode, ends
                )
                for (place, _), answer in zip(batch, answers, strict=True):
                    found[place] = answer.text
                    counts.unfinished += not answer.finished
                    counts.tokens_run += answer.tokens_run
                    counts.tokens_plain += answer.tokens_plain
                    seconds[place] = (time.perf_counter() - began) / len(batch)
                self._keep(
                    (keys[place], [answer.text, not answer.finished])
                    for (place, _), answer in zip(batch, answers, strict=True)
                )

            # A step of a batch costs little more than one of a single text: four times the tokens.
            self._batches(part, sizes, 4 * self.batch_tokens, run, most=128)
        counts.requests += len(requests)
        every_text = self._together(found, seconds, before)
        self._note(requests, [1] * len(requests))
        return [every_text[place] for place in range(len(requests))]

    def _context(self, text: str) -> list[int]:
        start = [self.encoder.bos_id] if self.encoder.bos_id is not None else []
        return start + self.tokenizer.encode(text) or [self.encoder.prefix_id]

    def _ends(self) -> frozenset[int]:
        stated = getattr(self.network.model.generation_config, "eos_token_id", None)
        more = stated if isinstance(stated, list) else [] if stated is None else [stated]
        return frozenset([self.tokenizer.eod_id, *more])


@contextmanager
def out_of_memory() -> Iterator[list[Exception]]:
    """Collects an out-of-memory error of the block instead of raising it; others pass."""
    failed: list[Exception] = []
    try:
        yield failed
    except torch.OutOfMemoryError as error:
        failed.append(error)
    except RuntimeError as error:
        if not any(words in str(error) for words in CPU_OUT_OF_MEMORY):
            raise
        failed.append(error)
    if failed and torch.cuda.is_available():
        torch.cuda.empty_cache()
