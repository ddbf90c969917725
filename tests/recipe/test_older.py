"""Recipes of version 0.1.0, whose learning rates stood in the method's section itself."""

import pytest

from fewstep.errors import UserError
from fewstep.recipe import load_recipe, resolved, validated

NOTE = "note: keys of an older version, translated to today's: "
SHARED = ("beta1", "beta2", "weight_decay", "clip")
VALUES = {"lr": 3e-4, "warmup": 7, "decay_from": 0.25, "final": 0.125, "decay": "cosine"}
VALUES |= {"beta1": 0.5, "beta2": 0.75, "weight_decay": 0.0625, "clip": 3.5}

# every key of version 0.1.0 that has moved, and where to, by hand
ONE_TURN = {key: (f"optimizer.{key}",) for key in ("lr", "warmup", "decay_from", "final", *SHARED)}
MOVED = {
    "teacher/ring": ONE_TURN,
    "drift/vanilla": {**ONE_TURN, "decay": ("optimizer.decay",)},
    "dddm/digits": {**ONE_TURN, "decay": ("optimizer.decay",)},
    "dmd2/digits": {
        "generator_lr": ("generator_optimizer.lr",),
        "generator_warmup": ("generator_optimizer.warmup",),
        "generator_decay_from": ("generator_optimizer.decay_from",),
        "generator_final": ("generator_optimizer.final",),
        "generator_decay": ("generator_optimizer.decay",),
        "guidance_lr": ("guidance_optimizer.lr",),
        **{key: (f"generator_optimizer.{key}", f"guidance_optimizer.{key}") for key in SHARED},
    },
}
OLD_DMD2 = """\
about: as version 0.1.0 had it
method: {name: dmd2, generator_lr: 2.0e-4, generator_warmup: 20, generator_decay_from: 0.6, generator_final: 0.02, guidance_lr: 5.0e-4,
  beta1: 0.5, clip: null}
data: {name: digits}
network: {name: teacher, sigma_data: 0.75}
"""


def at(section, path: str):
    for part in path.split("."):
        section = getattr(section, part)
    return section


@pytest.fixture
def old_file(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(OLD_DMD2)
    return str(path)


@pytest.mark.parametrize(("recipe", "old"), [(recipe, old) for recipe, keys in MOVED.items() for old in keys])
def test_an_override_with_an_old_key_arrives_where_the_key_is_now(recipe, old, capsys):
    new = MOVED[recipe][old]
    value = VALUES[new[0].rpartition(".")[2]]
    changed = load_recipe(recipe, [f"method.{old}={value}"])
    assert capsys.readouterr().err == f"{NOTE}method.{old} -> {' and '.join(f'method.{path}' for path in new)}\n"
    assert changed == load_recipe(recipe, [f"method.{path}={value}" for path in new])
    assert capsys.readouterr().err == ""  # of keys that are where they belong nothing is said
    before = load_recipe(recipe)
    for path in new:
        assert at(changed.method, path) == value != at(before.method, path)
    assert type(changed.method) is type(before.method)


def test_a_file_of_the_old_form_is_brought_forward(old_file, capsys):
    method = load_recipe(old_file).method
    generator, guidance = method.generator_optimizer, method.guidance_optimizer
    assert (generator.lr, generator.warmup, generator.decay_from, generator.final) == (2e-4, 20, 0.6, 0.02)
    assert (guidance.lr, guidance.warmup, guidance.decay_from, guidance.final) == (5e-4, 0, 1.0, 1.0)
    assert (generator.beta1, guidance.beta1, generator.clip, guidance.clip) == (0.5, 0.5, None, None)
    err = capsys.readouterr().err
    assert err.startswith(NOTE)
    assert err.count("\n") == 1  # one line for all of them
    told = err.removeprefix(NOTE).strip().split(", ")
    assert sorted(line.split(" -> ")[0] for line in told) == sorted(
        f"method.{key}"
        for key in ("generator_lr", "generator_warmup", "generator_decay_from", "generator_final", "guidance_lr", "beta1", "clip")
    )
    assert "method.beta1 -> method.generator_optimizer.beta1 and method.guidance_optimizer.beta1" in told


def test_a_key_that_file_and_override_both_have_is_told_once(old_file, capsys):
    assert load_recipe(old_file, ["method.guidance_lr=1e-3", "method.guidance_lr=2e-3"]).method.guidance_optimizer.lr == 2e-3
    err = capsys.readouterr().err
    assert err.count("method.guidance_lr ->") == 1
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("overrides", "rates"),
    [
        ((), (2e-4, 5e-4)),
        (("method.generator_lr=1e-3",), (1e-3, 5e-4)),
        (("method.generator_optimizer.lr=1e-3",), (1e-3, 5e-4)),
        (("method.generator_lr=1e-3", "method.generator_optimizer.lr=2e-3"), (2e-3, 5e-4)),
        (("method.generator_optimizer.lr=2e-3", "method.generator_lr=1e-3"), (1e-3, 5e-4)),
        (("method.guidance_optimizer={lr: 3e-3}", "method.guidance_lr=4e-3"), (2e-4, 4e-3)),
        (("method.guidance_lr=4e-3", "method.guidance_optimizer={lr: 3e-3}"), (2e-4, 3e-3)),
    ],
)
def test_the_last_word_holds_whichever_name_it_uses(overrides, rates, old_file):
    method = load_recipe(old_file, overrides).method
    assert (method.generator_optimizer.lr, method.guidance_optimizer.lr) == rates


