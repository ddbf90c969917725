"""Data sets of images and points, and densities to draw points from; batches hold images in [-1, 1], and points as the data set holds them.

A name is imported from its module when it is first used, so that settings can be read without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fewstep.data.cifar import cifar10, cifar10_of_the_hub
    from fewstep.data.density import Density
    from fewstep.data.errors import DataError
    from fewstep.data.idx import mnist
    from fewstep.data.image_sets import image_folder
    from fewstep.data.images import ImageData, load_digits, photo_crops
    from fewstep.data.mixtures import Mixture
    from fewstep.data.points import PointData, point_file
    from fewstep.data.reweighting import PowerData, power_data
    from fewstep.data.toys import DENSITIES, make_density, toy_data

_PLACES = {
    "DENSITIES": "toys",
    "DataError": "errors",
    "Density": "density",
    "ImageData": "images",
    "Mixture": "mixtures",
    "PointData": "points",
    "PowerData": "reweighting",
    "cifar10": "cifar",
    "cifar10_of_the_hub": "cifar",
    "image_folder": "image_sets",
    "load_digits": "images",
    "make_density": "toys",
    "mnist": "idx",
    "photo_crops": "images",
    "point_file": "points",
    "power_data": "reweighting",
    "toy_data": "toys",
}

__all__ = [
    "DENSITIES",
    "DataError",
    "Density",
    "ImageData",
    "Mixture",
    "PointData",
    "PowerData",
    "cifar10",
    "cifar10_of_the_hub",
    "image_folder",
    "load_digits",
    "make_density",
    "mnist",
    "photo_crops",
    "point_file",
    "power_data",
    "toy_data",
]


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        return getattr(import_module(f"fewstep.data.{_PLACES[name]}"), name)
    raise AttributeError(f"module 'fewstep.data' has no attribute {name!r}")
