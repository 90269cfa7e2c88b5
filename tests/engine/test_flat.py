"""The engine against a plain loop of torch, for every ZeRO stage."""

import math
from typing import Any

import pytest
import torch
from helpers.engines import run_steps, sizes
from helpers.ranks import run_ranks
from helpers.toy import ragged_batches, small_config

STEPS, SAMPLES = 3, 6
LAYOUTS = [(1, 0), (1, 1), (1, 2), (1, 3), (2, 0), (2, 1), (2, 2), (2, 3), (3, 1), (3, 3)]


def build(config: Any, sources: int = 2) -> Any:
    from llmjp_train.engine.flat import FlatEngine
    from llmjp_train.parallel import layout
    from llmjp_train.parallel.world import world
    from llmjp_train.train.optimizer import parameter_groups

    return FlatEngine(
        config, layout.start(config.parallel, world(), cuda=False), sources, parameter_groups(config)
    )


def masters(engine: Any) -> dict[str, torch.Tensor]:
    """Every whole master weight and, as ``NAME:moment``, its first moment, put together from all ranks."""
    import torch.distributed as dist

    mine = [
        (f.name.removeprefix("master."), f.shape, f.start, f.view.clone())
        for f in engine.fragments(owned=True)
        if f.name.startswith("master.")
    ]
    mine += [
        (f.name.removeprefix("exp_avg.") + ":moment", f.shape, f.start, f.view.clone())
        for f in engine.fragments(owned=True)
        if f.name.startswith("exp_avg.")
    ]
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, mine)
    whole: dict[str, torch.Tensor] = {}
    for name, shape, start, values in (item for rank in found for item in rank):
        flat = whole.setdefault(name, torch.full((math.prod(shape),), math.nan))
        flat[start : start + len(values)] = values
    return whole


def engine_steps(rank: int, world: int, zero: int, overrides: tuple[str, ...]) -> Any:
    config = small_config(
        f"parallel.data={world}", f"parallel.zero={zero}", f"batch.global_batch={SAMPLES}", *overrides
    )
    engine = build(config)
    results = []
    for step in range(STEPS):
        batches = ragged_batches(config, SAMPLES, seed=step)
        results.append(engine.step(batches[rank::world], lr=1e-3))
    found = results, masters(engine)
    engine.close()
    return found


def plain_steps(overrides: tuple[str, ...] = ()) -> Any:
    """One process, one batch, torch's own loss and AdamW.

    (Loss, gradient norm) of each step, weights and moments, and how far each weight may be from that: an element
    whose gradient is rounding noise moves anywhere within lr.
    """
    from llmjp_train.model.decoder import Decoder
    from llmjp_train.model.initial import fill
    from llmjp_train.train.optimizer import parameter_groups
    from llmjp_train.verify.bounds import gradient_bounds, weight_bound

    config = small_config(f"batch.global_batch={SAMPLES}", *overrides)
    model = Decoder(config.model)
    fill(model, config.model, config.seed)
    named = dict(model.named_parameters())
    settings = config.optimizer
    optimizer = torch.optim.AdamW(
        [
            {"params": [named[n] for n in g["names"]], "weight_decay": g["weight_decay"]}
            for g in parameter_groups(config)
        ],
        lr=1e-3,
        betas=(settings.beta1, settings.beta2),
        eps=settings.eps,
    )
    figures = []
    squares: dict[str, list[torch.Tensor]] = {name: [] for name in named}
    for step in range(STEPS):
        batches = ragged_batches(config, SAMPLES, seed=step)
        tokens, targets, documents, positions = (
            torch.cat([getattr(b, name) for b in batches])
            for name in ("tokens", "targets", "documents", "positions")
        )
        logits = model(tokens, documents, positions)
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100)
        full = loss
        if settings.z_loss:
            log_z = torch.logsumexp(logits, -1)[targets >= 0]
            full = loss + settings.z_loss * log_z.square().mean()
        optimizer.zero_grad()
        full.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
        optimizer.step()
        for name, parameter in named.items():
            second = optimizer.state[parameter]["exp_avg_sq"].flatten()
            squares[name].append(second / (1 - settings.beta2 ** (step + 1)))
        figures.append((float(loss.detach()), float(norm)))
    moments = {f"{name}:moment": optimizer.state[p]["exp_avg"].flatten() for name, p in named.items()}
    weights = {name: p.detach().flatten() for name, p in named.items()}
    # The root of the first step's second moment is its gradient.
    gradients = gradient_bounds({name: seen[0].sqrt() for name, seen in squares.items()})
    bounds = {
        name: weight_bound(weights[name], seen, gradients[name], 1e-3, settings)
        for name, seen in squares.items()
    }
    return figures, weights | moments, bounds


