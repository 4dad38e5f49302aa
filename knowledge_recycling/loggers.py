"""Records of the trainings for TensorBoard and MLflow, through fabric's loggers.

Loggers hear names of stages and parts, images seen and measures; nothing of an image, no path, no
class name. `metrics.jsonl` in each stage's folder holds the same and is always written.
"""

from __future__ import annotations

import logging
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from lightning_fabric.loggers.logger import Logger

from knowledge_recycling.config import Config
from knowledge_recycling.extras import require
from knowledge_recycling.storage import read_json, write_json

FOLDER = "logs"
"""Of what loggers write, in the run folder."""
EXPERIMENT = "knowledge_recycling"


class LoggingConfig(Config):
    """Who else is told the records of the trainings."""

    loggers: tuple[Literal["tensorboard", "mlflow"], ...] = ()
    """`tensorboard` and `mlflow` come with the extra `loggers`; both write below `logs/` in the run
    folder."""
    mlflow_uri: str | None = None
    """Tracking server of MLflow; unset: a database in the run folder."""


def make_loggers(config: LoggingConfig, run: Path) -> list[Logger]:
    """Returns the loggers of the run in the folder `run`.

    Raises:
        KRError: One is not installed.
    """
    folder, loggers = run / FOLDER, list[Logger]()
    if "tensorboard" in config.loggers:
        require("tensorboard", "loggers")
        tensorboard = require("lightning_fabric.loggers.tensorboard", "loggers")
        loggers.append(tensorboard.TensorBoardLogger(folder, name="tensorboard", version=""))
    if "mlflow" in config.loggers:
        require("mlflow", "loggers")
        loggers.append(MLflowLogger(config.mlflow_uri, folder))
    return loggers


class MLflowLogger(Logger):
    """One MLflow run of the experiment `knowledge_recycling`, the same one when a run goes on."""

    def __init__(self, uri: str | None, folder: Path) -> None:
        self.uri = uri or f"sqlite:///{(folder / 'mlflow.db').resolve()}"
        self.folder = folder

    @property
    def name(self) -> str:
        """The experiment."""
        return EXPERIMENT

    @property
    def version(self) -> str:
        """The id of the MLflow run, made when first asked for."""
        known = self.folder / "mlflow.json"
        if known.exists():
            return str(read_json(known)["run"])
        self.folder.mkdir(parents=True, exist_ok=True)
        client = self._client()
        experiment = client.get_experiment_by_name(EXPERIMENT)
        number = experiment.experiment_id if experiment else client.create_experiment(EXPERIMENT)
        run: str = client.create_run(number).info.run_id
        write_json(known, {"run": run})
        return run

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Sends the metrics of one moment."""
        client, run = self._client(), self.version
        for name, value in metrics.items():
            client.log_metric(run, name, value, step=step)

    def log_hyperparams(
        self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any
    ) -> None:
        """Sends nothing: a recipe holds paths."""

    def _client(self) -> Any:
        logging.getLogger("mlflow").setLevel(logging.WARNING)
        return require("mlflow", "loggers").MlflowClient(tracking_uri=self.uri)
