"""Composition: groups, overrides as Hydra users know them, the user's own folder, and errors all at once."""

import subprocess
import sys
from pathlib import Path

import pytest

from llmjp_train.config.compose import ConfigError, compose, dump_config, holes, load_config
from llmjp_train.config.root import TrainConfig
from llmjp_train.errors import UserError


def composed(*overrides: str, config_dir: Path | None = None) -> TrainConfig:
    found: TrainConfig = compose("train", [*overrides], config_dir, partial=True)
    return found


def refused(*overrides: str, config_dir: Path | None = None) -> list[str]:
    with pytest.raises(ConfigError) as error:
        composed(*overrides, config_dir=config_dir)
    return error.value.messages


def test_the_command_line_wins_over_an_experiment() -> None:
    config = composed("experiment=llm-jp-3-13b", "model=tiny", "optimizer.lr=1e-3", "+optimizer.eps=1e-7")
    assert (config.model.name, config.optimizer.lr, config.optimizer.eps) == ("tiny", 1e-3, 1e-7)
    assert config.tokenizer.name == "llm-jp-v3"
    assert composed("experiment=null").name == "run"


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("optimizer.learning_rate=1", "optimizer.learning_rate: there is no such key. Known: beta1"),
        ("model.hiden_size=3", "Did you mean hidden_size"),
        ("nosuch=3", "nosuch: there is no such key."),
        (
            "data.sources.small.wieght=1",
            "data.sources.small.wieght: there is no such key. Did you mean weight",
        ),
        ("changes=[{stp:1}]", "changes.0.stp: there is no such key. Did you mean step"),
        ("model=7b", "model=7b: group model has no such file. Did you mean"),
        ("schedule=cosin", "Did you mean cosine"),
        ("experiment=llm-jp-13b", "group experiment has no such file. Did you mean"),
        ("precision.dtype=bf61", "precision.dtype=bf61: not one of fp32, bf16, fp16. Did you mean bf16"),
        ("batch.global_batch=eight", "batch.global_batch=eight: it must be a whole number"),
        ("parallel.zero=1.5", "parallel.zero=1.5: it must be a whole number"),
        ("optimizer.lr=fast", "optimizer.lr=fast: it must be a number"),
        ("data.document_mask=maybe", "it must be true or false"),
        ("optimizer.lr=null", "optimizer.lr=None: it cannot be null"),
        ("model=null", "model=None: it cannot be null"),
        ("changes=[{step:x}]", "it must be a whole number"),
        ("optimizer.lr=1e-4,2e-4", "'llmjp train -m' starts a run for each; else give one value"),
        ("~optimizer.nosuch", "there is nothing to remove"),
        ("~model", "a group cannot be removed"),
        ("notes=[a (b]", "is no override"),
        ("run_dir=${nosuch}", "nosuch"),
        ("experimnt=tiny-cpu", "Did you mean experiment?"),
        ("lr=1e-3", "Did you mean optimizer.lr?"),
        ("micro_bach=2", "Did you mean batch.micro_batch?"),
        ("nodes=2", "Did you mean cluster.nodes?"),
        ("checkpoint.keep_steps=5", "it is a list: write checkpoint.keep_steps=[5]"),
        (
            "checkpoint.keep_steps={a:1}",
            "keep_steps is a list, and is given whole: checkpoint.keep_steps=[…]",
        ),
        ("changes=5", "write changes=[{step:…}]"),
        ("data.sources.small=/x", "it has keys of its own: write data.sources.small.path=/x"),
        ("data.sources.small=[x]", "it has keys of its own: write data.sources.small.KEY=…"),
        ("data.sources=3", "write data.sources.NAME.KEY=…"),
        ("name=[a]", "it must be text"),
        ("schedule.kind=[a]", "it must be one word"),
        ("batch.global_batch=1.5", "it must be a whole number"),
    ],
)
def test_a_wrong_override_is_told_with_what_is_near(override: str, said: str) -> None:
    (message,) = refused(override)
    assert said in message


