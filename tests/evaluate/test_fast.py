"""The fast runner gives the plain harness's scores item by item, with fewer tokens; and takes trouble well."""

import json
import math
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from llmjp_train.data.tokenizers import Tokenizer
from llmjp_train.errors import UserError
from llmjp_train.evaluate import harness
from llmjp_train.evaluate.encoding import Row
from llmjp_train.evaluate.fast import FastLM
from llmjp_train.evaluate.generation import _stopped
from llmjp_train.evaluate.journal import Journal
from llmjp_train.evaluate.network import NOTHING, Network
from llmjp_train.evaluate.packing import Item, batches_of, common_prefix, dealt, items_of
from llmjp_train.evaluate.runner import evaluate
from llmjp_train.evaluate.suites import choose
from llmjp_train.evaluate.tasks import read_items

CPU = torch.device("cpu")
LIKELIHOOD = [
    "jcommonsenseqa",
    "jnli",
    "jsts",
    "jcola",
    "janli",
    "jmmlu_nutrition",
    "own_choice",
    "own_texts",
]
WRITTEN = ["jsquad", "jemhopqa", "niilc", "mgsm_ja", "mawps_ja", "llm_jp_eval_jnli"]


@pytest.fixture(scope="module")
def network(hf_folder: Path) -> Network:
    from transformers import AutoModelForCausalLM

    return Network(AutoModelForCausalLM.from_pretrained(hf_folder))


def fast(network: Network, tokenizer: Any, **settings: Any) -> FastLM:
    return FastLM(network, tokenizer, settings.pop("max_length", 256), show=False, **settings)


@pytest.fixture(scope="module")
def plain(hf_folder: Path, tokenizer: Any) -> Any:
    """lm-evaluation-harness's own class; the toy tokenizer's habit of appending EOD is switched off (T1)."""
    from lm_eval.models.huggingface import HFLM

    lm = HFLM(
        str(hf_folder), device="cpu", dtype="float32", batch_size=4, max_length=256, add_bos_token=False
    )
    lm.tokenizer.backend_tokenizer.post_processor = None
    lm.custom_prefix_token_id = tokenizer.eod_id
    return lm


def requests_of(name: str, limit: int, num_fewshot: int) -> list[Any]:
    chosen, _ = choose("", [name], num_fewshot=num_fewshot)
    task = harness.load_task(chosen[0], [])
    task.build_all_requests(limit=limit)
    return list(task.instances)


def clean(encoder: Any, request: Any) -> bool:
    """Whether the harness's cut is at the boundary: elsewhere it scores other characters (T2)."""
    before = encoder.counts.joined_tokens
    encoder.pair(*request.args)
    return bool(encoder.counts.joined_tokens == before)


@pytest.mark.parametrize("name", ["own_choice", "jnli", "jsts"])
def test_scores_are_the_plain_harness_s(
    name: str, network: Network, tokenizer: Any, plain: Any, llmjp_data: Path
) -> None:
    lm = fast(network, tokenizer)
    requests = [r for r in requests_of(name, 4, 1) if clean(lm.encoder, r)]
    assert len(requests) >= 8
    ours, theirs = lm.loglikelihood(requests), plain.loglikelihood(requests, disable_tqdm=True)
    for (mine, greedy), (wanted, their_greedy) in zip(ours, theirs, strict=True):
        assert mine == pytest.approx(wanted, abs=2e-4)
        assert greedy == their_greedy


def test_whole_texts_are_the_plain_harness_s(network: Network, tokenizer: Any, plain: Any) -> None:
    requests = requests_of("own_texts", 3, 0)
    for request in requests:  # one window: where a text is cut differs by one token from the harness
        request.arguments = (request.args[0][:140],)
    ours = fast(network, tokenizer).loglikelihood_rolling(requests)
    theirs = plain.loglikelihood_rolling(requests, disable_tqdm=True)
    assert ours == pytest.approx(theirs, rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["jemhopqa", "niilc"])
