"""Settings that every test shares: the CPU accelerator, no network, and where the shared data lie."""

import os
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from helpers.toy import sentences, small_run, write_jsonl
from hypothesis import HealthCheck, settings

from llmjp_train.config.data import TokenizerConfig
from llmjp_train.config.prepare import PrepareConfig

os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("MPLBACKEND", "Agg")

# A busy machine draws slowly: that is no fault of what is tested.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")

ROOT = Path(__file__).parent.parent
STARTS_RANKS = {"run_ranks", "rank_main", "train"}
"""Names that a test module takes from helpers.ranks and helpers.runs."""
_SHARED = ROOT.parent / "shared" / "data"
if "LLMJP_DATA" not in os.environ and _SHARED.is_dir():
    os.environ["LLMJP_DATA"] = str(_SHARED)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--part", metavar="K/N", help="the K-th of N shares of the test modules, of about one size"
    )


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Where LLMJP_RESULTS names a folder, each run leaves its results there for a count."""
    if folder := os.environ.get("LLMJP_RESULTS"):
        config.option.xmlpath = str(Path(folder) / f"{os.getpid()}.xml")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests of modules that start ranks, which take seconds each, are slow without saying so; ``--part``."""
    for item in items:
        named = vars(item.module) if isinstance(item, pytest.Function) else {}
        if any(getattr(named.get(name), "__module__", "").startswith("helpers.") for name in STARTS_RANKS):
            item.add_marker(pytest.mark.slow)
    if config.getoption("--part"):
        which, parts = map(int, config.getoption("--part").split("/"))
        sizes = Counter(item.path for item in items if item.get_closest_marker("slow") is None)
        mine = {path for path, part in shares(sizes, parts).items() if part == which - 1}
        items[:] = [item for item in items if item.path in mine]


def shares(sizes: Mapping[Path, int], parts: int) -> dict[Path, int]:
    """The part of each module: large ones first, each to the part that has least so far."""
    held = [0] * parts
    found = {}
    for path in sorted(sizes, key=lambda one: (-sizes[one], str(one))):
        found[path] = held.index(min(held))
        held[found[path]] += sizes[path]
    return found


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def llmjp_data() -> Path:
    """Folder of real corpora, tokenizers and benchmarks; tests that need it are skipped without it, CI has it."""
    value = os.environ.get("LLMJP_DATA")
    if not value:
        if os.environ.get("LLMJP_CI"):
            pytest.fail("CI runs with LLMJP_DATA set")
        pytest.skip("LLMJP_DATA is not set: no real corpora here (docs/data.md says where they come from)")
    return Path(value)


@pytest.fixture(scope="session")
def texts() -> list[str]:
    """200 documents of different lengths."""
    return [sentences(seed, 1 + seed % 13) for seed in range(200)]


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> Path:
    """A tokenizer of 400 ids in Hugging Face form."""
    from llmjp_train.data.sentencepieces import train_unigram

    folder = tmp_path_factory.mktemp("tokenizer") / "toy"
    folder.mkdir()
    train_unigram(texts, 400, 0.999).save_pretrained(str(folder))
    return folder


@pytest.fixture(scope="session")
def tokenizer(tokenizer_folder: Path) -> Any:
    """The same, loaded."""
    from llmjp_train.data.tokenizers import load_tokenizer

    return load_tokenizer(TokenizerConfig(name="toy", path=str(tokenizer_folder)))


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> Path:
    """The documents as JSON lines."""
    return write_jsonl(tmp_path_factory.mktemp("corpus") / "small.jsonl", texts)


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory, corpus: Path, tokenizer_folder: Path) -> Path:
    """The documents as token files."""
    from llmjp_train.data.prepare import prepare

    out = tmp_path_factory.mktemp("prepared") / "small"
    tokenizer = TokenizerConfig(name="toy", path=str(tokenizer_folder))
    prepare(
        PrepareConfig(
            input=[str(corpus)], output=str(out), tokenizer=tokenizer, workers=1, validation_share=0.1
        )
    )
    return out


@pytest.fixture(scope="session")
def chromium() -> str:
    """Headless Chromium."""
    from helpers.browser import find_chromium

    return find_chromium()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a file system of a given size, e.g. "3m"."""
    mounted: list[Path] = []

    def mount(size: str) -> Path:
        folder = tmp_path / f"disk-{len(mounted)}"
        folder.mkdir()
        words = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)]
        done = subprocess.run(words, capture_output=True, text=True)
        if done.returncode:
            if os.environ.get("LLMJP_CI"):
                pytest.fail(f"CI must be able to mount a small disk: {done.stderr}")
            pytest.skip("only root can mount the small disk that this test fills")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
def overrides(prepared: Path, tokenizer_folder: Path) -> Callable[..., list[str]]:
    """Overrides of a small run in a directory, with more of the test's own."""
    return lambda run_dir, *more: small_run(run_dir, prepared, tokenizer_folder, *more)
