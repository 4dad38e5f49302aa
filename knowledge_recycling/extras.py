"""Libraries that come with an extra of the package: imported when needed, named when missing."""

from __future__ import annotations

import importlib
from typing import Any

from knowledge_recycling.errors import KRError


def require(module: str, extra: str) -> Any:
    """Returns a module that comes with the extra `extra`.

    Raises:
        KRError: It is not installed; the message is one line that says what to install.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        name = module.partition(".")[0]
        raise KRError(
            f"'{name}' is not installed; it comes with: pip install 'knowledge-recycling[{extra}]'"
        ) from error
