"""Every shipped method, tiny: what a test of a whole kind goes through. Cases by name; those with a teacher take `{teacher}`, a run."""

from pathlib import Path
from typing import NamedTuple

from fewstep.build import Data, make_method, training_data
from fewstep.methods.base import Method
from fewstep.recipe import Recipe, load_recipe

UNET = ("network.channels=[8,32]", "network.groups=4", "network.head_dim=8", "network.dropout=0")
POINTS = ("network.widths=[16]",)
CODED = (*POINTS, "network.bits=3", "network.latent=6")
TAUGHT = ("method.teacher={teacher}",)
GAN = ("method.gan=true", "method.gan_levels=2", "method.r1_weight=1.0", "method.loss=dmd")
STEPS = ("method.sampler_steps=2", "method.sampler_sigmas=[80.0, 2.0]")
FIXED = ("method.temperatures=[0.1, 0.3]",)


class Case(NamedTuple):
    """A recipe with overrides."""

    recipe: str
    overrides: tuple[str, ...]

    def read(self, teacher: Path, *more: str, batch_size: int = 16) -> Recipe:
        """It, with the tiny teacher's run in its place."""
        given = (override.replace("{teacher}", str(teacher)) for override in self.overrides)
        return load_recipe(self.recipe, (*given, f"batch_size={batch_size}", "trainer.accelerator=cpu", *more))


CASES = {
    "teacher": Case("teacher/digits", UNET),
    "teacher, label dropout": Case("teacher/digits", (*UNET, "method.label_dropout=.5", "method.sigma_sampling=karras")),
    "teacher of points": Case("teacher/ring", POINTS),
    "dmd2": Case("dmd2/digits", TAUGHT),
    "dmd2, gan and r1": Case("dmd2/digits", (*TAUGHT, *GAN, "method.f_divergence=js")),
    "dmd2, exact r1": Case("dmd2/digits", (*TAUGHT, *GAN, "method.r1=exact", "method.gan_weight_generator=auto")),
    "dmd2, uni": Case("dmd2/digits", (*TAUGHT, "method.loss=uni", "method.gan=true", "method.f_divergence=kl")),
    "dmd2, two steps": Case("dmd2/digits", (*TAUGHT, *STEPS)),
    "dmd2, exact teacher": Case("dmd2/ring", (*CODED, "method.fake_widths=[16]")),
    "drift": Case("drift/ring", CODED),
    "drift, two_temperature": Case("drift/ring", (*CODED, *FIXED, "method.field=two_temperature", "method.gamma_by=field")),
    "drift, toy": Case("drift/ring", (*CODED, *FIXED, "method.field=toy")),
    "drift, drifting": Case("drift/digits", ("method.field=drifting", "method.guidance_scale=2.0")),
    "drift, sinkhorn": Case("drift/digits", ("method.plan=sinkhorn",)),
    "drift, wasserstein": Case(
        "drift/digits",
        ("method.field=wasserstein", "method.temperature_unit=distance", "method.temperatures=[.1, 1.0]", "method.memory=60"),
    ),
    "drift, memory": Case("drift/digits", ("method.field=drifting", "method.memory=60")),
    "drift, features": Case("drift/digits", ("method.features=random", "method.field=drifting", "method.temperatures=[.02, .2]")),
    "dddm": Case("dddm/digits", (*UNET, "method.m=2", "method.label_dropout=.5")),
    "dddm of points": Case("dddm/ring", (*POINTS, "method.m=3")),
    "consistency": Case("consistency/digits", TAUGHT),
    "consistency, from scratch": Case("consistency/digits_scratch", (*UNET, "method.first_stage=2")),
    "consistency, exact teacher": Case("consistency/ring", POINTS),
    "flow map": Case("flow_map/digits", TAUGHT),
    "flow map, from scratch": Case("flow_map/digits_scratch", (*UNET, "method.first_stage=2")),
    "flow map, own": Case("flow_map/digits_scratch", (*UNET, "method.own_teacher=0", "method.velocity=own", "method.anchor=.3")),
    "flow map, derivative": Case("flow_map/digits", (*TAUGHT, "method.form=derivative", "method.derivative=difference")),
    "flow map, exact teacher": Case("flow_map/ring", POINTS),
}


def made(recipe: Recipe) -> tuple[Data, Method]:
    """The data and the method of `recipe`."""
    data = training_data(recipe)
    return data, make_method(recipe, data)
