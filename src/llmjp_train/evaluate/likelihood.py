"""Log-likelihoods from token log-probabilities: sorting, batching, sharing over ranks, progress.

Batches are formed before they are shared out, so any number of ranks computes the same batches and gets
the same scores.
"""

import abc
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from llmjp_train.data.tokenizers import Tokenizer
from llmjp_train.errors import UserError
from llmjp_train.evaluate import chat
from llmjp_train.evaluate.encoding import Encoder, Row
from llmjp_train.evaluate.journal import Journal, key_of

if TYPE_CHECKING:

    class TemplateLM:
        """As mypy sees `lm_eval.api.model.TemplateLM`, which states no types."""

        def __init__(self) -> None: ...

else:
    from lm_eval.api.model import TemplateLM

Score = tuple[float, bool]
"""Log-probability of a continuation in nats, and whether greedy decoding would have written it."""

Window = tuple[list[int], int]
"""Tokens to feed and predict, and how many at the end are scored."""

T = TypeVar("T")


@dataclass(frozen=True)
class Share:
    """Which part of the batches this rank computes, and how the parts come together."""

    rank: int = 0
    ranks: int = 1
    gather: Callable[[Any], list[Any]] = lambda value: [value]
    """Every rank's value, in rank order, on every rank. Collective."""


def over_ranks(rank: int, ranks: int, group: Any = None) -> Share:
    """The share of ``rank`` among ``ranks``, gathered by torch.distributed over ``group``."""
    if ranks == 1:
        return Share()

    def gather(value: Any) -> list[Any]:
        import torch.distributed as dist

        found: list[Any] = [None] * ranks
        dist.all_gather_object(found, value, group=group)
        return found

    return Share(rank, ranks, gather)


class RowsLM(TemplateLM):
    """What the harness asks of a model, as rows of context and continuation; subclasses score rows."""

    knows_greedy = True
    """Whether the second half of a score is known; else it is False and tasks that need it are refused."""

    def __init__(self, tokenizer: Tokenizer, max_length: int, *, bos: bool, **sizes: int) -> None:
        """
        Args:
            max_length: tokens that the model takes at once.
            bos: put BOS before every input.
            sizes: further sizes by name, which must be positive too.

        Raises:
            UserError: BOS is asked for and the tokenizer has none, or a size is not positive.
        """
        super().__init__()
        if bos and tokenizer.bos_id is None:
            raise UserError("bos=true, but the tokenizer has no BOS token: leave bos out")
        named = {**sizes, "max_length": max_length}
        if min(named.values()) < 1:
            told = ", ".join(f"{name}={size}" for name, size in named.items())
            raise UserError(f"{told}: both must be at least 1")
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.encoder = make_encoder(tokenizer, bos)
        self.journal: Journal | None = None
        """Where scores are kept as they come; none: nowhere."""
        self.took: list[float] = []
        """Seconds of each row of the last call, its share of the batch; empty where a model does not measure."""
        self.seconds: dict[int, float] = {}
        """Seconds of each item of the task that runs, by its number."""

    @property
    def eot_token_id(self) -> int:
        """Id of the end of a document."""
        return self.tokenizer.eod_id

    @property
    def prefix_token_id(self) -> int:
        """Token before a text that has no context."""
        return self.encoder.prefix_id

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Ids of ``string``, never with special tokens (facts T1)."""
        return self.tokenizer.encode(string)

    @property
    def tokenizer_name(self) -> str:
        """Name that the harness keeps apart prompts of different templates by."""
        return self.tokenizer.fingerprint

    def apply_chat_template(
        self, chat_history: list[dict[str, Any]], add_generation_prompt: bool = True
    ) -> str:
        """The turns in the tokenizer's template."""
        return chat.render(self.tokenizer, chat_history, answer_follows=add_generation_prompt)

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[Score]:
        """Score of each (context, continuation) request."""
        scores = self._score([self.encoder.pair(*request.args) for request in requests])
        self._note(requests, [1] * len(requests))
        return scores

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-probability in nats of each whole text."""
        windows = [self.encoder.rolling(request.args[0], self.max_length) for request in requests]
        scores = iter(self._score([row for rows in windows for row in rows]))
        self._note(requests, list(map(len, windows)))
        return [sum(next(scores)[0] for _ in rows) for rows in windows]

    def _loglikelihood_tokens(self, requests: Sequence[Any], **kwargs: Any) -> list[Score]:
        return self._score(
            [Row(tuple(context), tuple(continuation)) for _, context, continuation in requests]
        )

    def _keep(self, results: Iterable[tuple[str, Any]]) -> None:
        if self.journal is not None:
            self.journal.add(results)

    def _note(self, requests: Sequence[Any], sizes: Sequence[int]) -> None:
        """Add the seconds of each request's rows (so many each) to those of its item."""
        took = iter(self.took)
        for request, size in zip(requests, sizes, strict=True):
            item = getattr(request, "doc_id", None)
            spent = [next(took, None) for _ in range(size)]
            if item is not None and None not in spent:
                self.seconds[item] = self.seconds.get(item, 0.0) + sum(s for s in spent if s is not None)

    @abc.abstractmethod
    def _score(self, rows: Sequence[Row]) -> list[Score]:
        """Score of each row, in the order given."""


