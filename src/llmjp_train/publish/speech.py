"""One language of the chronicle: sentences, durations, and what events are called."""

from typing import Any

from llmjp_train.publish import japanese
from llmjp_train.publish.chronicle_words import KINDS, WORDS
from llmjp_train.publish.report import duration
from llmjp_train.runlog.reading import describe


class Speech:
    """The words of a language."""

    def __init__(self, language: str) -> None:
        self.language = language
        self.words = WORDS[language]

    def say(self, phrase: str, /, **values: Any) -> str:
        """A sentence of this language; values that the record lacks are said to be missing."""
        missing = self.words["missing"]
        return self.words[phrase].format(**{k: missing if v is None else v for k, v in values.items()})

    def seconds(self, value: float | None) -> str:
        """A duration in words."""
        return self.words["missing"] if value is None else duration(value, self.language)

    def state(self, state: str) -> str:
        """A run's state in words."""
        return japanese.STATES.get(state, state) if self.language == "ja" else state

    def kind(self, kind: str) -> str:
        """What a kind of event or incident is called."""
        if kind in KINDS[self.language]:
            return KINDS[self.language][kind]
        return japanese.kind({"kind": kind}) if self.language == "ja" else kind.replace("_", " ")

    def text(self, event: dict[str, Any]) -> str:
        """An event in words; messages stay as they were written."""
        return japanese.event_text(event) if self.language == "ja" else describe(event)


def compact(value: Any) -> str | None:
    """A number in few characters; words as they are."""
    return None if value is None else f"{value:g}" if isinstance(value, float) else str(value)
