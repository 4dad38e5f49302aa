"""What stands for a process by itself, and batch normalisation against torch's."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from knowledge_recycling import ranks


def test_a_process_by_itself_gets_back_the_very_tensors() -> None:
    images, labels = torch.ones(4, 1, 2, 2), torch.arange(4)
    assert ranks.count() == 1
    assert ranks.is_first()
    one, other = ranks.shard(images, labels)
    assert one is images
    assert other is labels
    assert ranks.spread(images) is images
    assert ranks.gathered(images, 4) is images
    assert ranks.averaged(images) is images
    assert ranks.own_rows(5).tolist() == [0, 1, 2, 3, 4]
    assert ranks.told(lambda: "made") == "made"
    ranks.barrier()


@pytest.mark.parametrize("shape", [(6, 3, 4, 5), (6, 3)])
@pytest.mark.parametrize("affine", [True, False])
def test_batch_norm_is_that_of_torch(shape: tuple[int, ...], affine: bool) -> None:
    random = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=random) * 3 + 5
    weight = torch.randn(3, generator=random).requires_grad_() if affine else None
    bias = torch.randn(3, generator=random).requires_grad_() if affine else None
    results = []
    for function in (functional.batch_norm, ranks.batch_norm):
        own = x.clone().requires_grad_()
        mean, variance = torch.zeros(3), torch.ones(3)
        y = function(own, mean, variance, weight, bias, True, 0.3, 1e-4)
        wanted = [own, weight, bias] if affine else [own]
        gradients = torch.autograd.grad(y.pow(3).sum(), wanted)
        results.append([y, mean, variance, *gradients])
    for theirs, ours in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-3)


def test_batch_norm_in_eval_mode_and_in_bf16_keeps_type_and_statistics() -> None:
    x, mean, variance = torch.randn(4, 3, 2, 2), torch.ones(3), torch.full((3,), 4.0)
    expected = functional.batch_norm(x, mean, variance)
    torch.testing.assert_close(ranks.batch_norm(x, mean, variance), expected)
    assert mean.tolist() == [1, 1, 1]
    assert ranks.batch_norm(x.bfloat16(), None, None, training=True).dtype == torch.bfloat16


def test_all_batch_norms_are_replaced_only_among_several(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def replaced(*args: object, **options: object) -> torch.Tensor:
        calls.append("replaced")
        return torch.zeros(())

    monkeypatch.setattr(ranks, "batch_norm", replaced)
    layer, x = nn.BatchNorm2d(3), torch.ones(2, 3, 1, 1)
    with ranks.GlobalBatchNorm():
        layer(x)
        assert calls == []
        monkeypatch.setattr(ranks, "count", lambda: 2)
        layer(x)
    layer(x)
    assert calls == ["replaced"]
