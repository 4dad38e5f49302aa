"""The command `kr`: each command is a few lines over the Python API.

Heavy libraries are imported inside the commands, so that `kr --help` answers at once.
"""

from __future__ import annotations

import shlex
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Optional

import typer
from rich.console import Console

from knowledge_recycling import __version__
from knowledge_recycling.errors import KRError, printable
from knowledge_recycling.interruption import Interrupted, answered_signals

EXIT_ERROR = 2
EXIT_INTERRUPTED = 75
"""The run was asked to stop and can go on (EX_TEMPFAIL of sysexits.h)."""

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Train a classifier on synthetic images only, and compare it with one trained on yours.",
)
console = Console()
errors = Console(stderr=True)

RecipePath = Annotated[Path, typer.Argument(help="Recipe in TOML; write one with: kr new.")]
RunPath = Annotated[Path, typer.Argument(help="Run folder.")]
BundlePath = Annotated[Path, typer.Argument(help="Bundle that `kr release` wrote.")]
Overrides = Annotated[
    Optional[list[str]],  # noqa: UP045  (typer reads the annotation at run time)
    typer.Option("--set", help="Change a key of the recipe: --set seed=1. May be repeated."),
]
Backend = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(help="Who starts workers: loky, ray or dask (--set compute.backend=...)."),
]
Workers = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option(help="Parts done at the same time (--set compute.workers=...)."),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")]


def with_workers(
    overrides: list[str] | None, backend: str | None, workers: int | None
) -> list[str]:
    """Returns the overrides and those that --backend and --workers stand for."""
    settings = {"compute.backend": backend, "compute.workers": workers}
    given = [f"{key}={value}" for key, value in settings.items() if value is not None]
    return [*(overrides or []), *given]


@app.command()
def new(
    recipe: Annotated[Path, typer.Argument(help="File to write.")],
    kind: Annotated[str, typer.Option(help="Kind of data source.")] = "folder",
) -> None:
    """Write a commented recipe to start from."""
    from knowledge_recycling.template import write_recipe

    write_recipe(recipe, kind)
    console.print(f"wrote {recipe}; next: edit it, then kr check {recipe}", markup=False)


@app.command()
def check(
    recipe: RecipePath,
    overrides: Overrides = None,
    minutes: Annotated[
        bool, typer.Option("--minutes", help="Time each part too, and say how long a run takes.")
    ] = False,
) -> None:
    """Show the image set as the run would see it, and keep nothing."""
    from knowledge_recycling.data.inspection import inspect, render
    from knowledge_recycling.data.splits import load_splits
    from knowledge_recycling.recipe import Recipe

    loaded = Recipe.load(recipe, overrides or ())
    splits = load_splits(loaded.data)
    console.print(render(inspect(splits)))
    if minutes:
        from knowledge_recycling import timing

        console.print(timing.render(*timing.stage_times(loaded, splits)))


