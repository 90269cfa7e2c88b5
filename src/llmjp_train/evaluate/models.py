"""Our models as lm-evaluation-harness takes them: a token scorer, and our decoder in this process."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from llmjp_train.checkpoint.store import CheckpointReader
from llmjp_train.config.model import ModelConfig
from llmjp_train.data.stream import MicroBatch
from llmjp_train.data.tokenizers import Tokenizer
from llmjp_train.errors import UserError
from llmjp_train.evaluate.likelihood import LikelihoodLM, Score, Share, Window
from llmjp_train.model.decoder import Decoder
from llmjp_train.model.shapes import parameter_shapes
from llmjp_train.parallel.places import place

NO_TARGET = -100
LOGITS_AT_A_TIME = 1024
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def dtype_of(name: str) -> torch.dtype:
    """The torch format called ``name``.

    Raises:
        UserError: it is neither float32 nor bfloat16.
    """
    if name not in DTYPES:
        raise UserError(f"dtype={name}: give {' or '.join(DTYPES)}")
    return DTYPES[name]


def device_of(name: str) -> torch.device:
    """The device called ``name``; ``auto`` takes CUDA where there is one.

    Raises:
        UserError: it is not known or not here.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise UserError(f"device={name}: give auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("device=cuda, but this machine shows no CUDA device: use device=cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


class TokenLogprobsLM(LikelihoodLM):
    """A model known only by the log-probabilities that it gives to targets, as in training."""

    knows_greedy = False

    def __init__(
        self,
        tokenizer: Tokenizer,
        score: Callable[[MicroBatch], Tensor],
        max_length: int,
        *,
        batch_size: int = 16,
        bos: bool = False,
        share: Share | None = None,
        progress: bool = True,
    ) -> None:
        """
        Args:
            score: log-probability in nats of each target, (B, T) fp32, 0 where the target is -100. It may be
                collective: every rank of ``share`` calls it equally often, with batches of its own.
        """
        super().__init__(
            tokenizer, max_length=max_length, batch_size=batch_size, bos=bos, share=share, progress=progress
        )
        self._scorer = score

    def _score_batch(self, windows: list[Window]) -> list[Score]:
        totals = self._scorer(micro_batch(windows)).double().sum(1).tolist()
        return [(float(total), False) for total in totals]

    def _idle(self) -> None:
        self._scorer(micro_batch([([0, 0], 0)]))


def micro_batch(windows: Sequence[Window]) -> MicroBatch:
    """Windows as a micro batch, padded on the right; each sequence is one document."""
    length = max(len(tokens) for tokens, _ in windows) - 1
    inputs = torch.zeros(len(windows), length, dtype=torch.int64)
    targets = torch.full((len(windows), length), NO_TARGET, dtype=torch.int64)
    for row, (tokens, scored) in enumerate(windows):
        end = len(tokens) - 1
        inputs[row, :end] = torch.tensor(tokens[:-1])
        if scored:
            targets[row, end - scored : end] = torch.tensor(tokens[-scored:])
    return MicroBatch(
        tokens=inputs,
        targets=targets,
        documents=torch.zeros_like(inputs),
        positions=torch.arange(length).expand(len(windows), length).contiguous(),
        sources=torch.zeros(len(windows), dtype=torch.int64),
    )


class DecoderLM(LikelihoodLM):
    """Our decoder in this process, without an engine. The head runs on scored positions alone."""

    def __init__(
        self,
        decoder: Decoder,
        tokenizer: Tokenizer,
        max_length: int,
        *,
        batch_size: int = 16,
        bos: bool = False,
        share: Share | None = None,
        progress: bool = True,
    ) -> None:
        super().__init__(
            tokenizer,
            max_length=max_length,
            batch_size=batch_size,
            bos=bos,
            share=share,
            progress=progress,
        )
        self.decoder = decoder.eval()

    @torch.no_grad()
    def _score_batch(self, windows: list[Window]) -> list[Score]:
        batch = micro_batch(windows)
        device = self.decoder.embedding.weight.device
        hidden = self.decoder.hidden_states(batch.tokens.to(device), None, batch.positions.to(device))
        targets = batch.targets.to(device)
        wanted = targets != NO_TARGET
        selected, answers = hidden[wanted], targets[wanted]
        logprobs = torch.empty(len(answers), dtype=torch.float64)
        greedy = torch.empty(len(answers), dtype=torch.bool)
        for start in range(0, len(answers), LOGITS_AT_A_TIME):
            part = slice(start, start + LOGITS_AT_A_TIME)
            logits = self.decoder.head(selected[None, part], None, False)[0]
            logprobs[part] = logits.log_softmax(-1).gather(1, answers[part, None])[:, 0].double().cpu()
            greedy[part] = (logits.argmax(-1) == answers[part]).cpu()
        ends = wanted.sum(1).cumsum(0).tolist()
        return [
            (float(logprobs[start:end].sum()), bool(greedy[start:end].all()))
            for start, end in zip([0, *ends[:-1]], ends, strict=True)
        ]


def decoder_from(
    reader: CheckpointReader, config: ModelConfig, device: torch.device, dtype: torch.dtype
) -> Decoder:
    """The decoder with a checkpoint's fp32 masters, read one tensor at a time.

    Raises:
        UserError: the checkpoint lacks a parameter of ``config``, or has it in another shape.
    """
    with torch.device("meta"):
        decoder = Decoder(config)
    decoder = decoder.to(dtype).to_empty(device=device)
    decoder.tie()
    fill(decoder, reader, config)
    return decoder


def fill(
    decoder: Decoder, reader: CheckpointReader, config: ModelConfig, tensor: int = 1, rank: int = 0
) -> None:
    """Put a checkpoint's fp32 masters into a decoder, or into the part of one that tensor rank ``rank`` holds.

    Raises:
        UserError: the checkpoint lacks a parameter of ``config``, or has it in another shape.
    """
    held, shapes = set(reader.names()), parameter_shapes(config)
    for name, parameter in decoder.named_parameters():
        stored = f"master.{name}"
        if stored not in held:
            raise UserError(f"the checkpoint has no {stored}: its model is not the one of config.yaml")
        if (shape := tuple(reader.shape(stored))) != shapes[name]:
            raise UserError(f"{stored} is {shape} in the checkpoint, {shapes[name]} by config.yaml")
        where = place(config, name, shapes[name], tensor, rank)
        values = reader.read(stored, part=where.slices) if where.split else reader.read(stored)
        parameter.data.zero_()  # rows that fill up the vocabulary lie after the values
        parameter.data[: len(values)].copy_(values)
