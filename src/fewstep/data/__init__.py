"""Data sets, held in memory as they come and turned into batches: images in [-1, 1], points as they are."""

from fewstep.data.cifar import cifar10, cifar10_of_the_hub
from fewstep.data.density import Density
from fewstep.data.errors import DataError
from fewstep.data.image_sets import image_folder
from fewstep.data.images import ImageData, load_digits, photo_crops
from fewstep.data.mixtures import Mixture
from fewstep.data.points import PointData, point_file
from fewstep.data.reweighting import PowerData, power_data
from fewstep.data.toys import DENSITIES, make_density, toy_data

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
    "photo_crops",
    "point_file",
    "power_data",
    "toy_data",
]