def test_one_of_two_optimisers_can_be_set_apart_again(old_file):
    for overrides, betas in (
        (["method.beta1=.25", "method.guidance_optimizer.beta1=.75"], (0.25, 0.75)),
        (["method.guidance_optimizer.beta1=.75", "method.beta1=.25"], (0.25, 0.25)),
    ):
        method = load_recipe(old_file, overrides).method
        assert (method.generator_optimizer.beta1, method.guidance_optimizer.beta1) == betas


def test_a_section_given_whole_may_be_of_the_old_form(capsys):
    recipe = load_recipe("dddm/ring", ["method={name: teacher, lr: 2e-3, clip: 3}", "method.final=.5"])
    optimizer = recipe.method.optimizer
    assert (recipe.method.name, optimizer.lr, optimizer.clip, optimizer.final) == ("teacher", 2e-3, 3, 0.5)
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    for key in ("lr", "clip", "final"):
        assert f"method.{key} -> method.optimizer.{key}" in err


def test_the_method_that_there_will_be_says_what_an_old_key_means(old_file):
    """`lr` has never been a key of dmd2, and `generator_lr` never of another."""
    recipe = load_recipe(old_file, ["method.lr=3e-3", "method={name: teacher}", "network={name: unet}", "method.warmup=3"])
    assert (recipe.method.optimizer.lr, recipe.method.optimizer.warmup) == (1e-3, 3)  # the former was overridden with the section
    with pytest.raises(UserError, match=r"method\.lr is not a key"):
        load_recipe(old_file, ["method.lr=3e-3"])
    with pytest.raises(UserError, match=r"method\.generator_lr is not a key"):
        load_recipe("teacher/digits", ["method.generator_lr=3e-3"])


def test_a_method_named_after_its_keys_still_says_what_they_mean(tmp_path):
    (tmp_path / "mine.yaml").write_text("method: {name: dmd2}\ndata: {name: digits}\nnetwork: {name: unet}\n")
    overrides = ["method.warmup=3", "method.lr=2e-3", "method.optimizer.warmup=5", "method.name=teacher"]
    optimizer = load_recipe(str(tmp_path / "mine.yaml"), overrides).method.optimizer
    assert (optimizer.warmup, optimizer.lr) == (5, 2e-3)


def test_a_mistake_in_an_old_key_names_the_new_one():
    with pytest.raises(UserError) as error:
        load_recipe("dmd2/digits", ["method.beta1=2", "method.guidance_lr=fast"])
    share = "greater than or equal to 0 and less than 1"
    assert sorted(line.strip() for line in str(error.value).splitlines()[1:]) == [
        f"method.generator_optimizer.beta1 is 2; allowed: {share}",
        f"method.guidance_optimizer.beta1 is 2; allowed: {share}",
        "method.guidance_optimizer.lr is 'fast'; allowed: a number",
    ]


def test_a_mistake_that_no_key_explains_still_stands_beside_old_keys(old_file):
    with pytest.raises(UserError) as error:
        load_recipe(old_file, ["method.guidance_lr.x=3", "sed=3"])
    assert f"{old_file} has 2 mistakes:" in str(error.value)
    assert "method.guidance_optimizer.lr is {'x': 3}; allowed: a number" in str(error.value)
    assert "sed is not a key" in str(error.value)


def test_the_recipe_of_an_old_run_is_read_without_a_word(capsys):
    tree = {
        "method": {"name": "teacher", "lr": 2e-3, "beta2": 0.5},
        "data": {"name": "digits"},
        "network": {"name": "unet"},
        "made_by": {"fewstep": "0.1.0"},
    }
    recipe = validated(tree, "a run")
    assert (recipe.method.optimizer.lr, recipe.method.optimizer.beta2) == (2e-3, 0.5)
    assert tree["method"] == {"name": "teacher", "lr": 2e-3, "beta2": 0.5}  # and the tree is left as it was
    assert capsys.readouterr() == ("", "")
    assert "lr" not in resolved(recipe)["method"]  # what is written is of today's form
