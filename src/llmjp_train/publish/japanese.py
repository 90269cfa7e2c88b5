"""The record's own words in Japanese, for the Japanese card; figures and messages stay as they were written."""

from collections.abc import Mapping
from typing import Any

from llmjp_train.runlog.reading import STARTS, changed, describe

STATES = {
    "running": "実行中",
    "ended": "完了",
    "stopped": "停止（再開可能）",
    "failed": "失敗",
    "new": "未開始",
}
KINDS = {
    "start": "開始",
    "resume": "再開",
    "fork": "分岐",
    "fault": "障害",
    "spike": "損失の急増",
    "rewind": "巻き戻し",
    "early_stop": "早期終了",
    "straggler": "遅いランク",
    "save_failed": "保存の失敗",
}


def kind(event: Mapping[str, Any]) -> str:
    """What an event is called; its own name where there is no word for it here."""
    return KINDS.get(event["kind"], str(event["kind"]))


def event_text(event: dict[str, Any]) -> str:
    """An event in words, with the same figures as `runlog.reading.describe`; messages stay in English."""
    if event["kind"] in STARTS:
        return _start(event)
    if event["kind"] == "rewind":
        count = sum(int(pair[1]) for pair in event.get("left_out") or [])
        return f"{event.get('folder', '?')} に戻る（除外したデータは合計 {count:,} サンプル）"
    if event["kind"] == "early_stop":
        left = f"、以後は数えないもの: {', '.join(event['left'])}" if event.get("left") else ""
        return f"{event.get('folder', '?')} を最新とする（{event.get('reason')}）{left}"
    if event["kind"] == "spike" and not event.get("action"):
        return f"損失 {_number(event.get('loss'))}（平均を標準偏差の {_number(event.get('score'), '.1f')} 倍上回る）"
    return describe(event)


def _start(event: dict[str, Any]) -> str:
    layout, origin = event.get("layout") or {}, event.get("origin") or {}
    parts = [
        f"{layout.get('ranks', '?')} プロセス（{event.get('device', '?')}）",
        f"ZeRO-{layout.get('zero', '?')}",
        str(event.get("dtype", "?")),
    ]
    if origin.get("checkpoint"):
        of = f"{origin['fork_of']} の " if origin.get("fork_of") else ""
        parts.append(f"{of}{origin['checkpoint']} から")
    if event.get("left"):
        parts.append(f"以後は数えないもの: {', '.join(event['left'])}")
    if event.get("allow_changed"):
        parts.append(f"変更を許可: {', '.join(event['allow_changed'])}")
    if event.get("changed"):
        parts.append(f"設定の変更: {changed(event)}")
    return "、".join(parts)


def _number(value: Any, form: str = ".4f") -> str:
    return "有限でない値" if value is None else format(value, form)
