"""`python -m benchmarks [NAME [flags]]`: one benchmark, or all of them."""

import importlib
import subprocess
import sys

NAMES = ("step", "layouts", "startup", "prepare", "loader", "evaluate", "saving", "moving", "overhead")


def main() -> int:
    """Run the one that is named, or each in a process of its own."""
    if len(sys.argv) > 1:
        if sys.argv[1] not in NAMES:
            print(f"there is no benchmark '{sys.argv[1]}': {', '.join(NAMES)}", file=sys.stderr)
            return 2
        importlib.import_module(f"benchmarks.{sys.argv[1]}").main(sys.argv[2:])
        return 0
    return max(subprocess.run([sys.executable, "-m", "benchmarks", name]).returncode for name in NAMES)


if __name__ == "__main__":
    sys.exit(main())
