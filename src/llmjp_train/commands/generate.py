"""`llmjp generate`: continue a text with a Hugging Face folder or a run's checkpoint."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llmjp_train import exit_codes
from llmjp_train.errors import UserError

SUMMARY = "continue a text with a run or a Hugging Face folder"
USES_CONFIG = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The model, the prompt, and how tokens are chosen."""
    parser.add_argument("model", type=Path, metavar="RUN|HF_FOLDER", help="run directory or exported folder")
    parser.add_argument(
        "text", nargs="?", metavar="PROMPT", help="text to go on from (standard input without it)"
    )
    parser.add_argument("--prompt", metavar="TEXT", help="the same, as a flag")
    parser.add_argument(
        "--step", default="latest", help="checkpoint of a run: a step, latest (default) or latest-valid"
    )
    parser.add_argument(
        "--max-tokens",
        "--max-new-tokens",
        type=int,
        default=128,
        metavar="N",
        help="tokens to add at most (128)",
    )
    parser.add_argument("--greedy", action="store_true", help="always take the likeliest token")
    parser.add_argument("--temperature", type=float, default=1.0, help="divides the logits (1.0)")
    parser.add_argument(
        "--top-p", type=float, default=0.95, metavar="P", help="probability of the candidates together (0.95)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the draws (0)")


def run(args: argparse.Namespace) -> int:
    """Write the prompt and its continuation to standard output, as it is made."""
    prompt = _prompt(args)
    from transformers.utils.logging import disable_progress_bar

    from llmjp_train.publish.generate import Sampling, generate

    disable_progress_bar()
    said: list[str] = []

    def write(text: str) -> None:
        # The prompt is shown once the model is loaded, so that an error is not printed behind it.
        said.append(text)
        print(text if len(said) > 1 else prompt + text, end="", flush=True)

    sampling = Sampling(args.greedy, args.temperature, args.top_p, args.seed, args.max_tokens)
    generate(args.model, prompt, sampling, write, args.step)
    print("" if said else prompt)
    return exit_codes.OK


def _prompt(args: argparse.Namespace) -> str:
    if args.text is not None and args.prompt is not None:
        raise UserError("the prompt is given twice: as PROMPT and with --prompt")
    prompt = args.prompt if args.text is None else args.text
    if prompt is None and not sys.stdin.isatty():
        prompt = _utf8(sys.stdin.read).rstrip("\n")
    if not prompt:
        raise UserError("no prompt: give a few words to go on from, e.g. --prompt 'むかし、あるところに'")
    _utf8(prompt.encode)  # bytes of an argument that are not UTF-8 came as lone surrogates
    return str(prompt)


def _utf8(act: Callable[[], Any]) -> Any:
    """What ``act`` gives, which reads or writes the prompt as UTF-8.

    Raises:
        UserError: the prompt is in another encoding.
    """
    try:
        return act()
    except UnicodeError as error:
        raise UserError(
            "the prompt is not UTF-8 text: convert it first, e.g. "
            "iconv -f SHIFT_JIS -t UTF-8 prompt.txt | llmjp generate MODEL"
        ) from error
