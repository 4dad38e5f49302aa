"""What every stage needs besides its data: where to compute, the run's seed, who is told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lightning_fabric import Fabric
from lightning_fabric.loggers.logger import Logger

from knowledge_recycling.compute import ModuleT
from knowledge_recycling.progress import Reporter


@dataclass(frozen=True)
class Context:
    """The surroundings of a stage."""

    fabric: Fabric
    seed: int
    reporter: Reporter
    devices: int = 1
    """Processes that a training may be given to."""
    folder: Path | None = None
    """The run folder: loggers know a training by its place in it."""
    loggers: Sequence[Logger] = ()
    compile: bool = False
    """Networks are compiled by torch."""

    def compiled(self, network: ModuleT) -> ModuleT:
        """Returns `network` itself, which torch compiles at its first call if the run asks."""
        if self.compile:
            network.compile()
        return network

    def compiled_sampler(self, generator: ModuleT) -> ModuleT:
        """Returns `generator` itself, compiled in its `network`, if its kind has one."""
        network = getattr(generator, "network", None)
        if network is not None:
            self.compiled(network)
        return generator

    def log(self, place: Path, record: Mapping[str, float]) -> None:
        """Tells the loggers a record of the training in the folder `place`."""
        if self.folder is None or not self.loggers:
            return
        part = place.relative_to(self.folder).as_posix()
        metrics = {f"{part}/{name}": value for name, value in record.items()}
        for logger in self.loggers:
            logger.log_metrics(metrics, int(record["images_seen"]))
            logger.save()  # records are few, and a run that is stopped must not lose its last ones
