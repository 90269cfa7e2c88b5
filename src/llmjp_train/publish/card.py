"""Model cards in English and Japanese, in Hugging Face's form, with every number from the run record."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from llmjp_train import __version__
from llmjp_train.errors import UserError
from llmjp_train.publish import japanese
from llmjp_train.publish.facts import Facts, Score
from llmjp_train.publish.figures import Figure
from llmjp_train.publish.japanese import STATES
from llmjp_train.publish.report import revision, write_text
from llmjp_train.runlog.reading import describe, is_incident, median, validations

LANGUAGES = ("en", "ja")
_MISSING = {"en": "not recorded", "ja": "記録なし"}
_ESCAPES = str.maketrans(
    {"&": "&amp;", "<": "&lt;", ">": "&gt;", "\n": " ", "\r": " "} | {sign: f"\\{sign}" for sign in "\\|`*["}
)


@dataclass(frozen=True)
class Row:
    """A line of a card's table: a name in each language and a value, none when the record lacks it."""

    en: str
    ja: str
    value: str | None
    value_ja: str | None = None
    """Where the value is a word; none: the same in both languages."""

    def said(self, language: str) -> str | None:
        """The value in a language."""
        return self.value if language == "en" or self.value_ja is None else self.value_ja


def write_cards(
    found: Facts, folder: Path, *, licence: str | None = None, languages: Sequence[str] = ("ja",)
) -> list[Path]:
    """Write README.en.md and README.ja.md into ``folder``.

    Args:
        licence: Hugging Face's identifier of the model's licence; none: the card says that it is not stated.
        languages: codes of the languages that the model was trained on.

    Raises:
        UserError: a code is none, or the files cannot be written.
    """
    texts = {one: card(found, one, licence=licence, languages=languages) for one in LANGUAGES}
    return [write_text(folder / f"README.{one}.md", text) for one, text in texts.items()]


