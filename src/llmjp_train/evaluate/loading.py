"""A folder or a checkpoint as a model for the harness: the fast runner where it gives the model's own scores."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from llmjp_train.checkpoint.store import CheckpointReader
from llmjp_train.config.data import TokenizerConfig
from llmjp_train.config.evaluation import EvaluateConfig
from llmjp_train.config.model import ModelConfig
from llmjp_train.data.tokenizers import Tokenizer, load_tokenizer
from llmjp_train.errors import UserError
from llmjp_train.evaluate.fast import FastLM
from llmjp_train.evaluate.folder import TOKENIZER_FILES, FolderLM, folder_bos
from llmjp_train.evaluate.likelihood import Share
from llmjp_train.evaluate.models import DecoderLM, decoder_from, device_of, dtype_of
from llmjp_train.evaluate.network import Network
from llmjp_train.evaluate.parts import PartLM
from llmjp_train.evaluate.together import Party
from llmjp_train.model.hf import family_of, hf_tensors, to_hf_config

RUNNERS = ("fast", "harness")


def check_runner(config: EvaluateConfig) -> None:
    """See that the runner is known.

    Raises:
        UserError: it is not.
    """
    if config.runner not in RUNNERS:
        raise UserError(f"runner={config.runner}: give {' or '.join(RUNNERS)}")


def _bos(config: EvaluateConfig) -> bool | None:
    """What was asked for; a chat template writes BOS itself where its model expects it."""
    return False if config.chat and config.bos is None else config.bos


ALONE = Party(Share())


def folder_lm(folder: Path, config: EvaluateConfig, say: Callable[[str], None], party: Party = ALONE) -> Any:
    """The model of a Hugging Face folder.

    Args:
        party: this process's part of the items.

    Raises:
        UserError: the folder lacks its tokenizer or a part of its weights, or several processes are to share a
            runner that cannot.
    """
    check_runner(config)
    device = device_of(config.device)

    def harness_s_own() -> FolderLM:
        if party.size > 1:
            raise UserError(
                f"lm-evaluation-harness's own class runs in one process, {party.size} were started: start one"
            )
        return FolderLM(
            folder,
            device=device,
            dtype=config.dtype,
            batch_size=config.batch_size,
            max_length=config.max_length,
            bos=_bos(config),
        )

    if config.runner == "harness":
        return harness_s_own()
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise UserError(f"{folder} holds no tokenizer ({' or '.join(TOKENIZER_FILES)}): export the run again")
    tokenizer = load_tokenizer(TokenizerConfig(name=folder.name, path=str(folder)))
    network = Network(folder_model(folder, dtype_of(config.dtype)).to(device))
    stated = getattr(network.model.config, "max_position_embeddings", None) or 2048
    longest = config.max_length or stated
    if reason := network.why_not(longest):
        say(f"the fast runner does not fit this model: {reason}; lm-evaluation-harness's own is used")
        return harness_s_own()
    stated_bos = _bos(config)
    bos = folder_bos(folder, tokenizer) if stated_bos is None else stated_bos
    return FastLM(network, tokenizer, longest, batch_tokens=config.batch_tokens, bos=bos, share=party.share)


def folder_model(folder: Path, dtype: torch.dtype) -> Any:
    """transformers' model of a folder. Its code is never run and its weights are safetensors: a pickle is refused.

    Raises:
        UserError: transformers cannot load it, or a part of its weights is missing.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            local_files_only=True,
            output_loading_info=True,
            use_safetensors=True,
            trust_remote_code=False,
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{folder}: transformers cannot load the model: {error}") from error
    # transformers fills what is not in the files with random numbers and only warns.
    if missing := sorted(report.get("missing_keys") or []):
        raise UserError(
            f"{folder}: transformers cannot load the model: its files lack {len(missing)} tensors ({missing[0]}, ...): "
            "copy or export the folder again"
        )
    return model


def run_lm(
    reader: CheckpointReader,
    trained: ModelConfig,
    tokenizer: Tokenizer,
    config: EvaluateConfig,
    say: Callable[[str], None],
    party: Party = ALONE,
) -> Any:
    """The model of a training checkpoint of any layout, without an export.

    Args:
        party: this process's part of the items, and of the model.

    Raises:
        UserError: the checkpoint is not of this model, or a value is of no use.
    """
    check_runner(config)
    device, dtype = device_of(config.device), dtype_of(config.dtype)
    longest = min(config.max_length or trained.max_positions, trained.max_positions)
    if party.layout is not None:
        say("a model in parts: likelihood tasks on our own decoder, without sharing examples")
        return PartLM(
            reader,
            trained,
            party.layout,
            tokenizer,
            longest,
            dtype=dtype,
            batch_size=config.batch_size,
            bos=bool(config.bos),
        )
    if config.runner == "fast":
        try:
            family_of(trained)
        except UserError as error:
            say(f"the fast runner does not fit this model: {error}; likelihood tasks run on our own decoder")
        else:
            network = Network(from_checkpoint(reader, trained, device, dtype))
            if (reason := network.why_not(longest)) is None:
                return FastLM(
                    network,
                    tokenizer,
                    longest,
                    batch_tokens=config.batch_tokens,
                    bos=bool(config.bos),
                    share=party.share,
                )
            say(f"the fast runner does not fit this model: {reason}")
    decoder = decoder_from(reader, trained, device, dtype)
    return DecoderLM(
        decoder, tokenizer, longest, batch_size=config.batch_size, bos=bool(config.bos), share=party.share
    )


def from_checkpoint(
    reader: CheckpointReader, trained: ModelConfig, device: torch.device, dtype: torch.dtype
) -> Any:
    """transformers' model with a checkpoint's fp32 masters, read one tensor at a time.

    Raises:
        UserError: the checkpoint lacks a parameter of the model, or has it in another shape.
    """
    from transformers import AutoModelForCausalLM
    from transformers.initialization import no_init_weights

    held = set(reader.names())

    def read(name: str) -> torch.Tensor:
        if f"master.{name}" not in held:
            raise UserError(f"the checkpoint has no master.{name}: its model is not the one of config.yaml")
        return reader.read(f"master.{name}")

    settings = to_hf_config(trained, dtype=str(dtype).removeprefix("torch."))
    with no_init_weights(), torch.device(device):
        model = AutoModelForCausalLM.from_config(settings, dtype=dtype)
    parameters = dict(model.named_parameters())
    for name, tensor in hf_tensors(trained, read):
        # GPT-NeoX's head has another name in files than in memory.
        place = parameters.get(name, parameters.get("lm_head.weight") if name == "embed_out.weight" else None)
        assert place is not None, name
        if place.shape != tensor.shape:
            raise UserError(
                f"{name} is {tuple(tensor.shape)} in the checkpoint, {tuple(place.shape)} by config.yaml"
            )
        place.data.copy_(tensor)
    model.tie_weights()
    return model
