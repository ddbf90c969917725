"""The formulas of the methods, as pure functions of tensors. Sources and symbols: `docs/papers.md`."""

from fewstep.maths import adversarial, matching, parametrization, schedules

__all__ = ["adversarial", "matching", "parametrization", "schedules"]
