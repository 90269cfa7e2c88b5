"""The fast runner against lm-evaluation-harness's own class: same model, tasks and items, in turns."""

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

from benchmarks.common import report

TASKS = ("jcommonsenseqa", "jnli", "jmmlu_nutrition", "jsts", "jemhopqa")
NEW_TOKENS = 24
"""Greatest length of a random model's answers: it hardly ever ends one."""


def main(words: list[str]) -> None:
    """Measure."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=7, help="interleaved pairs for each task")
    parser.add_argument("--items", type=int, default=24, help="items of each task")
    parser.add_argument("--tasks", nargs="*", default=list(TASKS))
    parser.add_argument("--batch-size", type=int, default=16, help="of the harness")
    parser.add_argument(
        "--model",
        type=Path,
        metavar="FOLDER",
        help="an exported model, whose answers end; otherwise a random Llama",
    )
    parser.add_argument(
        "--agree",
        action="store_true",
        help="instead: all items once on --model, both classes",
    )
    args = parser.parse_args(words)
    if args.agree and args.model is None:
        parser.error("--agree needs --model: a random model's scores are all alike")
    rows = []
    for name in args.tasks:
        if args.agree:
            rows.append(agreement(name, args.model, args.batch_size))
            print(*rows[-1], sep="; ", flush=True)  # all items take long: what is killed has told some
        else:
            rows += measure(name, args.items, args.rounds, args.batch_size, args.model)
    report("evaluate", rows)


def random_llama(tokenizer: Any) -> Any:
    """A Llama of 4 layers and width 128 for a tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=128, intermediate_size=384, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=4096,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def models(batch_size: int, folder: Path | None = None) -> tuple[Any, Any]:
    """(fast, plain) of an exported folder, or of a random Llama on LLM-jp's tokenizer 2.2."""
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoModelForCausalLM

    from llmjp_train.config.data import TokenizerConfig
    from llmjp_train.data import catalogue
    from llmjp_train.data.tokenizers import load_tokenizer
    from llmjp_train.evaluate.fast import FastLM
    from llmjp_train.evaluate.network import Network

    path = folder or Path(catalogue.get("llm-jp-v2.2-50k"))
    tokenizer = load_tokenizer(TokenizerConfig(name="ours", path=str(path)))
    model: Any = (
        AutoModelForCausalLM.from_pretrained(folder, dtype="float32").eval()
        if folder
        else random_llama(tokenizer)
    )
    hf = load_tokenizer(TokenizerConfig(name="again", path=str(path))).hf
    hf.backend_tokenizer.post_processor = None  # its habit of appending EOD spoils contexts (T1)
    longest = model.config.max_position_embeddings
    plain = HFLM(
        model, tokenizer=hf, device="cpu", batch_size=batch_size, max_length=longest, add_bos_token=False
    )
    plain.custom_prefix_token_id = tokenizer.eod_id
    return FastLM(Network(model), tokenizer, longest, show=False), plain


def agreement(name: str, folder: Path, batch_size: int) -> tuple[str, str, str]:
    """Both classes on all items of a task: do log-likelihoods, greedy flags and answers, or the texts, agree?

    A request whose tokens cross from context to choice is scored from its first character by ours alone, and left out.
    """
    from llmjp_train.evaluate import harness
    from llmjp_train.evaluate.suites import choose

    fast, plain = models(batch_size, folder)
    task = harness.load_task(choose("", [name])[0][0], [])
    harness.build(task, None)
    if task.OUTPUT_TYPE == "generate_until":
        requests = list(task.instances)
        texts = fast.generate_until(requests, True), plain.generate_until(requests, True)
        differ = sum(ours != theirs for ours, theirs in zip(*texts, strict=True))
        return (
            f"{name}: {len(requests)} texts",
            f"{differ} differ, {fast.encoder.counts.unfinished} do not end",
            "0",
        )
    requests, skipped = [], 0
    for request in task.instances:
        before = fast.encoder.counts.joined_tokens
        fast.encoder.pair(*request.args)
        crossed = fast.encoder.counts.joined_tokens > before
        skipped += crossed
        requests += [] if crossed else [request]
    ours, theirs = fast.loglikelihood(requests, True), plain.loglikelihood(requests, True)
    worst = max(abs(a[0] - b[0]) for a, b in zip(ours, theirs, strict=True))
    flags = sum(a[1] != b[1] for a, b in zip(ours, theirs, strict=True))
    items: dict[int, list[tuple[float, float]]] = {}
    for request, mine, wanted in zip(requests, ours, theirs, strict=True):
        items.setdefault(request.doc_id, []).append((mine[0], wanted[0]))
    flips = sum(
        _best(mine) != _best(wanted) for mine, wanted in (zip(*both, strict=True) for both in items.values())
    )
    return (
        f"{name}: {len(items)} items, {len(requests)} requests, {skipped} left out",
        f"largest difference {worst:.1e} nats, {flags} greedy flags differ, {flips} items flip",
        "no item flips",
    )


