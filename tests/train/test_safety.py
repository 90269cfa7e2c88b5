"""The leak test sees leaks; the health checks see what they are for."""

from typing import Any

import pytest
import torch
from helpers.ranks import run_ranks
from helpers.toy import ragged_batches, small_config


def make_engine(world: int, *overrides: str) -> Any:
    from llmjp_train.engine.flat import FlatEngine
    from llmjp_train.parallel import layout
    from llmjp_train.parallel.world import world as place
    from llmjp_train.train.optimizer import parameter_groups

    config = small_config(f"parallel.data={world}", "batch.global_batch=6", *overrides)
    started = layout.start(config.parallel, place(), cuda=False)
    return config, started, FlatEngine(config, started, 2, parameter_groups(config))


def leak(rank: int, world: int, mask: bool, positions: str) -> float:
    from llmjp_train.train.leak_test import leaks

    form = ("model.position=learned",) if positions == "learned" else ()
    config, _, engine = make_engine(world, f"data.document_mask={mask}", "parallel.zero=3", *form)
    return leaks(engine, config.model.vocab_size, 48)


@pytest.mark.parametrize("positions", ["rope", "learned"])
def test_a_masked_run_does_not_leak_and_an_unmasked_one_does(positions: str) -> None:
    assert max(run_ranks(leak, 2, True, positions)) < 1e-5
    assert min(run_ranks(leak, 1, False, positions)) > 1e-3


class FakeRun:
    """What the health checks read of a run, with a real engine and layout."""

    def __init__(self, config: Any, layout: Any, engine: Any, step: int) -> None:
        self.config, self.layout, self.engine, self.step = config, layout, engine, step
        self.updates = step

    def interrupted(self) -> bool:
        return False


def dominated(rank: int, world: int, eps: str) -> float:
    from llmjp_train.train.hooks import eps_dominated

    config, layout, engine = make_engine(world, f"optimizer.eps={eps}")
    for step in range(3):
        engine.step(ragged_batches(config, 6, seed=step)[rank::world], lr=1e-3)
    return eps_dominated(FakeRun(config, layout, engine, 3))


def test_a_large_epsilon_shows_within_steps() -> None:
    usual = run_ranks(dominated, 2, "1e-8")
    large = run_ranks(dominated, 2, "1e-2")
    assert usual[0] == usual[1]
    assert usual[0] < 0.3
    assert large[0] > 0.9


def disagree(rank: int, world: int, broken: bool) -> str:
    from llmjp_train.train.hooks import disagreement

    config, layout, engine = make_engine(world)
    names = [name for name, _ in engine.weights()]
    if broken and rank == 1:
        dict(engine.weights())["layers.1.mlp.up.weight"].view(-1)[7] += 1e-3
    found = {disagreement(FakeRun(config, layout, engine, 1), turn) for turn in range(len(names))}
    return ",".join(sorted(found - {""}))


def test_a_weight_that_differs_between_ranks_is_named() -> None:
    assert run_ranks(disagree, 2, False) == ["", ""]
    assert run_ranks(disagree, 2, True) == ["layers.1.mlp.up.weight on ranks 0, 1"] * 2


def validation(rank: int, world: int, overrides: list[str]) -> Any:
    """Validation loss by the hook's function on some ranks, and by a plain model over the same samples."""
    from llmjp_train.config.compose import compose
    from llmjp_train.data.stream import ValidationStream
    from llmjp_train.engine.flat import FlatEngine
    from llmjp_train.model.decoder import Decoder
    from llmjp_train.model.initial import fill
    from llmjp_train.parallel import layout
    from llmjp_train.parallel.world import world as place
    from llmjp_train.train.hooks import validate
    from llmjp_train.train.optimizer import parameter_groups

    config = compose("train", [*overrides, f"parallel.data={world}"])
    started = layout.start(config.parallel, place(), cuda=False)
    run = FakeRun(config, started, FlatEngine(config, started, 1, parameter_groups(config)), 0)
    run.validation = ValidationStream(config.data, config.batch.sequence_length, config.model.vocab_size)
    run.bytes_per_token = 2.0
    found = validate(run)
    model = Decoder(config.model)
    fill(model, config.model, config.seed)
    samples = min(
        run.validation.num_samples, config.evaluation.validation_batches * config.batch.global_batch
    )
    batch = run.validation.batch(0, samples)
    with torch.no_grad():
        logits = model(batch.tokens, batch.documents, batch.positions)
    plain = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), batch.targets.flatten(), ignore_index=-100
    )
    return found, float(plain), int((batch.targets >= 0).sum())


@pytest.mark.parametrize(("world", "zero"), [(1, 0), (2, 1), (3, 3)])
def test_validation_loss_does_not_depend_on_the_ranks(
    world: int, zero: int, prepared: Any, tokenizer_folder: Any, tmp_path: Any
) -> None:
    import math

    from helpers.toy import small_run

    more = (f"parallel.zero={zero}", "evaluation.validation_batches=3", "batch.micro_batch=2")
    found, plain, tokens = run_ranks(
        validation, world, small_run(tmp_path, prepared, tokenizer_folder, *more)
    )[0]
    assert found["tokens"] == tokens
    assert found["loss"] == pytest.approx(plain, rel=1e-6)
    assert found["bits_per_byte"] == pytest.approx(found["loss"] / math.log(2) / 2.0)
    assert found["sources"]["small"]["tokens"] == tokens
