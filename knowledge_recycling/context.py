"""What every stage needs besides its data: where to compute, the run's seed, who is told."""

from __future__ import annotations

from dataclasses import dataclass

from lightning_fabric import Fabric

from knowledge_recycling.progress import Reporter


@dataclass(frozen=True)
class Context:
    """The surroundings of a stage."""

    fabric: Fabric
    seed: int
    reporter: Reporter
    devices: int = 1
    """Processes that a training may be given to."""
