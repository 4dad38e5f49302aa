"""The environment that peers live in, and what keeps the failure of one from the others."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
HOME = ROOT / "benchmarks/.venv-peers"


def enter(module: str) -> None:
    """Goes on as `python -m module` with the same arguments in the peers' environment."""
    if Path(sys.prefix) == HOME:
        return
    surroundings = os.environ | {"PYTHONPATH": str(ROOT), "TQDM_DISABLE": "1"}
    command = [str(build()), "-m", module, *sys.argv[1:]]
    os.execve(command[0], command, surroundings)  # noqa: S606


def build() -> Path:
    """Returns the environment's Python, made if need be; what cannot be installed is told."""
    python = HOME / "bin/python"
    requirements = (Path(__file__).parent / "requirements.txt").read_text()
    stamp = HOME / "installed.txt"
    if stamp.exists() and stamp.read_text() == requirements:
        return python
    subprocess.run([sys.executable, "-m", "venv", HOME], check=True)
    (own,) = HOME.glob("lib/python*/site-packages")
    (own / "project.pth").write_text(sysconfig.get_path("purelib"))  # torch is not installed twice
    install = [python, "-m", "pip", "install", "--quiet", "--no-deps"]
    failed = [
        line
        for line in requirements.splitlines()
        if not line.startswith("#") and subprocess.run([*install, line], check=False).returncode
    ]
    for line in failed:
        print(f"cannot install {line}", file=sys.stderr)
    if not failed:
        stamp.write_text(requirements)
    return python


class Attempts:
    """Calls what may fail, and remembers why it did."""

    def __init__(self) -> None:
        self.failures: dict[str, str] = {}

    def __call__(self, name: str, call: Callable[[], Any]) -> Any:
        """Returns what `call` returns, `None` if it fails."""
        try:
            return call()
        except Exception as error:  # whatever another package raises
            traceback.print_exc()
            self.failures[name] = f"{type(error).__name__}: {error}"
            return None

    def told(self) -> str:
        """Returns a line on each failure."""
        return "".join(f"\n{name} failed: {why}" for name, why in self.failures.items())