def compare(found: Any, expected: Any) -> None:
    results, weights = found
    figures, plain, bounds = expected
    for result, (loss, norm) in zip(results, figures, strict=True):
        assert result.applied, result.reason
        assert result.loss == pytest.approx(loss, rel=2e-6)
        assert result.grad_norm == pytest.approx(norm, rel=2e-5)
    assert weights.keys() == plain.keys()
    for name, value in plain.items():
        # Adam's first steps move each weight by about the learning rate whatever its gradient is: the moments
        # tell more (clipping, accumulation, weights of tokens).
        allowed = bounds.get(name, 1e-3 * float(value.abs().max()) + 1e-9)
        share = float(((weights[name] - value).abs() / allowed).max())
        assert share <= 1, f"{name}: {share:.3g} of what is allowed"


@pytest.mark.parametrize(("world", "zero"), LAYOUTS)
def test_each_layout_computes_what_a_plain_loop_does(world: int, zero: int) -> None:
    found = run_ranks(engine_steps, world, zero, ())
    compare(found[0], plain_steps())


@pytest.mark.parametrize("clip", ["0.05", "0"])
@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_clipping_scales_the_moments_as_a_plain_loop_does(zero: int, clip: str) -> None:
    overrides = (f"optimizer.clip={clip}",)
    plain = plain_steps((f"optimizer.clip={clip if clip != '0' else '1e9'}",))
    assert all(norm > 0.2 for _, norm in plain[0]), "a clip of 0.05 must bite"
    compare(run_ranks(engine_steps, 2, zero, overrides)[0], plain)


def compiled_steps(rank: int, world: int, overrides: tuple[str, ...]) -> Any:
    import torch._dynamo as dynamo

    found = engine_steps(rank, world, 1, overrides)
    return found, dynamo.utils.counters["frames"]["ok"], dynamo.utils.counters["stats"]["unique_graphs"]


@pytest.mark.full
@pytest.mark.parametrize("recompute", ["none", "selective"])
def test_compiled_layers_compute_what_a_plain_loop_does(recompute: str) -> None:
    overrides = ("parallel.compile=true", f"parallel.recompute={recompute}")
    found, compiled, graphs = run_ranks(compiled_steps, 1, overrides, timeout=280)[0]
    assert compiled > 0, "nothing was compiled"
    assert graphs <= 8, "the layers were compiled anew for other documents"
    compare(found, plain_steps())


@pytest.mark.parametrize(
    "overrides",
    [
        ("optimizer.z_loss=1e-2",),
        ("parallel.recompute=full",),
        ("parallel.recompute=selective",),
        ("model.tied_embeddings=true",),
        ("parallel.loss_chunk=7",),
        ("model.position=learned", "model.norm=layernorm", "model.mlp=gelu_tanh", "model.bias=all"),
    ],
    ids=lambda overrides: overrides[0],
)
@pytest.mark.parametrize("zero", [1, 3])
def test_options_compute_what_a_plain_loop_does(zero: int, overrides: tuple[str, ...]) -> None:
    found = run_ranks(engine_steps, 2, zero, overrides)
    compare(found[0], plain_steps(overrides))


def test_loss_of_sources_is_their_own_mean() -> None:
    results, _ = run_ranks(engine_steps, 2, 1, ())[0]
    tokens = [count for count, _ in results[0].sources]
    mean = sum(count * loss for count, loss in results[0].sources) / sum(tokens)
    assert sum(tokens) == results[0].tokens
    assert mean == pytest.approx(results[0].loss, rel=1e-6)
    assert results[0].sources[0][1] != pytest.approx(results[0].sources[1][1], rel=1e-4)


