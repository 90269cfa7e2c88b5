"""What a chronicle says, in English and Japanese."""

WORDS: dict[str, dict[str, str]] = {
    "en": {
        "chronicle": "chronicle", "other": "日本語", "missing": "not recorded",
        "source": "Every number here comes from the run record; what it does not hold is said to be missing.",
        "live": "The run is running: this page tells it as far as its record went when it was made.",
        "planned": "What was planned", "curve": "The loss, with what happened", "days": "What happened, day by day",
        "incidents": "Incidents", "time_spent": "Where the time went", "evaluations": "Evaluations",
        "learned": "What was learned", "notes": "Written by people", "facts": "From the figures",
        "beside": "Beside another run", "state": "State", "steps": "Steps", "tokens": "Tokens seen",
        "goodput": "Goodput", "of": "of", "times": "start(s)", "wrong": "Incidents",
        "by_config": "By the configuration of the newest start.",
        "changed_later": "Changed by a later start", "untold": "Starts whose changes of settings were not recorded",
        "no_config": "The configuration could not be read by this version, so derived numbers are missing",
        "model": "Model", "length": "Length", "step_size": "A step", "rate": "Learning rate", "optimizer": "Optimizer",
        "precision": "Precision", "flops": "Model FLOPs", "layout": "Layout", "seed": "Seed", "data": "Data",
        "checkpoints": "Checkpoints", "declared": "Declared changes", "remarks": "Remarks of the configuration",
        "parameters": "{name}, {parameters} parameters ({without} without embeddings)",
        "length_of": "{steps} steps, {tokens} tokens, {samples} sequences",
        "step_of": "{batch} sequences of {length} tokens at the start, {tokens} tokens at the end",
        "rate_of": "{lr} at its peak, {kind} to {min_lr}, {warmup} steps of warm-up",
        "layout_of": "{ranks} rank(s) on {nodes} node(s): tensor {tensor}, pipeline {pipeline}, data {data}, "
        "ZeRO-{zero}",
        "checkpoints_of": "{size} each, {kept} kept at the end", "source_of": "{name}: {tokens} tokens",
        "epochs_of": ", {epochs} passes planned", "at_step": "step {step}",
        "no_metrics": "This run has recorded no metrics, so there is no curve.",
        "never": "This run was never started: nothing happened.",
        "marks": "Marked on the curve", "training": "training", "validation": "validation", "loss": "Loss",
        "loss_unit": "nats a token", "health": "Updates dominated by epsilon", "health_unit": "share of parameters",
        "of_run": "training of {name}", "here": "here", "curve_rows": "The curve in figures", "step": "Step",
        "spoken": "{name} from {y0} at step {x0} to {y1} at step {x1}", "spoken_marks": "marked",
        "line": "Steps {first} to {last}", "line_rows": "{rows} steps logged", "line_tokens": "{tokens} tokens by then",
        "line_loss": "loss {first} to {last}", "line_validation": "validation {loss} at step {step}",
        "line_saves": "{count} checkpoint(s) saved (steps {steps}; {size} in all, {seconds})",
        "line_removed": "{count} checkpoint(s) removed by retention",
        "line_evaluations": "{count} evaluation(s) stored in training", "line_none": "No step was taken.",
        "more": "; {count} more", "again": "{count} steps taken again", "layout_was": "layout before: {layout}",
        "evaluated": "suite {suite} on step {step}: {scores}",
        "no_incident": "No incident was recorded: no fault, no loss spike, no failed save, no attempt that died.",
        "when": "When", "where": "Where", "evidence": "Evidence", "cost": "Cost", "done": "What was done",
        "followed": "What followed", "lost": "{count} steps", "lost_time": "{seconds} of training",
        "down": "{seconds} until the next start", "no_cost": "none recorded", "nothing_followed": "no further start",
        "rank": "rank {rank}", "node": "node {node}",
        "restart": "restarted", "halt": "halted", "spent": "Time", "share": "Share",
        "clock": "{seconds} from the first start to the newest row of the metrics, with {starts} start(s).",
        "no_goodput": "Not recorded: the time of steps is known only where each step is logged with its time "
        "(metrics.every is {every} here).",
        "odd_clock": "Not given: the parts add up to more time than the record's clock holds, so one of them is wrong.",
        "spent_steps": "steps that count", "spent_again": "steps taken again or given up",
        "spent_validation": "validation", "spent_saving": "waiting for saves",
        "spent_down": "down: stopped, queueing, loading", "spent_rest": "all else: start-up, evaluation, logging",
        "no_notes": "Nobody wrote a note (llmjp note RUN TEXT adds one).", "task": "Task", "metric": "Metric",
        "value": "Value", "interval": "95 % interval", "majority": "Majority", "name": "Name",
        "no_evaluations": "This run has not been evaluated.", "key": "Setting", "none": "(none)",
        "nothing_differs": "No setting differs but names and folders.",
        "made": "Made from the run record by llmjp-train {version}. Last change of the record: {changed} UTC.",
    },
    "ja": {
        "chronicle": "学習の記録", "other": "English", "missing": "記録なし",
        "source": "以下の数値はすべて学習の記録から取り出したものです。記録のないものは「記録なし」と記します。",
        "live": "学習は実行中です。このページは、作成した時点までの記録を伝えます。",
        "planned": "計画", "curve": "損失の推移と出来事", "days": "日ごとの経過",
        "incidents": "問題とその対処", "time_spent": "時間の内訳", "evaluations": "評価",
        "learned": "わかったこと", "notes": "人が書いたメモ", "facts": "数値からわかること",
        "beside": "別の学習との比較", "state": "状態", "steps": "ステップ", "tokens": "学習トークン数",
        "goodput": "有効時間の割合", "of": "/", "times": "回の開始", "wrong": "問題の件数",
        "by_config": "最後に開始したときの設定によります。",
        "changed_later": "途中の再開で変わった設定", "untold": "設定の変更が記録されていない再開",
        "no_config": "このバージョンでは設定を読めないため、計算で得る数値がありません",
        "model": "モデル", "length": "長さ", "step_size": "1 ステップ", "rate": "学習率",
        "optimizer": "オプティマイザー",
        "precision": "計算精度", "flops": "総計算量（モデル FLOPs）", "layout": "並列の構成", "seed": "乱数シード",
        "data": "データ", "checkpoints": "チェックポイント", "declared": "予定された変更", "remarks": "設定の注記",
        "parameters": "{name}、パラメータ数 {parameters}（埋め込みを除くと {without}）",
        "length_of": "{steps} ステップ、{tokens} トークン、{samples} 系列",
        "step_of": "開始時は {length} トークンの系列を {batch} 本、終了時は {tokens} トークン",
        "rate_of": "最大 {lr}、{kind} で {min_lr} まで、ウォームアップ {warmup} ステップ",
        "layout_of": "{nodes} ノードの {ranks} プロセス：テンソル {tensor}、パイプライン {pipeline}、データ {data}、"
        "ZeRO-{zero}",
        "checkpoints_of": "1 つ {size}、終了時に {kept} 個を残す", "source_of": "{name}：{tokens} トークン",
        "epochs_of": "、{epochs} 周の予定", "at_step": "ステップ {step}",
        "no_metrics": "指標の記録がないため、曲線はありません。",
        "never": "この学習は一度も開始されていません。",
        "marks": "曲線に印を付けた出来事", "training": "学習", "validation": "検証", "loss": "損失",
        "loss_unit": "nats/トークン", "health": "ε が支配する更新", "health_unit": "パラメータの割合",
        "of_run": "{name} の学習", "here": "この学習", "curve_rows": "曲線の数値", "step": "ステップ",
        "spoken": "{name}：ステップ {x0} の {y0} からステップ {x1} の {y1} まで", "spoken_marks": "印",
        "line": "ステップ {first}～{last}", "line_rows": "{rows} ステップを記録",
        "line_tokens": "ここまでに {tokens} トークン",
        "line_loss": "損失 {first} → {last}", "line_validation": "検証損失 {loss}（ステップ {step}）",
        "line_saves": "チェックポイントを {count} 個保存（ステップ {steps}、計 {size}、{seconds}）",
        "line_removed": "保持の規則により {count} 個を削除",
        "line_evaluations": "学習中の評価を {count} 件保存", "line_none": "進んだステップはありません。",
        "more": "、ほか {count} 個", "again": "{count} ステップをやり直し", "layout_was": "直前の構成：{layout}",
        "evaluated": "ステップ {step} をスイート {suite} で評価：{scores}",
        "no_incident": "問題（障害、損失の急増、保存の失敗、途中で消えた実行）は記録されていません。",
        "when": "日時", "where": "場所", "evidence": "根拠", "cost": "損失した時間など", "done": "対処",
        "followed": "その後", "lost": "{count} ステップ", "lost_time": "学習時間 {seconds}",
        "down": "次の開始まで {seconds}", "no_cost": "記録なし", "nothing_followed": "その後の開始なし",
        "rank": "ランク {rank}", "node": "ノード {node}",
        "restart": "再起動", "halt": "停止", "spent": "時間", "share": "割合",
        "clock": "最初の開始から最後の指標まで {seconds}、開始は {starts} 回。",
        "no_goodput": "記録なし：各ステップの時間がわかるのは、すべてのステップを所要時間とともに記録した場合だけです"
        "（metrics.every は {every}）。",
        "odd_clock": "示しません：内訳の合計が記録の時刻から得られる時間を超えており、どちらかが誤っています。",
        "spent_steps": "有効なステップ", "spent_again": "やり直した、または捨てたステップ",
        "spent_validation": "検証", "spent_saving": "保存の待ち時間",
        "spent_down": "停止中（停止、待ち行列、読み込み）", "spent_rest": "その他（起動、評価、記録）",
        "no_notes": "メモはありません（llmjp note RUN TEXT で書けます）。", "task": "タスク", "metric": "指標",
        "value": "値", "interval": "95 % 信頼区間", "majority": "多数派", "name": "名前",
        "no_evaluations": "このモデルはまだ評価されていません。", "key": "設定", "none": "（なし）",
        "nothing_differs": "名前とフォルダーのほかに違う設定はありません。",
        "made": "llmjp-train {version} が学習の記録から作成しました。記録の最終更新：{changed} UTC。",
    },
}  # fmt: skip

