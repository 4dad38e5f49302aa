"""Libraries that only the release needs."""

from __future__ import annotations

import importlib
from typing import Any

from knowledge_recycling.errors import RunError


def require(module: str) -> Any:
    """Returns a module of the extra `release`.

    Raises:
        RunError: It is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise RunError(
            f"'{module.partition('.')[0]}' is not installed",
            got=error,
            next_step="pip install 'knowledge-recycling[release]'",
        ) from error