def bf16_steps(rank: int, world: int, zero: int) -> Any:
    return engine_steps(rank, world, zero, ("precision=bf16",))


@pytest.mark.parametrize("zero", [1, 2, 3])
def test_bf16_keeps_fp32_masters_that_do_not_come_from_rounded_weights(zero: int) -> None:
    results, weights = run_ranks(bf16_steps, 2, zero)[0]
    figures, plain, _ = plain_steps()
    assert [r.loss for r in results] == pytest.approx([loss for loss, _ in figures], rel=5e-3)
    for name, value in ((n, v) for n, v in plain.items() if ":" not in n):
        # Masters start exact and move by at most about lr a step; bf16 rounding of the start would be 4e-3 relative.
        assert float((weights[name] - value).abs().max()) <= 2 * STEPS * 1e-3, name
        if value.std() > 0:
            assert not torch.equal(weights[name], weights[name].bfloat16().float()), name


def first_gradients(data: int, pipeline: int, zero: int) -> dict[str, torch.Tensor]:
    """Of a step in bf16 over several micro batches a rank, as the optimizer gets them.

    Untied, since a tied embedding's two gradients meet in bf16 on one rank and in fp32 between stages.
    """
    form = ("precision=bf16", "optimizer.clip=0", "model.tied_embeddings=false")
    words = (*form, *sizes(pipeline=pipeline, data=data, zero=zero))
    gradients: dict[str, torch.Tensor] = run_ranks(run_steps, data * pipeline, words, 1)[0][2]
    return gradients


@pytest.mark.slow
def test_bf16_gradients_are_summed_in_fp32_over_micro_batches_and_ranks() -> None:
    alone = first_gradients(1, 1, 1)
    for layout in ((2, 1, 1), (2, 1, 2), (2, 1, 3), (2, 2, 1)):
        for name, value in first_gradients(*layout).items():
            # bf16's rounding is 2e-3 relative; the order of a sum in fp32 is what is left.
            apart = float((value - alone[name]).abs().max() / alone[name].abs().max())
            assert apart < 1e-5, f"{layout} {name}: {apart:.1e}"
    values = torch.cat([value[value != 0] for value in alone.values()])
    rounded = (values - values.bfloat16().float()).abs() < 1e-6 * values.abs()
    assert rounded.float().mean() < 0.3, "tokens seen once have gradients that bf16 holds, sums have not"


