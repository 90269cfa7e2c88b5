"""A random schedule of faults over one run: short here, of any length with `make chaos SEED=… FAULTS=…`."""

import os
from pathlib import Path

import pytest
from helpers.chaos import FAULTS, chaos, own_disk, same_as_calm, schedule, shares, table
from helpers.throwaway import Slurm
from helpers.toy import small_run

COUNT, SEED = int(os.environ.get("LLMJP_CHAOS_FAULTS", "6")), int(os.environ.get("LLMJP_CHAOS_SEED", "1"))


@pytest.mark.full
@pytest.mark.timeout(300 + 120 * COUNT)
def test_every_fault_ends_as_promised_and_the_run_as_if_none_had_been(
    slurm: Slurm, tmp_path: Path, prepared: Path, tokenizer_folder: Path
) -> None:
    folder = tmp_path / "disk"
    folder.mkdir()
    with own_disk(folder) as mounted:
        assert mounted or not os.environ.get("LLMJP_CI"), "CI may mount a disk, and fill it"
        kinds = schedule(SEED, COUNT, [kind for kind in FAULTS if mounted or kind != "disk full"])
        words = small_run(folder / "run", prepared, tokenizer_folder)
        print(
            f"\n{COUNT} faults, seed {SEED}"
            + ("" if mounted else "; no disk can be mounted here to be filled")
        )
        found = chaos(slurm, folder, words, kinds, SEED)
        print(f"\n{table(found)}\n\n{shares(folder / 'run')}")
        print(f"{same_as_calm(folder, words):,} steps are bit-equal to those of an undisturbed run")
