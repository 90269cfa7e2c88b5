"""A cluster a module, and runs on it."""

from collections.abc import Iterator

import pytest
from helpers.throwaway import Slurm, cluster


@pytest.fixture(scope="module")
def slurm() -> Iterator[Slurm]:
    """Three nodes of the throw-away Slurm."""
    with cluster(3) as found:
        yield found
