"""The formulas: pure functions of tensors, importing torch and nothing else. Sources and symbols: `docs/papers.md`."""

from fewstep.maths import adversarial, matching, parametrization, schedules

__all__ = ["adversarial", "matching", "parametrization", "schedules"]