def card(
    found: Facts,
    language: str,
    *,
    licence: str | None = None,
    languages: Sequence[str] = ("ja",),
    drawn: Sequence[Figure] = (),
) -> str:
    """The model card in ``language``, en or ja; see `write_cards`.

    Args:
        drawn: figures that lie beside it.
    """
    bad = [code for code in languages if not (code.isalpha() and code.islower() and 2 <= len(code) <= 3)]
    if bad or not languages:
        raise UserError(
            f"--language {', '.join(bad) or '(none)'}: give codes of two or three small letters, e.g. ja,en"
        )
    environment = Environment(
        loader=PackageLoader("llmjp_train.publish"),
        autoescape=False,
        undefined=StrictUndefined,
        finalize=lambda value: plain(value, language),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(score=_score, interval=_interval, items=_items)
    best = found.summary.best_validation
    return environment.get_template(f"card.{language}.md.j2").render(
        front=Markup(front_matter(found, licence, languages)),
        facts=found,
        summary=found.summary,
        name=found.summary.name,
        licence=licence,
        languages=", ".join(languages),
        version=__version__,
        best=best,
        model=_model(found),
        training=_training(found),
        sources=_sources(found),
        scores=[(found_in, score) for found_in in found.final_evaluations for score in found_in.scores],
        starts=[_event(event, language) for event in found.starts],
        incidents=[_event(event, language) for event in found.events if is_incident(event)],
        length=nested(found.config, "batch", "sequence_length"),
        figures=[Markup(figure.markdown(language)) for figure in drawn],
    )


def plain(value: Any, language: str) -> str:
    """A value as Markdown text that is itself alone; words for a missing one."""
    if isinstance(value, Markup):
        return str(value)
    if value is None:
        return _MISSING[language]
    return str(value).translate(_ESCAPES)


def front_matter(found: Facts, licence: str | None, languages: Sequence[str]) -> str:
    """Hugging Face's metadata as YAML, with results as a model index."""
    values: dict[str, Any] = {
        "language": list(languages),
        "license": licence or "unknown",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["llmjp-train", "deepspeed", "pretraining"],
    }
    results = [
        {
            "task": {"type": "text-generation"},
            "dataset": {"name": score.task, "type": score.task},
            "metrics": [{"type": score.metric, "value": score.value}],
        }
        for score in found.results
    ]
    if results:
        values["model-index"] = [{"name": found.summary.name, "results": results}]
    return yaml.safe_dump(values, allow_unicode=True, sort_keys=False).strip()


def _score(score: Score) -> str:
    return f"{score.value:.4f}" + ("" if score.half is None else f" ± {score.half:.4f}")


def _interval(score: Score) -> str:
    if score.low is None or score.high is None:
        return "–"
    return f"{score.low:.3f} – {score.high:.3f}"


def _items(score: Score) -> str | None:
    """How many were scored, and of how many where that is less than all."""
    if score.items is None:
        return None
    rest = score.items_in_all is not None and score.items_in_all != score.items
    return f"{score.items:,}" + (f" / {score.items_in_all:,}" if rest else "")


def _event(event: dict[str, Any], language: str) -> tuple[Any, str, str]:
    """Step, kind and words of an event."""
    if language == "ja":
        return event.get("step"), japanese.kind(event), japanese.event_text(event)
    return event.get("step"), str(event["kind"]).replace("_", " "), describe(event)


def nested(values: dict[str, Any], *keys: str) -> Any:
    """A nested value; none when a key is missing."""
    for key in keys:
        if not isinstance(values, dict) or key not in values:
            return None
        values = values[key]
    return values


def _text(value: Any, form: str = "") -> str | None:
    return None if value is None else format(value, form)


def _model(found: Facts) -> list[Row]:
    model, derived = found.config.get("model") or {}, found.derived
    heads, kv, size = (model.get(key) for key in ("num_heads", "num_kv_heads", "head_size"))
    attention = None if None in (heads, kv, size) else f"{heads} / {kv} / {size}"
    block = [str(model[key]) for key in ("norm", "mlp", "position") if key in model]
    tied = {True: ("tied", "共有"), False: ("untied", "非共有"), None: (None, None)}[
        model.get("tied_embeddings")
    ]
    length = nested(found.config, "batch", "sequence_length")
    without = derived.parameters_without_embeddings if derived else None
    return [
        Row("Parameters", "パラメータ数", _text(found.summary.parameters, ",")),
        Row("Parameters without embeddings", "埋め込みを除くパラメータ数", _text(without, ",")),
        Row("Layers", "層数", _text(model.get("num_layers"))),
        Row("Hidden size", "隠れ層の次元数", _text(model.get("hidden_size"), ",")),
        Row("Feed-forward size", "FFN の次元数", _text(model.get("ffn_size"), ",")),
        Row("Heads / key-value heads / head size", "ヘッド数 / KV ヘッド数 / ヘッドの次元数", attention),
        Row("Norm, feed-forward block, positions", "正規化・FFN・位置符号化", ", ".join(block) or None),
        Row("Embeddings and head", "入力埋め込みと出力層", *tied),
        Row("Vocabulary", "語彙数", _text(model.get("vocab_size"), ",")),
        Row("Longest sequence stated", "最大系列長（設定値）", _text(model.get("max_positions"), ",")),
        Row("Sequence length in training", "学習時の系列長", _text(length, ",")),
        Row("Tokenizer (sha256)", "トークナイザー (SHA-256)", nested(found.data, "tokenizer", "fingerprint")),
    ]


def _training(found: Facts) -> list[Row]:
    config, summary, environment = found.config, found.summary, found.environment
    packages = environment.get("packages") or {}
    names = [name for name in ("torch", "deepspeed", "transformers") if packages.get(name)]
    software = ", ".join(f"{name} {packages[name]}" for name in names) or None
    # With rows left out the sum would be short.
    complete = bool(found.steps) and nested(config, "metrics", "every") == 1
    hours = sum(row.get("step_s") or 0.0 for row in found.steps) / 3600 if complete else None
    state = ": ".join(part for part in (summary.state, summary.reason) if part)
    state_ja = STATES.get(summary.state, summary.state) + (f"（{summary.reason}）" if summary.reason else "")
    steps = f"{summary.step:,} / {summary.total_steps:,}" if summary.total_steps else f"{summary.step:,}"
    rate = median(found.steps, "tokens_per_s")
    adam = None if nested(config, "optimizer", "beta1") is None else betas(config["optimizer"])
    points = validations(found.rows)
    return [
        Row("State of the run", "学習の状態", state, state_ja),
        Row("Tokens seen", "学習トークン数", _text(summary.tokens, ",")),
        Row("Steps", "ステップ数", steps),
        Row(
            "Sequences per step",
            "ステップあたりの系列数",
            _text(nested(config, "batch", "global_batch"), ","),
        ),
        Row("Optimizer", "オプティマイザー", adam),
        Row("Peak learning rate", "最大学習率", _text(nested(config, "optimizer", "lr"), "g")),
        Row("Schedule", "学習率スケジュール", _text(nested(config, "schedule", "kind"))),
        Row("Precision", "計算精度", _text(nested(config, "precision", "dtype"))),
        Row("Model FLOPs", "総計算量（モデル FLOPs）", _text(summary.flops or None, ".3g")),
        Row("Time in steps, hours", "学習ステップの合計所要時間（時間）", _text(hours, ".3g")),
        Row("Tokens per second, median", "スループット（トークン/秒、中央値）", _text(rate, ",.0f")),
        Row("Devices", "ハードウェア", _devices(environment)),
        Row("Software", "ソフトウェア", software),
        _revision(environment.get("source") or {}),
        Row("Final training loss", "最終の学習損失", _text(summary.loss, ".4f")),
        Row("Final validation loss", "最終の検証損失", f"{points[-1].loss:.4f}" if points else None),
    ]


def _revision(source: dict[str, Any]) -> Row:
    known = bool(source.get("commit"))
    said = (revision(source), revision(source, "（コミットされていない変更あり）")) if known else (None, None)
    return Row("Source revision", "ソースコードのコミット", *said)


def betas(optimizer: dict[str, Any]) -> str:
    """The optimizer's name and constants."""
    keys = [key for key in ("beta1", "beta2", "eps", "weight_decay", "clip") if key in optimizer]
    values = (f"{key} {optimizer[key]:g}" for key in keys)
    return f"{optimizer.get('name', '')} ({', '.join(values)})"


def _devices(environment: dict[str, Any]) -> str | None:
    if environment.get("devices"):
        return ", ".join(environment["devices"])
    return _text(nested(environment, "cpu", "model"))


def _sources(found: Facts) -> list[dict[str, Any]]:
    seen = found.source_tokens
    return [
        {
            "name": name,
            "tokens": _text(value.get("tokens"), ","),
            "seen": _text(seen.get(name), ","),
            "fingerprint": str(value.get("fingerprint") or "")[:16] or None,
            "licence": found.licences[name],
            "filters": found.filters.get(name),
            "prepared": (found.data.get("prepared") or {}).get(name) or {},
        }
        for name, value in (nested(found.data, "data", "sources") or {}).items()
    ]