def step_without_sums(rank: int, world: int, zero: int, precision: str) -> Any:
    """A step while DeepSpeed's sum over replicas may not be called."""

    def forbidden(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("gradients were laid flat to be added to nothing")

    config = shared_config(1, zero, precision)
    engine = build(config)
    engine._engine.allreduce_bucket = forbidden
    return engine.step(ragged_batches(config, SAMPLES), lr=1e-3).applied


@pytest.mark.parametrize(("zero", "precision"), [(0, "fp32"), (1, "bf16")])
def test_a_rank_without_replicas_copies_no_gradients(zero: int, precision: str) -> None:
    assert run_ranks(step_without_sums, 1, zero, precision) == [True]


def shared_config(world: int, zero: int, precision: str) -> Any:
    return small_config(
        f"parallel.data={world}",
        f"parallel.zero={zero}",
        f"batch.global_batch={SAMPLES}",
        f"precision={precision}",
    )


def poisoned(rank: int, world: int, zero: int, where: str, precision: str) -> Any:
    config = shared_config(world, zero, precision)
    engine = build(config)
    batches = ragged_batches(config, SAMPLES)[rank::world]
    engine.step(batches, lr=1e-3)
    before = {f.name: f.view.clone() for f in engine.fragments()}
    module = engine._engine.module.decoder
    value = math.inf if where == "infinite gradient" else math.nan
    if where == "loss":
        handle = module.norm.register_forward_hook(lambda m, i, out: out * value)
    else:  # the loss stays finite, the gradient does not
        handle = module.norm.register_full_backward_hook(lambda m, gi, go: tuple(g * value for g in gi))
    bad = engine.step(batches, lr=1e-3)
    handle.remove()
    same = all(torch.equal(before[f.name], f.view) for f in engine.fragments())
    engine.close()
    return bad.applied, bad.reason, same


@pytest.mark.parametrize("where", ["loss", "gradient", "infinite gradient"])
@pytest.mark.parametrize(
    ("zero", "precision"),
    [(0, "fp32"), (1, "fp32"), (2, "fp32"), (3, "fp32"), (1, "bf16"), (2, "bf16"), (3, "bf16")],
)
def test_what_is_not_finite_leaves_weights_and_moments_untouched(
    zero: int, precision: str, where: str
) -> None:
    for applied, reason, same in run_ranks(poisoned, 2, zero, where, precision):
        assert not applied
        assert ("loss" if where == "loss" else "gradient") in reason
        assert same


def refused(rank: int, world: int, zero: int, precision: str, where: str) -> Any:
    """Losses and state of two steps; between them, or not, one that is not applied."""
    config = shared_config(world, zero, precision)
    engine = build(config)
    first, other, last = (ragged_batches(config, SAMPLES, seed=seed)[rank::world] for seed in range(3))
    module, said = engine._engine.module.decoder, ""
    results = [engine.step(first, lr=1e-3)]
    if where == "refused":
        said = engine.step(other, lr=1e-3, refuse=lambda loss: f"{loss} is too much").reason
    elif where:
        nan = module.norm.register_forward_hook(lambda m, i, out: out * math.nan)
        if where == "gradient":
            nan.remove()
            nan = module.norm.register_full_backward_hook(lambda m, gi, go: tuple(g * math.nan for g in gi))
        said = engine.step(other, lr=1e-3).reason
        nan.remove()
    results.append(engine.step(last, lr=1e-3))
    state = {f.name: f.view.clone() for f in engine.fragments()}
    engine.close()
    return [(r.loss, r.grad_norm) for r in results], state, said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("zero", "precision"),
    [(0, "fp32"), (1, "fp32"), (2, "fp32"), (3, "fp32"), (1, "bf16"), (2, "bf16"), (3, "bf16")],
)
def test_a_step_that_was_not_applied_leaves_no_trace_in_the_next(zero: int, precision: str) -> None:
    plain = run_ranks(refused, 2, zero, precision, "")
    for where in ("refused", "loss", "gradient"):
        for (results, state, said), (wanted, other, _) in zip(
            run_ranks(refused, 2, zero, precision, where), plain, strict=True
        ):
            assert {"refused": "too much", "loss": "loss is nan", "gradient": "gradient"}[where] in said
            assert results == wanted
            assert all(torch.equal(value, other[name]) for name, value in state.items())


def norms(rank: int, world: int, zero: int) -> Any:
    config = small_config(
        f"parallel.data={world}", f"parallel.zero={zero}", f"batch.global_batch={SAMPLES}", "optimizer.clip=0"
    )
    engine = build(config)
    squares: dict[str, float] = {}

    batches = ragged_batches(config, SAMPLES)[rank::world]
    result = engine.step(batches, lr=1e-3, inspect_gradients=squares.update)
    engine.close()
    return squares, result.grad_norm


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_inspected_gradients_add_up_to_the_norm(zero: int) -> None:
    from llmjp_train.model.shapes import parameter_shapes

    squares, norm = run_ranks(norms, 2, zero)[0]
    assert squares.keys() == parameter_shapes(small_config().model).keys()
    assert sum(squares.values()) ** 0.5 == pytest.approx(norm, rel=1e-5)
    plain = plain_steps(("optimizer.clip=1e9",))[0][0][1]
    assert norm == pytest.approx(plain, rel=1e-5)


def interrupted(rank: int, world: int) -> Any:
    config = small_config(f"parallel.data={world}", f"batch.global_batch={SAMPLES}")
    engine = build(config)
    batches = ragged_batches(config, SAMPLES)[rank::world]
    asked = iter([False, True])
    before = {f.name: f.view.clone() for f in engine.fragments()}
    none = engine.step(batches, lr=1e-3, interrupted=lambda: next(asked))
    same = all(torch.equal(before[f.name], f.view) for f in engine.fragments())
    engine.close()
    return none is None, same


def test_a_step_given_up_half_way_changes_nothing() -> None:
    assert run_ranks(interrupted, 2) == [(True, True)] * 2
