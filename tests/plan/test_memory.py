"""Memory of whole plans: history fits, sums are right, and what changes them does."""

from dataclasses import replace

import pytest
from helpers.plans import experiment

from llmjp_train.config.derive import parameter_count
from llmjp_train.config.machine import Recompute
from llmjp_train.plan.activations import layer_bytes, stream_bytes
from llmjp_train.plan.job import job_from
from llmjp_train.plan.memory import GIB, activation_terms, in_flight, memory
from llmjp_train.plan.stages import bounds, stages
from llmjp_train.plan.state import weight_elements

HISTORY = ("llm-jp-13b-v1-mdx", "llm-jp-13b-v2-mdx", "llm-jp-175b-abci")


@pytest.mark.parametrize("name", HISTORY)
def test_the_historical_runs_fit_in_the_40_gb_that_they_had(name: str) -> None:
    plan = memory(job_from(experiment(f"experiment={name}")))
    assert plan.device_bytes == 40 * GIB
    assert 0.4 * plan.device_bytes < plan.worst.bytes < plan.device_bytes


def test_stages_of_the_175b_are_those_of_history() -> None:
    job = job_from(experiment("experiment=llm-jp-175b-abci"))
    assert bounds(job) == (1, *[2] * 47, 1)


@pytest.mark.parametrize("name", [*HISTORY, "llm-jp-3-13b", "llm-jp-4-8b"])
def test_parameters_of_all_stages_add_up_to_the_model(name: str) -> None:
    job = job_from(experiment(f"experiment={name}"))
    held = sum(stage.parameters * job.tensor - stage.replicated * (job.tensor - 1) for stage in stages(job))
    twice = job.vocabulary * job.model.hidden_size if job.model.tied_embeddings and job.pipeline > 1 else 0
    assert held - twice == parameter_count(job.model, job.vocabulary).total


def test_the_first_stage_holds_as_many_micro_batches_as_there_are_stages() -> None:
    job = job_from(experiment("experiment=llm-jp-175b-abci"))
    flying = [in_flight(job, stage) for stage in stages(job)]
    assert flying == list(range(49, 0, -1))
    short = replace(job, global_batch=5 * job.micro_batch * job.data)
    assert max(in_flight(short, stage) for stage in stages(short)) == 5


def test_recompute_trades_memory() -> None:
    job = job_from(experiment("experiment=llm-jp-13b-v2-mdx"))
    stage = stages(job)[0]
    sizes = [sum(term.bytes for term in activation_terms(replace(job, recompute=policy), stage, flying=1)
                 if term.name == "activations")
             for policy in (Recompute.none, Recompute.selective, Recompute.full)]  # fmt: skip
    assert sizes[0] > 2 * sizes[1] > 4 * sizes[2]


def test_sequence_parallelism_splits_what_tensor_parallelism_does_not() -> None:
    whole = job_from(experiment("experiment=llm-jp-175b-abci"))
    split = job_from(experiment("experiment=llm-jp-175b-abci", "parallel.sequence=true"))
    assert layer_bytes(whole) == split.tensor * layer_bytes(split)  # of a layer only its input is kept
    assert stream_bytes(whole) == split.tensor * stream_bytes(split)
    kept = replace(whole, recompute=Recompute.none), replace(split, recompute=Recompute.none)
    assert layer_bytes(kept[1]) < layer_bytes(kept[0])
    assert memory(split).worst.bytes < memory(whole).worst.bytes
    # without tensor parallelism there is nothing to split
    alone = job_from(experiment("experiment=llm-jp-4-8b", "parallel.sequence=true"))
    assert alone == job_from(experiment("experiment=llm-jp-4-8b", "parallel.sequence=false"))
    assert "sequence" not in alone.layout()


def test_zero_shares_what_it_says() -> None:
    job = replace(job_from(experiment("experiment=llm-jp-4-8b")), data=8)
    one = stages(job)[0]
    per = {zero: memory(replace(job, zero=zero)).worst for zero in (1, 2, 3)}
    assert per[1].named("masters") == per[2].named("masters")
    assert per[2].named("gradients") * 8 == pytest.approx(per[1].named("gradients"), rel=1e-6)
    assert per[3].named("weights") * 8 == pytest.approx(2 * weight_elements(job, one), rel=1e-6)


def test_an_unknown_device_fits_nothing_and_refuses_nothing() -> None:
    plan = memory(job_from(experiment("experiment=llm-jp-175b-abci", "cluster.device_memory_gib=unknown")))
    assert plan.device_bytes is None
    assert plan.headroom is None
    assert plan.fits
