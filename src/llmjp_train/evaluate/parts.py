"""A checkpoint's model in parts, for likelihood: tensor-parallel processes share each matrix, stages the layers.

Weights alone, without an engine: two or four bytes a parameter, where training holds up to eighteen.
"""

import torch
import torch.distributed as dist
from torch import Tensor, nn

from llmjp_train.checkpoint.store import CheckpointReader
from llmjp_train.config.model import ModelConfig, Position
from llmjp_train.data.tokenizers import Tokenizer
from llmjp_train.evaluate.likelihood import LikelihoodLM, Score, Share, Window
from llmjp_train.evaluate.models import NO_TARGET, fill, micro_batch
from llmjp_train.model.attention import make_context
from llmjp_train.model.decoder import Decoder
from llmjp_train.model.loss import LossSums
from llmjp_train.parallel.layout import Layout
from llmjp_train.parallel.stages import layer_bounds
from llmjp_train.parallel.tensor import split


class PartLM(LikelihoodLM):
    """This process's part of the model. A stage that is not the last passes hidden states on and knows no scores."""

    knows_greedy = False

    def __init__(
        self,
        reader: CheckpointReader,
        model: ModelConfig,
        layout: Layout,
        tokenizer: Tokenizer,
        max_length: int,
        *,
        dtype: torch.dtype,
        batch_size: int = 16,
        bos: bool = False,
        progress: bool = True,
    ) -> None:
        """
        Args:
            reader: a checkpoint of any layout; of each tensor this process's part is read.

        Raises:
            UserError: the checkpoint is not of this model, or a value is of no use.
        """
        super().__init__(
            tokenizer,
            max_length=max_length,
            batch_size=batch_size,
            bos=bos,
            share=share_of(layout),
            progress=progress and layout.leader,
        )
        self._layout, self._model, self._dtype = layout, model, dtype
        bounds = layer_bounds(model, layout.pipeline, max_length)
        self._layers = range(bounds[layout.pipeline_rank], bounds[layout.pipeline_rank + 1])
        self._decoder = self._part(reader).eval()

    def _part(self, reader: CheckpointReader) -> Decoder:
        """The decoder with nothing in the places of what other stages hold."""
        layout = self._layout
        first, last = layout.pipeline_rank == 0, layout.last_stage
        with torch.device("meta"):
            decoder = Decoder(self._model)
        for index in {*range(self._model.num_layers)} - {*self._layers}:
            decoder.layers[index] = nn.Identity()
        kept = {
            "embedding": first or (last and self._model.tied_embeddings),
            "positions": first,
            "norm": last,
            "head": last,
        }
        for name, keep in kept.items():
            if not keep:
                setattr(decoder, name, nn.Identity())
        split(decoder, self._model, layout)
        decoder = decoder.to(self._dtype).to_empty(device=layout.device)
        if last:
            decoder.tie()
        fill(decoder, reader, self._model, layout.tensor, layout.tensor_rank)
        return decoder

    def _knows_scores(self) -> bool:
        return self._layout.last_stage and self._layout.tensor_rank == 0

    @torch.no_grad()
    def _score_batch(self, windows: list[Window]) -> list[Score]:
        batch = micro_batch(windows)
        positions = batch.positions.to(self._layout.device)
        x_BTH = self._enter(batch.tokens, positions)
        context = make_context(self._model, None, positions)
        for index in self._layers:
            x_BTH = self._decoder.layers[index](x_BTH, context)
        if not self._layout.last_stage:
            dist.send(x_BTH.contiguous(), self._neighbour(1), group=self._layout.pipeline_group)
            return [(0.0, False)] * len(windows)
        wanted = batch.targets != NO_TARGET
        hidden = self._decoder.norm(x_BTH)[wanted.to(x_BTH.device)]
        sums = self._decoder.head(hidden[None], batch.targets[wanted][None].to(x_BTH.device), False)
        assert isinstance(sums, LossSums)
        scores = torch.zeros(wanted.shape, dtype=torch.float64)
        scores[wanted] = -sums.token_nll[0].double().cpu()
        return [(float(score), False) for score in scores.sum(1)]

    def _enter(self, tokens_BT: Tensor, positions_BT: Tensor) -> Tensor:
        """Hidden states (B, T, H) before this stage's layers."""
        device = self._layout.device
        if self._layout.pipeline_rank == 0:
            x_BTH: Tensor = self._decoder.embedding(tokens_BT.to(device))
            learned = self._model.position is Position.learned
            return x_BTH + self._decoder.positions(positions_BT) if learned else x_BTH
        x_BTH = torch.empty((*tokens_BT.shape, self._model.hidden_size), dtype=self._dtype, device=device)
        dist.recv(x_BTH, self._neighbour(-1), group=self._layout.pipeline_group)
        return x_BTH

    def _neighbour(self, stages: int) -> int:
        return self._layout.world.rank + stages * self._layout.tensor * self._layout.data


def share_of(layout: Layout) -> Share:
    """The items that this process's model scores. Stages do not wait for each other's scores but gather them at the
    end, so that one works on a batch while the next has the batch before."""
    ranks = layout.tensor * layout.data
    last = range((layout.pipeline - 1) * ranks, layout.pipeline * ranks, layout.tensor)
    return Share(layout.data_rank, layout.data, lambda value: [layout.gather(value)[rank] for rank in last])
