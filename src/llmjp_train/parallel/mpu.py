"""What DeepSpeed asks of a layout without pipelines."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llmjp_train.parallel.layout import Layout


class Mpu:
    """DeepSpeed's "model parallel unit". Its "model parallel" means tensor parallel here.

    It must have no ``initialize_sequence_parallel``: DeepSpeed takes an object with that name for one of Ulysses.
    """

    def __init__(self, layout: "Layout") -> None:
        self._layout = layout

    def get_model_parallel_rank(self) -> int:
        """Place among the ranks that share each matrix."""
        return self._layout.tensor_rank

    def get_model_parallel_world_size(self) -> int:
        """Ranks that share each matrix."""
        return self._layout.tensor

    def get_model_parallel_group(self) -> Any:
        """Their group."""
        return self._layout.tensor_group

    get_tensor_model_parallel_rank = get_model_parallel_rank
    get_tensor_model_parallel_world_size = get_model_parallel_world_size
    get_tensor_model_parallel_group = get_model_parallel_group

    def get_tensor_model_parallel_src_rank(self) -> int:
        """First rank of the tensor group."""
        return self._layout.world.rank - self._layout.tensor_rank

    def get_data_parallel_rank(self) -> int:
        """Place among the ranks that share the batch."""
        return self._layout.data_rank

    def get_data_parallel_world_size(self) -> int:
        """Ranks that share the batch."""
        return self._layout.data

    def get_data_parallel_group(self) -> Any:
        """Their group."""
        return self._layout.data_group

    def get_data_parallel_group_ranks(self) -> list[int]:
        """Their ranks in the world."""
        return self._layout.data_ranks
