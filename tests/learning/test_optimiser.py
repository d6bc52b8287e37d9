"""Optimisers and learning rates."""

import numpy as np
import pytest
import torch

from bidsseg.learning.optimiser import Optimiser, Stepper, as_matrix, rate_factor


def test_the_rate_rises_and_falls() -> None:
    assert rate_factor(0.0, 0.04) == pytest.approx(0.05)
    assert rate_factor(0.04, 0.04) == pytest.approx(1)
    assert rate_factor(0.52, 0.04) == pytest.approx(0.5)
    assert rate_factor(1.0, 0.04) == pytest.approx(0, abs=1e-9)
    rates = [rate_factor(p, 0.1) for p in np.linspace(0, 1, 50)]
    assert np.argmax(rates) in (5, 6)
    assert all(0 <= rate <= 1 for rate in rates)


def small_network() -> torch.nn.Sequential:
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv3d(3, 5, 3, padding=1), torch.nn.Conv3d(5, 2, 1))
    network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    return network


def test_kernels_are_stepped_along_alike_singular_values() -> None:
    network = small_network()
    plan = Optimiser(weight_decay=0.0, warm_up=0.0, kernel_rate=0.01)
    stepper = Stepper(network, plan)
    before = [p.detach().clone() for p in network.parameters()]
    for p in network.parameters():
        p.grad = torch.randn_like(p)
    stepper.step(0.0)
    changes = [now.detach() - then for now, then in zip(network.parameters(), before, strict=True)]
    for change in changes[0], changes[2]:
        matrix = as_matrix(change)
        values = torch.linalg.svdvals(matrix) / (0.2 * max(matrix.shape) ** 0.5 * plan.kernel_rate)
        assert values.min() > 0.5 and values.max() < 1.4
    for change in changes[1], changes[3]:
        assert torch.allclose(change.abs(), torch.full_like(change, plan.rate), rtol=1e-2)


def test_without_a_rate_of_their_own_kernels_are_stepped_by_adamw() -> None:
    ours, theirs = small_network(), small_network()
    stepper = Stepper(ours, Optimiser(kernel_rate=0.0, weight_decay=0.0, warm_up=0.0, clip=1e9))
    adam = torch.optim.AdamW(theirs.parameters(), 2e-3, betas=(0.9, 0.99), weight_decay=0.0)
    x = torch.randn(1, 3, 6, 6, 6)
    for _ in range(3):
        ours(x).square().sum().backward()
        stepper.step(0.0)
        adam.zero_grad()
        theirs(x).square().sum().backward()
        adam.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_a_constant_rate_stays() -> None:
    assert {Optimiser(schedule="constant").rate_factor(p) for p in (0.0, 0.3, 1.0)} == {1.0}
    assert Optimiser().rate_factor(1.0) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("each", [True, False])
def test_gradients_are_shortened_together_or_each_alone(each: bool) -> None:
    network = small_network()
    for p in network.parameters():
        p.grad = torch.full_like(p, 10.0)
    Stepper(network, Optimiser(clip=1.0, clip_each=each)).clip()
    norms = torch.stack([p.grad.norm() for p in network.parameters() if p.grad is not None])
    together = norms.norm().item()
    assert together == pytest.approx(2.0 if each else 1.0, rel=1e-3)
    assert torch.allclose(norms, torch.ones(4), rtol=1e-3) == each


def test_tensors_without_a_gradient_are_not_clipped(monkeypatch: pytest.MonkeyPatch) -> None:
    """The norm of no gradient is on the CPU, and cannot be joined with those on a GPU."""
    network = small_network()
    network[0](torch.randn(1, 3, 6, 6, 6)).sum().backward()
    clipped: list[torch.Tensor] = []
    plain = torch.nn.utils.clip_grad_norm_

    def clip(tensor: torch.Tensor, largest: float) -> torch.Tensor:
        clipped.append(tensor)
        return plain(tensor, largest)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", clip)
    Stepper(network, Optimiser(clip_each=True)).clip()
    assert len(clipped) == 2 and all(each.grad is not None for each in clipped)


def test_a_gradient_that_is_not_finite_changes_nothing() -> None:
    network = small_network()
    stepper = Stepper(network, Optimiser())
    before = [p.detach().clone() for p in network.parameters()]
    (network(torch.randn(1, 3, 6, 6, 6)).sum() * torch.inf).backward()
    stepper.step(0.5)
    assert all(torch.equal(now, then) for now, then in zip(network.parameters(), before, strict=True))
    assert all(p.grad is None for p in network.parameters())
