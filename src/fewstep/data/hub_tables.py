"""Well-known data sets, from a folder of the parquet files that the Hugging Face Hub has, or from the Hub itself."""

from dataclasses import dataclass, replace
from pathlib import Path

from fewstep.data.errors import DataError
from fewstep.data.image_sets import image_folder
from fewstep.data.images import ImageData
from fewstep.data.pixels import UNEQUAL
from fewstep.data.splits import Bar, no_bar


@dataclass(frozen=True)
class HubTables:
    """A well-known data set in parquet files.

    Attributes:
        name: name of the data set in recipes.
        hub: Hugging Face Hub id.
        shape: (C, H, W) of the images.
        image: column of the images.
        classes: number of classes.
        folder: folder of the Hub repository in which the parquet files lie.
        label: column of the labels.

    """

    name: str
    hub: str
    shape: tuple[int, int, int]
    image: str
    classes: int
    folder: str
    label: str = "label"

    def place(self, dir: Path) -> Path | None:
        """Return the folder of the parquet files: `dir`, or its sub-folder that is named as on the Hub; None if neither has any."""
        places = (dir, dir / self.folder)
        return next((place for place in places if place.is_dir() and any(place.glob("train*.parquet"))), None)

    def read(self, place: Path, source: str, bar: Bar = no_bar) -> ImageData:
        """Return the data set in the parquet files of the folder `place`.

        Raises DataError, in a message that begins with `source`, if files are missing or invalid.
        """
        if not any(place.glob("test*.parquet")):
            raise DataError(f"{source}, where {place} has train*.parquet, and no test*.parquet; fetch that, too: {self.where}")
        return self._opened(str(place), source, bar)

    def of_the_hub(self, bar: Bar = no_bar, otherwise: str = "") -> ImageData:
        """Return the data set from the Hub.

        Raises DataError if it is not available; the message names the files to fetch instead, and adds `otherwise`, a further alternative.
        """
        try:
            return self._opened(self.hub, "data.dir is missing", bar)
        except DataError as error:  # its message names data.path, a key that this data set does not have
            said = str(error).removeprefix(f"data.path is {self.hub!r}: there is no such folder, ")
            way = f"or fetch it ({self.where}{otherwise}) and say data.dir=FOLDER"
            raise DataError(f"data.dir is missing, so that {self.hub} was looked for: {said}; {way}") from error

    @property
    def where(self) -> str:
        """The place on the Hub where the files of the data set are published."""
        return f"the files in {self.folder}/ of huggingface.co/datasets/{self.hub}"

    def _opened(self, path: str, source: str, bar: Bar) -> ImageData:
        channels, size, _ = self.shape
        try:
            data = image_folder(path, size, channels, resize="none", image_column=self.image, label_column=self.label, bar=bar)
        except DataError as error:  # its message names data.path, a key that this data set does not have
            if path == self.hub:
                raise
            said = str(error)
            columns = [f"data.{key} is {column!r}; " for key, column in (("image_column", self.image), ("label_column", self.label))]
            if any(key in said for key in columns):
                said += f"; {self.name} has {self.image!r} and {self.label!r}: give the folder of its own files"
            words = {f"data.path is {path!r}": source, "not of data.size": f"not of {size} x {size}", UNEQUAL.remedy: "take another copy"}
            for key, word in (*words.items(), *((key, "") for key in (*columns, "; name one of them, or 'none'"))):
                said = said.replace(key, word)
            raise DataError(said) from error
        if data.num_classes != self.classes:
            raise DataError(f"{source}, where {path} has {data.num_classes} classes, and {self.name} has {self.classes}; take another copy")
        return replace(data, name=self.name)
