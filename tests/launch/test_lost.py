"""What is told for a host that cannot speak any more."""

import json
from pathlib import Path

import pytest
from helpers.job_scripts import HELLO

from llmjp_train import exit_codes
from llmjp_train.launch.lost import SSH, lost
from llmjp_train.launch.meeting import BadNodesError, meet
from llmjp_train.launch.supervisor import FAILED, Result


@pytest.mark.parametrize("node", [0, 1])
def test_the_others_hear_at_once_of_one_that_never_came(node: int, tmp_path: Path) -> None:
    attempt = tmp_path / "attempt"
    assert lost(attempt, node, "n9", SSH).startswith("ssh could not start it (code 255)")
    with pytest.raises(BadNodesError) as caught:
        meet(attempt, 1 - node, 2, HELLO, "lo", 20)
    assert list(caught.value.bad) == ["n9"]
    if node == 0:  # who else would tell the arbiter
        result = Result(**json.loads((attempt / "node-0000.json").read_text()))
        assert (result.kind, result.bad) == ("bad_node", caught.value.bad)


def test_one_that_was_lost_on_the_way_ends_the_others(tmp_path: Path) -> None:
    (tmp_path / "hello-0001.json").write_text("{}")
    assert lost(tmp_path, 1, "n1", SSH).startswith("ssh lost it")
    assert "n1: ssh lost it" in json.loads((tmp_path / FAILED).read_text())["reason"]
    assert json.loads((tmp_path / "node-0001-lost.json").read_text())["kind"] == "node_lost"


def test_one_that_ended_without_a_word_is_told_too(tmp_path: Path) -> None:
    (tmp_path / "hello-0001.json").write_text("{}")
    assert lost(tmp_path, 1, "n1", exit_codes.FAILED).startswith("it ended without a word (code 1)")
    assert (tmp_path / FAILED).exists()


@pytest.mark.parametrize("code", [exit_codes.OK, exit_codes.STOPPED])
def test_one_that_said_how_it_ended_needs_nobody_to_speak_for_it(code: int, tmp_path: Path) -> None:
    (tmp_path / "hello-0001.json").write_text("{}")
    assert lost(tmp_path, 1, "n1", code) == ""
    Result(code).write(tmp_path, 2)
    assert lost(tmp_path, 2, "n2", SSH) == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hello-0001.json", "node-0002.json"]
