"""Three denoisers on one network: what each gives, and the gradient that each gets, is that of three whole copies."""

import copy

import pytest
import torch
from torch.utils.checkpoint import CheckpointError

from fewstep.denoisers import ForeignDenoiser
from fewstep.denoisers.adapted import Slot
from fewstep.errors import UserError
from fewstep.maths.matching import dmd_gradient, dmd_loss, sid_loss
from fewstep.networks.prompts import EncodedPrompts
from fewstep.networks.text_unet import TextUNet
from text_models import unet

TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out", "conv1", "conv2", "time_emb_proj")
LABEL = torch.tensor([0, 1, 0])
X = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
SIGMA, NOISED = torch.tensor([80.0, 80.0, 80.0]), torch.tensor([0.5, 2.0, 10.0])


def denoiser():
    torch.manual_seed(0)
    model = unet("sd", 32, 32)
    with torch.device("meta"):
        network = TextUNet((4, 8, 8), **{key: value for key, value in model.config.items() if not key.startswith("_")})
    network.unet = model
    network.prompts = EncodedPrompts(torch.randn(3, 7, 32, generator=torch.Generator().manual_seed(1)))
    betas = {"schedule": "scaled_linear", "start": 0.00085, "end": 0.012, "num": 1000}
    return ForeignDenoiser(network, 1.0, 2, betas=betas).eval()


def stirred(adapted, seed):
    """Changes that are not nothing."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapted.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=rng))
    return adapted


@pytest.fixture(params=[False, True], ids=["kept", "recomputed"])
def roles(request):
    """(slot, teacher, student, fake), with activations kept or computed again in the backward pass."""
    slot = Slot(denoiser(), 3, TARGETS)
    if request.param:
        slot.recompute(slot.denoiser.network.unet.enable_gradient_checkpointing)
    return slot, slot.as_it_is(), stirred(slot.adapted(1), 1), stirred(slot.adapted(2), 2)


def losses(teacher, student, fake):
    """By name: each loss of DMD2, a function of three denoisers."""
    noise = torch.randn(X.shape, generator=torch.Generator().manual_seed(3))

    def sample():
        return student(80 * X, SIGMA, LABEL)

    def dmd():
        x = sample()
        with torch.no_grad():
            x_s = x + NOISED.view(-1, 1, 1, 1) * noise
            grad = dmd_gradient(x, teacher(x_s, NOISED, LABEL), fake(x_s, NOISED, LABEL), 1.0, x_s)
        return dmd_loss(x, grad)

    def sid():
        x = sample()
        x_s = x + NOISED.view(-1, 1, 1, 1) * noise
        return sid_loss(x, teacher(x_s, NOISED, LABEL), fake(x_s, NOISED, LABEL), 1.0, 1.0, x_s)

    def denoising():
        with torch.no_grad():
            x = sample()
        return (fake(x + NOISED.view(-1, 1, 1, 1) * noise, NOISED, LABEL) - x).square().mean()

    return {"dmd": (dmd, student, fake), "sid": (sid, student, fake), "fake": (denoising, fake, student)}


def of_low_rank(adapted, whole):
    """The gradient of the changes that the gradient of the whole weights stands for: of W + B A it is B^T G, and G A^T."""
    found, weights = {}, dict(whole.named_parameters())
    for name, layer in adapted.slot.layers.items():
        a, b = (adapted.tensors[f"{name}.{part}"] for part in ("lora_A", "lora_B"))
        gradient = weights[f"{name}.weight"].grad.flatten(1)
        found[f"{name}.lora_A"] = (b.flatten(1).T @ gradient).view_as(a)
        found[f"{name}.lora_B"] = (gradient @ a.flatten(1).T).view_as(b)
        assert layer.scaling["place"] == 1
    return found


@pytest.mark.parametrize("name", ["dmd", "sid", "fake"])
def test_gradients_are_those_of_three_whole_copies(name, roles):
    _, teacher, student, fake = roles
    whole = {id(role): role.merged() for role in (teacher, student, fake)}
    copies = [whole[id(role)] for role in (teacher, student, fake)]
    loss, learns, rests = losses(teacher, student, fake)[name]
    for parameter in rests.parameters():
        parameter.requires_grad_(False)
    for module in copies:
        module.requires_grad_(module is whole[id(learns)])
    mine = loss()
    mine.backward()
    theirs = losses(*copies)[name][0]()
    theirs.backward()
    torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)
    expected = of_low_rank(learns, whole[id(learns)])
    for key, tensor in learns.tensors.items():
        torch.testing.assert_close(tensor.grad, expected[key], rtol=2e-4, atol=2e-5 * max(1.0, expected[key].abs().max().item()))
        assert tensor.grad.abs().max() > 0, key
    assert all(parameter.grad is None for parameter in rests.parameters())
    assert all(parameter.grad is None for parameter in teacher.slot.denoiser.parameters())


def test_activations_that_are_recomputed_otherwise_are_an_error_and_no_wrong_gradient():
    """By diffusers' own function they would be made again by the network as it is."""
    slot = Slot(denoiser(), 3, TARGETS)
    slot.denoiser.network.unet.enable_gradient_checkpointing()
    loss = stirred(slot.adapted(1), 1)(X, NOISED, LABEL).square().mean()
    with pytest.raises(CheckpointError):
        loss.backward()


