"""CNV410's proof: autograd's own verdict, on the model as it is, which comes back as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from convaudit import audit
from convaudit.backward import backward_error, overwritten
from convaudit.tracer import record
from convaudit_rules.backward_fails import BackwardFails


def really_fails(model: nn.Module, shape: tuple[int, ...]) -> bool:
    """Whether a real training step raises."""
    try:
        model.train()(torch.randn(2, *shape[1:])).sum().backward()
    except RuntimeError:
        return True
    return False


@pytest.mark.parametrize("example", BackwardFails.bad(), ids=lambda e: e.note)
def test_what_it_fires_on_fails_with_real_values(example: Any) -> None:
    assert really_fails(example.build(), example.inputs[0])


@pytest.mark.parametrize("example", BackwardFails.good()[:-1], ids=lambda e: e.note)
def test_what_it_leaves_alone_trains(example: Any) -> None:
    assert not really_fails(example.build(), example.inputs[0])


def test_the_model_comes_back_as_it_was() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(inplace=True), nn.Conv2d(8, 8, 1)
    )
    model[1].eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    flags, state = [m.training for m in model.modules()], torch.get_rng_state()
    (found,) = audit(model, torch.zeros(1, 3, 8, 8), select=["CNV410"]).targets[0].findings

    assert found.layers == ["3"]
    assert "modified by an inplace operation" in found.evidence["error"]
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert [m.training for m in model.modules()] == flags
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)


class Asking(nn.Module):
    """Runs on the CPU only: its forward reads a value."""

    def __init__(self, inplace: bool) -> None:
        super().__init__()
        self.conv, self.drop = nn.Conv2d(3, 8, 1), nn.Dropout(0.5, inplace)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.drop(self.conv(x).relu())
        return y * float(x.sum() + 1)


@pytest.mark.parametrize("inplace", [True, False])
def test_a_model_that_meta_does_not_carry_runs_on_the_cpu(inplace: bool) -> None:
    found = audit(Asking(inplace), torch.zeros(1, 3, 8, 8), select=["CNV410"]).targets[0].findings

    assert len(found) == inplace


def test_the_filter_passes_over_plain_nets_and_the_backward_over_its_false_alarms() -> None:
    from torchvision.models import get_model

    for name in ("resnet18", "densenet121", "mobilenet_v3_small"):
        with torch.device("meta"):
            model = get_model(name)
        x = torch.empty(1, 3, 64, 64, device="meta")
        graph = record(model, (x,), {})

        assert overwritten(graph) == []
        assert backward_error(graph, (x,), {}) is None
        assert all(p.grad is None for p in model.parameters())
