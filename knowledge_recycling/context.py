"""What every stage needs besides its data: where to compute, the run's seed, who is told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lightning_fabric import Fabric

from knowledge_recycling.progress import Reporter


@dataclass(frozen=True)
class Context:
    """The surroundings of a stage."""

    fabric: Fabric
    seed: int
    reporter: Reporter
    folder: Path | None = None
    """The run folder: fabric's loggers know a training by its place in it; `None`: they hear
    nothing."""

    def log(self, place: Path, record: Mapping[str, float]) -> None:
        """Tells fabric's loggers a record of the training in the folder `place`."""
        if self.folder is None or not self.fabric.loggers:
            return
        part = place.relative_to(self.folder).as_posix()
        metrics = {f"{part}/{name}": value for name, value in record.items()}
        self.fabric.log_dict(metrics, step=int(record["images_seen"]))
