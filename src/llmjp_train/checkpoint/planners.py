"""What torch.distributed.checkpoint must know of fragments."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.default_planner import (
    DefaultLoadPlanner,
    DefaultSavePlanner,
    create_default_global_save_plan,
)
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
)
from torch.distributed.checkpoint.planner import SavePlan, TensorWriteData, WriteItem, WriteItemType

from llmjp_train.checkpoint.listing import CHUNK_BYTES
from llmjp_train.checkpoint.tiling import Box, check_tiling
from llmjp_train.parallel.fragment import Fragment


class Pieces:
    """All boxes of one tensor that this rank holds. DCP asks it what to write or fill; it is no tensor."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = torch.Size(shape)
        self.views: dict[torch.Size, Tensor] = {}

    def size(self) -> torch.Size:
        """Logical shape of the whole tensor."""
        return self.shape

    def __create_chunk_list__(self) -> list[ChunkStorageMetadata]:
        return [ChunkStorageMetadata(offset, view.shape) for offset, view in self.views.items()]

    def __create_write_items__(self, name: str, value: Any) -> list[WriteItem]:
        properties = TensorProperties(dtype=torch.float32)
        return [
            WriteItem(
                index=MetadataIndex(name, chunk.offsets),
                type=WriteItemType.SHARD,
                tensor_data=TensorWriteData(chunk=chunk, properties=properties, size=self.shape),
            )
            for chunk in self.__create_chunk_list__()
        ]


def pieces(fragments: Iterable[Fragment]) -> dict[str, Any]:
    """Fragments as DCP's state dict; several may be of one tensor.

    Raises:
        RuntimeError: two of them begin at the same element, or disagree about the shape.
    """
    found: dict[str, Any] = {}
    for fragment in fragments:
        piece = found.setdefault(fragment.name, Pieces(fragment.shape))
        if tuple(piece.shape) != fragment.shape:
            raise RuntimeError(
                f"{fragment.name} is given with shapes {tuple(piece.shape)} and {fragment.shape}"
            )
        for rectangle in fragment.rectangles():
            for part in rectangle.parts(CHUNK_BYTES // 4):
                offset = torch.Size(part.offset)
                if offset in piece.views:
                    raise RuntimeError(f"{fragment.name} is given twice at {tuple(offset)} on one rank")
                piece.views[offset] = part.view
    return found


class SavePlanner(DefaultSavePlanner):
    """Hands out a piece's views, and sees to it that every element is written once."""

    def __init__(self) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)

    def lookup_object(self, index: MetadataIndex) -> Any:
        """The view at an offset."""
        assert index.offset is not None
        return self.state_dict[index.fqn].views[index.offset]

    def create_global_plan(self, all_plans: list[SavePlan]) -> tuple[list[SavePlan], Metadata]:
        """All ranks' plans, checked. The default would drop equal chunks and so hide an error of the caller."""
        boxes: dict[str, list[Box]] = {}
        shapes: dict[str, tuple[int, ...]] = {}
        for rank, plan in enumerate(all_plans):
            for item in plan.items:
                data = item.tensor_data
                assert data is not None
                name, shape = item.index.fqn, tuple(data.size)
                if shapes.setdefault(name, shape) != shape:
                    raise RuntimeError(f"ranks give {name} shapes {shapes[name]} and {shape}")
                boxes.setdefault(name, []).append(
                    Box(tuple(data.chunk.offsets), tuple(data.chunk.sizes), rank)
                )
        for name, found in boxes.items():
            check_tiling(name, shapes[name], found)
        self.global_plan, self.metadata = create_default_global_save_plan(all_plans)
        return self.global_plan, self.metadata


class LoadPlanner(DefaultLoadPlanner):
    """Fills a piece's views."""

    def __init__(self) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)

    def set_up_planner(
        self, state_dict: dict[str, Any], metadata: Metadata | None = None, is_coordinator: bool = False
    ) -> None:
        """Keep our objects: the default replaces those that it does not know."""
        self.original_state_dict = self.state_dict = state_dict
        self.metadata, self.is_coordinator = metadata, is_coordinator

    def lookup_tensor(self, index: MetadataIndex) -> Tensor:
        """The view at an offset."""
        assert index.offset is not None
        view: Tensor = self.state_dict[index.fqn].views[index.offset]
        return view
