"""Train, evaluate and publish Japanese-strong language models with DeepSpeed and Hydra."""

import os

__version__ = "0.1.0"

# Before torch loads OpenMP: its threads otherwise spin while they wait for each other, which on cores that somebody
# else uses too made a step 12 to 70 times slower (docs/lab-notes.md).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
