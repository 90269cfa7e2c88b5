"""Where configs/, eval/ and the job templates lie: in the checkout, or inside the installed wheel."""

from importlib.resources import files
from pathlib import Path


def resource(*parts: str) -> Path:
    """Path of a shipped file or folder, e.g. ``resource("configs", "model")``.

    Raises:
        FileNotFoundError: the package was installed without it.
    """
    package = Path(str(files("llmjp_train")))
    for root in (package / "resources", package.parent.parent):
        path = root.joinpath(*parts)
        if path.exists():
            return path
    raise FileNotFoundError(f"{'/'.join(parts)} is neither in the package nor in a checkout around {package}")
