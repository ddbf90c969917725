"""The figures of an evaluation: what each is, how it is written, and which value is best. Nothing here imports torch.

A figure has the name KEY in the rows of results.json, and ``eval.KEY`` in metrics.jsonl. The standard error of a figure of points is
``KEY_error``; for a figure that is the least over the classes, ``KEY_of`` names the class.
"""

from dataclasses import dataclass
from typing import Literal

Best = Literal["least", "greatest", "nearest 1"]
Family = Literal["images", "points", "cost"]


@dataclass(frozen=True)
class Figure:
    """A figure of an evaluation.

    Attributes:
        key: name of the figure in results.
        heading: heading of the figure's column in a table.
        form: format string by which `str.format` writes the figure.
        family: what the figure is measured on, "images" or "points"; "cost" for what samples take, which is no quality.
        best: which value is best; "nearest 1" for ratios to real data. None for a figure that says how certain another figure is.
        what: one sentence that says what the figure is.
        is_watched: whether the figure is measured at regular intervals during training, too, and not only in an evaluation.
        is_column: whether an evaluation's table has a column for the figure.
        is_curve: whether a run's report draws the figure's curve over training.

    """

    key: str
    heading: str
    form: str
    family: Family
    best: Best | None
    what: str
    is_watched: bool = True
    is_column: bool = True
    is_curve: bool = False

    @property
    def words(self) -> str:
        """The key in words, for readers who do not know the headings."""
        return self.key.replace("_", " ")

    @property
    def is_quality(self) -> bool:
        """Whether the figure says something about the samples, and not about the time that they took."""
        return self.family != "cost"


