"""Sizes and classes of the data sets on the Hugging Face Hub that shipped recipes use, known before any data is read."""

import torch

from fewstep.data.cifar import CLASSES, HUB, RECORDS, SHAPE, TRAIN
from fewstep.data.idx import TABLES as MNIST
from fewstep.data.images import ImageData
from fewstep.data.settings import Cifar10, Images, Mnist
from fewstep.sections import DataSettings

# by Hub id: training images, held-out images, classes
KNOWN = {HUB: (len(TRAIN) * RECORDS, RECORDS, CLASSES), MNIST.hub: (60_000, 10_000, 10)}


def beforehand(settings: DataSettings) -> ImageData | None:
    """Return all-black images of the shape, number and classes that `settings` will give; None if these are not known beforehand.

    The images take no memory. They serve to estimate the cost of a run; nothing can be learned from them.
    """
    size: int
    if isinstance(settings, Cifar10):
        path, size, channels, flip = HUB, settings.size, SHAPE[0], settings.flip
    elif isinstance(settings, Mnist):
        path, size, channels, flip = MNIST.hub, MNIST.shape[-1], MNIST.shape[0], False
    elif isinstance(settings, Images) and settings.label_column is None:
        path, size, channels, flip = settings.path, settings.size, settings.channels, settings.flip
    else:
        return None
    if path not in KNOWN:
        return None
    *sizes, classes = KNOWN[path]
    train, heldout = (torch.zeros(1, dtype=torch.uint8).expand(num, channels, size, size) for num in sizes)
    label, heldout_label = (torch.zeros(1, dtype=torch.int64).expand(num) for num in sizes)
    names = tuple(str(k) for k in range(classes))
    return ImageData(settings.name, train, heldout, label, heldout_label, 127.5, names, flip)
