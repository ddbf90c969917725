"""One file a method: each reads like the algorithm box of its paper and knows nothing of loops, files or devices."""

from fewstep.methods.base import Batch, LossOutput, Method, OptimizerSettings, Ramp, Turn
from fewstep.methods.dddm import DDDM
from fewstep.methods.dmd2 import DMD2
from fewstep.methods.drift import Drift
from fewstep.methods.teacher import Teacher

__all__ = ["DDDM", "DMD2", "Batch", "Drift", "LossOutput", "Method", "OptimizerSettings", "Ramp", "Teacher", "Turn"]
