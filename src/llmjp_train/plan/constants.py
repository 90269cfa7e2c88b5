"""The few constants of the time model that no formula gives, and where they come from."""

import json
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from pathlib import Path

FILE = Path(__file__).with_name("constants.json")
PUBLISHED = "published runs of other engines"


@dataclass(frozen=True)
class Constants:
    """Fitted by `llmjp_train.plan.fit` on published rows, or by `llmjp plan --calibrate` on a run of the user's."""

    matmul_ampere: float = 0.75
    """Share of the dense peak that matrix products reach on an A100."""
    matmul_hopper: float = 0.60
    """The same on an H100 or H200."""
    width: float = 500.0
    """Hidden size at which they reach half of that; wider models come closer to it."""
    tokens: float = 1000.0
    """The same for the tokens of a micro batch, the other side of the products."""
    attention: float = 0.6
    """Rate of flash attention, as a share of that of matrix products."""
    passes: float = 3.0
    """Times that a layer's saved bytes cross the device's memory in a forward and a backward pass."""
    network: float = 0.6
    """Share of stated bandwidth, between devices and between nodes, that collectives reach."""
    source: str = PUBLISHED
    """What they were fitted on."""

    def to_json(self) -> str:
        """As FILE holds them."""
        return json.dumps(asdict(self), indent=2) + "\n"


NAMES = tuple(field.name for field in fields(Constants) if field.name != "source")


@cache
def shipped() -> Constants:
    """The constants that the repository ships."""
    return Constants(**json.loads(FILE.read_text(encoding="utf-8")))


def scaled(constants: Constants, factor: float, source: str) -> Constants:
    """Constants under which compute and memory passes take ``factor`` times as long."""
    return replace(
        constants,
        matmul_ampere=constants.matmul_ampere / factor,
        matmul_hopper=constants.matmul_hopper / factor,
        passes=constants.passes * factor,
        source=source,
    )