def test_values_below_a_list_are_refused_all_at_once() -> None:
    keys = ("checkpoint.keep_steps.7", "checkpoint.keep_steps.foo", "cluster.modules.a")
    found = refused("experiment=llm-jp-4-8b", "cluster=tsubame4", *(f"{key}=1" for key in keys))
    for key, message in zip(keys, found, strict=True):
        whole = key.rpartition(".")[0]
        assert message == f"{key}=1: {whole} is a list, and is given whole: {whole}=[…]"


def test_a_whole_number_may_be_written_as_a_power_of_ten() -> None:
    config = composed("schedule.length=1e9", "checkpoint.keep_steps=[1e3,7]", "schedule.decay=2e2")
    assert (config.schedule.length, config.checkpoint.keep_steps, config.schedule.decay) == (
        10**9,
        [1000, 7],
        200,
    )
    assert all(isinstance(value, int) for value in (config.schedule.length, *config.checkpoint.keep_steps))


def test_what_is_taken_away_of_a_rehearsal_is_at_its_default() -> None:
    words = ("experiment=llm-jp-3-13b", "scale=rehearsal")
    assert composed(*words).optimizer.z_loss == 1e-4
    assert composed(*words, "~optimizer.z_loss").optimizer.z_loss == 0
    assert "zh" not in composed(*words, "~data.sources.zh").data.sources


def test_all_are_told_at_once() -> None:
    found = refused(
        "experiment=tiny-cpu",
        "optimizer.lr=fast",
        "model=7b",
        "nosuch=3",
        "precision.dtype=x",
        "a=1,2",
        "notes=[(]",
    )
    assert len(found) == 6
    for word in ("optimizer.lr=fast", "model=7b", "nosuch", "precision.dtype=x", "a=1,2", "notes=[(]"):
        assert any(word in message for message in found), word


@pytest.mark.slow
def test_nothing_heavy_is_imported_before_the_errors_appear() -> None:
    """Neither by errors of single values nor by those across groups, nor by a dry run."""
    code = (
        "import sys; from llmjp_train.cli import main; code = main(sys.argv[1:]);"
        "heavy = {'torch', 'deepspeed', 'numpy', 'transformers', 'datasets', 'lm_eval'} & set(sys.modules);"
        "sys.exit(f'imported {heavy}' if heavy else code)"
    )
    for words, expected in (
        (["experiment=tiny-cpu", "optimizer.lr=fast"], 2),
        (["experiment=tiny-cpu", "batch.global_batch=5", "schedule.warmup=999"], 2),
        (["experiment=llm-jp-3-13b"], 2),
        (["experiment=tiny-cpu", "scale=rehearsal", "batch.micro_batch=3"], 2),
        (["--dry-run", "experiment=llm-jp-3-172b-geniac"], 0),
    ):
        done = subprocess.run([sys.executable, "-c", code, "train", *words], capture_output=True, text=True)
        assert done.returncode == expected, done.stderr
        assert "Traceback" not in done.stderr


def test_letters_and_signs_of_file_names_need_no_quotes() -> None:
    config = composed(
        "name=日本 語", "run_dir=runs/lr=1e-4 (b)", "data.sources.ウィキ.path=データ/ウィキ", "notes=[試し,b]"
    )
    assert config.name == "日本 語"
    assert config.run_dir == "runs/lr=1e-4 (b)"
    assert config.data.sources["ウィキ"].path == "データ/ウィキ"
    assert config.notes == ["試し", "b"]


def test_a_value_can_be_taken_away() -> None:
    config = composed("experiment=llm-jp-3-13b", "~data.sources.zh", "~data.sources.ko")
    assert "zh" not in config.data.sources
    assert len(config.data.sources) == 16


def test_what_must_be_given_stays_open_or_is_refused() -> None:
    assert holes(composed("experiment=tiny-cpu")) == ["tokenizer.path", "data.sources.small.path"]
    with pytest.raises(ConfigError) as error:
        compose("train", ["experiment=tiny-cpu"])
    assert error.value.messages == [
        "tokenizer.path must be given: tokenizer.path=…",
        "data.sources.small.path must be given: data.sources.small.path=…",
    ]