def test_texts_are_the_plain_harness_s(
    name: str, network: Network, tokenizer: Any, plain: Any, llmjp_data: Path
) -> None:
    requests = requests_of(name, 5, 1)
    lm = fast(network, tokenizer)
    theirs = plain.generate_until(requests, disable_tqdm=True)
    assert lm.generate_until(requests) == theirs
    assert any(theirs)
    alone = [fast(network, tokenizer).generate_until([request])[0] for request in requests]
    assert alone == theirs


def test_the_tokenizer_s_eod_does_not_reach_a_text_that_is_continued(
    network: Network, tokenizer: Any
) -> None:
    lm = fast(network, tokenizer)
    assert tokenizer.hf("質問：")["input_ids"][-1] == tokenizer.eod_id  # the trap is set
    assert lm._context("質問：") == tokenizer.encode("質問：")


@pytest.fixture(scope="module")
def larger(root: Path) -> tuple[Any, Any]:
    """A tokenizer of 4,000 pieces over the project's corpus and a random model for it: (ours, transformers')."""
    from tokenizers import Tokenizer as Raw
    from tokenizers import decoders, models
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    counts: Counter[str] = Counter()
    for path in sorted((root / "src/llmjp_train/data/corpus").glob("*.jsonl")):
        for row in read_items(path):
            for words in re.findall(r"\w+", row["text"]):
                counts.update(words[i : i + n] for n in (1, 2, 3) for i in range(len(words) - n + 1))
    pieces = [(f"<0x{byte:02X}>", -14.0) for byte in range(256)]
    pieces += [(piece, math.log(count / 1e6)) for piece, count in counts.most_common(4000 - 259)]
    raw = Raw(
        models.Unigram([("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0), *pieces], unk_id=0, byte_fallback=True)
    )
    raw.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    theirs = PreTrainedTokenizerFast(
        tokenizer_object=raw, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=4000, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=4096, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8 if parameter.ndim > 1 else 1)
    return Tokenizer(theirs), model


@pytest.mark.full
@pytest.mark.parametrize("name", [*LIKELIHOOD, *WRITTEN])
def test_a_hundred_items_of_each_task_equal_the_plain_harness_s(
    name: str, larger: tuple[Any, Any], llmjp_data: Path
) -> None:
    """With each task's own examples; texts are cut short, as a random model does not end them."""
    from lm_eval.models.huggingface import HFLM

    ours, model = larger
    plain = HFLM(model, tokenizer=ours.hf, device="cpu", batch_size=8, max_length=4096, add_bos_token=False)
    plain.custom_prefix_token_id = ours.eod_id
    lm = FastLM(Network(model), ours, 4096, show=False)
    chosen, _ = choose("", [name])
    requests = requests_of(name, 100, chosen[0].num_fewshot)
    if name in WRITTEN:
        for request in requests:
            request.arguments[1]["max_gen_toks"] = min(6, request.arguments[1]["max_gen_toks"])
        assert lm.generate_until(requests) == plain.generate_until(requests, disable_tqdm=True)
        return
    if name == "own_texts":
        found = plain.loglikelihood_rolling(requests, disable_tqdm=True)
        assert lm.loglikelihood_rolling(requests) == pytest.approx(found, rel=1e-6)
        return
    ours_found, theirs_found = lm.loglikelihood(requests), plain.loglikelihood(requests, disable_tqdm=True)
    assert lm.encoder.counts.joined_tokens == 0
    assert lm.encoder.counts.tokens_run < lm.encoder.counts.tokens_plain / 3
    for (mine, greedy), (wanted, their_greedy) in zip(ours_found, theirs_found, strict=True):
        assert mine == pytest.approx(wanted, abs=1e-3)
        assert greedy == their_greedy


def test_tokens_are_counted_and_fewer(network: Network, tokenizer: Any) -> None:
    lm = fast(network, tokenizer)
    chosen, _ = choose("quick", ["own_choice"], limit=8, num_fewshot=1)
    task = evaluate(lm, chosen, model="toy")["tasks"]["own_choice"]
    assert task["tokens_run"] < task["tokens_plain"] / 3
    assert task["unfinished"] == 0


@pytest.mark.parametrize("batch_tokens", [1, 40, 100000])
def test_scores_do_not_depend_on_the_batch(batch_tokens: int, network: Network, tokenizer: Any) -> None:
    requests = requests_of("own_choice", 4, 1)
    wanted = fast(network, tokenizer).loglikelihood(requests)
    found = fast(network, tokenizer, batch_tokens=batch_tokens).loglikelihood(requests)
    assert [score for score, _ in found] == pytest.approx([score for score, _ in wanted], abs=1e-4)


def test_inputs_that_are_cut_are_counted_and_scored_apart(
    network: Network, tokenizer: Any, plain: Any
) -> None:
    requests = requests_of("own_reading", 4, 2)
    lm = fast(network, tokenizer)
    ours = lm.loglikelihood(requests)
    assert lm.encoder.counts.truncated == len(requests)
    clean_ones = [i for i, request in enumerate(requests) if clean(lm.encoder, request)]
    theirs = plain.loglikelihood(requests, disable_tqdm=True)
    for i in clean_ones:
        assert ours[i][0] == pytest.approx(theirs[i][0], abs=2e-4)


@settings(max_examples=20)
@given(
    st.lists(st.lists(st.integers(0, 599), min_size=1, max_size=5), min_size=1, max_size=4),
    st.integers(1, 14),
)
def test_packed_choices_score_as_alone(network: Network, choices: list[list[int]], prefix: int) -> None:
    context = tuple(range(50, 65))
    item = Item(context, [tuple(choice) for choice in choices], list(range(len(choices))))
    other = Item((*context[:prefix], 7, 8, 9), [(1, 2)], [0])
    found = network.score([item, other], network.run_prefix(context[:prefix]))
    for (score, greedy), choice in zip(found, choices, strict=False):
        with torch.no_grad():
            logprobs = network.model(torch.tensor([[*context, *choice]])).logits[0].log_softmax(-1)
        steps = logprobs[len(context) - 1 : -1]
        assert score == pytest.approx(sum(float(s[t]) for s, t in zip(steps, choice, strict=True)), abs=1e-4)
        assert greedy == (steps.argmax(-1).tolist() == choice)


def test_grouping_prefix_and_batches() -> None:
    rows = [Row((1, 2, 3), (4,)), Row((1, 2, 3), (5, 6)), Row((1, 2), (4,))]
    items = items_of(rows, [0, 1, 2], 10)
    assert [(item.context, item.places) for item in items] == [((1, 2, 3), [0, 1]), ((1, 2), [2])]
    shared = tuple(range(20))
    assert common_prefix([(*shared, 1), (*shared, 2), (*shared, 3), (*shared, 4), (9, 9, *shared)]) == shared
    assert common_prefix([shared, shared]) == shared[:-1]
    assert common_prefix([(1, 2, 3), (4, 5, 6)]) == ()
    assert common_prefix([shared]) == ()
    assert batches_of([3, 9, 1, 2], 9) == [[1], [0, 3, 2]]
    assert batches_of([30], 9) == [[0]]
    assert dealt([5, 1, 4, 2, 3], 2) == [[0, 1, 3], [2, 4]]
    assert dealt([7], 3) == [[0], [], []]
    assert sorted(place for part in dealt([1] * 10, 4) for place in part) == list(range(10))


class Small:
    """Memory for so many tokens at a time."""

    def __init__(self, network: Network, most: int) -> None:
        self.most, self.failed = most, 0
        self.hook = network.body.register_forward_pre_hook(self.check, with_kwargs=True)

    def check(self, module: Any, args: Any, kwargs: Any) -> None:
        tokens = kwargs.get("input_ids", args[0] if args else None)
        if tokens.numel() > self.most:
            self.failed += 1
            raise torch.OutOfMemoryError("CUDA out of memory")


def test_where_memory_runs_out_the_batch_is_halved(network: Network, tokenizer: Any) -> None:
    requests = requests_of("own_choice", 16, 0)
    wanted = fast(network, tokenizer).loglikelihood(requests)
    small = Small(network, 120)
    try:
        lm = fast(network, tokenizer)
        found = lm.loglikelihood(requests)
    finally:
        small.hook.remove()
    assert small.failed >= 1
    assert lm.batch_tokens < 4096
    assert [score for score, _ in found] == pytest.approx([score for score, _ in wanted], abs=1e-4)


def test_one_input_that_memory_does_not_hold_is_an_error(network: Network, tokenizer: Any) -> None:
    small = Small(network, 5)
    try:
        with pytest.raises(UserError, match="memory does not hold one input of"):
            fast(network, tokenizer).loglikelihood(requests_of("own_choice", 2, 0))
    finally:
        small.hook.remove()


def test_a_killed_evaluation_goes_on_without_repeating_items(
    network: Network, tokenizer: Any, tmp_path: Path
) -> None:
    requests = requests_of("own_choice", 12, 1)
    path, about = tmp_path / "x.progress.jsonl", {"model": "toy"}
    first = fast(network, tokenizer, journal=Journal(path, about), batch_tokens=60)
    calls = 0

    def stop_after_three(module: Any, args: Any, kwargs: Any) -> None:
        nonlocal calls
        calls += 1
        if calls > 4:
            raise KeyboardInterrupt

    hook = network.body.register_forward_pre_hook(stop_after_three, with_kwargs=True)
    try:
        with pytest.raises(KeyboardInterrupt):
            first.loglikelihood(requests)
    finally:
        hook.remove()
    with path.open("a") as file:
        file.write('{"key": "torn')
    journal = Journal(path, about)
    assert 0 < journal.resumed < len(requests)
    again = fast(network, tokenizer, journal=journal)
    found = again.loglikelihood(requests)
    alone = fast(network, tokenizer).loglikelihood(requests)
    assert [score for score, _ in found] == pytest.approx([score for score, _ in alone], abs=1e-4)
    whole = fast(network, tokenizer)
    whole.loglikelihood(requests)
    assert again.encoder.counts.tokens_run < whole.encoder.counts.tokens_run
    assert Journal(path, about).resumed == len(requests)
    assert Journal(path, {"model": "another"}).resumed == 0


def test_texts_are_resumed_too(network: Network, tokenizer: Any, tmp_path: Path, llmjp_data: Path) -> None:
    requests = requests_of("jemhopqa", 3, 0)
    path = tmp_path / "x.progress.jsonl"
    first = fast(network, tokenizer, journal=Journal(path, {}))
    wanted = first.generate_until(requests)
    again = fast(network, tokenizer, journal=Journal(path, {}))
    assert again.generate_until(requests) == wanted
    assert again.encoder.counts.tokens_run == 0
    assert again.encoder.counts.unfinished == first.encoder.counts.unfinished


def test_an_answer_that_never_ends_is_counted(network: Network, tokenizer: Any, llmjp_data: Path) -> None:
    chosen, _ = choose("", ["jemhopqa"], limit=4, num_fewshot=0)
    task = evaluate(fast(network, tokenizer), chosen, model="toy")["tasks"]["jemhopqa"]
    assert 0 <= task["unfinished"] <= 4
    endless = torch.full((600, 32), 0.0)
    kept = network.head.weight.data.clone()
    network.head.weight.data.copy_(endless)  # every logit is 0: the first token, which ends nothing, for ever
    try:
        task = evaluate(fast(network, tokenizer), chosen, model="toy")["tasks"]["jemhopqa"]
    finally:
        network.head.weight.data.copy_(kept)
    assert task["unfinished"] == 4
    assert task["metric"]["exact_match"]["value"] == 0.0


@settings(max_examples=100)
@given(
    st.lists(st.integers(3, 599), min_size=1, max_size=60),
    st.integers(0, 59),
    st.sampled_from(["。", "\n\n", "です。", "é"]),
)
def test_a_stop_is_seen_with_the_token_that_ends_it(
    tokenizer: Any, ids: list[int], place: int, stop: str
) -> None:
    written = [*ids[:place], *tokenizer.encode(stop), *ids[place:]]
    assume(stop in tokenizer.decode(written))  # bytes that are no character swallow those next to them
    first = next(n for n in range(len(written) + 1) if stop in tokenizer.decode(written[:n]))
    seen = next(
        n for n in range(1, len(written) + 1) if _stopped(written[:n], ("絶対", stop), tokenizer.decode)
    )
    assert seen == first
    assert not _stopped(written, (), tokenizer.decode)


def test_a_stop_after_a_long_run_of_bytes_is_seen(tokenizer: Any) -> None:
    written = tokenizer.encode("鱻" * 12 + "\n")
    assert len(written) == 37, "three bytes a character, and one"
    assert "\ufffd" in tokenizer.decode(written[-12:]), "the trap is set"
    assert [_stopped(written[:n], ("\n",), tokenizer.decode) for n in (36, 37)] == [False, True]


@pytest.mark.parametrize("name", ["own_choice", "jemhopqa"])
def test_logits_that_are_not_finite_are_reported(
    name: str, network: Network, tokenizer: Any, llmjp_data: Path
) -> None:
    kept = network.head.weight.data.clone()
    network.head.weight.data.fill_(math.nan)
    try:
        chosen, _ = choose("", [name], limit=2, num_fewshot=0)
        with pytest.raises(UserError, match="not finite"):
            evaluate(fast(network, tokenizer), chosen, model="toy")
    finally:
        network.head.weight.data.copy_(kept)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"do_sample": True}, "sampled text"),
        ({"temperature": 0.7}, "sampled text"),
        ({"max_gen_toks": 256}, "up to 256"),
    ],
)
def test_settings_that_cannot_be_had_are_refused(
    more: dict[str, Any], message: str, network: Network, tokenizer: Any, llmjp_data: Path
) -> None:
    (request,) = requests_of("jemhopqa", 1, 0)
    request.arguments = (request.args[0], {**request.args[1], **more})
    with pytest.raises(UserError, match=message):
        fast(network, tokenizer).generate_until([request])


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "qwen3"])
def test_the_probe_accepts_the_families_that_we_train(family: str) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {
        "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
    }.get(family, {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
                   "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64})  # fmt: skip
    if family == "gpt_neox":
        sizes = {key: value for key, value in sizes.items() if key not in ("num_key_value_heads", "head_dim")}
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, vocab_size=300, **sizes)).eval()
    assert Network(model).why_not(64) is None


