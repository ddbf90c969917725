"""Settings of the fully connected networks: a denoiser's, and two maps from noise."""

from typing import ClassVar, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from fewstep.sections import NetworkSettings


class MLPSettings(NetworkSettings):
    """A fully connected denoiser of points."""

    name: Literal["mlp"]
    widths: list[PositiveInt] = Field([256, 256, 256], min_length=1, description="of the hidden layers")
    activation: Literal["relu", "silu"] = Field("relu", description="function between the layers")
    frequencies: PositiveInt = Field(8, description="Fourier features of the noise level")

    items: ClassVar = ("points",)
    takes: ClassVar = frozenset({"xi", "condition"})


class LatentMLPSettings(NetworkSettings):
    """A fully connected map from noise to data; continuous, hence with bridges between modes."""

    name: Literal["latent_mlp"]
    widths: list[PositiveInt] = Field([256, 256], min_length=1, description="of the hidden layers")
    latent: PositiveInt = Field(16, description="dimension of the noise")
    activation: Literal["relu", "silu"] = Field("relu", description="function between the layers")
    embedding: PositiveInt = Field(32, description="numbers that stand for a label")
    gain: PositiveFloat = Field(1.0, description="of the last layer at initialisation")
    he: bool = Field(False, description="initial weights that keep the variance of ReLU activations, and not torch's own")

    role: ClassVar = "map"


class CodedMLPSettings(NetworkSettings):
    """A map from noise to data whose noise picks one of 2^bits learned codes; jumps, hence without bridges."""

    name: Literal["coded_mlp"]
    widths: list[PositiveInt] = Field([256, 256], min_length=1, description="of the hidden layers")
    latent: PositiveInt = Field(16, description="dimension of the noise")
    bits: PositiveInt = Field(8, description="latent coordinates whose signs pick the code")
    embedding: PositiveInt = Field(16, description="numbers that tell the network which code it is")
    activation: Literal["relu", "silu"] = Field("silu", description="function between the layers")
    gain: PositiveFloat = Field(0.1, description="of the last layer at initialisation")
    spread: PositiveFloat = Field(1.0, description="standard deviation of the centres at initialisation, in sigma_data")

    role: ClassVar = "map"
