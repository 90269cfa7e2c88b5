"""The cross-entropy that a model of token frequencies alone reaches: what a trained model must beat."""

from pathlib import Path

import numpy as np

from llmjp_train.data.token_files import Ids, TokenFile


def unigram_cross_entropy(train: Path, targets: Ids) -> float:
    """Nats a token of ``targets`` under token frequencies of the training files; negative targets do not count.

    One is added to each count (Laplace), so that ids not seen in training have a probability.
    """
    fitted, held_out = _counts(train), np.bincount(targets[targets >= 0])
    size = max(len(fitted), len(held_out))
    smooth = np.pad(fitted, (0, size - len(fitted))) + 1.0
    held_out = np.pad(held_out, (0, size - len(held_out)))
    return float(-(held_out * np.log(smooth / smooth.sum())).sum() / held_out.sum())


def _counts(prefix: Path) -> Ids:
    total = np.zeros(0, dtype=np.int64)
    for ids in TokenFile(prefix).chunks():
        part = np.bincount(ids)
        size = max(len(total), len(part))
        total = np.pad(total, (0, size - len(total))) + np.pad(part, (0, size - len(part)))
    return total
