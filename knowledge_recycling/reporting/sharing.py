"""What of a result may be shown to those who may not see the set."""

from __future__ import annotations

from knowledge_recycling.reporting.result import FurtherGenerator, Result, Scored


def shareable(result: Result) -> Result:
    """Returns the result without free text that may hold file names: warnings, failures, paths."""
    public = {key: value for key, value in result.changed_settings.items() if not _local(key)}
    withheld = dict.fromkeys(filter(_local, result.changed_settings), "withheld")
    further = {
        name: each.model_copy(update=_without_reasons(each))
        for name, each in result.further_generators.items()
    }
    return result.model_copy(
        update={
            "dataset": result.dataset.model_copy(update={"warnings": ()}),
            "changed_settings": public | withheld,
            "further_generators": further,
        }
        | _without_reasons(result)
    )


def _local(key: str) -> bool:
    return key.startswith("data.")


def _without_reasons(tried: Result | FurtherGenerator) -> dict[str, tuple[Scored, ...]]:
    return {
        "candidates": tuple(_without_reason(each) for each in tried.candidates),
        "tuning": tuple(_without_reason(each) for each in tried.tuning),
    }


def _without_reason(scored: Scored) -> Scored:
    reasons = {
        "failure": scored.failure and "failed",
        "full_failure": scored.full_failure and "gave no score",
    }
    return scored.model_copy(update=reasons)
