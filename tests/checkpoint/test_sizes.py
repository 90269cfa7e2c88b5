"""Chunks and files are bounded, a load reads what it needs, and the coordinator's work stays small at full size."""

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.storage import WriteResult

from llmjp_train.checkpoint import planners, storage
from llmjp_train.checkpoint.listing import latest
from llmjp_train.checkpoint.planners import SavePlanner, pieces
from llmjp_train.checkpoint.storage import Chunk, DamagedError, Payload, Writer
from llmjp_train.checkpoint.store import CheckpointReader, load, save
from llmjp_train.config.compose import compose
from llmjp_train.model.shapes import parameter_shapes
from llmjp_train.parallel.fragment import Fragment
from llmjp_train.parallel.places import place

SHAPE = (500, 20)


def fragment(start: int, values: torch.Tensor) -> Fragment:
    return Fragment("master.w", SHAPE, SHAPE, (0, 0), start, values)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A checkpoint of one tensor of 40,000 bytes in chunks of at most 1,000 and files of about 8,000."""
    monkeypatch.setattr(planners, "CHUNK_BYTES", 1000)
    monkeypatch.setattr(storage, "FILE_BYTES", 8000)
    save(tmp_path, 1, [fragment(0, torch.arange(10_000.0))], {}, epoch=1)
    return latest(tmp_path).path


def test_files_and_chunks_are_bounded_and_nothing_is_lost(small: Path) -> None:
    sizes = {file.name: file.stat().st_size for file in small.glob("rank-*")}
    assert sizes.keys() == {
        "rank-00000.bin",
        *(f"rank-00000.{number}.bin" for number in range(1, len(sizes))),
    }
    assert 5 <= len(sizes) <= 6
    assert max(sizes.values()) < 8000 + 1000
    reader = CheckpointReader(small)
    assert reader.verify() == 42, "12 rows of 80 bytes make a chunk"
    assert torch.equal(reader.read("master.w"), torch.arange(10_000.0).view(SHAPE))
    (small / "rank-00000.3.bin").unlink()
    with pytest.raises(DamagedError, match=r"rank-00000.3.bin"):
        load(small, [fragment(0, torch.zeros(10_000))])


def test_a_load_reads_only_the_chunks_that_it_needs(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, read = Payload.read, []

    def counted(self: Payload, name: str, chunk: Any, into: torch.Tensor | None = None) -> torch.Tensor:
        read.append(chunk.size)
        return plain(self, name, chunk, into)

    monkeypatch.setattr(Payload, "read", counted)
    mine = torch.zeros(1000)
    load(small, [fragment(4090, mine)])
    assert torch.equal(mine, torch.arange(4090.0, 5090.0))
    assert 4000 <= sum(read) <= 4000 + 2 * 1000, "its own bytes and the rest of the chunks on both ends"


def plans(config: Any, tensor: int, data: int) -> list[Any]:
    """What each rank plans to write, its state on the meta device: ZeRO-1 without pipelines."""
    shapes, found = parameter_shapes(config.model), []
    for rank in range(tensor * data):
        data_rank, tensor_rank = divmod(rank, tensor)
        fragments, position = [], 0
        places = [
            (n, where)
            for n in shapes
            if (where := place(config.model, n, shapes[n], tensor, tensor_rank)).split or tensor_rank == 0
        ]
        total = sum(torch.Size(where.shape).numel() for _, where in places)
        first, last = total * data_rank // data, total * (data_rank + 1) // data
        for name, where in places:
            size = torch.Size(where.shape).numel()
            low, high = max(first, position), min(last, position + size)
            if low < high:
                view = torch.empty(high - low, device="meta")
                fragments += [
                    Fragment(f"{kind}.{name}", where.logical, where.shape, where.offset, low - position, view)
                    for kind in ("master", "exp_avg", "exp_avg_sq")
                ]
            position += size
        planner = SavePlanner()
        planner.set_up_planner(pieces(fragments), None, rank == 0)
        found.append(planner.create_local_plan())
    return found


def test_the_coordinator_plans_13b_on_64_ranks_in_seconds(tmp_path: Path) -> None:
    config = compose("train", ["experiment=llm-jp-3-13b"], partial=True)
    local = plans(config, tensor=4, data=16)
    written = [item for plan in local for item in plan.items]
    results = [
        [
            WriteResult(
                item.index, 0, Chunk(tuple(item.tensor_data.chunk.sizes), f"rank-{rank:05d}.bin", 0, 0)
            )
            for item in plan.items
        ]
        for rank, plan in enumerate(local)
    ]
    began = time.process_time()
    _, metadata = SavePlanner().create_global_plan(local)
    Writer(tmp_path, 0).finish(metadata, results)
    seconds = time.process_time() - began
    shapes = parameter_shapes(config.model)
    parameters = sum(torch.Size(shape).numel() for shape in shapes.values())
    assert sum(item.tensor_data.chunk.sizes.numel() for item in written) == 3 * parameters > 3 * 13e9
    assert max(item.tensor_data.chunk.sizes.numel() for item in written) * 4 <= 64 * 2**20
    assert len(metadata.state_dict_metadata) == 3 * len(shapes)
    assert seconds < 5, f"{seconds:.1f} s for {len(written):,} chunks"
    print(f"{seconds:.2f} s for {len(written):,} chunks")
