"""Read and check the denoiser and the sampler in the config.json of a model folder, in all versions of its format."""

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from fewstep import registry
from fewstep.denoisers import DENOISERS
from fewstep.samplers import SAMPLERS, SamplerKind

MOST_STEPS = 100_000
MOST_GUIDANCE = 1e6
FORMAT = 2  # number of config.json's format; fewstep 0.1.0 wrote format 1, without a number


def checked_sampler(config: Mapping[str, Any]) -> SamplerKind:
    """Return the kind of sampler that `config` names. Raises ValueError for an unknown name, and for missing or wrong settings."""
    name = config.get("name")
    kind: Any = SAMPLERS.get(str(name))
    if kind is None and isinstance(name, str) and (registry.is_import_path(name) or name in registry.names("samplers")):
        kind = registry.room("samplers", name)
    few = name == "few_step"
    missing = few and ("steps" not in config if "levels" in config else "sigmas" not in config)
    if kind is None or missing or any(key not in config for key in kind.needs):
        needs = "steps, sigma_min, sigma_max, rho" if kind is None else "sigmas, or levels and steps" if few else ", ".join(kind.needs)
        raise ValueError(f"sampler is {dict(config)}; give a name of {', '.join(SAMPLERS)}, and {needs}")
    steps, churn = config.get("steps", 1), config.get("churn", 1.0)
    if not isinstance(steps, int) or steps < 1 or not isinstance(churn, int | float) or not 0 <= churn <= 1:
        raise ValueError(f"sampler is {dict(config)}; steps must be a whole number from 1, churn lie from 0 to 1")
    if isinstance(steps, bool) or steps > MOST_STEPS:
        raise ValueError(f"sampler is {dict(config)}; steps must be a whole number up to {MOST_STEPS}")
    for key in ("sigma_min", "sigma_max", "rho", "middle", "start", "shift", "last", "terminal"):
        if key in config and not (_is_number(config[key]) and 0 < config[key] < math.inf):
            raise ValueError(f"sampler is {dict(config)}; {key} must be a finite number above 0")
    if config.get("last", 1) > 1 or config.get("terminal", 0.5) >= 1:
        raise ValueError(f"sampler is {dict(config)}; last is a time, which is 1 at most, and terminal is one below 1")
    if "guidance_scale" in config and (not kind.guided or not is_guidance(config["guidance_scale"])):
        names = ", ".join(key for key, known in SAMPLERS.items() if known.guided)
        raise ValueError(f"sampler is {dict(config)}; guidance_scale is for {names}, and must be a finite number, 1 for none")
    if "sigma_min" in config and "sigma_max" in config and not config["sigma_min"] < config["sigma_max"]:
        raise ValueError(f"sampler is {dict(config)}; sigma_min must be below sigma_max")
    for levels in [config[key] for key in ("sigmas",) if key in config] + list(config.get("levels", ())):
        numbers = isinstance(levels, list | tuple) and len(levels) > 0 and all(map(_is_number, levels))
        if not numbers or not all(a > b for a, b in pairwise([math.inf, *levels, 0.0])):
            raise ValueError(f"sampler is {dict(config)}; noise levels must be finite numbers above 0 that fall")
    counts = kind.counts(config)
    if counts is not None and "steps" in config and steps not in counts:
        raise ValueError(
            f"sampler is {dict(config)}; it has levels for {', '.join(map(str, counts))} steps, and steps must be one of these"
        )
    return kind


def is_guidance(value: Any) -> bool:
    """Return whether `value` is a number that is allowed as the scale of classifier-free guidance."""
    return _is_number(value) and abs(value) < MOST_GUIDANCE


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def denoiser_class(config: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Return the denoiser class that `config` names, and its settings. Raises ValueError for an unknown name or missing settings."""
    settings = dict(config)
    name = settings.pop("name", None)
    if name in DENOISERS:
        cls = DENOISERS[name]
        if missing := [key for key in getattr(cls, "needs", ()) if key not in settings]:
            raise ValueError(f"denoiser is {dict(config)}; give {' and '.join(missing)}, too")
        return cls, settings
    if isinstance(name, str) and (registry.is_import_path(name) or name in registry.names("denoisers")):
        return registry.room("denoisers", name), settings
    raise ValueError(f"denoiser is {dict(config)}; give a name of {', '.join(DENOISERS)}")


def checked_denoiser(
    config: Mapping[str, Any], sampler: Mapping[str, Any], kind: SamplerKind, sigma_data: Any
) -> tuple[Any, dict[str, Any]]:
    """Return the `denoiser_class` of `config`, checked to fit the `sampler`, which is of `kind`.

    Raises ValueError where they do not fit, and for a `sigma_data` that is not a finite number above 0.
    """
    if not _is_number(sigma_data) or not 0 < sigma_data < math.inf:
        raise ValueError(f"sigma_data is {sigma_data!r}; it must be a finite number above 0")
    cls, settings = denoiser_class(config)
    if getattr(cls, "draws", "denoiser") != kind.of:
        fitting = [name for name, known in SAMPLERS.items() if known.of == getattr(cls, "draws", "denoiser")]
        raise ValueError(
            f"the sampler is {sampler['name']!r}, which does not draw from the denoiser {config['name']!r}; give one of "
            f"{', '.join(fitting)}"
        )
    return cls, settings


def brought_forward(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of `Generator` in the content of a config.json of any format. Raises ValueError for a newer format."""
    arguments = dict(config)
    number = arguments.pop("format", 1)
    if number == 1:  # the denoiser follows from the sampler's name, or else from a parametrization
        sampler, parametrization = dict(arguments["sampler"]), arguments.pop("parametrization", None)
        denoiser: dict[str, Any] = {"name": "preconditioned"}
        if parametrization is not None:
            denoiser = dict(parametrization)
        elif sampler.get("name") == "push_forward":
            denoiser = {"name": "push_forward"}
        elif sampler.get("name") == "distributional":
            if "output" not in sampler:
                raise ValueError(f"sampler is {sampler}; give output, too")
            denoiser = {"name": "distributional", "output": sampler.pop("output")}
        info = dict(arguments.get("info") or {})
        if "drift_features" in info:
            info["trained_in_features"] = info.pop("drift_features")
        arguments |= {"sampler": sampler, "denoiser": denoiser, "info": info}
    elif number != FORMAT:
        raise ValueError(f"config.json is of format {number}, and this version of fewstep reads up to {FORMAT}; install a newer one")
    return arguments


INHERITED = ("data", "class_names", "licence", "prompts", "encoders")


def inherited(info: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries of a teacher's `info` that its student takes over: those in `INHERITED`, on data, licence and prompts.

    If the teacher was imported and has no known licence, the student's licence is None.
    """
    unknown = {"licence": None} if "imported_from" in info and "licence" not in info else {}
    return {key: info[key] for key in INHERITED if key in info} | unknown
