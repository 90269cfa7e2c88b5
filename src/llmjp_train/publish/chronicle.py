"""A run's story on one page, HTML or Markdown, English or Japanese; every number from the run record."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from llmjp_train import __version__
from llmjp_train.config.derive import human
from llmjp_train.publish.card import LANGUAGES, plain
from llmjp_train.publish.charts import Chart, Mark, Series, chart, short
from llmjp_train.publish.chronicle_plan import Pairs, planned
from llmjp_train.publish.chronicle_words import FINDINGS
from llmjp_train.publish.facts import Facts
from llmjp_train.publish.report import figure, when, whole, write_text
from llmjp_train.publish.speech import Speech, compact
from llmjp_train.publish.story import Day, Entry, Finding, Incident, Story
from llmjp_train.runlog.compare import MISSING, sample
from llmjp_train.runlog.incidents import SILENT
from llmjp_train.runlog.reading import STARTS, changed, validations

FORMS = ("html", "md")
_MOST_MARKS = 40
_MOST_STEPS = 12
"""Steps of saves that a day's line names, and rows of the curve in figures."""
_MARKED = {"change": "change", "note": "note"}
"""Kinds of events that the curve marks beside starts and incidents."""


def write_chronicle(told: Story, folder: Path, languages: Sequence[str] = LANGUAGES) -> list[Path]:
    """Write chronicle.LANGUAGE.html and chronicle.LANGUAGE.md into ``folder``.

    Raises:
        UserError: a file cannot be written.
    """
    return [
        write_text(folder / file_name(language, form), chronicle(told, language, form, languages=languages))
        for language in languages
        for form in FORMS
    ]


def file_name(language: str, form: str) -> str:
    """What the page is called."""
    return f"chronicle.{language}.{form}"


def chronicle(told: Story, language: str, form: str, *, languages: Sequence[str] = LANGUAGES) -> str:
    """The page in a language, as ``html`` or ``md``; in HTML a link leads to the other of ``languages``."""
    markdown = form == "md"
    environment = Environment(
        loader=PackageLoader("llmjp_train.publish"),
        autoescape=not markdown,
        undefined=StrictUndefined,
        finalize=partial(plain, language=language) if markdown else lambda value: value,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=markdown,
    )
    environment.filters.update(when=when, whole=whole, figure=figure)
    other = next((one for one in languages if one != language), None)
    return environment.get_template(f"chronicle.{form}.j2").render(
        language=language,
        version=__version__,
        other=None if other is None else file_name(other, "html"),
        **_Page(told, language).content(),
    )


