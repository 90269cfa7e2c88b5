"""DeepSpeed's configuration for a run; nothing else of ours spells its keys."""

from typing import Any

from llmjp_train.config.root import TrainConfig
from llmjp_train.config.training import Dtype


def ds_config(config: TrainConfig, parameters: int) -> dict[str, Any]:
    """Configuration dictionary for `deepspeed.initialize`.

    Accumulation is ours (explicit boundaries, since its length changes with a batch-size ramp), so
    DeepSpeed is told 1. Buckets are no larger than the model: their default of 5e8 elements costs
    fresh pages at each step (docs/benchmarks.md).
    """
    parallel, dtype = config.parallel, config.precision.dtype
    bucket = max(1, min(parallel.bucket_mb * 2**20 // 4, parameters))
    zero: dict[str, Any] = {
        "stage": parallel.zero,
        "reduce_bucket_size": bucket,
        "allgather_bucket_size": bucket,
    }
    if parallel.zero == 3:
        zero |= {
            "stage3_prefetch_bucket_size": bucket,
            "stage3_param_persistence_threshold": min(100_000, bucket),
        }
    found: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": config.batch.micro_batch,
        "gradient_accumulation_steps": 1,
        "train_batch_size": config.batch.micro_batch * parallel.data,
        # ZeRO-0 clips without telling the norm and without looking for NaN: FlatEngine does it instead.
        "gradient_clipping": config.optimizer.clip if parallel.zero else 0.0,
        "steps_per_print": 10**9,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
    }
    if parallel.pipeline > 1:
        # Recomputation is inside our layers: DeepSpeed's fails on integer inputs. With sequence parallelism ranks hold
        # different tokens, which its partitioned activations would mix up.
        found["pipeline"] = {
            "activation_checkpoint_interval": 0,
            "pipe_partitioned": False,
            "grad_partitioned": False,
        }
    if dtype is not Dtype.fp32:
        found[dtype.value] = {"enabled": True} if dtype is Dtype.bf16 else {"enabled": True, "loss_scale": 0}
        found["data_types"] = {"grad_accum_dtype": "fp32"}
        # Else the fp32 sums are rounded to 16 bit before ranks add theirs (docs/decisions/0006).
        found["communication_data_type"] = "fp32"
    return found
