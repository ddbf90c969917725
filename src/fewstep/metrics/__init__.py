"""How far a generated set is from the real one: distances, precision and recall, memorisation, and the floor beneath them."""

from fewstep.metrics.frechet import frechet_distance
from fewstep.metrics.kernel_mmd import kernel_distance
from fewstep.metrics.manifold import precision_recall

__all__ = ["frechet_distance", "kernel_distance", "precision_recall"]
