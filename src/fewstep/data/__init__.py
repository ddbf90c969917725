"""Data sets, held in memory as they come and turned into batches in [-1, 1]."""

from fewstep.data.images import DataError, ImageData, image_folder, load_digits, photo_crops

__all__ = ["DataError", "ImageData", "image_folder", "load_digits", "photo_crops"]
