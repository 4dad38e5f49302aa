"""Errors a user can cause: what happened, where, what was expected, what was got, what to do next.

KRError
 |- RecipeError   the recipe is wrong (unknown key, bad value, unknown kind)
 |- DataError     the images or labels are wrong
 `- RunError      the run folder or its state is wrong
"""

from __future__ import annotations


def printable(text: str) -> str:
    r"""Returns `text` with what a terminal would act on, or cannot show, as escapes.

    >>> print(printable("a\x1b[31mb\n"))
    a\x1b[31mb\n
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class KRError(Exception):
    """Base of every error that the user, not this package, has to act on.

    Args:
        what: One sentence that says what is wrong.
        where: File, recipe key or stage concerned.
        expected: What would have been right.
        got: What was found instead.
        next_step: What the user can do about it.
    """

    def __init__(
        self,
        what: str,
        *,
        where: object = None,
        expected: object = None,
        got: object = None,
        next_step: str | None = None,
    ) -> None:
        self.what = what
        self.where = where
        self.expected = expected
        self.got = got
        self.next_step = next_step
        super().__init__(what)

    def __str__(self) -> str:
        details = {
            "where": self.where,
            "expected": self.expected,
            "got": self.got,
            "next": self.next_step,
        }
        shown = {name: value for name, value in details.items() if value is not None}
        lines = [f"  {name}: {printable(str(value))}" for name, value in shown.items()]
        return "\n".join([printable(self.what), *lines])


class RecipeError(KRError):
    """The recipe has an unknown key, a value of the wrong type or range, or an unknown kind."""


class DataError(KRError):
    """The image set cannot be used as it is."""


class RunError(KRError):
    """The run folder belongs to another recipe, is incomplete, or cannot be written."""
