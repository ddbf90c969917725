"""Settings of the data sets that are built in."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, PositiveInt

from fewstep.sections import DataSettings, UserPath


class Digits(DataSettings):
    """scikit-learn's 1,797 digits, 8x8, grey, 10 classes."""

    name: Literal["digits"]

    points: ClassVar = False


class Photos(DataSettings):
    """Crops of scikit-learn's two sample photographs, RGB, class = photograph."""

    name: Literal["photos"]
    size: PositiveInt = Field(32, description="width and height of a crop in pixels")
    stride: PositiveInt = Field(8, description="distance in pixels from one crop to the next")

    points: ClassVar = False


# settings of data sets that are read image by image
Configuration = Annotated[str | None, Field(description="name of the configuration, for a Hub data set that has several")]
Side = Annotated[PositiveInt, Field(description="width and height in pixels to which images are resized")]
Resize = Annotated[
    Literal["fit", "stretch", "pad", "none"],
    Field(
        description="how images reach the size: fit scales the shorter side and crops the centre, stretch scales both sides, pad centres "
        "the image on black, none requires images of that size",
    ),
]
Channels = Annotated[Literal[1, 3], Field(description="colour channels of the images: 3 for RGB, 1 for grey")]
ImageColumn = Annotated[str | None, Field(description="column of the images; null takes the first column that holds images")]
LabelColumn = Annotated[str | None, Field(description="column of the labels; null looks for one, and none trains without classes")]


class Images(DataSettings):
    """Images of your own: a folder (class = sub-folder), parquet, a save_to_disk folder, or a data set of the Hugging Face Hub."""

    name: Literal["images"]
    path: UserPath = Field(description="folder of images, .parquet file, save_to_disk folder, or Hub id such as owner/name")
    config: Configuration = None
    size: Side = 32
    resize: Resize = "fit"
    channels: Channels = 3
    image_column: ImageColumn = None
    label_column: LabelColumn = None
    holdout: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.1, description="fraction of the images held out, if the data has no test or validation split"
    )
    flip: bool = Field(False, description="mirror each training image left to right with probability 1/2")

    points: ClassVar = False


class Mnist(DataSettings):
    """MNIST, 28x28, grey, 10 classes: from the Hub's parquet files, its authors' four IDX files, or the Hugging Face Hub itself."""

    name: Literal["mnist"]
    dir: UserPath | None = Field(
        None, description="folder of train*.parquet and test*.parquet, or of the authors' IDX files; null reads ylecun/mnist from the Hub"
    )

    points: ClassVar = False


class Cifar10(DataSettings):
    """CIFAR-10: from the Hub's parquet files, the binary archive that its authors publish, or the Hugging Face Hub itself."""

    name: Literal["cifar10"]
    dir: UserPath | None = Field(
        None,
        description="folder of train*.parquet and test*.parquet, of cifar-10-binary.tar.gz, or of the unpacked archive; "
        "null reads uoft-cs/cifar10 from the Hub",
    )
    size: Literal[16, 32] = Field(32, description="width and height of the images in pixels; 16 averages squares of 2 x 2 pixels")
    flip: bool = Field(False, description="mirror each training image left to right with probability 1/2")

    points: ClassVar = False


# the keys of `data.toys.DENSITIES`, repeated here because that module imports torch, which is slow
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
    """Points drawn from a toy density, whose log-density and exact samples are known."""

    name: Literal["toy"]
    density: str = Field(description=f"one of {', '.join(DENSITY_NAMES)}")
    size: Annotated[int, Field(ge=2)] = Field(50_000, description="number of training points; 10,000 further points are held out")

    points: ClassVar = True


class Points(DataSettings):
    """Points of your own: a .npy file of shape [N, D]."""

    name: Literal["points"]
    path: UserPath = Field(description="file in NumPy's .npy format that holds one array of numbers [N, D]")
    holdout: Annotated[float, Field(gt=0, lt=1)] = Field(0.2, description="fraction of the points held out")
    standardize: bool = Field(
        True,
        description="train on columns of mean 0 and standard deviation 1, and give samples in the file's units; "
        "false trains on the numbers as they are in the file",
    )

    points: ClassVar = True


class PromptTable(DataSettings):
    """Prompts encoded beforehand by fewstep encode, on which a text-to-image model is distilled."""

    name: Literal["prompts"]
    path: UserPath = Field(description="folder that fewstep encode has written")

    points: ClassVar = False


class Latents(DataSettings):
    """Images encoded beforehand as latents of a VAE, by fewstep encode --images."""

    name: Literal["latents"]
    path: UserPath = Field(description="folder that fewstep encode --images has written")

    points: ClassVar = False


class Stream(DataSettings):
    """Images in shards of parquet, Arrow or WebDataset, which are read during training and may be larger than memory."""

    name: Literal["stream"]
    path: UserPath = Field(description="pattern such as data/*.parquet or shards/*.tar, folder of shards, URL, or Hub id")
    config: Configuration = None
    split: str = Field("train", description="split to train on, of a Hub data set")
    heldout_split: str | None = Field(
        None, description="split that is held out, of a Hub data set; null holds out the first images of the training split"
    )
    size: Side = 32
    resize: Resize = "fit"
    channels: Channels = 3
    image_column: ImageColumn = None
    label_column: LabelColumn = None
    num_classes: PositiveInt | None = Field(None, description="number of classes, for labels that are plain integers from 0")
    class_names: list[str] | None = Field(None, description="names of all classes, for labels that are words")
    heldout_items: PositiveInt = Field(2000, description="number of images held out, which are kept in memory")
    buffer: PositiveInt = Field(1000, description="number of images that are shuffled together")
    flip: bool = Field(False, description="mirror each training image left to right with probability 1/2")

    points: ClassVar = False
