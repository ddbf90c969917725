"""Data sets that everybody knows, from a folder of parquet as the Hugging Face Hub has them, or from the Hub itself."""

from dataclasses import dataclass, replace
from pathlib import Path

from fewstep.data.errors import DataError
from fewstep.data.image_sets import image_folder
from fewstep.data.images import ImageData
from fewstep.data.pixels import UNEQUAL
from fewstep.data.splits import Bar, no_bar


@dataclass(frozen=True)
class HubTables:
    """A data set in tables: `name`, `hub` id, `shape` (C, H, W), columns, number of `classes`, and the `folder` that the Hub's are in."""

    name: str
    hub: str
    shape: tuple[int, int, int]
    image: str
    classes: int
    folder: str
    label: str = "label"

    def place(self, dir: Path) -> Path | None:
        """Where below `dir` its parquet lies: there itself, or in the folder that the Hub's copy has it in; None where none does."""
        places = (dir, dir / self.folder)
        return next((place for place in places if place.is_dir() and any(place.glob("train*.parquet"))), None)

    def read(self, place: Path, source: str, bar: Bar = no_bar) -> ImageData:
        """The data set in the parquet files of the folder `place`, for messages that begin with `source`. Raises DataError."""
        if not any(place.glob("test*.parquet")):
            raise DataError(f"{source}, where {place} has train*.parquet, and no test*.parquet; fetch that, too: {self.where}")
        return self._opened(str(place), source, bar)

    def of_the_hub(self, bar: Bar = no_bar, otherwise: str = "") -> ImageData:
        """The data set of the Hub. Raises DataError where it cannot be had, which says what else there is."""
        try:
            return self._opened(self.hub, "data.dir is missing", bar)
        except DataError as error:  # which names a key that this data set has not
            said = str(error).removeprefix(f"data.path is {self.hub!r}: there is no such folder, ")
            way = f"or fetch it ({self.where}{otherwise}) and say data.dir=FOLDER"
            raise DataError(f"data.dir is missing, so that {self.hub} was looked for: {said}; {way}") from error

    @property
    def where(self) -> str:
        """Where its files are published."""
        return f"the files in {self.folder}/ of huggingface.co/datasets/{self.hub}"

    def _opened(self, path: str, source: str, bar: Bar) -> ImageData:
        channels, size, _ = self.shape
        try:
            data = image_folder(path, size, channels, resize="none", image_column=self.image, label_column=self.label, bar=bar)
        except DataError as error:  # which names a key that this data set has not
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
