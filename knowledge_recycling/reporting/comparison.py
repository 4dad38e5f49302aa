"""Several runs side by side on one self-contained page: utility, gap, leakage, cost, settings.

It only reads the `result.json` of each run, and shows no image.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from knowledge_recycling.reporting import plots
from knowledge_recycling.reporting.page import render
from knowledge_recycling.reporting.reading import read_result
from knowledge_recycling.reporting.result import Measure, Result, strongest
from knowledge_recycling.reporting.sharing import shareable
from knowledge_recycling.reporting.wording import plain
from knowledge_recycling.storage import write_text


@dataclass(frozen=True)
class Compared:
    """One run of the page."""

    label: str
    result: Result

    @property
    def attack(self) -> str | None:
        """The strongest attack on the Student; `None`: not audited."""
        return strongest(self.result.privacy.get("student", {}))

    @property
    def leakage(self) -> Measure:
        """The AUC of the strongest attack on the Student."""
        if self.attack is None:
            return Measure()
        attack = self.result.privacy["student"][self.attack]
        low, high = attack.ci95.get("auc", (None, None))
        return Measure(value=attack.auc, low=low, high=high)


@dataclass(frozen=True)
class View:
    """Everything the page shows; lists stand in the order of the runs."""

    runs: Sequence[Compared]
    accuracy: Markup
    gap: Markup
    leakage: Markup | None
    stages: Sequence[str]
    """All stages that any run has, in their order."""
    quality: Sequence[str]
    """All metrics of quality that are numbers."""
    settings: Mapping[str, Sequence[str]]
    """Those that differ between the runs, as shown; empty: left at its default."""
    one_test: bool
    """Whether all runs are known to be tested on the same images."""


def write_comparison(run_folders: Sequence[Path], target: Path, *, public: bool = False) -> None:
    """Writes one page that compares finished runs.

    Args:
        run_folders: The runs, in the order they are shown in.
        target: HTML file to write.
        public: Leave out all text that may name files, the runs' own names included.

    Raises:
        RunError: A run has no readable result, or the page cannot be written.
    """
    results = [read_result(folder) for folder in run_folders]
    if public:
        labels = [f"Run {number}" for number in range(1, 1 + len(results))]
        results = [shareable(result) for result in results]
    else:
        labels = _labels(run_folders)
    runs = [Compared(*each) for each in zip(labels, results, strict=True)]
    write_text(target, render("comparison.html", vars(_view(runs))))


def _labels(folders: Sequence[Path]) -> list[str]:
    """Returns the shortest ends of the paths that tell the folders apart.

    >>> _labels([Path("runs/a"), Path("runs/b")])
    ['a', 'b']
    >>> _labels([Path("x/a"), Path("y/a")])
    ['x/a', 'y/a']
    """
    parts = [folder.resolve().parts for folder in folders]
    for depth in range(1, max(map(len, parts))):
        ends = ["/".join(each[-depth:]) for each in parts]
        if len(set(ends)) == len(ends):
            return ends
    return [f"{number}: {folder.name}" for number, folder in enumerate(folders, start=1)]


def _view(runs: Sequence[Compared]) -> View:
    labels, results = [run.label for run in runs], [run.result for run in runs]
    roles = {
        "Teacher": [result.teacher.test.accuracy for result in results],
        "Student": [result.student.test.accuracy for result in results],
    }
    gaps = {run.label: run.result.gap.measure("accuracy") for run in runs}
    audited = {run.label: run.leakage for run in runs if run.attack is not None}
    tests = {result.digests.get("test") for result in results}
    return View(
        runs=runs,
        accuracy=plots.accuracy_plot(labels, roles),
        gap=plots.interval_plot(gaps),
        leakage=plots.interval_plot(
            audited, reference=0.5, label="AUC of the strongest attack on the Student"
        )
        if audited
        else None,
        stages=_union(result.cost.seconds for result in results),
        quality=_union(_numbers(result) for result in results),
        settings=_differing(results),
        one_test=len(tests) == 1 and None not in tests,
    )


def _union(names: Iterable[Iterable[str]]) -> list[str]:
    """Returns all names, each once, in the order they are met."""
    return list(dict.fromkeys(name for some in names for name in some))


def _numbers(result: Result) -> list[str]:
    return [name for name, value in result.quality.items() if isinstance(value, int | float)]


def _differing(results: Sequence[Result]) -> dict[str, list[str]]:
    shown = [
        {key: plain(value) for key, value in result.changed_settings.items()} for result in results
    ]
    values = {key: [each.get(key, "") for each in shown] for key in sorted(_union(shown))}
    return {key: row for key, row in values.items() if len(set(row)) > 1}
