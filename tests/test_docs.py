"""Command blocks of the documentation run, or say why not; links lead somewhere; the READMEs are in step."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from llmjp_train.config.compose import compose
from llmjp_train.config.validate import problems

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    [ROOT / "README.md", ROOT / "README.ja.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/**/*.md")]
)
BLOCK = re.compile(
    r"(?:^<!-- not run: (?P<reason>.+?) -->\n)?^```(?:bash|sh|console)\n(?P<code>.*?)^```", re.M | re.S
)
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")
LONGEST_SECONDS = 400


def blocks(page: Path) -> list[tuple[str, str | None]]:
    """(code, why it is not run) of each command block."""
    text = page.read_text(encoding="utf-8")
    return [(match["code"], match["reason"]) for match in BLOCK.finditer(text)]


def runnable(page: Path) -> str:
    return "\n".join(code for code, reason in blocks(page) if reason is None)


# README.ja.md has README.md's commands, which a test compares: they run once.
WITH_COMMANDS = [page for page in PAGES if runnable(page) and page.name != "README.ja.md"]


@pytest.mark.slow
@pytest.mark.timeout(LONGEST_SECONDS + 30)
@pytest.mark.parametrize("page", WITH_COMMANDS, ids=lambda page: page.name)
def test_commands_run_as_they_stand(page: Path, tmp_path: Path) -> None:
    """The blocks of a page, one after another, in an empty folder and without LLMJP_DATA."""
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    env.pop("LLMJP_DATA", None)
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", runnable(page)],
        cwd=tmp_path, env=env, capture_output=True, text=True, timeout=LONGEST_SECONDS,
    )  # fmt: skip
    assert done.returncode == 0, f"{page.name}:\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"


def test_trainings_that_are_shown_but_not_run_compose() -> None:
    found = 0
    for page in PAGES:
        for code, reason in blocks(page):
            lines = code.replace("\\\n", " ").splitlines() if reason is not None else []
            for words in (shlex.split(line, comments=True) for line in lines):
                if words[:2] == ["llmjp", "train"] and any(word.startswith("experiment=") for word in words):
                    found += 1
                    assert problems(compose("train", words[2:], partial=True)) == [], (page.name, words)
    assert found


def test_the_readme_has_commands_that_run() -> None:
    assert ROOT / "README.md" in WITH_COMMANDS


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page: Path) -> None:
    targets = [t for t in LINK.findall(page.read_text(encoding="utf-8")) if "://" not in t]
    missing = [target for target in targets if not (page.parent / target).exists()]
    assert not missing, f"{page.name} links to {missing}"


def test_the_two_readmes_have_the_same_commands_and_sections() -> None:
    english, japanese = ROOT / "README.md", ROOT / "README.ja.md"
    strip = re.compile(r"\s*#.*$", re.M)
    commands = [
        [(strip.sub("", code), reason is None) for code, reason in blocks(page)]
        for page in (english, japanese)
    ]
    assert commands[0] == commands[1]
    heads = [len(re.findall(r"^## ", page.read_text(encoding="utf-8"), re.M)) for page in (english, japanese)]
    assert heads[0] == heads[1]
    links = [
        sorted(set(LINK.findall(page.read_text(encoding="utf-8"))) - {"README.ja.md", "README.md"})
        for page in (english, japanese)
    ]
    assert links[0] == links[1]
