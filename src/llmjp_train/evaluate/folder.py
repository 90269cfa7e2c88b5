"""A Hugging Face folder as lm-evaluation-harness takes it."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from llmjp_train.config.data import TokenizerConfig
from llmjp_train.data.tokenizers import Tokenizer, load_tokenizer
from llmjp_train.errors import UserError
from llmjp_train.evaluate.encoding import Row
from llmjp_train.evaluate.likelihood import Score, count_windows, make_encoder
from llmjp_train.evaluate.models import dtype_of

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model")

if TYPE_CHECKING:

    class HFLM:
        """As mypy sees `lm_eval.models.huggingface.HFLM`, which is not typed throughout."""

        max_length: int

        def __init__(self, pretrained: str, **settings: Any) -> None: ...

        def _loglikelihood_tokens(
            self, requests: Sequence[Any], disable_tqdm: bool = False
        ) -> list[tuple[float, bool]]: ...

else:
    from lm_eval.models.huggingface import HFLM


class FolderLM(HFLM):
    """A Hugging Face folder through the harness's class, with our rule for special tokens and boundaries."""

    knows_greedy = True

    def __init__(
        self,
        folder: Path,
        *,
        device: torch.device,
        dtype: str = "float32",
        batch_size: int = 16,
        max_length: int | None = None,
        bos: bool | None = None,
        progress: bool = True,
    ) -> None:
        """
        Args:
            max_length: none: what the folder's config states.
            bos: none: as `folder_bos` finds.

        Raises:
            UserError: the folder holds no model or no tokenizer.
        """
        dtype_of(dtype)
        if not any((folder / name).is_file() for name in TOKENIZER_FILES):
            raise UserError(
                f"{folder} holds no tokenizer ({' or '.join(TOKENIZER_FILES)}): export the run again"
            )
        self.ours = load_tokenizer(TokenizerConfig(name=folder.name, path=str(folder)))
        self.bos = folder_bos(folder, self.ours) if bos is None else bos
        if self.bos and self.ours.bos_id is None:
            raise UserError("bos=true, but the tokenizer has no BOS token: leave bos out")
        self.encoder = make_encoder(self.ours, self.bos)
        self._progress = progress
        try:
            super().__init__(
                pretrained=str(folder),
                device=str(device),
                dtype=dtype,
                batch_size=batch_size,
                max_length=max_length,
                prefix_token_id=self.encoder.prefix_id,
                use_safetensors=True,
                trust_remote_code=False,
            )
        except (OSError, ValueError) as error:
            raise UserError(f"{folder}: transformers cannot load the model: {error}") from error

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Ids of ``string``, never with special tokens: ver2 tokenizers of LLM-jp append EOD (facts T1)."""
        return self.ours.encode(string)

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[Score]:
        """Score of each (context, continuation) request."""
        return self._rows([self.encoder.pair(*request.args) for request in requests])

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-probability in nats of each whole text."""
        windows = [self.encoder.rolling(request.args[0], self.max_length) for request in requests]
        scores = iter(self._rows([row for rows in windows for row in rows]))
        return [sum(next(scores)[0] for _ in rows) for rows in windows]

    def _rows(self, rows: list[Row]) -> list[Score]:
        count_windows(self.encoder, rows, self.max_length)
        requests = [(None, list(row.context), list(row.continuation)) for row in rows]
        scores: list[Score] = self._loglikelihood_tokens(requests, disable_tqdm=not self._progress)
        return scores


def folder_bos(folder: Path, tokenizer: Tokenizer) -> bool:
    """Whether a folder's model expects BOS: ours never saw one; others as their tokenizer puts it."""
    if (folder / "parity.json").is_file() or tokenizer.bos_id is None:
        return False
    return bool(tokenizer.hf("あ")["input_ids"][:1] == [tokenizer.bos_id])
