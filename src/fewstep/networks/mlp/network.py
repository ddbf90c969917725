"""Fully connected networks: for points, for small images, and with a coded latent.

Symbols: input ``x`` [B, ...], noise embedding ``c_noise`` [B], ``label`` int64 [B], latent ``z`` [B, L].
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

GAINS = {"silu": 1.68, "relu": 2**0.5}  # initial gains that keep the second moment of the next layer's outputs at 1

ACTIVATIONS = {"relu": nn.ReLU, "silu": nn.SiLU}


def _layers(widths: Sequence[int], activation: str, he: bool = False) -> nn.Sequential:
    """Return linear layers of `widths` with `activation` between them, and none at the end.

    torch's own initial weights lose two thirds of the variance in each layer. ReLU networks learn all the same. A SiLU network, whose
    activation is linear near 0, would stay a linear map for hundreds of steps (measured: teacher/ring learned nothing in 1,500), and
    therefore starts with weights that keep unit variance, as ReLU does with `he` (He et al. 2015, arXiv 1502.01852).

    Raises ValueError for an unknown activation.
    """
    if activation not in ACTIVATIONS:
        raise ValueError(f"network.activation is {activation!r}; allowed: {', '.join(ACTIVATIONS)}")
    layers: list[nn.Module] = []
    for i, (inputs, outputs) in enumerate(pairwise(widths)):
        linear = nn.Linear(inputs, outputs)
        if activation == "silu" or he:
            nn.init.normal_(linear.weight, std=(GAINS[activation] if i else 1.0) / inputs**0.5)
            nn.init.zeros_(linear.bias)
        layers += [linear] + [ACTIVATIONS[activation]()] * (i < len(widths) - 2)
    return nn.Sequential(*layers)


class MLP(nn.Module):
    """``F(x, c_noise, label)``, with output like `x`: the raw network of a denoiser of points. Items of any shape are flattened inside.

    Args:
        shape: shape of one item.
        num_classes: number of classes, or None; a label's embedding is added to the first layer's input, label ``num_classes`` means
            "no class".
        widths: widths of the hidden layers.
        frequencies: number of frequencies of the Fourier features of ``c_noise``.
        activation: "relu" or "silu".
        xi_channels: length of a second noise xi [B, m, xi_channels]; 0 for a network without xi.
        condition: length of a condition [B, condition] that the first layer takes, by weights that are 0 at first; 0 for no condition.

    """

    def __init__(
        self,
        shape: tuple[int, ...],
        num_classes: int | None,
        widths: Sequence[int],
        activation: str = "relu",
        frequencies: int = 8,
        xi_channels: int = 0,
        condition: int = 0,
    ) -> None:
        super().__init__()
        self.shape, size = shape, math.prod(shape)
        self.xi_shape = (xi_channels,)
        self.frequencies: Tensor
        self.register_buffer("frequencies", 2.0 ** torch.linspace(-2, 3, frequencies), persistent=False)
        self.layers = _layers([size + 2 * frequencies, *widths, size], activation)
        self.embedding = None if num_classes is None else nn.Embedding(num_classes + 1, size + 2 * frequencies)
        self.from_xi = nn.Linear(xi_channels, widths[0], bias=False) if xi_channels else None
        self.from_condition = nn.Linear(condition, widths[0], bias=False) if condition else None
        if self.from_condition is not None:
            nn.init.zeros_(self.from_condition.weight)

    def forward(
        self, x: Tensor, c_noise: Tensor, label: Tensor | None = None, xi: Tensor | None = None, condition: Tensor | None = None
    ) -> Tensor:
        """Return the output, like `x` [B, *shape] for `c_noise` [B], or [B, m, *shape] for `xi` [B, m, xi_channels].

        `condition` is [B, condition] for a network with a condition; None stands for zeros. The first layer's response to x, the noise
        level and the label is computed once for each item, and not for each of its m particles.
        """
        angle = math.pi * c_noise[:, None] * self.frequencies
        inputs = torch.cat([x.flatten(1), angle.sin(), angle.cos()], 1)
        if self.embedding is not None and label is not None:
            inputs = inputs + self.embedding(label)
        if self.from_xi is None and (self.from_condition is None or condition is None):
            return self.layers(inputs).view_as(x)
        hidden = self.layers[0](inputs)
        if self.from_condition is not None and condition is not None:
            hidden = hidden + self.from_condition(condition.to(x.dtype))
        if self.from_xi is None:
            return self.layers[1:](hidden).view_as(x)
        assert xi is not None
        hidden = hidden[:, None] + self.from_xi(xi)
        return self.layers[1:](hidden).view(*xi.shape[:2], *self.shape)


class LatentMLP(nn.Module):
    """``G(z, label)`` [B, *shape]: a continuous push-forward of noise.

    Args:
        shape: shape of one item.
        num_classes: number of classes, or None; each class has an embedding of `embedding` numbers, which is appended to z.
        widths: widths of the hidden layers.
        latent: L, the dimension of z.
        activation: "relu" or "silu".
        embedding: length of a label's embedding.
        gain: gain of the last layer at initialisation. Outputs that start far apart spread over the data; outputs that start in one
            place have to be pushed out of it.
        he: initial weights that keep the variance of ReLU activations: a steeper map, hence fewer samples between modes.

    """

    def __init__(
        self,
        shape: tuple[int, ...],
        num_classes: int | None,
        widths: Sequence[int],
        latent: int = 16,
        activation: str = "relu",
        embedding: int = 32,
        gain: float = 1.0,
        he: bool = False,
    ) -> None:
        super().__init__()
        self.shape, self.latent = shape, latent
        self.embedding = None if num_classes is None else nn.Embedding(num_classes, embedding)
        self.layers = _layers([latent + (embedding if num_classes else 0), *widths, math.prod(shape)], activation, he)
        _scale_last(self.layers, gain)

    def forward(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        """Return items [B, *shape] for z [B, latent]; `label` is int64 [B] for a network with classes."""
        if self.embedding is not None:
            z = torch.cat([z, self.embedding(label)], 1)
        return self.layers(z).view(-1, *self.shape)


class CodedMLP(nn.Module):
    """``x = centre_k + F([embedding_k, e], label)``: part of the noise picks one of ``2^bits`` learned codes k.

    z [B, latent] is standard normal: the signs of its first `bits` coordinates are the code, ``e`` is the other coordinates. A continuous
    map from a Gaussian cannot leave the space between modes empty. This map jumps where a coordinate of the code changes sign (on `bits`
    hyperplanes), and so has no bridges between modes; it has no items in between two codes.

    Args:
        shape: shape of one item.
        num_classes: number of classes, or None; each class has codes of its own.
        widths: widths of the hidden layers.
        latent: the dimension of z, more than `bits`.
        bits: number of bits of the code.
        embedding: length of the embedding by which F knows the code.
        activation: "relu" or "silu".
        gain: gain of the last layer at initialisation.
        spread: standard deviation of the centres at initialisation.

    """

    tables = ("centres", "embeddings")  # each row is used by one item in 2^bits

    def __init__(
        self,
        shape: tuple[int, ...],
        num_classes: int | None,
        widths: Sequence[int],
        latent: int = 16,
        bits: int = 8,
        embedding: int = 16,
        activation: str = "silu",
        gain: float = 0.1,
        spread: float = 1.0,
    ) -> None:
        super().__init__()
        if not 0 < bits < latent:
            raise ValueError(f"network.bits is {bits} with network.latent {latent}; bits must be at least 1 and below latent")
        self.shape, self.latent, self.bits = shape, latent, bits
        rows = 2**bits * (num_classes or 1)
        self.centres = nn.Parameter(torch.randn(rows, math.prod(shape)) * spread)
        self.embeddings = nn.Parameter(torch.randn(rows, embedding))
        self.layers = _layers([embedding + latent - bits, *widths, math.prod(shape)], activation)
        _scale_last(self.layers, gain)
        self.powers: Tensor
        self.register_buffer("powers", 2 ** torch.arange(bits), persistent=False)

    def code(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        """Return the row of the tables that each z [B, latent] picks, int64 [B]."""
        k = ((z[:, : self.bits] > 0) * self.powers).sum(1)
        return k if label is None else k + label * 2**self.bits

    def forward(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        """Return items [B, *shape] for z [B, latent]; `label` is int64 [B] for a network with classes."""
        k = self.code(z, label)
        moved = self.layers(torch.cat([self.embeddings[k], z[:, self.bits :]], 1))
        return (self.centres[k] + moved).view(-1, *self.shape)


def _scale_last(layers: nn.Sequential, gain: float) -> None:
    last = layers[-1]
    assert isinstance(last, nn.Linear)
    with torch.no_grad():
        last.weight *= gain
        last.bias.zero_()