@app.command()
def run(
    recipe: RecipePath,
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Run folder; by default runs/ and the recipe's name."),
    ] = None,
    overrides: Overrides = None,
    until: Annotated[Optional[str], typer.Option(help="Last stage to run.")] = None,  # noqa: UP045
    redo: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Stage to do anew, with all that depend on it."),
    ] = None,
    backend: Backend = None,
    workers: Workers = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show all settings, derived ones too, and stop.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Run a recipe, or go on with it where it stopped."""
    from knowledge_recycling import pipeline
    from knowledge_recycling.progress import make_reporter
    from knowledge_recycling.recipe import Recipe
    from knowledge_recycling.reporting.wording import verdict

    loaded = Recipe.load(recipe, with_workers(overrides, backend, workers))
    if dry_run:
        console.print_json(pipeline.derive(loaded).model_dump_json())
        return
    out = out or Path("runs") / recipe.stem
    result = pipeline.run(
        loaded, out, until=until, redo=redo, reporter=make_reporter(errors, quiet=quiet)
    )
    if result is not None:
        said = verdict(result)
        lines = [said.utility, said.leakage, f"Report, with real images: {out / 'report.html'}"]
        console.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)


@app.command()
def audit(
    run: RunPath,
    overrides: Overrides = None,
    backend: Backend = None,
    workers: Workers = None,
    quiet: Quiet = False,
) -> None:
    """Attack a finished run with Membership Inference, or go on with it where it stopped."""
    from knowledge_recycling import pipeline
    from knowledge_recycling.progress import make_reporter
    from knowledge_recycling.reporting.wording import verdict

    settings = with_workers(overrides, backend, workers)
    result = pipeline.audit(run, settings, reporter=make_reporter(errors, quiet=quiet))
    if result is not None:
        console.print(verdict(result).leakage, markup=False, highlight=False, soft_wrap=True)


@app.command()
def release(
    run: RunPath,
    out: Annotated[Path, typer.Argument(help="Folder of the bundle; must not exist yet.")],
    images: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=1, help="Synthetic images; by default as many as one set has."),
    ] = None,
    generator: Annotated[bool, typer.Option("--generator", help="Add the generator.")] = False,
    override: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Reason to release against the policy; the cards will say it."),
    ] = None,
    name: Annotated[
        str, typer.Option(help="What the cards call the real set.")
    ] = "private image set",
    licence: Annotated[
        Optional[typer.FileText],  # noqa: UP045
        typer.Option(help="File with the licence of the bundle; by default all rights reserved."),
    ] = None,
) -> None:
    """Write what may leave the building, if the release policy allows it."""
    from knowledge_recycling import pipeline
    from knowledge_recycling.progress import make_reporter
    from knowledge_recycling.releasing.bundle import Order
    from knowledge_recycling.releasing.manifest import list_digest

    order = Order(
        images=images,
        name=name,
        with_generator=generator,
        override=override,
        licence=licence.read() if licence else None,
    )
    count = pipeline.release(run, out, order, reporter=make_reporter(errors, quiet=False))
    console.print(f"released {count} files to {out}", markup=False, soft_wrap=True)
    console.print(f"SHA-256 of its list: {list_digest(out)}", markup=False, soft_wrap=True)


@app.command()
def verify(bundle: BundlePath) -> None:
    """Check that a bundle is as it was released."""
    from knowledge_recycling.releasing.manifest import list_digest
    from knowledge_recycling.releasing.manifest import verify as check_bundle

    console.print(f"{check_bundle(bundle)} files, all as released", markup=False)
    console.print(f"SHA-256 of their list: {list_digest(bundle)}", markup=False, soft_wrap=True)


@app.command()
def predict(
    bundle: BundlePath,
    folder: Annotated[Path, typer.Argument(help="Folder of images.")],
    table: Annotated[Path, typer.Option("--csv", help="Table to write.")],
) -> None:
    """Classify a folder of images with the student of a bundle."""
    from knowledge_recycling.releasing.predict import predict_folder
    from knowledge_recycling.releasing.student import load

    count = predict_folder(load(bundle), folder, table)
    console.print(f"classified {count} images: {table}", markup=False, soft_wrap=True)


@app.command()
def study(
    study: Annotated[Path, typer.Argument(help="Study in TOML: sets, seeds and rows.")],
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Folder; by default runs/ and the study's name."),
    ] = None,
    backend: Backend = None,
    workers: Workers = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the cells and which are done, and stop.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Compare rows of an ablation over sets and seeds, or go on where it stopped."""
    from knowledge_recycling.progress import make_reporter
    from knowledge_recycling.study.plan import Study
    from knowledge_recycling.study.run import listing, run_study

    loaded = Study.load(study, with_workers(None, backend, workers))
    out = out or Path("runs") / study.stem
    if dry_run:
        console.print(listing(loaded, out), markup=False, highlight=False, soft_wrap=True)
        return
    table = run_study(loaded, out, reporter=make_reporter(errors, quiet=quiet))
    console.print(table, markup=False, highlight=False, soft_wrap=True)


@app.command()
def status(run: RunPath) -> None:
    """Show which stages of a run are done, and what they took."""
    from knowledge_recycling.pipeline import STAGE_NAMES
    from knowledge_recycling.status import status_table

    console.print(status_table(run, STAGE_NAMES))


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Run folders; several are compared.")],
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Page to write; by default in the run, or comparison.html."),
    ] = None,
    public: Annotated[
        bool, typer.Option("--public", help="Leave out real images and local names.")
    ] = False,
) -> None:
    """Write the report of a finished run, or the comparison of several, as one HTML page."""
    from knowledge_recycling.reporting.comparison import write_comparison
    from knowledge_recycling.reporting.report import write_report

    if len(runs) == 1:
        page = write_report(runs[0], public=public, target=out)
    else:
        page = out or Path("comparison.html")
        write_comparison(runs, page, public=public)
    console.print(f"wrote {page}", markup=False, soft_wrap=True)


@app.callback(invoke_without_command=True)
def version(
    show: Annotated[bool, typer.Option("--version", help="Show the version and stop.")] = False,
) -> None:
    """Train a classifier on synthetic images only, and compare it with one trained on yours."""
    if show:
        console.print(__version__, highlight=False)
        raise typer.Exit


@contextmanager
def clear_errors() -> Iterator[None]:
    """Turns errors that the user can act on into a message and an exit code."""
    try:
        yield
    except KRError as error:
        say(f"error: {error}")
        sys.exit(EXIT_ERROR)
    except Interrupted:
        say(f"stopped; all work so far is saved. Go on with: {shlex.join(['kr', *sys.argv[1:]])}")
        sys.exit(EXIT_INTERRUPTED)


def main() -> None:
    """Runs the command line."""
    warnings.showwarning = show_warning  # type: ignore[assignment]
    with clear_errors(), answered_signals():
        app()


def show_warning(message: Warning | str, category: type[Warning], *_: object) -> None:
    """Shows the warnings meant for users as a line, and leaves out those of libraries."""
    if category is UserWarning:
        say(f"warning: {printable(str(message))}")


def say(sentence: str) -> None:
    """Prints a sentence to stderr as it is: unbroken, so that a command in it can be copied."""
    errors.print(sentence, markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