def _best(scores: tuple[float, ...]) -> int:
    return max(range(len(scores)), key=scores.__getitem__)


def measure(
    name: str, items: int, rounds: int, batch_size: int, folder: Path | None
) -> list[tuple[str, str, str]]:
    """CPU seconds and tokens of both on one task, in turns; checks that they agree."""
    from llmjp_train.evaluate import harness
    from llmjp_train.evaluate.encoding import Counts
    from llmjp_train.evaluate.suites import choose

    fast, plain = models(batch_size, folder)
    chosen, _ = choose("", [name])
    task = harness.load_task(chosen[0], [])
    harness.build(task, items)
    requests = list(task.instances)
    written = task.OUTPUT_TYPE == "generate_until"
    if written and folder is None:
        for request in requests:
            request.arguments[1]["max_gen_toks"] = NEW_TOKENS

    def ask(lm: Any) -> Any:
        return lm.generate_until(requests, True) if written else lm.loglikelihood(requests, True)

    seconds: dict[str, list[float]] = {"fast": [], "plain": []}
    found: dict[str, Any] = {}
    with counted(plain.model) as tokens:
        for _ in range(rounds):
            for key, lm in (("fast", fast), ("plain", plain)):
                fast.encoder.counts = Counts()
                tokens[key] = tokens["now"] = 0
                began = time.process_time()  # what other processes of the machine do is left out
                found[key] = ask(lm)
                seconds[key].append(time.process_time() - began)
                tokens[key] = tokens["now"]
    if written:
        assert found["fast"] == found["plain"], "the texts differ"
        differing = "texts equal"
    else:
        worst = max(abs(a[0] - b[0]) for a, b in zip(found["fast"], found["plain"], strict=True))
        flips = sum(a[1] != b[1] for a, b in zip(found["fast"], found["plain"], strict=True))
        differing = f"largest difference {worst:.1e} nats, {flips} greedy flags differ"
    pairs = sorted(b / a for a, b in zip(seconds["fast"], seconds["plain"], strict=True))
    goal = ">= 2" if written else ">= 10"
    return [
        (f"{name}: plain CPU seconds / ours, {len(requests)} requests", f"{statistics.median(pairs):.1f} "
         f"({pairs[0]:.1f} to {pairs[-1]:.1f})", f"goal {goal}"),
        (f"{name}: plain tokens / ours", f"{tokens['plain'] / tokens['fast']:.1f} "
         f"({tokens['plain']:,} / {tokens['fast']:,})", ""),
        (f"{name}: agreement", differing, "no item flips"),
    ]  # fmt: skip


class counted:  # noqa: N801
    """Counts the tokens that go through a model's body, padding included."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.tokens = {"now": 0, "fast": 0, "plain": 0}

    def __enter__(self) -> dict[str, int]:
        def add(module: Any, args: Any, kwargs: Any) -> None:
            given = kwargs.get("input_ids", args[0] if args else None)
            self.tokens["now"] += given.numel()

        self.hook: Any = self.model.base_model.register_forward_pre_hook(add, with_kwargs=True)
        return self.tokens

    def __exit__(self, *error: object) -> None:
        self.hook.remove()
