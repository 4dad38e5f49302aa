"""What the command says when it is stopped."""

from __future__ import annotations

import shlex
import sys

import pytest

from knowledge_recycling.cli import EXIT_INTERRUPTED, clear_errors
from knowledge_recycling.interruption import Interrupted


def test_a_stopped_command_says_how_to_go_on_and_the_line_can_be_pasted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    long = "runs/" + "x" * 90
    given = ["run", "my set.toml", "--set", 'tuning.knobs=["set_size"]', "--out", long]
    monkeypatch.setattr(sys, "argv", ["/usr/bin/kr", *given])
    with pytest.raises(SystemExit) as stopped, clear_errors():
        raise Interrupted
    assert stopped.value.code == EXIT_INTERRUPTED
    (line,) = capsys.readouterr().err.splitlines()
    assert shlex.split(line.split("Go on with: ")[1]) == ["kr", *given]
