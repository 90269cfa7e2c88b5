"""The structure that the design draws, read from the imports."""

import ast
from pathlib import Path

import pytest

ROOMS = (
    "config", "runlog", "data", "model", "parallel", "engine", "checkpoint", "train", "plan", "launch", "verify",
    "evaluate", "publish",
)  # fmt: skip
"""In the order of the design: a room imports only rooms before it."""
ANYONE = {"errors", "exit_codes", "resources"}
HEAVY = {"torch", "deepspeed", "transformers", "datasets", "lm_eval"}


def modules(root: Path) -> list[tuple[str, Path]]:
    package = root / "src" / "llmjp_train"
    return [
        (path.relative_to(package).parts[0].removesuffix(".py"), path)
        for path in sorted(package.rglob("*.py"))
    ]


def imports(path: Path, *, top_level: bool = False) -> set[str]:
    """Dotted names of what a module imports."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = tree.body if top_level else list(ast.walk(tree))
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def test_a_room_imports_only_rooms_before_it(root: Path) -> None:
    wrong = []
    for room, path in modules(root):
        if room not in ROOMS:
            continue
        allowed = {*ANYONE, *ROOMS[: ROOMS.index(room) + 1]}
        for name in imports(path):
            parts = name.split(".")
            if parts[0] == "llmjp_train" and len(parts) > 1 and parts[1] not in allowed:
                wrong.append(f"{path.relative_to(root)} imports {name}")
    assert not wrong, "\n".join(wrong)


def test_only_the_engine_imports_deepspeed(root: Path) -> None:
    users = {
        room for room, path in modules(root) if any(n.split(".")[0] == "deepspeed" for n in imports(path))
    }
    assert users <= {"engine", "commands"}
    commands = root / "src" / "llmjp_train" / "commands"
    direct = [
        p.name for p in commands.glob("*.py") if any(n.split(".")[0] == "deepspeed" for n in imports(p))
    ]
    assert direct in ([], ["doctor.py"]), "the doctor alone asks which version there is"


@pytest.mark.parametrize("room", ["config", "runlog", "plan"])
def test_rooms_that_login_nodes_use_import_no_torch(room: str, root: Path) -> None:
    for found, path in modules(root):
        if found == room:
            heavy = {name.split(".")[0] for name in imports(path, top_level=True)} & HEAVY
            assert not heavy, f"{path.relative_to(root)} imports {heavy}"


def test_only_the_layout_makes_process_groups(root: Path) -> None:
    users = {
        path.relative_to(root / "src" / "llmjp_train").as_posix()
        for _, path in modules(root)
        if "new_group(" in path.read_text(encoding="utf-8")
    }
    assert users == {"parallel/layout.py"}


def test_files_and_functions_stay_readable(root: Path) -> None:
    long = []
    for _, path in modules(root):
        text = path.read_text(encoding="utf-8")
        if text.count("\n") > 400:
            long.append(f"{path.name}: {text.count(chr(10))} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef) and (node.end_lineno or 0) - node.lineno > 75:
                long.append(f"{path.name}: {node.name} has {(node.end_lineno or 0) - node.lineno} lines")
    assert not long, "\n".join(long)
