import torch

from fewstep.denoisers import PreconditionedDenoiser, StepwiseDenoiser
from fewstep.networks.unet import UNet


def made(steps=3):
    torch.manual_seed(0)
    denoiser = PreconditionedDenoiser(UNet((1, 8, 8), 3, [8, 16], groups=4, head_dim=8), 0.5, 3).eval()
    return denoiser, StepwiseDenoiser(denoiser, steps)


@torch.no_grad()
def test_it_starts_as_the_denoiser_and_then_each_item_goes_through_the_copy_of_its_step():
    denoiser, stepwise = made()
    x, sigma, label = torch.randn(5, 1, 8, 8), torch.tensor([0.3, 0.7, 1.0, 0.5, 2.0]), torch.tensor([0, 1, 2, 1, 0])
    step = torch.tensor([2, 0, 2, 1, 0])
    torch.testing.assert_close(stepwise(x, sigma, label, step=step), denoiser(x, sigma, label))
    for copy in stepwise.copies:
        for p in copy.parameters():
            p.add_(0.1 * torch.randn_like(p))
    for i in range(5):
        one = slice(i, i + 1)
        copy = stepwise.copies[step[i]]
        torch.testing.assert_close(stepwise(x, sigma, label, step=step)[one], copy(x[one], sigma[one], label[one]))
        features = copy.features(x[one], sigma[one], label[one], 2)
        for ours, theirs in zip(stepwise.features(x, sigma, label, 2, step), features, strict=True):
            torch.testing.assert_close(ours[one], theirs)
    assert next(denoiser.parameters()).data_ptr() != next(stepwise.copies[0].parameters()).data_ptr()


@torch.no_grad()
def test_a_step_without_items_and_one_noise_level_for_all():
    denoiser, stepwise = made()
    x, step = torch.randn(4, 1, 8, 8), torch.tensor([2, 0, 2, 0])
    torch.testing.assert_close(stepwise(x, torch.tensor(0.4), None, step=step), denoiser(x, torch.tensor(0.4), None))
