"""Settings that others leave without effect, of which a run says so."""

import pytest

from fewstep import registry
from fewstep.recipe import load_recipe, shipped_recipes
from fewstep.recipe.idle import idle


def said(name: str, *overrides: str) -> list[str]:
    return idle(load_recipe(name, overrides))


def test_no_shipped_recipe_gives_a_setting_without_effect():
    assert {name: found for name in shipped_recipes() if (found := said(name))} == {}


@pytest.mark.parametrize(
    ("recipe", "overrides", "key", "why"),
    [
        ("dmd2/ring", ["method.loss=dmd", "method.sid_alpha=1.2"], "method.sid_alpha is 1.2", "method.loss is 'dmd'"),
        (
            "dmd2/sd15_lora",
            ["method.conditioning_sigma=40.0"],
            "method.conditioning_sigma is 40.0",
            "method.times is 'teacher', whose own noise levels are used",
        ),
        ("dmd2/digits", ["method.inputs=noised_data"], "method.inputs is 'noised_data'", "method.sampler_steps is 1"),
        ("dmd2/digits", ["method.gan=false", "method.gan_levels=2"], "method.gan_levels is 2", "method.gan is false"),
        ("drift/ring", ["method.gamma_warmup=10"], "method.gamma_warmup is 10", "method.gamma_start is null"),
        ("drift/ring", ["method.field=drifting", "method.kernel=laplace"], "method.kernel is 'laplace'", "method.field is 'drifting'"),
        ("consistency/ring", ["method.own_optimizer.lr=0.1"], "method.own_optimizer.lr is 0.1", "method.own_teacher is 0"),
        ("consistency/ring", ["method.huber_c=0.1"], "method.huber_c is 0.1", "method.distance is 'squared'"),
        ("flow_map/ring", ["method.form=discrete", "method.step_in_log=0.2"], "method.step_in_log is 0.2", "method.form is 'discrete'"),
        ("dddm/ring", ["method.lam=0", "method.lam_warmup=0.5"], "method.lam_warmup is 0.5", "method.lam is 0"),
        ("teacher/ring", ["method.num_train_timesteps=5"], "method.num_train_timesteps is 5", "method.sigma_sampling is 'lognormal'"),
        ("teacher/ring", ["trainer.evaluate_samples=60"], "trainer.evaluate_samples is 60", "nothing is measured while training without"),
        ("teacher/ring", ["trainer.wandb.project=mine"], "trainer.wandb.project is 'mine'", "trainer.tracker is 'none'"),
    ],
)
def test_a_setting_without_effect_is_named_with_the_reason(recipe, overrides, key, why):
    found = said(recipe, *overrides)
    assert len(found) == 1
    assert found[0].startswith(f"{key}, which has no effect, as {why}")


def test_a_setting_with_an_effect_is_not_named():
    assert said("dmd2/ring", "method.loss=sid", "method.sid_alpha=1.2") == []
    assert said("drift/ring", "method.gamma_start=1.0", "method.gamma_warmup=10") == []
    found = said("teacher/ring", "method.sigma_sampling=karras", "method.num_train_timesteps=5")
    assert found
    assert all(sentence.startswith("method.sigma_") for sentence in found)  # the recipe's, of the distribution that is not taken


@pytest.mark.parametrize("name", registry.BUILT_IN["methods"])
def test_the_keys_that_methods_name_are_settings_of_theirs(name):
    settings = registry.settings("methods", name)
    made = settings(name=name)
    assert {key for _, _, keys in made.idle() for key in keys} <= settings.model_fields.keys()


def test_a_run_and_a_dry_run_say_so(done, tmp_path):
    words = ["train", "teacher/ring", "steps=1", "batch_size=8", "network.widths=[8]", "data.size=200", "method.num_train_timesteps=5"]
    line = "note: method.num_train_timesteps is 5, which has no effect, as method.sigma_sampling is 'lognormal'"
    assert line in done(*words, "--out", tmp_path / "run").err
    shown = done(*words, "--dry-run")
    assert line in shown.out + shown.err
