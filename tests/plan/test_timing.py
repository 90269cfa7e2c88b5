"""The time model: its fit, its parts and its bounds."""

from dataclasses import replace
from statistics import median

import pytest
from helpers.plans import experiment

from llmjp_train.plan import fit
from llmjp_train.plan.constants import NAMES, shipped
from llmjp_train.plan.job import job_from
from llmjp_train.plan.timing import layer_flops, step_time

GOAL = 0.15


def test_the_shipped_constants_are_those_of_the_rows() -> None:
    again = fit.fit([row for row in fit.rows() if not row.held_out])
    for name in NAMES:
        assert getattr(again, name) == pytest.approx(getattr(shipped(), name), rel=2e-3), name


def test_rows_that_were_never_fitted_are_met() -> None:
    apart = [fit.predicted(row, shipped()) / row.seconds - 1 for row in fit.rows() if row.held_out]
    assert len(apart) >= 5
    assert median(abs(error) for error in apart) < GOAL / 2
    assert max(abs(error) for error in apart) < 1.3 * GOAL


def test_fitted_rows_are_met() -> None:
    errors = [abs(fit.predicted(row, shipped()) / row.seconds - 1) for row in fit.rows() if not row.held_out]
    assert sum(error < GOAL for error in errors) / len(errors) > 0.85
    assert max(errors) < 0.25


def test_published_figures_become_the_steps_that_their_authors_state() -> None:
    rows = {row.name: row for row in fit.rows()}
    # 2,262 tokens a second on each of 8 GPUs: 48 sequences of 2,048 tokens
    assert rows["mpt-13b-a100"].seconds == pytest.approx(48 * 2048 / (8 * 2262))
    # the source's own count of model FLOPs gives 185 TFLOP/s for the same row (attention whole)
    row = rows["mpt-13b-a100"]
    flops = (
        3
        * layer_flops(replace(row.job, engine=replace(row.job.engine, flash=False)))[1]
        * row.job.model.num_layers
    )
    matrices = 3 * layer_flops(row.job)[0] * row.job.model.num_layers
    head = 6 * row.job.tokens * row.job.vocabulary * row.job.model.hidden_size
    rate = (flops + matrices + head) * row.job.micro_batches / row.seconds
    assert rate / 1e12 == pytest.approx(185.9, rel=0.01)


def test_a_bubble_is_the_other_stages_and_shrinks_with_the_batch() -> None:
    job = job_from(experiment("experiment=llm-jp-175b-abci"))
    time = step_time(job)
    more = step_time(replace(job, global_batch=job.global_batch * 4))
    assert time is not None
    assert more is not None
    assert more.of("pipeline bubble") == pytest.approx(time.of("pipeline bubble"))
    assert more.of("matrix products") == pytest.approx(4 * time.of("matrix products"))


def test_full_recomputation_adds_a_forward_pass() -> None:
    job = job_from(experiment("experiment=llm-jp-13b-v2-mdx"))
    times = {p: step_time(replace(job, recompute=p)) for p in type(job.recompute)}
    none, full = times[type(job.recompute).none], times[type(job.recompute).full]
    assert none is not None
    assert full is not None
    assert none.of("recomputation") == 0
    layers = none.of("matrix products") / 3
    assert full.of("recomputation") == pytest.approx(layers + none.of("attention") / 3.5, rel=0.1)


def test_an_unknown_network_gives_bounds_and_a_known_one_does_not() -> None:
    job = job_from(experiment("experiment=llm-jp-13b-v2-mdx"))  # mdx: the network is unknown
    worst, optimistic = step_time(job, worst=True), step_time(job, worst=False)
    assert worst is not None
    assert optimistic is not None
    assert worst.seconds > 1.05 * optimistic.seconds
    known = replace(job, cluster=replace(job.cluster, network_gbs=100))
    inside = step_time(known)
    assert inside is not None
    assert optimistic.seconds <= inside.seconds <= worst.seconds
    assert step_time(known, worst=False) == inside


def test_an_unknown_peak_gives_no_time() -> None:
    config = experiment("experiment=llm-jp-13b-v2-mdx", "cluster.peak_tflops_bf16=unknown")
    assert step_time(job_from(config)) is None
