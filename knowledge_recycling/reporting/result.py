"""`result.json`, the run in one file, as frozen models: the one home of its schema.

Accuracies, recalls, AUROC, F1 and ECE are fractions in [0, 1]; gaps are percentage points, Student
minus Teacher. Unknown keys are ignored, so that a newer run can still be read. Shapes: K classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, model_validator


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


Number = Annotated[float | None, BeforeValidator(_finite)]
"""A finite number, or `None` where nothing was measured; NaN and infinity are read as `None`."""

Interval = tuple[Number, Number]


class Part(BaseModel):
    """Base of all parts of a result."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)


class Measure(Part):
    """A number with its 95 % interval, where it has one."""

    value: Number = None
    low: Number = None
    high: Number = None


def _as_measure(value: Any) -> Any:
    return value if isinstance(value, Mapping | Measure) else {"value": value}


Measured = Annotated[Measure, BeforeValidator(_as_measure)]
"""A `Measure`, or a bare number standing for one without an interval."""


class Bin(Part):
    """One bin of a reliability diagram."""

    confidence: float
    accuracy: float
    count: int


class Utility(Part):
    """How well a classifier does on one split."""

    n: int = 0
    """Images in the split."""
    accuracy: Measured = Measure()
    balanced_accuracy: Measured = Measure()
    auroc: Measured = Measure()
    f1: Measured = Measure()
    ece: Measured = Measure()
    """Expected calibration error; smaller is better."""
    recall: tuple[Measured, ...] = ()
    """Of each class, [K]."""
    confusion: tuple[tuple[int, ...], ...] = ()
    """Images by true class (rows) and predicted class (columns), [K, K]."""
    reliability: tuple[Bin, ...] = ()


class BySplit(Part):
    """A classifier on the split nobody chose by (test) and the split choices were made on (val)."""

    test: Utility = Utility()
    val: Utility = Utility()


class Fidelity(Part):
    """How closely the student follows who labelled its images, on one split."""

    agreement: Measured = Measure()
    """Share of the images that get the same answer."""
    divergence: Number = None
    """Mean Kullback-Leibler divergence of the student from the labels, in nats; smaller is
    nearer."""


class Row(BySplit):
    """A further student of a study of the run."""

    name: str


class Dataset(Part):
    """The image set as the run saw it."""

    kind: str
    name: str
    shape: tuple[int, int, int]
    """Channels, height and width."""
    classes: tuple[str, ...]
    counts: dict[str, tuple[int, ...]]
    """Images of each class, [K], by split."""
    warnings: tuple[str, ...] = ()


class Gap(Part):
    """Student minus Teacher on the test split, in percentage points, with paired intervals."""

    accuracy_pp: Number = None
    accuracy_ci95: Interval | None = None
    balanced_accuracy_pp: Number = None
    balanced_accuracy_ci95: Interval | None = None
    auroc_pp: Number = None
    auroc_ci95: Interval | None = None

    def measure(self, metric: str) -> Measure:
        """Returns the gap in `metric`, in percentage points, empty where it has none."""
        low, high = getattr(self, f"{metric}_ci95", None) or (None, None)
        return Measure(value=getattr(self, f"{metric}_pp", None), low=low, high=high)


class Scored(Part):
    """Something that was tried and scored on the validation split."""

    cas: Number = None
    """Classification Accuracy Score: accuracy of a student trained on its synthetic images."""
    robust_cas: Number = None
    """Accuracy of the same student on corrupted copies of the validation images."""
    auroc: Number = None
    loss: Number = None
    leakage: Number = None
    """AUC of the loss attack on the student; `None`: there is no `tuning.leakage_limit`."""
    chosen: bool = False
    chosen_without_limit: bool = False
    """Whether it would have been chosen without a limit on leakage."""
    full_cas: Number = None
    """CAS of a full student, where it was a finalist; then these decide."""
    full_robust_cas: Number = None
    full_failure: str | None = None
    """Why its full student has no score: it diverged or was given up."""
    failure: str | None = None
    """Why there is no score; `None`: there is one."""


class Candidate(Scored):
    """One saved generator checkpoint."""

    name: str
    images_seen: int


class Trial(Scored):
    """One setting of the knobs."""

    trial: int
    knobs: dict[str, Any]


class Chosen(Part):
    """The candidate and the knobs that made the final synthetic set."""

    candidate: str | None = None
    knobs: dict[str, Any] = {}


class FurtherGenerator(Part):
    """What was tried and chosen for a generator beside the first."""

    kind: str
    chosen: Chosen
    candidates: tuple[Candidate, ...] = ()
    tuning: tuple[Trial, ...] = ()


class Acceleration(Part):
    """What distilling a generator's sampler before the student learned has brought."""

    evaluations_before: int
    evaluations: int
    """Of the network, for an image."""
    distance: Number = None
    """Root mean square of images of the same noise before and after, in standard deviations."""
    used: bool = False


class Selection(Part):
    """What choosing a candidate and tuning gained on the validation split, and what it cost.

    Gains are in the mean of CAS and robust CAS, what selection maximises.
    """

    gain_over_last_candidate_pp: Number = None
    gain_over_default_knobs_pp: Number = None
    seconds: Number = None
    leakage_limit: Number = None
    """Largest AUC of the loss attack that a choice was allowed."""
    cost_of_limit_pp: Number = None
    """What the limit has cost on the validation split, among candidates and trials."""
    student_leakage: Number = None
    """AUC of the loss attack on the final student, where there is a limit."""