KINDS: dict[str, dict[str, str]] = {
    "en": {
        "killed": "ended without a word", "rank_died": "a rank died",
        "out_of_memory": "out of memory", "bad_node": "bad node", "straggler": "slow rank",
        "peer": "ended with another rank", "node_lost": "a node was lost", "unhealthy": "stopped by a check",
        "bad_input": "bad input", "incident": "supervisor's report", "stop": "stop", "tracker_failed": "tracker failed",
    },
    "ja": {
        "stop": "停止", "end": "終了", "change": "変更", "note": "メモ", "evaluation": "評価",
        "incident": "監視の報告", "tracker_failed": "トラッカーの失敗", "killed": "記録のない終了",
        "rank_died": "プロセスの異常終了",
        "out_of_memory": "メモリー不足", "bad_node": "不良ノード", "preflight": "事前検査",
        "hang": "ハング", "peer": "他のランクに伴う終了", "crash": "異常終了",
        "node_lost": "ノードの喪失",
        "bad_input": "入力の誤り", "unhealthy": "検査による停止",
    },
}  # fmt: skip
"""Names of kinds of events and incidents, beside those of `japanese.KINDS`; others keep their own name."""

FINDINGS: dict[str, dict[str, str]] = {
    "en": {
        "no_health": "How far epsilon damps the updates was not recorded (metrics.health_every is {every}).",
        "health_fine": "Epsilon ({eps}) dominated at most {highest} of the updates (step {step}, {checks} checks), "
        "never more than half.",
        "health_crossed": "At step {step}, after {tokens} tokens, epsilon ({eps}) dominated {share} of the updates: "
        "for more than half of the parameters Adam's step was damped by more than half. At the newest check "
        "(step {at}) it was {newest}.",
        "nothing_common": "No step was logged by both this run and {other}.",
        "other_no_health": "{other} has no record of how far epsilon damps its updates.",
        "other_health": "In {other} epsilon dominated at most {highest} of the updates (step {step}).{gap_said}",
        "gap_said": " The losses of the two were {gap} apart at step {at}.",
        "loss_alike": "The losses of this run and {other} cannot be told apart by eye at the last of the steps {first} "
        "to {last} that both logged.",
        "loss_apart": "The losses of this run and {other} can be told apart from step {step} on, after {tokens} tokens "
        "({here} here, {there} there at that step): from there to step {last} their mean gap over 20 steps exceeds "
        "the scatter of the curves. At single steps before it they were up to {early} apart (step {early_step}).",
        "told_before": "The health metric told {steps} steps, {tokens} tokens, before the loss.",
        "no_spike": "No loss spike was recorded.", "spikes": "{count} loss spike(s) were recorded.",
        "no_validation": "No validation was recorded.",
        "best_is_last": "Validation was at its best at the newest of {count} checks (step {step}, {loss} nats a "
        "token): by itself it gives no sign of trouble.",
        "best_before": "Validation was at its best at step {step} ({loss} nats a token) and higher at the newest of "
        "{count} checks (step {last}).",
        "cost": "{count} incident(s); steps lost: {lost_steps}; down until the next start: {down_seconds}.",
        "not_evaluated": "No benchmark was run, so nothing is known of what the model can do.",
        "evaluated": "{of} task(s) were scored; none that has a majority baseline is indistinguishable from it.",
        "not_apart": "{count} of {of} scored task(s) cannot be told apart from always giving the most frequent answer: "
        "{tasks}.",
    },
    "ja": {
        "no_health": "ε が更新をどれほど抑えたかは記録されていません（metrics.health_every は {every}）。",
        "health_fine": "ε（{eps}）が支配した更新は最大でも {highest}（ステップ {step}、検査 {checks} 回）で、"
        "半分を超えたことはありません。",
        "health_crossed": "ステップ {step}（{tokens} トークン）で、ε（{eps}）が更新の {share} を支配していました。"
        "半数を超えるパラメータで、Adam の更新が本来の半分未満に抑えられていたことになります。"
        "最後の検査（ステップ {at}）では {newest} でした。",
        "nothing_common": "この学習と {other} の両方が記録したステップはありません。",
        "other_no_health": "{other} には、ε が更新をどれほど抑えたかの記録がありません。",
        "other_health": "{other} では、ε が支配した更新は最大でも {highest}（ステップ {step}）でした。{gap_said}",
        "gap_said": "ステップ {at} での両者の損失の差は {gap} です。",
        "loss_alike": "この学習と {other} の損失は、両方が記録した"
        "ステップ {first}～{last} の最後でも見分けがつきません。",
        "loss_apart": "この学習と {other} の損失は、ステップ {step}（{tokens} トークン）から見分けがつきます"
        "（そのステップで、こちらは {here}、あちらは {there}）。そこからステップ {last} まで、20 ステップの平均の差が"
        "曲線自体のばらつきを上回ります。それより前の個々のステップでの差は最大 {early}（ステップ {early_step}）です。",
        "told_before": "この指標は、損失より {steps} ステップ（{tokens} トークン）早く知らせていました。",
        "no_spike": "損失の急増は記録されていません。", "spikes": "損失の急増が {count} 回記録されました。",
        "no_validation": "検証の記録はありません。",
        "best_is_last": "検証損失は {count} 回のうち最後の検証（ステップ {step}、{loss} nats/トークン）が最小です。"
        "検証損失だけを見れば、異常の兆しはありません。",
        "best_before": "検証損失はステップ {step}（{loss} nats/トークン）で最小となり、{count} 回のうち最後"
        "（ステップ {last}）ではそれより大きくなりました。",
        "cost": "問題は {count} 件、失ったステップ：{lost_steps}、次の開始までの停止：{down_seconds}。",
        "not_evaluated": "ベンチマークによる評価がないため、このモデルに何ができるかはわかりません。",
        "evaluated": "{of} 件のタスクを評価しました。多数派ベースラインと区別できないものはありません。",
        "not_apart": "評価した {of} 件のうち {count} 件は、常に最も多い答えを返す場合と区別できません：{tasks}。",
    },
}  # fmt: skip
"""A sentence for each `story.Finding`."""
