"""What is known of a data set before it is read: of those of the Hub that shipped recipes name, their sizes and classes."""

import torch

from fewstep.data.cifar import CLASSES, HUB, RECORDS, SHAPE, TRAIN
from fewstep.data.idx import TABLES as MNIST
from fewstep.data.images import ImageData
from fewstep.data.settings import Cifar10, Images, Mnist
from fewstep.sections import DataSettings

# training images, images held out, classes
KNOWN = {HUB: (len(TRAIN) * RECORDS, RECORDS, CLASSES), MNIST.hub: (60_000, 10_000, 10)}


def beforehand(settings: DataSettings) -> ImageData | None:
    """A data set of the shape, sizes and number of classes that `settings` will give, all of it black; None where they are not known.

    It takes no memory. What a run would cost can be counted on it, and nothing can be learned.
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
