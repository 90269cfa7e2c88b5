"""Likelihood tasks on the training ranks, with the engine as the scorer."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

from torch import Tensor

from llmjp_train.data.stream import MicroBatch
from llmjp_train.data.tokenizers import Tokenizer
from llmjp_train.evaluate import harness
from llmjp_train.evaluate.likelihood import over_ranks
from llmjp_train.evaluate.models import TokenLogprobsLM
from llmjp_train.evaluate.runner import evaluate
from llmjp_train.evaluate.suites import choose


class HasStep(Protocol):
    """What is being trained, as far as evaluation needs to know it."""

    step: int


def in_loop(
    tokenizer: Tokenizer,
    score: Callable[[Any, MicroBatch], Tensor],
    *,
    max_length: int,
    suite: str = "quick",
    tasks: Sequence[str] = (),
    num_fewshot: int | None = None,
    limit: int | None = None,
    batch_size: int = 16,
    rank: int = 0,
    ranks: int = 1,
    group: Any = None,
    model: str = "",
) -> Callable[[HasStep], dict[str, Any]]:
    """A callable that evaluates the model as it is now; every rank calls it and gets the same payload.

    Batches are dealt out to the ranks in turn. A rank without a batch in the last turn scores an empty one,
    so that all call ``score`` equally often: under ZeRO-3 each call gathers weights from all ranks.

    Args:
        score: log-probability in nats of each target, (B, T) fp32, 0 where the target is -100, by what is being
            trained, which the callable is handed: this is made before it, so that nothing is begun in vain.
        max_length: tokens that the model takes at once; longer inputs are cut from the left, and counted.
        rank: this process among ``ranks``.
        group: process group over which scores are gathered; none: all ranks.

    Raises:
        UserError: at once, not in mid-run: an unknown task, missing data, or a task that cannot run here.
    """
    chosen, skipped = choose(suite, tasks, num_fewshot=num_fewshot, limit=limit)
    for entry in chosen:
        loaded = harness.load_task(entry, [])
        harness.check(entry.task, loaded, likelihood_only=True, knows_greedy=TokenLogprobsLM.knows_greedy)
    share = over_ranks(rank, ranks, group)

    def run(state: HasStep) -> dict[str, Any]:
        scorer = partial(score, state)
        lm = TokenLogprobsLM(
            tokenizer, scorer, max_length, batch_size=batch_size, share=share, progress=False
        )
        return evaluate(
            lm,
            chosen,
            model=model,
            step=state.step,
            suite="" if tasks else suite,
            skipped=skipped,
            settings={"in_loop": True, "ranks": ranks},
        )

    return run
