"""Flow matching against problems with a known answer.

For images N(m, s^2) the velocity of the straight path is known in closed form, so the sampler can
be asked for the mean and spread of its images; for one single image the loss has a known zero.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable

import pytest
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from knowledge_recycling.models.generators.flow import (
    LOSS_TIMES,
    Config,
    Generator,
    Objective,
    step_times,
    stops,
)
from knowledge_recycling.models.latents import seeded_noise
from knowledge_recycling.models.unet import Attention, UNet
from knowledge_recycling.randomness import rng

SHAPE = (1, 8, 8)
CONFIG = Config(width=8, patch=1)
Velocity = Callable[[Tensor, Tensor, Tensor], Tensor]


def generator_with(velocity: Velocity) -> Generator:
    generator = Generator(CONFIG, SHAPE, 2)
    generator.velocity = velocity  # type: ignore[method-assign]
    return generator


def gaussian_velocity(mean: float, std: float) -> Velocity:
    """Returns E[noise - image | x_t] for images N(mean, std^2) and x_t = (1-t) image + t noise."""

    def velocity(x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        t = t[:, None, None, None]
        variance = (1 - t) ** 2 * std**2 + t**2
        gain = (t - (1 - t) * std**2) / variance
        return gain * (x - (1 - t) * mean) - mean

    return velocity


@pytest.mark.parametrize("num_steps", [1, 2, 3, 6, 50])
def test_times_fall_from_one_to_zero_in_shrinking_steps(num_steps: int) -> None:
    times = torch.tensor(step_times(num_steps), dtype=torch.float64)
    assert len(times) == num_steps + 1
    assert times[0] == 1
    assert times[-1] == 0
    steps = -times.diff()
    assert (steps > 0).all()
    assert (steps.diff() < 0).all()


@pytest.mark.parametrize(("mean", "std"), [(0.2, 0.1), (-0.4, 0.05)])
def test_many_steps_reach_the_mean_and_spread_of_a_gaussian(mean: float, std: float) -> None:
    generator = generator_with(gaussian_velocity(mean, std))
    labels = torch.zeros(64, dtype=torch.long)
    images = generator.sample(labels, torch.arange(64), {"steps": 200})
    assert math.isclose(images.mean(), mean, abs_tol=5 * std / math.sqrt(64 * 64))
    assert math.isclose(images.std(), std, rel_tol=0.05)


def test_few_steps_beat_as_many_evaluations_of_euler_and_heun() -> None:
    num_steps, mean, std = 6, 0.2, 0.3
    velocity = gaussian_velocity(mean, std)
    seeds, labels = torch.arange(32), torch.zeros(32, dtype=torch.long)
    noise = seeded_noise(seeds, SHAPE)
    exact = (mean + std * noise).clamp(-1, 1)  # the flow of a Gaussian is affine

    def slope(x: Tensor, t: float) -> Tensor:
        return velocity(x, torch.full((32,), t), labels)

    euler = heun = noise
    for t, t_next in itertools.pairwise(step_times(2 * num_steps - 1)):
        euler = euler + (t_next - t) * slope(euler, t)
    for t, t_next in itertools.pairwise(step_times(num_steps)):
        ahead = heun + (t_next - t) * slope(heun, t)
        mean_slope = (slope(heun, t) + slope(ahead, t_next)) / 2 if t_next else slope(heun, t)
        heun = heun + (t_next - t) * mean_slope
    midpoint = generator_with(velocity).sample(labels, seeds, {"steps": num_steps})
    errors = [(each.clamp(-1, 1) - exact).square().mean() for each in (midpoint, euler, heun)]
    assert errors[0] < min(errors[1:])


def test_the_latent_is_scaled_by_its_knob() -> None:
    generator = generator_with(lambda x, t, labels: torch.zeros_like(x))
    seeds, labels = torch.arange(4), torch.zeros(4, dtype=torch.long)
    for std in (0.1, 0.2):
        images = generator.sample(labels, seeds, {"latent_std": std})
        torch.testing.assert_close(images, seeded_noise(seeds, SHAPE) * std)


def test_guidance_mixes_the_two_velocities() -> None:
    def velocity(x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        conditional = torch.full_like(x, -0.3)
        hidden = (labels == 2)[:, None, None, None]
        return torch.where(hidden, 0.1, conditional)

    generator = generator_with(velocity)
    labels, seeds = torch.tensor([0, 1]), torch.tensor([3, 4])
    latent = seeded_noise(seeds, SHAPE) * 1e-3
    for guidance in (1.0, 1.5, 2.0):
        images = generator.sample(labels, seeds, {"guidance": guidance, "latent_std": 1e-3})
        speed = 0.1 + guidance * (-0.3 - 0.1)
        torch.testing.assert_close(images, latent - speed, atol=1e-5, rtol=0)


def test_guidance_of_one_never_asks_for_the_hidden_label() -> None:
    asked: list[int] = []

    def velocity(x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        asked.extend(labels.tolist())
        return torch.zeros_like(x)

    generator_with(velocity).sample(torch.tensor([0, 1]), torch.tensor([3, 4]), {"guidance": 1.0})
    assert set(asked) == {0, 1}


def test_the_exact_velocity_of_a_single_image_has_no_loss(fabric: Fabric) -> None:
    image = torch.rand(SHAPE) * 2 - 1
    generator = generator_with(lambda x, t, labels: (x - image) / t[:, None, None, None])
    objective = Objective(generator, CONFIG, fabric)
    images = image.expand(16, *SHAPE)
    assert objective.loss(images, torch.zeros(16, dtype=torch.long), rng(0, "a")) < 1e-6


def test_the_loss_of_standing_still_is_that_of_its_own_noise(fabric: Fabric) -> None:
    generator = generator_with(lambda x, t, labels: torch.zeros_like(x))
    objective = Objective(generator, CONFIG, fabric)
    images = torch.rand(16, *SHAPE) * 2 - 1
    noise = torch.randn(images.shape, generator=rng(0, "a"))
    loss = objective.loss(images, torch.zeros(16, dtype=torch.long), rng(0, "a"))
    torch.testing.assert_close(loss, (noise - images).square().mean())


def test_losses_are_the_errors_of_the_velocity_at_quantiles_of_the_logit_normal_times() -> None:
    generator = generator_with(lambda x, t, labels: x * 0.5 + t[:, None, None, None])
    images = torch.rand(3, *SHAPE) * 2 - 1
    losses = generator.losses(images, torch.tensor([0, 1, 1]))
    expected = []
    normal = statistics.NormalDist()
    for image in images:
        errors = []
        for i in range(LOSS_TIMES):
            t = 1 / (1 + math.exp(-normal.inv_cdf((i + 0.5) / LOSS_TIMES)))
            noise = seeded_noise(torch.tensor([i]), SHAPE)[0]
            x = (1 - t) * image + t * noise
            errors.append(float(((x * 0.5 + t) - (noise - image)).square().mean()))
        expected.append(sum(errors) / LOSS_TIMES)
    torch.testing.assert_close(losses, torch.tensor(expected))


def test_the_exact_velocity_of_a_single_image_explains_it_and_no_other() -> None:
    image = torch.full(SHAPE, 0.3)
    generator = generator_with(gaussian_velocity(0.3, 0.0))
    losses = generator.losses(torch.stack([image, -image]), torch.zeros(2, dtype=torch.long))
    assert losses[0] < 1e-8
    assert losses[1] > 0.1


@pytest.mark.parametrize("dropout", [0.0, 0.25])
def test_labels_are_hidden_as_often_as_asked(fabric: Fabric, dropout: float) -> None:
    hidden: list[Tensor] = []

    def velocity(x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        hidden.append(labels == 2)
        return torch.zeros_like(x)

    config = CONFIG.model_copy(update={"label_dropout": dropout})
    objective = Objective(generator_with(velocity), config, fabric)
    objective.loss(torch.zeros(2000, 1, 1, 1), torch.ones(2000, dtype=torch.long), rng(0, "a"))
    assert math.isclose(hidden[0].float().mean(), dropout, abs_tol=5 * 0.5 / math.sqrt(2000))


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_training_reaches_the_noise_that_sampling_starts_from(fabric: Fabric, share: float) -> None:
    times: list[Tensor] = []

    def velocity(x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        times.append(t)
        return torch.zeros_like(x)

    config = CONFIG.model_copy(update={"uniform_times": share})
    objective = Objective(generator_with(velocity), config, fabric)
    objective.loss(torch.zeros(20_000, 1, 1, 1), torch.ones(20_000, dtype=torch.long), rng(0, "a"))
    ordered = times[0].sort().values
    for t in (0.05, 0.5, 0.8, 0.95):
        logit_normal = statistics.NormalDist().cdf(math.log(t / (1 - t)))
        below = int(torch.searchsorted(ordered, t)) / 20_000
        expected = share * t + (1 - share) * logit_normal
        assert math.isclose(below, expected, abs_tol=5 * 0.5 / math.sqrt(20_000))


def test_a_network_that_adds_nothing_already_draws_white_images_well() -> None:
    generator = Generator(CONFIG, SHAPE, 2)  # its last layer is zero
    x, t = torch.randn(5, *SHAPE), torch.linspace(0.1, 1.0, 5)
    labels = torch.tensor([0, 1, 2, 0, 1])
    exact = gaussian_velocity(0.0, 0.5)
    torch.testing.assert_close(generator.velocity(x, t, labels), exact(x, t, labels))


def test_what_a_network_has_to_add_has_unit_variance() -> None:
    torch.manual_seed(0)
    images, noise = 0.5 * torch.randn(20_000, 1, 1, 1), torch.randn(20_000, 1, 1, 1)
    generator = Generator(CONFIG, (1, 1, 1), 2)
    seen: list[Tensor] = []
    answers = (torch.zeros_like(images), torch.ones_like(images))
    for t in (0.1, 0.5, 0.9):
        times = torch.full((20_000,), t)
        x = torch.lerp(images, noise, t)
        parts = []
        for answer in answers:
            generator.network = Answers(seen, answer)
            parts.append(generator.velocity(x, times, times.long()))
        guess, unit = parts[0], parts[1] - parts[0]
        assert seen[-1].std() == pytest.approx(1, abs=0.03)
        assert ((noise - images - guess) / unit).std() == pytest.approx(1, abs=0.03)


class Answers(nn.Module):
    """A network that notes what it sees and gives a fixed answer."""

    def __init__(self, seen: list[Tensor], answer: Tensor) -> None:
        super().__init__()
        self.seen, self.answer = seen, answer

    def forward(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        self.seen.append(x)
        return self.answer


def test_the_learning_rate_warms_up_linearly(fabric: Fabric) -> None:
    config = Config(width=8, patch=1, warmup_steps=4, learning_rate=0.01)
    objective = Objective(Generator(config, SHAPE, 2), config, fabric)
    rates = []
    for step in range(6):
        objective.step(torch.zeros(2, *SHAPE), torch.zeros(2, dtype=torch.long), rng(0, step))
        rates.append(objective.optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([0.0025, 0.005, 0.0075, 0.01, 0.01, 0.01])


@pytest.mark.parametrize("width", [8, 16, 24, 56, 64, 88])
def test_every_multiple_of_eight_is_a_width(width: int) -> None:
    network = UNet(1, 3, width=width, depth=1, patch=1)
    x = torch.rand(2, 1, 5, 7)
    assert network(x, torch.rand(2), torch.tensor([0, 2])).shape == x.shape


def test_attention_equals_torchs_own() -> None:
    ours = Attention(64).eval()
    nn.init.normal_(ours.out.weight, std=0.1)
    theirs = nn.MultiheadAttention(64, ours.num_heads, batch_first=True).eval()
    with torch.no_grad():
        theirs.in_proj_weight.copy_(ours.qkv.weight.flatten(1))
        theirs.in_proj_bias.copy_(ours.qkv.bias)
        theirs.out_proj.weight.copy_(ours.out.weight.flatten(1))
        theirs.out_proj.bias.copy_(ours.out.bias)
        x = torch.randn(2, 64, 3, 5)
        positions = ours.norm(x).flatten(2).transpose(1, 2)
        expected = theirs(positions, positions, positions, need_weights=False)[0]
        expected = x + expected.transpose(1, 2).view_as(x)
        torch.testing.assert_close(ours(x), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("side", "patch"), [(4, 1), (8, 1), (16, 1), (17, 2), (28, 2), (32, 2), (33, 4), (64, 4)]
)
def test_the_derived_patch_keeps_eight_to_sixteen_positions(
    make_facts: Callable[..., object], side: int, patch: int
) -> None:
    derived = Config().completed(make_facts(shape=(1, side, side)))  # type: ignore[arg-type]
    assert derived.patch == patch
    assert isinstance(derived.patch, int)


@pytest.mark.parametrize(
    "knobs", [{}, {"steps": 3}, {"distilled": 2}, {"guidance": 2.0, "steps": 2}]
)
def test_evaluations_are_those_that_sampling_makes(knobs: dict[str, float]) -> None:
    calls = []

    def velocity(x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        calls.append(t)
        return torch.zeros_like(x)

    generator = generator_with(velocity)
    generator.sample(torch.tensor([0, 1]), torch.tensor([3, 4]), knobs)
    assert generator.evaluations(knobs) == len(calls)


def test_a_distilled_sampler_takes_one_evaluation_to_each_stop() -> None:
    velocity = gaussian_velocity(0.2, 0.3)
    seeds, labels = torch.arange(8), torch.zeros(8, dtype=torch.long)
    x = seeded_noise(seeds, SHAPE)
    for t, t_next in itertools.pairwise(stops(step_times(4), 3)):
        x = x + (t_next - t) * velocity(x, torch.full((8,), t), labels)
    images = generator_with(velocity).sample(labels, seeds, {"distilled": 3})
    torch.testing.assert_close(images, x.clamp(-1, 1))


@pytest.mark.parametrize(("steps", "count"), [(4, 1), (4, 2), (4, 4), (6, 3), (8, 5)])
def test_no_stops_make_the_longest_interval_shorter(steps: int, count: int) -> None:
    times = step_times(steps)
    chosen = stops(times, count)
    assert (len(chosen), chosen[0], chosen[-1]) == (count + 1, 1.0, 0.0)
    assert set(chosen) <= set(times)
    longest = max(a - b for a, b in itertools.pairwise(chosen))

    def taken(reach: float) -> int:
        """Returns how many intervals no longer than `reach` it takes, each as long as can be."""
        at, number = 0, 0
        while times[at] > 0:
            at = max(i for i in range(len(times)) if times[at] - times[i] <= reach)
            number += 1
        return number

    single = max(a - b for a, b in itertools.pairwise(times))
    reaches = [a - b for a in times for b in times if a - b >= single]
    assert longest == min(reach for reach in reaches if taken(reach) <= count)


@pytest.mark.parametrize("evaluations", [1, 2, 4])
def test_velocities_that_lead_where_the_sampler_arrives_have_no_loss(
    fabric: Fabric, evaluations: int
) -> None:
    velocity = gaussian_velocity(0.2, 0.3)
    trained = generator_with(velocity)
    knobs = {"latent_std": 1.1}
    objective = trained.accelerated(knobs, evaluations, 10, fabric)
    noise, labels = torch.randn(16, *SHAPE), torch.arange(16) % 2
    ends_of_steps = stops(step_times(4), evaluations)

    def leading(x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        """Walks the sampler's own steps from `x` to the next stop."""
        ends = x.clone()
        for i, begin in enumerate(t.tolist()):
            end = next(stop for stop in ends_of_steps if stop < begin - 1e-6)
            for at, then in itertools.pairwise(step_times(4)):
                if end - 1e-6 < then and at < begin + 1e-6:
                    ends[i : i + 1] = midpoint_step(velocity, ends[i : i + 1], at, then)
        length = torch.tensor(
            [next(s for s in ends_of_steps if s < b - 1e-6) - b for b in t.tolist()]
        )
        return (ends - x) / length[:, None, None, None]

    objective.generator.velocity = leading  # type: ignore[method-assign]
    assert objective.loss(noise, labels) < 1e-9
    objective.generator.velocity = velocity  # type: ignore[method-assign]
    assert objective.loss(noise, labels) > 1e-5, "the velocity at the start of a step misses"


def midpoint_step(velocity: Velocity, x: Tensor, t: float, t_next: float) -> Tensor:
    labels = torch.zeros(len(x), dtype=torch.long)
    slope = velocity(x, torch.full((len(x),), t), labels)
    if t_next:
        half = x + (t_next - t) / 2 * slope
        slope = velocity(half, torch.full((len(x),), (t + t_next) / 2), labels)
    return x + (t_next - t) * slope


@pytest.mark.parametrize(("steps", "evaluations", "taken"), [(4, 3, 4), (1, 2, 2)])
def test_a_sampler_is_distilled_from_its_own_steps_or_as_many_as_evaluations(
    fabric: Fabric, steps: int, evaluations: int, taken: int
) -> None:
    generator = generator_with(gaussian_velocity(0.2, 0.3))
    objective = generator.accelerated({"steps": steps, "guidance": 2.0}, evaluations, 10, fabric)
    assert objective.knobs_before == {"steps": taken, "guidance": 2.0}
    assert objective.knobs == {"steps": taken, "distilled": evaluations, "guidance": 1.0}
