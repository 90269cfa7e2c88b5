"""Text from a Hugging Face folder or straight from a run's checkpoint, written as it is made."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llmjp_train.config.data import TokenizerConfig
from llmjp_train.data.tokenizers import Tokenizer, load_tokenizer
from llmjp_train.errors import UserError
from llmjp_train.evaluate.loading import folder_model

_UNFINISHED = "\ufffd"
"""What a decoder shows for bytes that are not a whole character yet."""


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen."""

    greedy: bool = False
    temperature: float = 1.0
    """Divides the logits."""
    top_p: float = 0.95
    """Least probability that the candidates have together (Holtzman et al., 2020)."""
    seed: int = 0
    max_tokens: int = 128

    def check(self) -> None:
        """See that the values make sense.

        Raises:
            UserError: one does not.
        """
        if not 0 < self.temperature < math.inf:  # not a number neither
            raise UserError(f"--temperature {self.temperature:g}: give a positive number, or --greedy")
        if not 0 < self.top_p <= 1:
            raise UserError(f"--top-p {self.top_p:g}: give a number above 0 and up to 1")
        if self.max_tokens < 1:
            raise UserError(f"--max-tokens {self.max_tokens}: give at least 1")


class TextStream:
    """Turns tokens into text as they come; also transformers' streamer (`put` and `end`).

    transformers' own TextStreamer waits for a space or a Chinese character, so that kana would only show at
    the end. Here a text is shown unless its last character lacks bytes.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: list[int], write: Callable[[str], None]) -> None:
        self._tokenizer, self._write = tokenizer, write
        self._ids = list(prompt)
        self._shown = tokenizer.decode(prompt)
        self._skip = True  # transformers puts the prompt first

    def add(self, token: int) -> None:
        """Take one more token; write what it completes."""
        self._ids.append(token)
        self._flush(last=False)

    def put(self, value: Tensor) -> None:
        """As transformers calls it: the prompt first, then each token."""
        if self._skip:
            self._skip = False
            return
        for token in value.flatten().tolist():
            self.add(token)

    def end(self) -> None:
        """Write what is left."""
        self._flush(last=True)

    def _flush(self, *, last: bool) -> None:
        text = self._tokenizer.decode(self._ids)
        if text.endswith(_UNFINISHED) and not last:
            return
        common = 0
        while common < min(len(text), len(self._shown)) and text[common] == self._shown[common]:
            common += 1
        if text[common:]:
            self._write(text[common:])
        self._shown = text


def generate(
    model: Path, prompt: str, sampling: Sampling, write: Callable[[str], None], step: str = "latest"
) -> int:
    """Continue a prompt with a Hugging Face folder or a run directory; the number of new tokens.

    The prompt gets no special token, as in training. Ends at the end of the document, at ``max_tokens``, or
    where the context is full.

    Raises:
        UserError: there is no model, no tokenizer or no prompt, or a value is of no use.
    """
    sampling.check()
    if (model / "config.yaml").is_file():
        return _from_run(model, prompt, sampling, write, step)
    if (model / "config.json").is_file():
        return _from_folder(model, prompt, sampling, write)
    if not model.exists():
        raise UserError(f"{model} does not exist: give a run directory or a Hugging Face folder")
    raise UserError(
        f"{model} is neither a run directory (no config.yaml) nor a Hugging Face folder (no config.json)"
    )


def _encode(tokenizer: Tokenizer, prompt: str, room: int) -> list[int]:
    ids = tokenizer.encode(prompt)
    if not ids:
        raise UserError("the prompt is empty: give a few words to go on from")
    if len(ids) >= room:
        raise UserError(f"the prompt has {len(ids)} tokens, the model's context {room}: give a shorter one")
    return ids


def _from_folder(folder: Path, prompt: str, sampling: Sampling, write: Callable[[str], None]) -> int:
    from transformers import GenerationConfig

    tokenizer = load_tokenizer(TokenizerConfig(name=folder.name, path=str(folder)))
    dtype = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    model = folder_model(folder, dtype).to("cuda" if torch.cuda.is_available() else "cpu").eval()
    room = model.config.max_position_embeddings
    ids = _encode(tokenizer, prompt, room)
    ends = {tokenizer.eod_id}
    stated = model.generation_config.eos_token_id
    ends |= set(stated if isinstance(stated, list) else [] if stated is None else [stated])
    # What its settings leave open, transformers takes from the folder: a repetition penalty would make
    # "greedy" something else.
    model.generation_config = GenerationConfig()
    chosen: dict[str, Any] = {"do_sample": False}
    if not sampling.greedy:
        chosen = {
            "do_sample": True,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": 0,  # transformers' default of 50 would cut the candidates once more
        }
    settings = GenerationConfig(
        max_new_tokens=min(sampling.max_tokens, room - len(ids)),
        eos_token_id=sorted(ends),
        pad_token_id=tokenizer.eod_id,
        **chosen,
    )
    torch.manual_seed(sampling.seed)
    tokens = torch.tensor([ids], device=model.device)
    stream = TextStream(tokenizer, ids, write)
    with torch.inference_mode():
        output = model.generate(
            tokens, attention_mask=torch.ones_like(tokens), generation_config=settings, streamer=stream
        )
    return int(output.shape[1]) - len(ids)


def _from_run(run: Path, prompt: str, sampling: Sampling, write: Callable[[str], None], step: str) -> int:
    from llmjp_train.checkpoint.listing import choose
    from llmjp_train.checkpoint.store import CheckpointReader
    from llmjp_train.config.compose import load_config
    from llmjp_train.publish.weights import load_decoder, parse_step

    config = load_config(run / "config.yaml")
    saved = run / "tokenizer"
    wanted = (
        TokenizerConfig(name=config.tokenizer.name, path=str(saved)) if saved.is_dir() else config.tokenizer
    )
    tokenizer = load_tokenizer(wanted)
    ids = _encode(tokenizer, prompt, config.model.max_positions)
    reader = CheckpointReader(choose(run, parse_step(step)).path)
    decoder = load_decoder(reader, config.model, torch.float32)
    stream = TextStream(tokenizer, ids, write)
    count = 0
    for token in next_tokens(decoder, ids, sampling, config.model.max_positions):
        count += 1
        stream.add(token)
        if token == tokenizer.eod_id:
            break
    stream.end()
    return count


@torch.inference_mode()
def next_tokens(decoder: Any, ids: list[int], sampling: Sampling, room: int) -> Iterator[int]:
    """Tokens that our decoder adds to ``ids``; the whole text is computed anew for each."""
    generator = torch.Generator().manual_seed(sampling.seed)
    tokens = list(ids)
    for _ in range(min(sampling.max_tokens, room - len(ids))):
        hidden = decoder.hidden_states(torch.tensor([tokens]))
        logits = decoder.head(hidden[:, -1:], None, False)[0, 0]
        tokens.append(choose_token(logits, sampling, generator))
        yield tokens[-1]


def choose_token(logits: Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """One token from logits (V,): the likeliest, or drawn from the smallest set that has ``top_p``."""
    if sampling.greedy:
        return int(logits.argmax())
    probabilities, order = (logits / sampling.temperature).softmax(-1).sort(descending=True)
    before = probabilities.cumsum(0) - probabilities
    probabilities = probabilities.where(before < sampling.top_p, 0.0)
    return int(order[torch.multinomial(probabilities, 1, generator=generator)])