def test_the_probe_refuses_models_that_it_would_score_wrongly(network: Network) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    more = {"intermediate_size": 48, "num_key_value_heads": 2, "logit_scale": 0.5}
    scaled = AutoModelForCausalLM.from_config(AutoConfig.for_model("cohere", **sizes, **more)).eval()
    torch.nn.init.normal_(scaled.get_output_embeddings().weight, std=0.5)
    assert "a probe scored" in str(Network(scaled).why_not(64))
    stateful = AutoConfig.for_model("mamba", vocab_size=300, hidden_size=32, num_hidden_layers=1)
    assert Network(AutoModelForCausalLM.from_config(stateful).eval()).why_not(64) is not None
    window = AutoConfig.for_model(
        "mistral", **sizes, intermediate_size=48, num_key_value_heads=2, sliding_window=16
    )
    assert "window of 16" in str(Network(AutoModelForCausalLM.from_config(window)).why_not(64))


def test_lines_of_items_say_what_was_asked_and_answered(
    network: Network, tokenizer: Any, tmp_path: Path, llmjp_data: Path
) -> None:
    chosen, _ = choose("", ["jemhopqa"], limit=2, num_fewshot=0)
    evaluate(fast(network, tokenizer), chosen, model="toy", items_path=tmp_path / "x.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "x.jsonl").read_text("utf-8").splitlines()]
    assert len(lines) == 2
    for line in lines:
        assert set(line["metrics"]) == {"char_f1", "exact_match"}
        assert isinstance(line["response"][0], str)
        assert len(line["prompt_sha256"]) == 64


def test_a_prefix_of_nothing_is_nothing(network: Network) -> None:
    assert network.run_prefix(()) is NOTHING
