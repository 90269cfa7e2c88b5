"""Evaluation on lm-evaluation-harness: task files, language-model adapters, runner, statistics."""
