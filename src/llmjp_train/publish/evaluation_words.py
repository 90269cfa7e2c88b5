"""What a page of an evaluation or a comparison says, in English and Japanese."""

LANGUAGES = ("en", "ja")

WORDS: dict[str, dict[str, str]] = {
    "en": {
        "evaluation": "evaluation", "comparison": "comparison", "step": "step", "suite": "suite", "summary": "Summary",
        "families": "By ability", "tasks": "Tasks", "samples": "Right and wrong answers", "settings": "Settings",
        "left_out": "What did not run, and why", "faults": "Known faults of the definitions",
        "differs": "Where this differs from published figures", "task": "Task", "metric": "Metric", "value": "Value",
        "interval": "95 % interval", "majority": "Majority", "chance": "Chance", "items": "Items", "of": "of",
        "clusters": "groups", "shots": "Examples", "licence": "Licence", "data": "Data", "tokens": "Tokens run / plain",
        "seconds": "Seconds", "cut": "Cut", "unfinished": "Unended", "filter": "Filter", "mean": "Mean", "name": "Name",
        "not_comparable": "not comparable", "right": "right", "wrong": "wrong", "prompt": "Question (without examples)",
        "answer": "Answer of the model", "none": "none", "difference": "Difference", "p": "p (Holm)",
        "verdict": "What may be said", "visible": "Visible", "not_apart": "not told apart from the majority answer",
        "baseline": "The line in a bar is what always giving the most frequent answer scores; whiskers are 95 % "
        "intervals over items.",
        "compared": "Paired item by item. Intervals are of each task alone; p values are of a randomisation test, "
        "corrected for all rows by Holm's rule. Visible: the smallest difference that four of five would see.",
        "published": "Published scores of other models", "model": "Model", "source": "Source",
        "dotted": "Dotted lines are published scores of other models, listed below with what differs.",
        "Own items": "Own items", "Common sense": "Common sense", "Acceptability": "Acceptability", "Code": "Code",
        "Extraction": "Extraction", "Maths": "Maths", "NLI": "NLI", "QA": "QA",
        "Reading": "Reading", "STS": "STS", "Translation": "Translation", "mean of tasks": "mean of tasks",
        "sorted": "sort by", "semicolon": "; ",
        "definitions": "Tasks in both definitions", "right_definition": "Right definition",
        "what_differs": "What differs",
        "both": "The same model and task in the right definition and in llm-jp-eval 1.3's, known faults included. "
        "Figures of the right one are for publishing; those of llm-jp-eval for comparison with published ones alone.",
        "other": "日本語",
    },
    "ja": {
        "evaluation": "評価", "comparison": "比較", "step": "ステップ", "suite": "スイート", "summary": "要約",
        "families": "能力別", "tasks": "タスク", "samples": "正答と誤答の例", "settings": "設定",
        "left_out": "実行しなかったものとその理由", "faults": "定義の既知の欠陥",
        "differs": "公表値と異なる点", "task": "タスク", "metric": "指標", "value": "値",
        "interval": "95 % 区間", "majority": "最頻", "chance": "無作為", "items": "問題数", "of": "/",
        "clusters": "群", "shots": "例示", "licence": "ライセンス", "data": "データ",
        "tokens": "計算 / 素朴なトークン数", "seconds": "秒", "cut": "切り詰め", "unfinished": "未終了",
        "filter": "絞り込み", "mean": "平均", "name": "名前",
        "not_comparable": "比較できない", "right": "正", "wrong": "誤", "prompt": "問い（例示を除く）",
        "answer": "モデルの答え", "none": "なし", "difference": "差", "p": "p（Holm）",
        "verdict": "言えること", "visible": "検出限界", "not_apart": "最頻の答えと区別できない",
        "baseline": "棒の中の線は、常に最頻の答えを返したときの値。ひげは問題についての 95 % 区間。",
        "compared": "問題ごとに対応させた比較。区間は各タスク単独のもの。p 値は無作為化検定により、全行について Holm の"
        "方法で補正した。検出限界は、五回に四回は見いだせる最小の差。",
        "published": "他のモデルの公表値", "model": "モデル", "source": "出典",
        "dotted": "点線は他のモデルの公表値（下の表に、条件の違いとともに示す）。",
        "Own items": "自作の問題", "Common sense": "常識", "Acceptability": "容認性", "Code": "プログラム",
        "Extraction": "抽出", "Maths": "算数・数学", "NLI": "自然言語推論", "QA": "質問応答",
        "Reading": "読解", "STS": "文の類似度", "Translation": "翻訳", "mean of tasks": "タスクの平均",
        "sorted": "並べ替え：", "semicolon": "。",
        "definitions": "二つの定義によるタスク", "right_definition": "正しい定義",
        "what_differs": "異なる点",
        "both": "同じモデルの同じタスクを、正しい定義と、既知の欠陥を含む llm-jp-eval 1.3 の定義とで採点した値。"
        "公表するのは前者で、後者は公表値との比較にのみ用いる。",
        "other": "English",
    },
}  # fmt: skip
