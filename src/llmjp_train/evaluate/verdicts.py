"""What a comparison says, in English and Japanese: every sentence of it is here."""

from typing import Any

SENTENCES: dict[str, dict[str, str]] = {
    "en": {
        "alike": "no difference seen: every item came out alike",
        "not_seen": "no difference seen; one of {visible:.3f} or more would probably have been",
        "ahead": "{name} ahead by {by:.3f} ({low:.3f} to {high:.3f})",
        "in_common": "{shared} items in common of {ours} and {theirs}",
        "prompts": "the prompts differ (other examples, or items in another number)",
        "no_figures": "{task}: {name} has no figures",
        "data_sha256": "{task}: of different data ({one}, {other})",
        "main_metric": "{task}: of different metrics ({one}, {other})",
        "task_version": "{task}: of different task versions ({one}, {other})",
        "few": "{task}: fewer than two items in common",
    },
    "ja": {
        "alike": "差は見られない：すべての問題で結果が同じ",
        "not_seen": "差は見られない。{visible:.3f} 以上の差であれば、おそらく見いだせた",
        "ahead": "{name} が {by:.3f} 上回る（{low:.3f} ～ {high:.3f}）",
        "in_common": "共通の問題は {shared}（それぞれ {ours} と {theirs} のうち）",
        "prompts": "プロンプトが異なる（例示または問題数の違い）",
        "no_figures": "{task}：{name} には値がない",
        "data_sha256": "{task}：データが異なる（{one}、{other}）",
        "main_metric": "{task}：指標が異なる（{one}、{other}）",
        "task_version": "{task}：タスクの版が異なる（{one}、{other}）",
        "few": "{task}：共通の問題が二つに満たない",
    },
}


class Sentence(str):
    """One of the sentences, filled in: English as it stands, and the others by `text`."""

    _key: str
    _values: dict[str, Any]

    def __new__(cls, key: str, **values: Any) -> "Sentence":
        made = super().__new__(cls, SENTENCES["en"][key].format(**values))
        made._key, made._values = key, values
        return made

    def text(self, language: str) -> str:
        """The sentence in a language."""
        return SENTENCES[language][self._key].format(**self._values)
