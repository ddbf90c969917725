"""Settings of the fully connected networks: a denoiser of points, and two maps from noise to data."""

from typing import ClassVar, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from fewstep.sections import NetworkSettings


class MLPSettings(NetworkSettings):
    """A fully connected denoiser of points."""

    name: Literal["mlp"]
    widths: list[PositiveInt] = Field([256, 256, 256], min_length=1, description="widths of the hidden layers")
    activation: Literal["relu", "silu"] = Field("relu", description="activation function between the layers")
    frequencies: PositiveInt = Field(8, description="number of frequencies of the noise level's Fourier features")

    items: ClassVar = ("points",)
    takes: ClassVar = frozenset({"xi", "condition"})


class LatentMLPSettings(NetworkSettings):
    """A fully connected map from noise to data; it is continuous, and so makes samples in between modes."""

    name: Literal["latent_mlp"]
    widths: list[PositiveInt] = Field([256, 256], min_length=1, description="widths of the hidden layers")
    latent: PositiveInt = Field(16, description="dimension of the noise")
    activation: Literal["relu", "silu"] = Field("relu", description="activation function between the layers")
    embedding: PositiveInt = Field(32, description="length of the embedding of a label")
    gain: PositiveFloat = Field(1.0, description="gain of the last layer at initialisation")
    he: bool = Field(False, description="He initialisation, which keeps the variance of ReLU activations, in place of torch's own")

    role: ClassVar = "map"


class CodedMLPSettings(NetworkSettings):
    """A map from noise to data whose noise picks one of 2^bits learned codes; it jumps between codes, and so leaves gaps between modes."""

    name: Literal["coded_mlp"]
    widths: list[PositiveInt] = Field([256, 256], min_length=1, description="widths of the hidden layers")
    latent: PositiveInt = Field(16, description="dimension of the noise")
    bits: PositiveInt = Field(8, description="number of noise coordinates whose signs pick the code; fewer than latent")
    embedding: PositiveInt = Field(16, description="length of the embedding of a code")
    activation: Literal["relu", "silu"] = Field("silu", description="activation function between the layers")
    gain: PositiveFloat = Field(0.1, description="gain of the last layer at initialisation")
    spread: PositiveFloat = Field(1.0, description="standard deviation of the codes' centres at initialisation, in units of sigma_data")

    role: ClassVar = "map"
