"""From a task's texts to token ids: no special token slips in, and a continuation is scored whole."""

from collections.abc import Callable
from dataclasses import dataclass, field

from llmjp_train.errors import UserError


@dataclass(frozen=True)
class Row:
    """A sequence to score: the log-probability of ``continuation`` after ``context``."""

    context: tuple[int, ...]
    """At least one token."""
    continuation: tuple[int, ...]
    """At least one token."""

    def window(self, max_length: int) -> tuple[list[int], int]:
        """Tokens to feed and predict, cut from the left, and how many of them at the end are scored.

        The last token is predicted but not fed, so ``max_length + 1`` tokens fit.

        Raises:
            UserError: the continuation alone is longer than the model's context.
        """
        if len(self.continuation) > max_length:
            raise UserError(
                f"a continuation of {len(self.continuation)} tokens is longer than the model's {max_length}: "
                "leave the task out, or give a larger max_length"
            )
        return list((self.context + self.continuation)[-(max_length + 1) :]), len(self.continuation)


@dataclass
class Counts:
    """What had to be done to the inputs, for the record."""

    requests: int = 0
    truncated: int = 0
    """Inputs longer than the model's context, cut from the left."""
    joined_tokens: int = 0
    """Inputs where a token would have crossed from context to continuation: both were encoded apart."""
    tokens_run: int = 0
    """Tokens that went through the model, padding included."""
    tokens_plain: int = 0
    """Tokens of one sequence a request, without padding."""
    unfinished: int = 0
    """Generated answers that reached their greatest length without an end."""


@dataclass
class Encoder:
    """Encodes context and continuation for scoring.

    The rule of lm-evaluation-harness (encode both together, cut after the context's tokens) fails where a
    token crosses the boundary: the continuation then starts late, or is empty (facts T2: up to 43 in 800).
    There both are encoded apart, so that every choice is scored from its first character on.
    """

    encode: Callable[[str], list[int]]
    """Text to ids, without any special token."""
    decode: Callable[[list[int]], str]
    prefix_id: int
    """Token in front of a text that has no context: BOS where inputs start with it, else EOD."""
    bos_id: int | None = None
    """Token put before every context; none: nothing is."""
    counts: Counts = field(default_factory=Counts)
    _last: tuple[str, list[int]] = ("", [])

    def pair(self, context: str, continuation: str) -> Row:
        """The row of a (context, continuation) request; ``context`` may be empty.

        Raises:
            UserError: the continuation has no text.
        """
        self.counts.requests += 1
        if not continuation:
            raise UserError(
                f"an empty continuation cannot be scored (after {context[-40:]!r}): mend the task file"
            )
        # White space at the end of a context belongs to the continuation's first token, as in the harness.
        stripped = context.rstrip()
        context, continuation = stripped, context[len(stripped) :] + continuation
        if not context:
            return Row((self.prefix_id,), tuple(self.encode(continuation)))
        whole, head = self.encode(context + continuation), self._context(context)
        if whole[: len(head)] != head or len(whole) == len(head):
            self.counts.joined_tokens += 1
            head, whole = self._apart(head, whole, continuation)
        start = () if self.bos_id is None else (self.bos_id,)
        return Row(start + tuple(head), tuple(whole[len(head) :]))

    def _context(self, context: str) -> list[int]:
        # The choices of an item share their context and come one after another.
        if self._last[0] != context:
            self._last = (context, self.encode(context))
        return self._last[1]

    def _apart(self, head: list[int], whole: list[int], continuation: str) -> tuple[list[int], list[int]]:
        """(context ids, context and continuation ids) without a token across the boundary."""
        text = self.decode(whole)
        # LLM-jp's tokenizers start each text with a blank piece: the continuation alone has one too many.
        alone = self.encode(continuation)
        after_a_line = self.encode("\n" + continuation)[len(self.encode("\n")) :]
        for tail in (alone, alone[1:], after_a_line):
            if tail and self.decode(head + tail) == text:
                return head, head + tail
        # Fall back to the tokens that both have in common.
        common = 0
        while common < min(len(head), len(whole) - 1) and head[common] == whole[common]:
            common += 1
        return (whole[:common], whole) if common else ([self.prefix_id], [self.prefix_id, *whole])

    def rolling(self, text: str, max_length: int) -> list[Row]:
        """Windows in which every token of ``text`` is scored once, as the harness cuts them.

        The first window starts with the prefix token; each later one has the most context that fits.
        """
        self.counts.requests += 1
        tokens = [self.prefix_id, *self.encode(text)]
        rows: list[Row] = []
        done = 1
        while done < len(tokens):
            end = min(done + max_length, len(tokens))
            start = max(0, end - max_length - 1)
            rows.append(Row(tuple(tokens[start:done]), tuple(tokens[done:end])))
            done = end
        return rows