# in the order in which tables show them
FIGURES = (
    Figure(
        "frechet",
        "FD",
        "{:.3f}",
        "images",
        "least",
        "The squared Frechet distance between Gaussians fitted to the features of samples and of the reference, as in the FID; with "
        "several blocks of samples, the smallest.",
    ),
    Figure(
        "frechet_over_floor",
        "FD / floor",
        "{:.2f}",
        "images",
        "least",
        "The Frechet distance divided by the floor, which is the distance of real images to other real images.",
        is_curve=True,
    ),
    Figure(
        "frechet_second_over_floor",
        "2nd judge",
        "{:.2f}",
        "images",
        "least",
        "FD / floor in another network, trained separately: where the two judges rank models differently, the ranking is not settled.",
        is_watched=False,
    ),
    Figure(
        "frechet_mean",
        "mean of blocks",
        "{:.3f}",
        "images",
        "least",
        "The mean of the Frechet distances of the blocks of samples that a measurement protocol asks for.",
        is_watched=False,
    ),
    Figure(
        "frechet_train",
        "FD to train",
        "{:.3f}",
        "images",
        "least",
        "The Frechet distance to the train split: if it is low, and the distance to the reference below the floor, the train split was "
        "memorised.",
    ),
    Figure(
        "frechet_bias",
        "bias",
        "{:.3f}",
        "images",
        None,
        "How much the small number of samples raises the Frechet distance: the distance of half the samples less the distance of all.",
        is_watched=False,
        is_column=False,
    ),
    Figure(
        "kernel",
        "KID of all pairs",
        "{:.5f}",
        "images",
        "least",
        "The kernel distance (KID) over all pairs, without bias: 0 in expectation for equal distributions, and sometimes negative.",
        is_column=False,
        is_curve=True,
    ),
    Figure(
        "kernel_subsets",
        "KID",
        "{:.5f}",
        "images",
        "least",
        "The kernel distance (KID) as papers report it, the mean over subsets of 1,000 images.",
        is_watched=False,
    ),
    Figure(
        "kernel_subsets_std",
        "+-",
        "{:.5f}",
        "images",
        None,
        "The standard deviation of the kernel distance (KID) over its subsets.",
        is_watched=False,
    ),
    Figure(
        "class_accuracy",
        "class asked for",
        "{:.1%}",
        "images",
        "greatest",
        "The share of samples that a classifier of the features assigns to the class they were made for.",
    ),
    Figure(
        "least_class_accuracy",
        "worst class",
        "{:.0%}",
        "images",
        "greatest",
        "The share of samples assigned to the class they were made for, in the class where it is smallest, which is named.",
    ),
    Figure(
        "prompt_agreement",
        "CLIP",
        "{:.3f}",
        "images",
        "greatest",
        "The mean cosine similarity of samples and their prompts in the space of a CLIP model: whether they show what was asked for.",
        is_watched=False,
    ),
    Figure(
        "prompt_margin",
        "over another",
        "{:+.3f}",
        "images",
        "greatest",
        "How much larger the cosine similarity is with a sample's own prompt than with another prompt: 0 where prompts are ignored.",
        is_watched=False,
    ),
    Figure(
        "precision",
        "precision",
        "{:.2f}",
        "images",
        "greatest",
        "The share of samples within the manifold of real images: whether they look real; with two judges, the smaller value.",
    ),
    Figure(
        "recall",
        "recall",
        "{:.2f}",
        "images",
        "greatest",
        "The share of real images within the manifold of samples: whether all kinds are made; with two judges, the smaller value.",
    ),
    Figure(
        "within_class_std",
        "class std",
        "{:.0%}",
        "images",
        "nearest 1",
        "The standard deviation of pixels about the mean of their class, as a ratio to real images: below 1, samples of a class are too "
        "alike.",
    ),
    Figure(
        "least_class_std",
        "least class std",
        "{:.0%}",
        "images",
        "nearest 1",
        "The standard deviation of pixels about the mean of their class, as a ratio to real images, in the class where this ratio is "
        "smallest: far below 1, that class has collapsed.",
    ),
    Figure(
        "spacing",
        "spacing",
        "{:.0%}",
        "images",
        "nearest 1",
        "The mean distance of a sample to the nearest other sample, as a ratio to real images: below 1, samples repeat each other.",
    ),
    Figure(
        "train_distance",
        "to train",
        "{:.0%}",
        "images",
        "nearest 1",
        "The mean distance of a sample to the nearest training image, as a ratio to held-out images: clearly below 1, training images were "
        "memorised.",
    ),
    Figure(
        "copies",
        "copies",
        "{:.1%}",
        "images",
        "least",
        "The share of samples that equal a training image in every byte; in the first row, the share of held-out images that do.",
    ),
    Figure(
        "near_copies",
        "near copies",
        "{:.1%}",
        "images",
        "least",
        "The share of samples whose nearest training image is at most a third as far as the second nearest, which is true of hardly any "
        "real image.",
        is_column=False,
    ),
    Figure(
        "energy",
        "energy distance",
        "{:.5f}",
        "points",
        "least",
        "The energy distance to exact samples, or else held-out points, without bias: 0 in expectation for equal distributions.",
        is_curve=True,
    ),
    Figure(
        "mmd",
        "MMD^2",
        "{:.5f}",
        "points",
        "least",
        "The squared maximum mean discrepancy to exact samples, or else held-out points, with a Gaussian kernel.",
    ),
    Figure(
        "sliced_wasserstein",
        "SW2",
        "{:.3f}",
        "points",
        "least",
        "The sliced 2-Wasserstein distance to exact samples, or else held-out points: the root of the mean square over many directions.",
    ),
    Figure(
        "modes",
        "modes",
        "{:.0f}",
        "points",
        "greatest",
        "The number of modes covered, each by at least a fifth of the samples that an exact sampler would put there.",
    ),
    Figure(
        "weight_tv",
        "weights, TV",
        "{:.4f}",
        "points",
        "least",
        "The total variation distance between the shares of samples near each mode and the true weights of the modes.",
    ),
    Figure(
        "inside",
        "inside",
        "{:.3f}",
        "points",
        "greatest",
        "The share of samples that lie near some mode.",
    ),
    Figure(
        "variance",
        "variance",
        "{:.2f}",
        "points",
        "nearest 1",
        "The mean squared distance of samples from the centre of their mode, as a ratio to exact samples: below 1, modes are too narrow.",
    ),
    Figure(
        "median_radius",
        "radius",
        "{:.2f}",
        "points",
        "nearest 1",
        "The median distance of samples from the centre of their mode, as a ratio to exact samples.",
    ),
    Figure(
        "training_seconds",
        "trained, s",
        "{:.0f}",
        "cost",
        "least",
        "The training time in seconds, including that of the teacher.",
        is_watched=False,
    ),
    Figure(
        "images_per_second",
        "samples/s",
        "{:,.0f}",
        "cost",
        "greatest",
        "The number of samples drawn per second.",
        is_watched=False,
    ),
)
BY_KEY = {figure.key: figure for figure in FIGURES}


def choices(family: Family) -> dict[str, Best]:
    """Return the figures by which the best model of a run can be chosen while it trains, and which value of each is best."""
    return {figure.key: figure.best for figure in FIGURES if figure.family == family and figure.is_watched and figure.best}