class LikelihoodLM(RowsLM):
    """A model of the harness for likelihood tasks; subclasses score a batch of windows."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        max_length: int,
        batch_size: int = 16,
        bos: bool = False,
        share: Share | None = None,
        progress: bool = True,
    ) -> None:
        """
        Args:
            max_length: tokens that the model takes at once.
            batch_size: sequences per forward pass.
            bos: put BOS before every input.
            share: this rank's part of the batches; none: all of them.

        Raises:
            UserError: BOS is asked for and the tokenizer has none, or a size is not positive.
        """
        super().__init__(tokenizer, max_length, bos=bos, batch_size=batch_size)
        self.batch_size = batch_size
        self._share = share or Share()
        self._progress = progress

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Refused: tasks that generate need a Hugging Face folder.

        Raises:
            UserError: always.
        """
        raise UserError(
            "this task generates text, which is done from a Hugging Face folder: `llmjp export RUN`, then "
            "`llmjp evaluate` on the exported folder"
        )

    @abc.abstractmethod
    def _score_batch(self, windows: list[Window]) -> list[Score]:
        """Score of each window."""

    def _idle(self) -> None:
        """Take part in a collective computation without a batch of one's own."""

    def _knows_scores(self) -> bool:
        """Whether `_score_batch` tells this process the scores: a stage that is not the last has none to keep."""
        return True

    def _score(self, rows: Sequence[Row]) -> list[Score]:
        windows = count_windows(self.encoder, rows, self.max_length)
        keys = [score_key(row) for row in rows] if self.journal is not None else []
        found = self._kept(keys)
        # Longest first: memory runs out at once or never, and the time left is over-estimated.
        left = [i for i in range(len(rows)) if i not in found]
        order = sorted(left, key=lambda i: (-len(windows[i][0]), i))
        batches = [order[start : start + self.batch_size] for start in range(0, len(order), self.batch_size)]
        rounds = -(-len(batches) // self._share.ranks)
        mine: dict[int, Score] = {}
        for turn in self._shown(range(rounds)):
            index = turn * self._share.ranks + self._share.rank
            if index >= len(batches):
                self._idle()
                continue
            scores = self._score_batch([windows[i] for i in batches[index]])
            mine.update(zip(batches[index], scores, strict=True))
            if keys and self._knows_scores():
                self._keep((keys[i], score) for i, score in zip(batches[index], scores, strict=True))
        for part in self._share.gather(mine):
            found.update(part)
        return [found[i] for i in range(len(rows))]

    def _kept(self, keys: Sequence[str]) -> dict[int, Score]:
        """Scores that an earlier process left, by place. All processes go by what the first of them found: one that
        looks later may see what another has kept since, and would make other batches."""
        if self.journal is None:
            return {}
        kept = {i: value for i, key in enumerate(keys) if (value := self.journal.get(key)) is not None}
        agreed: dict[int, Any] = self._share.gather(kept)[0]
        return {i: (float(score), bool(greedy)) for i, (score, greedy) in agreed.items()}

    def _shown(self, turns: Sequence[T]) -> Iterable[T]:
        if not self._progress or self._share.rank != 0:
            return turns
        return shown(turns)


def score_key(row: Row) -> str:
    """Name of a row's score in the journal."""
    return key_of("score", row.context, row.continuation)


def make_encoder(tokenizer: Tokenizer, bos: bool) -> Encoder:
    """The encoder of a tokenizer: a text without context starts after BOS if inputs do, else after EOD."""
    prefix = tokenizer.bos_id if bos and tokenizer.bos_id is not None else tokenizer.eod_id
    return Encoder(tokenizer.encode, tokenizer.decode, prefix, tokenizer.bos_id if bos else None)


def count_windows(encoder: Encoder, rows: Sequence[Row], max_length: int) -> list[Window]:
    """The windows of ``rows``; the encoder's count of inputs that were cut goes up."""
    encoder.counts.truncated += sum(len(row.context) + len(row.continuation) > max_length + 1 for row in rows)
    return [row.window(max_length) for row in rows]


@contextmanager
def progress(total: int, show: bool) -> Iterator[Callable[[int], None]]:
    """Hands out a function that is told of finished items; a bar on standard error with the time left."""
    console = Console(stderr=True)
    if not show or not total or not console.is_terminal:
        yield lambda count: None
        return
    columns = (TextColumn("  items"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("items", total=total)
        yield lambda count: bar.advance(task, count)


def shown(turns: Sequence[T]) -> Iterable[T]:
    """``turns`` with a progress bar on standard error that goes away at the end."""
    columns = (TextColumn("  batches"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    # Into a file or a pipe a bar that goes away would leave an empty line.
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        yield from bar.track(turns, total=len(turns))