def test_exactly_the_changes_are_parameters_and_they_are_nothing_at_first():
    whole = denoiser()
    slot = Slot(copy.deepcopy(whole), 3, TARGETS)
    teacher, student = slot.as_it_is(), slot.adapted(1)
    with torch.no_grad():
        expected = whole(X, NOISED, LABEL)
        torch.testing.assert_close(teacher(X, NOISED, LABEL), expected, rtol=0, atol=0)
        torch.testing.assert_close(student(X, NOISED, LABEL), expected, rtol=0, atol=0)
        torch.testing.assert_close(stirred(student, 1).merged()(X, NOISED, LABEL), student(X, NOISED, LABEL), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(teacher(X, NOISED, LABEL), expected, rtol=0, atol=0)
        torch.testing.assert_close(teacher.merged()(X, NOISED, LABEL), expected, rtol=0, atol=0)
        torch.testing.assert_close(student.features(X, NOISED, LABEL, 1)[0], student.merged().features(X, NOISED, LABEL, 1)[0])
    assert list(teacher.parameters()) == []
    assert sum(parameter.numel() for parameter in student.parameters()) == sum(torch.Size(shape).numel() for shape in slot.shapes.values())
    assert len(slot.shapes) == 2 * len(slot.layers)
    assert student.sigma_data == 1.0  # whatever else is asked of it
    assert student.feature_shapes == whole.feature_shapes


def test_a_copy_has_tensors_of_its_own_and_the_same_network():
    slot = Slot(denoiser(), 2, TARGETS)
    student = stirred(slot.adapted(1), 1).requires_grad_(False)
    average = copy.deepcopy(student)
    assert average.slot is slot
    assert not any(parameter.requires_grad for parameter in average.parameters())
    with torch.no_grad():
        before = student(X, NOISED, LABEL)
        stirred(average, 5)
        torch.testing.assert_close(student(X, NOISED, LABEL), before, rtol=0, atol=0)
        assert not torch.equal(average(X, NOISED, LABEL), before)
        average.load_state_dict(student.state_dict())
        torch.testing.assert_close(average(X, NOISED, LABEL), before, rtol=0, atol=0)
    assert student.double().slot.denoiser.network.unet.conv_in.weight.dtype == torch.float64  # the network goes along


def test_an_error_inside_leaves_nothing_acting():
    slot = Slot(denoiser(), 2, TARGETS)
    student, teacher = stirred(slot.adapted(1), 1), slot.as_it_is()
    with torch.no_grad():
        before = teacher(X, NOISED, LABEL)
        slot.denoiser.network.prompts, prompts = None, slot.denoiser.network.prompts
        with pytest.raises(ValueError, match="no prompts"):
            student(X, NOISED, LABEL)
        slot.denoiser.network.prompts = prompts
        assert slot.now is None
        torch.testing.assert_close(teacher(X, NOISED, LABEL), before, rtol=0, atol=0)


def test_mistakes_are_sentences(monkeypatch):
    with pytest.raises(UserError, match="no layer of this model is called to_z; name others"):
        Slot(denoiser(), 2, ["to_z"])
    slot = Slot(denoiser(), 2, ["to_q"])
    with pytest.raises(UserError, match=r"there are low-rank changes \(LoRA\) in this model already; fuse them into it first"):
        Slot(slot.denoiser, 2, ["to_q"])
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(UserError, match=r"by peft, which is not installed: pip install 'fewstep\[text\]'"):
        Slot(denoiser(), 2, ["to_q"])
