"""The optimiser Muon."""

import pytest
import torch

from bidsseg.learning.muon import COEFFICIENTS, ITERATIONS, Muon, orthogonalised


@pytest.mark.parametrize("shape", [(8, 200), (200, 8), (24, 24), (1, 5)])
def test_the_small_matrix_gives_the_same_as_all_iterations_on_the_wide_one(shape: tuple[int, int]) -> None:
    matrices = torch.randn((3, *shape), generator=torch.Generator().manual_seed(0))
    matrices[1] *= torch.logspace(0, -4, shape[1])  # some singular values are far smaller than others
    a, b, c = COEFFICIENTS
    wide = matrices.double() if shape[0] <= shape[1] else matrices.double().mT
    wide = wide / wide.norm(dim=(1, 2), keepdim=True)
    for _ in range(ITERATIONS):
        gram = wide @ wide.mT
        wide = a * wide + (b * gram + c * gram @ gram) @ wide
    expected = wide if shape[0] <= shape[1] else wide.mT
    assert (orthogonalised(matrices).double() - expected).norm() < 1e-3 * expected.norm()


def test_no_gradient_gives_no_step() -> None:
    assert torch.equal(orthogonalised(torch.zeros(2, 3, 7)), torch.zeros(2, 3, 7))


def test_the_steps_are_those_of_torch() -> None:
    shapes, generator = [(6, 40), (6, 40), (40, 6), (9, 9)], torch.Generator().manual_seed(0)
    ours = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
    theirs = [torch.nn.Parameter(parameter.detach().clone()) for parameter in ours]
    muon = Muon(ours, 0.02, weight_decay=0.1)
    expected = torch.optim.Muon(theirs, 0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    before = [parameter.detach().clone() for parameter in ours]
    for _ in range(4):
        for mine, other in zip(ours, theirs, strict=True):
            mine.grad = torch.randn(mine.shape, generator=generator)
            other.grad = mine.grad.clone()
        muon.step()
        expected.step()
    for mine, other, start in zip(ours, theirs, before, strict=True):
        assert (mine - other).norm() < 0.03 * (other - start).norm()  # theirs are computed in bfloat16


def test_a_state_of_torch_is_continued() -> None:
    parameter = torch.nn.Parameter(torch.randn(4, 12, generator=torch.Generator().manual_seed(0)))
    parameter.grad = torch.ones_like(parameter)
    theirs = torch.optim.Muon([parameter], 0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    theirs.step()
    muon = Muon([parameter], 0.01, weight_decay=0.0)
    muon.load_state_dict(theirs.state_dict())
    parameter.grad = torch.zeros_like(parameter)
    muon.step()
    assert torch.allclose(muon.state[parameter]["momentum_buffer"], torch.full((4, 12), 0.05 * 0.95))
