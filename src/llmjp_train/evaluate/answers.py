"""From what a model wrote to what is compared: normalisation, numbers, and the habits of llm-jp-eval 1.3."""

import re
import unicodedata

_SPACES = re.compile(r"\s+")
_BRACKETS = {"「": "」", "『": "』", "“": "”", '"': '"', "'": "'", "(": ")", "[": "]", "【": "】", "〈": "〉"}
_ENDS = "。.、,!?"
_NUMBER = re.compile(r"[-−]?(?:\d[\d,]*(?:\.\d+)?|\.\d+)")
_MINUS = str.maketrans({"−": "-", "－": "-", "‐": "-", "‑": "-", "–": "-", "—": "-"})


def nfkc(text: str) -> str:
    """Compatibility normal form: full-width letters and digits become ASCII, half-width kana full-width."""
    return unicodedata.normalize("NFKC", text)


def normalised(text: str) -> str:
    """An answer as it is compared: NFKC, lower case, single spaces, no surrounding brackets or final stop.

    Brackets go only where they enclose the whole answer, so that 「A」と「B」 keeps its own.
    """
    text = _SPACES.sub(" ", nfkc(text)).strip().lower()
    while True:
        shorter = text.rstrip(_ENDS).rstrip() or text
        closing = _BRACKETS.get(shorter[:1])
        if closing is not None and len(shorter) > 2 and shorter.find(closing, 1) == len(shorter) - 1:
            shorter = shorter[1:-1].strip()
        if shorter == text:
            return text
        text = shorter


def characters(text: str) -> list[str]:
    """Letters, digits and signs of a normalised answer: spaces and punctuation are left out."""
    return [c for c in normalised(text) if not c.isspace() and unicodedata.category(c)[0] != "P"]


def last_number(text: str) -> float | None:
    """The last number of a text: sign, thousands and decimals understood, full-width digits too.

    A hyphen between digits is a range or a date, not a sign. None: there is no number.
    """
    plain = nfkc(text).translate(_MINUS)
    found = None
    for match in _NUMBER.finditer(plain):
        written = match.group().replace(",", "")
        before = plain[match.start() - 1 : match.start()]
        if written.startswith("-") and before.isdigit():
            written = written[1:]
        found = float(written)
    return found


def first_part(text: str) -> str:
    """llm-jp-eval 1.3's cut: what stands before the first blank line, stripped, NFKC."""
    return nfkc(text.split("\n\n")[0].strip())


def faulty_number(text: str) -> float:
    """llm-jp-eval 1.3's reading of a number, with its faults (T5), for its published figures alone.

    Everything but digits and points is dropped: a minus is lost ("-1.5" is 1.5), a range is joined ("2〜3" is
    23), and what cannot be read counts as -2.0 in the correlation.
    """
    try:
        return float(re.sub(r"[^0-9.]", "", text))
    except ValueError:
        return -2.0
