"""Every field of every configuration says what it is, and in which unit."""

import ast
import re
from pathlib import Path

import pytest

MODULES = ("root", "model", "data", "training", "machine", "evaluation", "prepare")
_WORDS = """
    steps step tokens sequences samples minutes seconds mib gib mb gb/s tflop/s bytes examples items ranks devices nodes
    stages stage replicas layers heads rows ids positions width widths elements batches validations processes
    piece characters share seed weight rate deviation deviations epsilon eps norm decay base times root number
    length sequence checkpoints text micro
"""
UNITS = frozenset(re.findall(r"\S+", _WORDS))
"""A number's docstring names one of these: a unit, or what is counted."""


def fields(root: Path) -> list[tuple[str, str, str]]:
    """(Class.field, annotation, docstring) of each dataclass field, read from the source."""
    found = []
    for module in MODULES:
        tree = ast.parse(
            (root / "src" / "llmjp_train" / "config" / f"{module}.py").read_text(encoding="utf-8")
        )
        for cls in tree.body:
            if isinstance(cls, ast.ClassDef) and any(
                "dataclass" in ast.unparse(d) for d in cls.decorator_list
            ):
                for node, after in zip(cls.body, [*cls.body[1:], None], strict=True):
                    if isinstance(node, ast.AnnAssign):
                        said = ""
                        if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
                            said = str(after.value.value)
                        found.append(
                            (f"{cls.name}.{ast.unparse(node.target)}", ast.unparse(node.annotation), said)
                        )
    return found


def test_every_field_has_a_docstring(root: Path) -> None:
    found = fields(root)
    assert len(found) > 120
    assert [name for name, _, said in found if len(said) < 10] == []


def test_every_number_names_its_unit_or_what_it_counts(root: Path) -> None:
    numbers = [(name, said) for name, kind, said in fields(root) if kind.split(" ")[0] in ("int", "float")]
    assert len(numbers) > 60
    assert [name for name, said in numbers if not UNITS & set(re.findall(r"[a-z/]+", said.lower()))] == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "group", ["optimizer", "schedule", "precision", "parallel", "cluster", "evaluation", "tokenizer"]
)
def test_every_group_has_files_that_compose(root: Path, group: str) -> None:
    from llmjp_train.config.compose import compose

    files = sorted(path.stem for path in (root / "configs" / group).glob("*.yaml"))
    assert files
    for name in files:
        config = compose("train", [f"{group}={name}"], partial=True)
        assert getattr(config, group).name == name
