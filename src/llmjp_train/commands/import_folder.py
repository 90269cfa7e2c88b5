"""`llmjp import`: a Hugging Face model as a run to fork from, for continued pretraining.

  llmjp import MODEL_FOLDER --out imported
  llmjp train --config-dir imported/configs model=imported fork.run=imported tokenizer.path=imported/tokenizer ...

Weights are streamed: memory stays under two of the largest tensors. Moments start at zero. With --extend the
vocabulary becomes that of another tokenizer: pieces that both have keep their rows, a new piece starts as the mean of
the rows of the pieces that the old tokenizer cuts its text into, or of all rows where there is no such text.
"""

import argparse
import time
from pathlib import Path

from llmjp_train import exit_codes

SUMMARY = "make a Hugging Face model a run to go on from (Llama, Mistral, Qwen, GPT-2, GPT-NeoX)"
USES_CONFIG = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the command."""
    parser.add_argument(
        "folder", type=Path, metavar="HF_FOLDER", help="folder with config.json and safetensors"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="run directory to make (runs/NAME otherwise)")
    parser.add_argument(
        "--extend", type=Path, metavar="TOKENIZER", help="folder of the tokenizer to go on with"
    )


def run(args: argparse.Namespace) -> int:
    """Import, and say how to go on."""
    from llmjp_train.publish.importing import import_folder

    out = args.out or Path("runs") / args.folder.resolve().name
    began = time.perf_counter()
    info, model = import_folder(args.folder, out, args.extend)
    seconds = time.perf_counter() - began
    size = sum(path.stat().st_size for path in args.folder.glob("*.safetensors"))
    print(
        f"{out}: {info.path.name}, {size / 1e6:,.0f} MB read in {seconds:.1f} s ({size / 1e6 / seconds:,.0f} MB/s)"
    )
    print(f"vocabulary {model.vocab_size:,}")
    print("go on with:")
    print(
        f"  llmjp train --config-dir {out}/configs model=imported fork.run={out} tokenizer.path={out}/tokenizer "
        "data.sources.NAME.path=DATA run_dir=runs/continued"
    )
    return exit_codes.OK