class Cost(Part):
    """What the run took."""

    seconds: dict[str, float] = {}
    """By stage."""
    images_per_second: dict[str, Number] = {}
    peak_rss_mib: Number = None


class Attack(Part):
    """What one membership inference attack reached."""

    auc: Number = None
    tpr_at_fpr: dict[float, Number] = {}
    """True-positive rate by false-positive rate; `None`: too few holdout images to resolve it."""
    ci95: dict[str, Interval] = {}
    """Interval of `auc` and of the true-positive rates, under the same keys."""


def strongest(attacks: Mapping[str, Attack]) -> str | None:
    """Returns the name of the attack with the largest AUC; `None` where none has one."""
    areas = {name: attack.auc for name, attack in attacks.items() if attack.auc is not None}
    return max(areas, key=lambda name: areas[name], default=None)


class Yardstick(Part):
    """Utility beside leakage of one kind of target; means over the shadows, with intervals."""

    name: str
    accuracy: Measured = Measure()
    """On the validation split."""
    auroc: Measured = Measure()
    auc: Measured = Measure()
    """Of the primary attack."""
    tpr: Measured = Measure()
    """Members that the primary attack finds at 1 % false positives; empty: not resolvable."""
    aop: Number = None
    """Accuracy over privacy: accuracy / (2 max(auc, 0.5))^2."""
    epsilon: Number = None
    """Of its differential privacy guarantee, if it has one."""
    delta: Number = None
    distinct_images: Number = None
    """Synthetic images that it saw, as a multiple of its real ones."""


class Roc(Part):
    """True against false positive rates of the primary attack, over all targets together."""

    fpr: tuple[float, ...]
    """Evenly spaced on a log axis."""
    tpr: tuple[float, ...]
    low: tuple[float, ...] | None = None
    high: tuple[float, ...] | None = None


class Audit(Part):
    """How the attacks were made, and what follows for each target."""

    mode: str
    """`pipeline`: shadows re-ran the whole pipeline; `classifier`: the teacher alone, weaker."""
    shadows: int
    failed_shadows: int = 0
    """Left out of all figures."""
    images: int
    """Of the pool, canaries included; half are IN each shadow."""
    canaries: dict[str, int] = {}
    """By kind."""
    queries: int = 1
    """Ways each image was shown."""
    held_fixed: tuple[str, ...] = ()
    """What the shadows took from this run instead of making it anew."""
    primary_attack: str
    """Declared beforehand; the largest of many attacks is partly luck."""
    sanity_training_accuracy: Number = None
    """Of the overfitted classifiers on their members: near 1, or the sanity row means nothing."""
    yardsticks: tuple[Yardstick, ...] = ()
    """Random guess, teacher, student, and what they are compared with."""
    epsilon_at_least: dict[str, float] = {}
    """By target: no smaller epsilon fits what the primary attack finds out about the canaries; 0
    says nothing."""
    epsilon_delta: Number = None
    epsilon_confidence: Number = None
    by_class: dict[str, tuple[Attack | None, ...]] = {}
    """By target: the primary attack among the images of each class, [K]; `None`: too few."""
    roc: dict[str, Roc] = {}
    """By target."""


class Result(Part):
    """One run."""

    schema_version: Literal["1"]
    """Written as `schema`."""
    dataset: Dataset
    profile: str
    seed: int
    teacher: BySplit
    student: BySplit
    ensemble: BySplit | None = None
    """Teacher and further teachers, who label together; `None`: there are no further ones."""
    gap: Gap
    fidelity: dict[str, Fidelity] = {}
    """By split."""
    rows: tuple[Row, ...] = ()
    chosen: Chosen = Chosen()
    candidates: tuple[Candidate, ...] = ()
    tuning: tuple[Trial, ...] = ()
    further_generators: dict[str, FurtherGenerator] = {}
    """By their names in the recipe; each draws as many images of a synthetic set as the first."""
    selection: Selection = Selection()
    accelerated: tuple[Acceleration, ...] = ()
    """The generators whose samplers were distilled before the student learned."""
    quality: dict[str, Any] = {}
    privacy: dict[str, dict[str, Attack]] = {}
    """Attacks by name, by target; empty without an audit."""
    audit: Audit | None = None
    cost: Cost = Cost()
    changed_settings: dict[str, Any] = {}
    """Settings that differ from their default, by dotted key."""
    versions: dict[str, str] = {}
    digests: dict[str, str] = {}
    """SHA-256 of each split."""
    stages: dict[str, str] = {}
    """Digest of the outputs of each stage that the figures come from."""

    @property
    def generators(self) -> tuple[str, ...]:
        """Names of the generators as targets of attacks."""
        return ("generator", *(f"generator {name}" for name in self.further_generators))

    @model_validator(mode="after")
    def _by_class_fits_classes(self) -> Self:
        num_classes = len(self.dataset.classes)
        known = [each for who in (self.teacher, self.student) for each in (who.test, who.val)]
        by_class = [
            *self.dataset.counts.values(),
            *(values for each in known for values in (each.recall, each.confusion) if values),
            *(row for each in known for row in each.confusion),
        ]
        if any(len(values) != num_classes for values in by_class):
            raise ValueError(f"a list by class does not have {num_classes} entries")
        return self