class _Page(Speech):
    """A story in the words of one language."""

    def __init__(self, told: Story, language: str) -> None:
        super().__init__(language)
        self.told, self.facts = told, told.facts

    def content(self) -> dict[str, Any]:
        """What both templates show."""
        marks = self.marks()
        return {
            "words": self.words,
            "facts": self.facts,
            "summary": self.facts.summary,
            "told": self.told,
            "state": self.state(self.facts.summary.state),
            "plan": planned(self.facts, self),
            "changed": self.changed(),
            "charts": self.charts(marks),
            "marks": marks[:_MOST_MARKS],
            "left_out": max(0, len(marks) - _MOST_MARKS),
            "curve": self.curve(),
            "days": [(day.date, self.day_line(day), self.entries(day)) for day in self.told.days],
            "incidents": [self.incident(one) for one in self.told.incidents],
            "spent": self.spent(),
            "clock": self.clock(),
            "findings": [(self.finding(one), one.weight) for one in self.told.findings],
            "differs": self.differs(),
            "scores": [(one, score) for one in self.facts.final_evaluations for score in one.scores],
            "made": self.say("made", version=__version__, changed=when(self.facts.summary.changed)),
        }

    def changed(self) -> list[str]:
        """Settings that later starts changed, and how many starts do not say."""
        found = [
            f"{self.words['changed_later']}, {self.say('at_step', step=start.get('step'))}: {changed(start)}"
            for start, _ in self.told.changed
        ]
        return found + ([f"{self.words['untold']}: {self.told.untold}"] if self.told.untold else [])

    # The curve.

    def marks(self) -> list[Mark]:
        """Starts after the first, incidents, changes and notes, where they have a step."""
        found = []
        for entry in (entry for day in self.told.days for entry in day.entries):
            kind = "incident" if entry.incident else _MARKED.get(entry.kind)
            if entry.kind in STARTS and not entry.incident:
                kind = "start"
            if kind and entry.step:
                words = f"{self.kind(entry.kind)}: {self.entry_text(entry)}"
                found.append(
                    Mark(entry.step, f"{self.say('at_step', step=f'{entry.step:,}')}: {words}", kind)
                )
        return sorted(found, key=lambda mark: mark.x)

    def charts(self, marks: Sequence[Mark]) -> list[Chart]:
        """The loss, and how far epsilon dominates, each beside the other run's where there is one."""
        steps, points = self.facts.steps, validations(self.facts.rows)
        beside = self.told.beside
        loss = [Series(self.words["training"], [(row["step"], row.get("loss")) for row in steps])]
        health = [_health(self.words["here"], self.facts)]
        if beside is not None:
            name = self.say("of_run", name=beside.name)
            loss.append(Series(name, [(row["step"], row.get("loss")) for row in beside.facts.steps]))
            health.append(_health(beside.name, beside.facts))
        loss.append(Series(self.words["validation"], [(p.step, p.loss) for p in points], dots=True))
        span = (steps[0]["step"], steps[-1]["step"]) if steps else None
        drawn = (
            (chart(self.words["loss"], self.words["loss_unit"], loss, marks=marks, wide=True, span=span), loss),
            (
                chart(
                    self.words["health"], self.words["health_unit"], health,
                    from_zero=True, percent=True, wide=True, span=span,
                ),
                health,
            ),
        )  # fmt: skip
        return [
            replace(one, text=self.spoken(one, lines, marks if number == 0 else ()))
            for number, (one, lines) in enumerate(drawn)
            if one is not None
        ]

    def spoken(self, one: Chart, lines: Sequence[Series], marks: Sequence[Mark]) -> str:
        """A chart for who cannot see it: where its lines begin and end, and what is marked."""
        parts = []
        for line in lines:
            found = [(x, y) for x, y in line.points if y is not None]
            if found:
                (x0, y0), (x1, y1) = found[0], found[-1]
                ends = {"x0": f"{x0:,.0f}", "y0": short(y0), "x1": f"{x1:,.0f}", "y1": short(y1)}
                parts.append(self.say("spoken", name=line.name, **ends))
        if marks:
            said = "; ".join(mark.label for mark in marks[:_MOST_MARKS])
            parts.append(f"{self.words['spoken_marks']}: {said}")
        return f"{one.title} ({one.unit}): {'; '.join(parts)}"

    def curve(self) -> list[dict[str, Any]]:
        """Some steps of the curve as figures."""
        steps = self.facts.steps
        by_step = {point.step: point.loss for point in validations(self.facts.rows)}
        shares = {row["step"]: row["eps_dominated"] for row in self.facts.rows if "eps_dominated" in row}
        chosen = {row["step"] for row in _spread(steps)} | set(_spread(sorted(by_step)))
        return [
            {**row, "validation": by_step.get(row["step"]), "share": _share(shares.get(row["step"]))}
            for row in steps
            if row["step"] in chosen
        ]

    # Day by day.

    def day_line(self, day: Day) -> str:
        """A day's figures."""
        parts = []
        if day.rows:
            parts.append(self.say("line", first=f"{day.first_step:,}", last=f"{day.last_step:,}"))
            parts.append(self.say("line_rows", rows=f"{day.rows:,}"))
            tokens = None if day.tokens is None else f"{day.tokens:,}"
            parts.append(self.say("line_tokens", tokens=tokens))
        if day.losses:
            first, last = (f"{loss:.4f}" for loss in day.losses)
            parts.append(self.say("line_loss", first=first, last=last))
        if day.validation:
            parts.append(
                self.say("line_validation", step=f"{day.validation[0]:,}", loss=f"{day.validation[1]:.4f}")
            )
        if day.saves:
            parts.append(self.saves(day.saves))
        if day.removed:
            parts.append(self.say("line_removed", count=day.removed))
        if day.evaluations:
            parts.append(self.say("line_evaluations", count=day.evaluations))
        if not day.rows:
            parts.insert(0, self.words["line_none"].rstrip(".。"))
        return "。".join([*parts, ""]) if self.language == "ja" else f"{'; '.join(parts)}."

    def saves(self, saves: Sequence[dict[str, Any]]) -> str:
        """A day's checkpoints."""
        steps = ", ".join(f"{event['step']:,}" for event in saves[:_MOST_STEPS])
        if len(saves) > _MOST_STEPS:
            steps += self.say("more", count=len(saves) - _MOST_STEPS)
        size = human(sum(float(event.get("bytes") or 0) for event in saves))
        took = self.seconds(sum(float(event.get("seconds") or 0) for event in saves))
        return self.say("line_saves", count=len(saves), steps=steps, size=size, seconds=took)

    def entries(self, day: Day) -> list[tuple[str, str, str, str, str]]:
        """Time, step, kind, text and class of what happened in a day."""
        return [
            (
                entry.time[11:19],
                "" if entry.step is None else self.say("at_step", step=f"{entry.step:,}"),
                self.kind(entry.kind),
                self.entry_text(entry),
                "incident" if entry.incident else entry.kind,
            )
            for entry in day.entries
        ]

    def entry_text(self, entry: Entry) -> str:
        """What happened, in words."""
        if entry.kind == SILENT:
            return str(entry.event["evidence"])
        if entry.kind == "evaluation":
            scores = (
                f"{task} {metric} {value:.4f}" + ("" if half is None else f" ± {half:.4f}")
                for task, metric, value, half in entry.event["scores"]
            )
            event = entry.event
            return self.say("evaluated", suite=event["suite"], step=event["step"], scores=", ".join(scores))
        text = self.text(entry.event)
        if entry.layout_before:
            layout = ", ".join(f"{key} {value}" for key, value in entry.layout_before.items())
            text += "; " + self.say("layout_was", layout=layout)
        if entry.again:
            text += "; " + self.say("again", count=f"{entry.again:,}")
        return text

    # Incidents, time, findings.

    def incident(self, one: Incident) -> tuple[str, Pairs]:
        """A heading and what is known."""
        what, words = one.what, self.words
        where = [self.say(key, **{key: what[key]}) for key in ("rank", "node") if what[key] is not None]
        costs = []
        if what["lost_steps"] is not None:
            costs.append(self.say("lost", count=f"{what['lost_steps']:,}"))
        if what["lost_seconds"] is not None:
            costs.append(self.say("lost_time", seconds=self.seconds(what["lost_seconds"])))
        if what["down_seconds"] is not None:
            costs.append(self.say("down", seconds=self.seconds(what["down_seconds"])))
        step = "" if what["step"] is None else f" – {self.say('at_step', step=format(what['step'], ','))}"
        followed = words["nothing_followed"]
        if one.followed is not None:
            followed = (
                f"{self.kind(one.followed['kind'])} ({when(one.followed['time'])} UTC): "
                f"{self.text(one.followed)}"
            )
        rows = [
            ("when", f"{when(what['time'])} UTC"),
            ("where", ", ".join(where) or words["missing"]),
            ("evidence", what["evidence"] or words["missing"]),
            ("cost", ", ".join(costs) or words["no_cost"]),
            ("done", words.get(what["action"], what["action"]) or words["missing"]),
            ("followed", followed),
        ]
        return self.kind(what["kind"]) + step, [(words[name], value) for name, value in rows]

    def spent(self) -> list[tuple[str, str, float, str]]:
        """What took time, how long, its share, and its name."""
        found = self.told.goodput
        if found is None or not found.seconds:
            return []
        parts = ("steps", "again", "validation", "saving", "down", "rest")
        values = [(name, float(getattr(found, name))) for name in parts]
        return [
            (self.words[f"spent_{name}"], self.seconds(value), value / found.seconds, name)
            for name, value in values
        ]

    def clock(self) -> str:
        """The time that was accounted for, or why there is none."""
        found = self.told.goodput
        if self.told.odd_clock:
            return self.words["odd_clock"]
        if found is None:
            return self.say("no_goodput", every=self.told.logged_every)
        return self.say("clock", seconds=self.seconds(found.seconds), starts=found.starts)

    def finding(self, one: Finding) -> str:
        """A fact as a sentence."""
        values = {name: self.shown(name, value) for name, value in one.values.items()}
        sentences = FINDINGS[self.language]
        if one.name == "other_health":
            values["gap_said"] = "" if one.values["gap"] is None else sentences["gap_said"].format(**values)
        return sentences[one.name].format(**values)

    def shown(self, name: str, value: Any) -> str:
        """A value of a finding."""
        if value is None:
            return self.words["missing"]
        if name in ("share", "newest", "highest", "gap"):
            return _share(value) or ""
        if name in ("here", "there", "loss", "early"):
            return f"{value:.4f}"
        if name.endswith("seconds"):
            return self.seconds(value)
        if name == "eps":
            return compact(value) or ""
        return f"{value:,}" if isinstance(value, int) else str(value)

    def differs(self) -> list[tuple[str, str, str]]:
        """Settings in which this run and the other differ."""
        if self.told.beside is None:
            return []
        return [
            (one.key, self.setting(one.before), self.setting(one.after)) for one in self.told.beside.settings
        ]

    def setting(self, value: Any) -> str:
        """A value of a setting."""
        return self.words["none"] if value == MISSING else compact(value) or self.words["none"]


def _health(name: str, found: Facts) -> Series:
    rows = [(row["step"], row["eps_dominated"]) for row in found.rows if "eps_dominated" in row]
    return Series(name, rows, dots=True)


def _spread(values: list[Any]) -> list[Any]:
    """Some of them, evenly spread, with the first and the last."""
    return sample(values, _MOST_STEPS)


def _share(value: float | None) -> str | None:
    return None if value is None else f"{100 * value:.3g} %"