@pytest.fixture(params=["plain", "with space 'ö' 日本"])
def own(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A user's folder of groups, one file of which has a shipped name."""
    folder = tmp_path / str(request.param)
    for group in ("model", "cluster", "experiment"):
        (folder / group).mkdir(parents=True)
    (folder / "model" / "mine.yaml").write_text("name: mine\nnum_layers: 3\nrope_theta: 1e6\n")
    (folder / "model" / "tiny.yaml").write_text("name: tiny-of-mine\nnum_layers: 2\n")
    (folder / "cluster" / "lab.yaml").write_text("name: lab\ndevice: cuda\ndevices_per_node: 4\n")
    (folder / "experiment" / "try.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /model: mine\n  - override /cluster: lab\n"
        "name: try\noptimizer:\n  lr: 5e-4\nparallel:\n  data: 4\n"
    )
    return folder


def test_a_folder_of_the_users_own_comes_first(own: Path) -> None:
    config = composed("experiment=try", config_dir=own)
    assert (config.model.name, config.model.num_layers, config.model.rope_theta) == ("mine", 3, 1e6)
    assert (config.cluster.devices_per_node, config.optimizer.lr, config.parallel.data) == (4, 5e-4, 4)
    assert composed(config_dir=own).model.name == "tiny-of-mine"
    assert composed("experiment=llm-jp-3-13b", config_dir=own).model.name == "13b", (
        "the shipped ones are there"
    )


def test_mistakes_in_a_folder_of_the_users_own_are_told(own: Path, tmp_path: Path) -> None:
    assert "Did you mean mine" in refused("model=mime", config_dir=own)[0]
    (own / "model" / "mine.yaml").write_text("name: mine\nnum_layer: 3\n")
    (message,) = refused("model=mine", config_dir=own)
    assert message.startswith("model.num_layer: there is no such key. Did you mean num_layers")
    (own / "model" / "mine.yaml").write_text("num_layers: 3\n")
    assert holes(composed("model=mine", "tokenizer=llm-jp-v3", "data=llm-jp-v3", config_dir=own)) == [
        "model.name"
    ]
    (own / "model" / "mine.yaml").write_text("a: [\n")
    (message,) = refused("model=mine", config_dir=own)
    assert "is no YAML" in message
    (own / "experiment" / "try.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /model: nosuch\n"
    )
    (message,) = refused("experiment=try", config_dir=own)
    assert "model/nosuch" in message
    with pytest.raises(UserError, match="is no folder"):
        compose("train", [], tmp_path / "absent")


def resolved(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(
        dump_config(
            compose("train", ["experiment=tiny-cpu", "tokenizer.path=t", "data.sources.small.path=d"])
        )
    )
    return path


def test_a_run_goes_on_with_other_values(tmp_path: Path) -> None:
    path = resolved(tmp_path)
    config = load_config(path, ["parallel.data=2", "schedule.length=200", "changes=[{step:150,lr:1e-3}]"])
    assert (config.parallel.data, config.schedule.length, config.changes[0].step) == (2, 200, 150)
    assert config.optimizer == load_config(path).optimizer


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("model=13b", "a run's groups are chosen; give values instead"),
        ("experiment=llm-jp-3-13b", "a run's groups are chosen"),
        ("precision=bf16", "precision.KEY=VALUE"),
        ("scale=rehearsal", "scale has no effect"),
        ("optimizer.leaning_rate=1", "there is no such key"),
        ("optimizer.lr=fast", "it must be a number"),
    ],
)
def test_what_a_run_cannot_take_is_told(tmp_path: Path, override: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_config(resolved(tmp_path), [override])


@pytest.mark.parametrize("content", ["run_dir: [", "- a\n", "", "\x80"])
def test_a_damaged_configuration_of_a_run_is_told(tmp_path: Path, content: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match="is damaged"):
        load_config(path)
