"""What must be said to DeepSpeed before it starts, so that it compiles nothing and prints nothing."""

import logging
import os
import warnings


def prepare() -> None:
    """Import DeepSpeed for the device at hand.

    `init_distributed` would compile a shared-memory all-reduce (60 to 90 s without a cache, an error
    without ninja) that only inference uses, so the operation is declared absent.
    """
    import torch

    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    # DeepSpeed 0.19 calls collectives by names that torch 2.13 calls old, once per process and call site.
    warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)
    for name in ("DeepSpeed", "deepspeed"):
        logging.getLogger(name).setLevel(logging.ERROR)
