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
        "The Frechet distance of the features of samples to those of the reference, squared as in the FID; of several blocks, the least.",
    ),
    Figure(
        "frechet_over_floor",
        "FD / floor",
        "{:.2f}",
        "images",
        "least",
        "The Frechet distance in units of the floor, which is that of real images to other real images.",
        is_curve=True,
    ),
    Figure(
        "frechet_second_over_floor",
        "2nd judge",
        "{:.2f}",
        "images",
        "least",
        "FD / floor in another network that was trained apart: what two judges rank differently is not settled.",
        is_watched=False,
    ),
    Figure(
        "frechet_mean",
        "mean of blocks",
        "{:.3f}",
        "images",
        "least",
        "The mean of the Frechet distances of the blocks of samples that a protocol asks for.",
        is_watched=False,
    ),
    Figure(
        "frechet_train",
        "FD to train",
        "{:.3f}",
        "images",
        "least",
        "The Frechet distance to the train split: where it is low and that to the reference below the floor, the train split was learned "
        "by heart.",
    ),
    Figure(
        "frechet_bias",
        "bias",
        "{:.3f}",
        "images",
        None,
        "By how much the Frechet distance is too large because samples are few: that of half as many less that of all.",
        is_watched=False,
        is_column=False,
    ),
    Figure(
        "kernel",
        "KID of all pairs",
        "{:.5f}",
        "images",
        "least",
        "The kernel distance (KID) over all pairs, without bias: 0 in expectation where both are alike, and sometimes below.",
        is_column=False,
        is_curve=True,
    ),
    Figure(
        "kernel_subsets",
        "KID",
        "{:.5f}",
        "images",
        "least",
        "The kernel distance (KID) as papers report it, a mean over subsets of 1,000.",
        is_watched=False,
    ),
    Figure(
        "kernel_subsets_std",
        "+-",
        "{:.5f}",
        "images",
        None,
        "The standard deviation of the kernel distance over its subsets.",
        is_watched=False,
    ),
    Figure(
        "class_accuracy",
        "class asked for",
        "{:.1%}",
        "images",
        "greatest",
        "The share of samples that show the class they were made for, as a classifier of the features sees it.",
    ),
    Figure(
        "least_class_accuracy",
        "worst class",
        "{:.0%}",
        "images",
        "greatest",
        "The share of samples that show the class they were made for, of the class of which fewest do, which is named.",
    ),
    Figure(
        "prompt_agreement",
        "CLIP",
        "{:.3f}",
        "images",
        "greatest",
        "The mean cosine of samples with their prompts in the space of a CLIP model: whether they show what was asked for.",
        is_watched=False,
    ),
    Figure(
        "prompt_margin",
        "over another",
        "{:+.3f}",
        "images",
        "greatest",
        "By how much the cosine with the own prompt is above that with another one: 0 where prompts are not listened to.",
        is_watched=False,
    ),
    Figure(
        "precision",
        "precision",
        "{:.2f}",
        "images",
        "greatest",
        "The share of samples that lie within the manifold of real images: whether they look real; of two judges the lesser.",
    ),
    Figure(
        "recall",
        "recall",
        "{:.2f}",
        "images",
        "greatest",
        "The share of real images that lie within the manifold of samples: whether all kinds are made; of two judges the lesser.",
    ),
    Figure(
        "within_class_std",
        "class std",
        "{:.0%}",
        "images",
        "nearest 1",
        "How far pixels spread about the mean of their class, as a ratio to real images: below 1 classes have collapsed.",
    ),
    Figure(
        "least_class_std",
        "least class std",
        "{:.0%}",
        "images",
        "nearest 1",
        "The spread of pixels of the class that spreads least, as a ratio to the same class of real images: far below 1 it has collapsed.",
    ),
    Figure(
        "spacing",
        "spacing",
        "{:.0%}",
        "images",
        "nearest 1",
        "The mean distance of a sample to the nearest other one, as a ratio to real images: below 1 samples repeat themselves.",
    ),
    Figure(
        "train_distance",
        "to train",
        "{:.0%}",
        "images",
        "nearest 1",
        "The mean distance of a sample to the nearest training image, as a ratio to that of held-out images: below 1 is memorising.",
    ),
    Figure(
        "copies",
        "copies",
        "{:.1%}",
        "images",
        "least",
        "The share of samples that are a training image again, in every byte; in the first row of held-out images.",
    ),
    Figure(
        "near_copies",
        "near copies",
        "{:.1%}",
        "images",
        "least",
        "The share of samples whose nearest training image is at most a third as far as the second nearest, as hardly any real image is.",
        is_column=False,
    ),
    Figure(
        "energy",
        "energy distance",
        "{:.5f}",
        "points",
        "least",
        "The energy distance to exact samples, or else held-out points, without bias: 0 in expectation where both are alike.",
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
        "The 2-Wasserstein distance to exact samples, or else held-out points, along one direction: the root of the mean square over many.",
    ),
    Figure(
        "modes",
        "modes",
        "{:.0f}",
        "points",
        "greatest",
        "How many modes are covered: hold at least a fifth of the samples that exact ones would put there.",
    ),
    Figure(
        "weight_tv",
        "weights, TV",
        "{:.4f}",
        "points",
        "least",
        "The total variation of the shares of samples near each mode from the true weights.",
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
        "The mean squared distance of a mode's samples from its centre, as a ratio to exact samples: below 1 modes are too narrow.",
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
        "How long training took, its teacher's included.",
        is_watched=False,
    ),
    Figure(
        "images_per_second",
        "samples/s",
        "{:,.0f}",
        "cost",
        "greatest",
        "How many samples are drawn in a second.",
        is_watched=False,
    ),
)
BY_KEY = {figure.key: figure for figure in FIGURES}


def choices(family: Family) -> dict[str, Best]:
    """Return the figures by which the best model of a run can be chosen while it trains, and which value of each is best."""
    return {figure.key: figure.best for figure in FIGURES if figure.family == family and figure.is_watched and figure.best}
