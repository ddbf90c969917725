"""Settings of the data sets that are built in."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, PositiveInt

from fewstep.sections import DataSettings, UserPath


class Digits(DataSettings):
    """scikit-learn's 1,797 digits, 8x8, grey, 10 classes."""

    name: Literal["digits"]

    points: ClassVar = False


class Photos(DataSettings):
    """Crops of scikit-learn's two sample photographs, RGB."""

    name: Literal["photos"]
    size: PositiveInt = Field(32, description="pixels a side of a crop")
    stride: PositiveInt = Field(8, description="pixels between neighbouring crops")

    points: ClassVar = False


class Images(DataSettings):
    """Images of your own: a folder (class = sub-folder), parquet, a save_to_disk folder, or a data set of the Hugging Face Hub."""

    name: Literal["images"]
    path: UserPath = Field(description="folder, .parquet file, or Hub id such as owner/name")
    config: str | None = Field(None, description="one of several configurations of a data set of the Hub")
    size: PositiveInt = Field(32, description="images become size x size")
    resize: Literal["fit", "stretch", "pad", "none"] = Field(
        "fit",
        description="fit: shorter side to size, then centre crop; stretch: both sides; pad: centred on -1; none: must be size x size",
    )
    channels: Literal[1, 3] = Field(3, description="3 for colours, 1 for grey")
    image_column: str | None = Field(None, description="column of the images; null for the first of that type")
    label_column: str | None = Field(None, description="column of the labels; null finds one, none is for no classes")
    holdout: Annotated[float, Field(gt=0, lt=1)] = Field(0.1, description="fraction held out where the data has no test split")
    flip: bool = Field(False, description="mirror half of the training images")

    points: ClassVar = False


class Mnist(DataSettings):
    """MNIST, 28x28, grey, 10 classes: from parquet as the Hub has it, its authors' four files, or the Hugging Face Hub."""

    name: Literal["mnist"]
    dir: UserPath | None = Field(
        None, description="folder of train*.parquet and test*.parquet, or of the authors' files; null reads ylecun/mnist of the Hub"
    )

    points: ClassVar = False


class Cifar10(DataSettings):
    """CIFAR-10: from parquet as the Hub has it, the binary archive that its authors publish, or the Hugging Face Hub."""

    name: Literal["cifar10"]
    dir: UserPath | None = Field(
        None,
        description="folder of train*.parquet and test*.parquet, of cifar-10-binary.tar.gz, or what that unpacks to; "
        "null reads uoft-cs/cifar10 of the Hub",
    )
    size: Literal[16, 32] = Field(32, description="16 averages squares of four pixels")
    flip: bool = Field(False, description="mirror half of the training images")

    points: ClassVar = False


# what `data.toys.DENSITIES` holds, for whom torch is too long to wait for
DENSITY_NAMES = (
    "ring",
    "grid25",
    "unequal",
    "mixture8d",
    "gaussian",
    "bimodal",
    "checkerboard",
    "swiss_roll",
    "moons",
    "spirals",
    "pinwheel",
)


class Toy(DataSettings):
    """A density on which everything is known, sampled into a pool."""

    name: Literal["toy"]
    density: str = Field(description=", ".join(DENSITY_NAMES))
    size: Annotated[int, Field(ge=2)] = Field(50_000, description="points to train on; 10,000 others are held out")

    points: ClassVar = True


class Points(DataSettings):
    """Points of your own: a .npy file of shape [N, D]."""

    name: Literal["points"]
    path: UserPath = Field(description="a .npy file")
    holdout: Annotated[float, Field(gt=0, lt=1)] = Field(0.2, description="fraction held out")
    standardize: bool = Field(
        True,
        description="learn each column about its mean, in standard deviations, and draw in the file's units; false learns them as they are",
    )

    points: ClassVar = True


class PromptTable(DataSettings):
    """Prompts without images, encoded beforehand by fewstep encode: what a text-to-image model is distilled on."""

    name: Literal["prompts"]
    path: UserPath = Field(description="the folder that fewstep encode has written")

    points: ClassVar = False


class Latents(DataSettings):
    """Images as the latents of a VAE, encoded beforehand by fewstep encode --images."""

    name: Literal["latents"]
    path: UserPath = Field(description="the folder that fewstep encode --images has written")

    points: ClassVar = False


class Stream(DataSettings):
    """Images that are read as they are asked for, from shards of parquet or WebDataset, however many there are."""

    name: Literal["stream"]
    path: UserPath = Field(description="a pattern such as data/*.parquet or shards/*.tar, a folder of such files, a URL, or a Hub id")
    config: str | None = Field(None, description="one of several configurations of a data set of the Hub")
    split: str = Field("train", description="of a data set of the Hub")
    heldout_split: str | None = Field(None, description="another split, which is held out; null holds out the first items")
    size: PositiveInt = Field(32, description="images become size x size")
    resize: Literal["fit", "stretch", "pad", "none"] = Field("fit", description="as in data: images")
    channels: Literal[1, 3] = Field(3, description="3 for colours, 1 for grey")
    image_column: str | None = Field(None, description="column of the images; null for the first of that type")
    label_column: str | None = Field(None, description="column of the labels; null finds one, none is for no classes")
    num_classes: PositiveInt | None = Field(None, description="of labels that are numbers and do not say it")
    class_names: list[str] | None = Field(None, description="of labels that are words: all of them")
    heldout_items: PositiveInt = Field(2000, description="items held out, in memory")
    buffer: PositiveInt = Field(1000, description="items shuffled together")
    flip: bool = Field(False, description="mirror half of the training images")

    points: ClassVar = False
