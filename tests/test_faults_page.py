"""docs/faults.md names tests that exist, and every test of faults on the Slurm."""

import re
from pathlib import Path


def test_each_row_names_a_test_that_is_there(root: Path) -> None:
    page = (root / "docs" / "faults.md").read_text().partition("\n## ")[0]
    rows = [line for line in page.splitlines() if line.startswith("| ")][1:]
    assert len(rows) > 15
    for row in rows:
        named = re.findall(r"`(tests/[\w/]+\.py)`", row)
        assert named, row
        assert all((root / name).is_file() for name in named), row
    text = "\n".join(rows)
    for path in (root / "tests" / "slurm").glob("test_*.py"):
        if path.name != "test_throwaway.py":
            assert f"tests/slurm/{path.name}" in text
