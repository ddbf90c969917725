import numpy as np
import pytest
import yaml

from fewstep import registry
from fewstep.data import DENSITIES
from fewstep.errors import UserError
from fewstep.recipe import Recipe, load_recipe, parse_yaml, resolved, shipped_recipes

GOOD = """\
about: a recipe of the user's own
method: {name: teacher, optimizer: {lr: 1e-4}}
data: {name: digits}
network: {name: unet, sigma_data: 0.75, channels: [8, 16], groups: 4, head_dim: 8}
"""


def refused(source, *overrides: str) -> str:
    with pytest.raises(UserError) as error:
        load_recipe(str(source), overrides)
    return str(error.value)


def sentence(path: str, *overrides: str, recipe: str = "teacher/digits") -> str:
    """The line about `path` in what `overrides` are answered with."""
    lines = [line.strip() for line in refused(recipe, *overrides).splitlines()]
    (found,) = [line for line in lines if line.startswith(f"{path} ") or line.startswith(f"{path}:")]
    return found


@pytest.fixture
def write(tmp_path):
    def call(text: str | bytes):
        path = tmp_path / "mine.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return call


# --- unknown keys ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "path", "nearest"),
    [
        ("sead=1", "sead", "seed"),
        ("batchsize=8", "batchsize", "batch_size"),
        ("method.learning=1", "method.learning", None),
        ("method.lrr=1e-3", "method.lrr", "optimizer.lr"),
        ("method.warm_up=3", "method.warm_up", "optimizer.warmup"),
        ("method.optimizer.lrr=1e-3", "method.optimizer.lrr", "lr"),
        ("method.optimiser.lr=1e-3", "method.optimiser", "optimizer"),
        ("network.chanels=[8]", "network.chanels", "channels"),
        ("trainer.log_evry=2", "trainer.log_evry", "log_every"),
        ("tainer.log_every=2", "tainer", "trainer"),
        ("data.nam=digits", "data.nam", "name"),
    ],
)
def test_unknown_key_names_the_nearest(override, path, nearest):
    line = sentence(path, override)
    assert "is not a key" in line
    assert (f"did you mean {nearest!r}?" in line) == (nearest is not None)


def test_unknown_key_lists_those_of_its_own_section_and_method():
    line = sentence("method.gan", "method.gan=true")
    allowed = line[line.index("allowed: ") :].strip(")").removeprefix("allowed: ").split(", ")
    assert "sigma_sampling" in allowed  # the teacher's
    assert "dfake_gen_update_ratio" not in allowed  # dmd2's
    assert "batch_size" not in allowed  # the recipe's


def test_unknown_recipe_names_the_nearest_and_the_shipped():
    message = refused("teacher/digit")
    assert "'teacher/digit'; did you mean 'teacher/digits'?" in message
    for name in shipped_recipes():
        assert name in message


def test_unknown_recipe_with_no_near_name():
    message = refused("zzz")
    assert "there is no recipe 'zzz'" in message
    assert "did you mean" not in message


# --- wrong values ----------------------------------------------------------------------------------------------------

FROM_0 = "greater than or equal to 0 and "
SHARE = FROM_0 + "less than or equal to 1"  # both ends are told, whichever was passed


@pytest.mark.parametrize(
    ("override", "path", "got", "allowed"),
    [
        ("method.optimizer.lr=fast", "method.optimizer.lr", "'fast'", "a number"),
        ("method.optimizer.lr=0", "method.optimizer.lr", "0", "greater than 0"),
        ("method.optimizer.lr=.inf", "method.optimizer.lr", "inf", "a finite number"),
        ("method.optimizer.warmup=-1", "method.optimizer.warmup", "-1", "greater than or equal to 0"),
        ("method.optimizer.beta1=1.5", "method.optimizer.beta1", "1.5", FROM_0 + "less than 1"),
        ("method.optimizer.decay_from=1.1", "method.optimizer.decay_from", "1.1", SHARE),
        ("method.sigma_sampling=uniform", "method.sigma_sampling", "'uniform'", "'lognormal' or 'karras'"),
        ("steps='10'", "steps", "'10'", "an integer"),
        ("steps=1e3", "steps", "1000.0", "an integer"),
        ("steps=0", "steps", "0", "greater than 0"),
        ("steps=true", "steps", "True", "an integer"),
        ("seed=-1", "seed", "-1", FROM_0 + f"less than {2**32}"),
        ("batch_size=", "batch_size", "None", "an integer"),
        ("network.channels=[8,x]", "network.channels[1]", "'x'", "an integer"),
        ("network.channels=8", "network.channels", "8", "a list"),
        ("network.attention=[1,true]", "network.attention[0]", "1", "a boolean"),
        ("network.dropout=1", "network.dropout", "1", FROM_0 + "less than 1"),
        ("trainer.evaluate_every=0", "trainer.evaluate_every", "0", "greater than 0"),
        ("trainer.evaluate_samples=39", "trainer.evaluate_samples", "39", "greater than or equal to 40"),
        ("trainer.devices=0", "trainer.devices", "0", "greater than 0 or 'auto'"),
        ("trainer.devices=many", "trainer.devices", "'many'", "an integer or 'auto'"),
        ("trainer.precision='16'", "trainer.precision", "'16'", "'auto', '32-true' or 'bf16-mixed'"),
        ("trainer.tracker=wndb", "trainer.tracker", "'wndb'", "'none', 'wandb' or 'tensorboard'"),
        (
            "data.name=emnist",
            "data.name",
            "'emnist'; did you mean 'mnist'?",
            "'digits', 'photos', 'images', 'mnist', 'cifar10', 'toy', 'points', 'stream', 'latents', 'prompts', or package.module:Name",
        ),
        (
            "method.name=dmd3",
            "method.name",
            "'dmd3'; did you mean 'dmd2'?",
            f"{', '.join(map(repr, registry.names('methods')))}, or package.module:Name",
        ),
        ("method=teacher", "method", "'teacher'", "a section with keys of its own"),
        ("trainer=", "trainer", "None", "a section with keys of its own"),
    ],
)
def test_wrong_value_names_path_value_and_allowed(override, path, got, allowed):
    assert sentence(path, override) == f"{path} is {got}; allowed: {allowed}"


@pytest.mark.parametrize(
    ("override", "path", "got", "allowed"),
    [
        ("method.gan=1", "method.gan", "1", "a boolean"),
        ("method.gan_weight_generator=atuo", "method.gan_weight_generator", "'atuo'", "a number or 'auto'"),
        ("method.gan_weight_generator=-1", "method.gan_weight_generator", "-1", "greater than or equal to 0 or 'auto'"),
        ("method.loss=kl", "method.loss", "'kl'", "'dmd', 'sid' or 'uni'"),
        ("method.dfake_gen_update_ratio=0", "method.dfake_gen_update_ratio", "0", "greater than 0"),
        ("method.min_step_start=2", "method.min_step_start", "2", "less than or equal to 1"),
        ("method.min_step_percent=2", "method.min_step_percent", "2", SHARE),
    ],
)
def test_wrong_value_of_dmd2(override, path, got, allowed):
    assert sentence(path, override, recipe="dmd2/digits") == f"{path} is {got}; allowed: {allowed}"


@pytest.mark.parametrize(
    ("override", "path", "got", "allowed"),
    [
        ("method.m=0", "method.m", "0", "greater than 0"),
        ("method.m=2.5", "method.m", "2.5", "an integer"),
        ("method.beta=0", "method.beta", "0", "greater than 0 and less than or equal to 2"),
        ("method.beta=-1", "method.beta", "-1", "greater than 0 and less than or equal to 2"),
        ("method.beta=2.5", "method.beta", "2.5", "greater than 0 and less than or equal to 2"),
        ("method.beta=.nan", "method.beta", "nan", "a finite number"),
        ("method.lam=-0.1", "method.lam", "-0.1", SHARE),
        ("method.lam=1.1", "method.lam", "1.1", SHARE),
        ("method.lam_warmup=1.5", "method.lam_warmup", "1.5", SHARE),
        ("method.sampler_steps=0", "method.sampler_steps", "0", "greater than 0"),
        ("method.churn=-0.5", "method.churn", "-0.5", SHARE),
        ("method.churn=2", "method.churn", "2", SHARE),
        ("method.xi_channels=0", "method.xi_channels", "0", "greater than 0"),
        ("method.output=eps", "method.output", "'eps'", "'x0' or 'edm'"),
        ("method.label_dropout=1", "method.label_dropout", "1", FROM_0 + "less than 1"),
        ("network={name: dit, patch: 0}", "network.patch", "0", "greater than 0"),
        ("network={name: dit, heads: 0}", "network.heads", "0", "greater than 0"),
        ("network={name: dit, xi_block: -1}", "network.xi_block", "-1", "greater than or equal to 0"),
        ("network={name: dit, mlp_ratio: 0}", "network.mlp_ratio", "0", "greater than 0"),
    ],
)
def test_wrong_value_of_dddm(override, path, got, allowed):
    assert sentence(path, override, recipe="dddm/ring") == f"{path} is {got}; allowed: {allowed}"


def test_one_particle_is_allowed_where_no_pairs_are_asked_for():
    line = sentence("method", "method.m=1", recipe="dddm/ring")
    assert line.startswith("method: m is 1 with lam 1.0; ")
    assert "m of at least 2 (or lam 0" in line
    assert sentence("method", "method.m=1", "method.lam=0.5", recipe="dddm/ring").startswith("method: m is 1 with lam 0.5; ")
    method = load_recipe("dddm/ring", ["method.m=1", "method.lam=0.0"]).method
    assert (method.m, method.lam) == (1, 0.0)
    assert load_recipe("dddm/ring", ["method.m=2", "method.beta=2"]).method.beta == 2  # the ends of their ranges


def test_an_empty_list_is_told_in_the_same_words_as_the_rest():
    line = sentence("network.channels", "network.channels=[]")
    assert line.startswith("network.channels is []; allowed: ")
    assert "List should" not in line  # pydantic's own words
    assert "validation" not in line


@pytest.mark.parametrize(
    ("recipe", "overrides", "words"),
    [
        ("teacher/digits", ["method.sigma_min=90"], ["sigma_min 90", "below sigma_max 80"]),
        ("dmd2/digits", ["method.min_step_percent=.9", "method.max_step_percent=.1"], ["min_step_percent 0.9", "max_step_percent 0.1"]),
        ("dmd2/digits", ["network.name=unet"], ["network.name is 'unet'", "dmd2", "must be 'teacher'"]),
        ("dddm/ring", ["network={name: dit}"], ["network.name is 'dit'", "dddm on points", "must be 'mlp'"]),
        ("dddm/ring", ["network={name: latent_mlp}"], ["network.name is 'latent_mlp'", "dddm on points", "must be 'mlp'"]),
        ("dddm/ring", ["data={name: digits}"], ["network.name is 'mlp'", "dddm on images", "must be 'unet' or 'dit'"]),
    ],
)
def test_values_that_contradict_each_other(recipe, overrides, words):
    message = refused(recipe, *overrides)
    assert "1 mistake:" in message
    for word in words:
        assert word in message


def test_a_seed_beyond_what_torch_takes_is_refused_and_not_a_fault_of_ours():
    assert sentence("seed", "seed=99999999999999999999").startswith("seed is 99999999999999999999; allowed: ")


def test_missing_sections_and_keys(write):
    message = refused(write("method: {optimizer: {lr: 1e-3}}\ndata: {name: images}\n"))
    assert "3 mistakes" in message
    allowed = " or ".join(map(repr, registry.names("methods")))
    assert f"  method.name is missing; allowed: {allowed}, or package.module:Name" in message
    assert "  data.path is missing; it must be given" in message
    assert "  network is missing; it must be given" in message


def test_all_mistakes_come_together(write):
    path = write(
        """\
method: {name: teacher, lrr: 1e-3, optimizer: {lr: fast, beta1: 1.5}, sigma_sampling: uniform}
data: {name: digitz}
network: {name: unet, channels: [8, x], groups: 4.5}
trainer: {devices: 0, threads: none}
steps: "10"
sed: 3
"""
    )
    message = refused(path, "batch_size=0")
    lines = message.splitlines()
    assert lines[0] == f"{path} has 12 mistakes:"
    expected = "method.lrr method.optimizer.lr method.sigma_sampling method.optimizer.beta1 data.name network.channels[1] network.groups"
    expected += " trainer.devices trainer.threads steps sed batch_size"
    assert sorted(line.split()[0] for line in lines[1:]) == sorted(expected.split())


# --- files and overrides ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["1e-4", "1E-4", "1.e-4", "+1e-4", "0.0001", "1.0e-4", ".1e-3"])
def test_scientific_notation_is_a_number(text, write):
    value = parse_yaml(text)
    assert isinstance(value, float)
    assert value == 1e-4
    assert load_recipe("teacher/digits", [f"method.optimizer.lr={text}"]).method.optimizer.lr == 1e-4
    assert load_recipe(str(write(GOOD.replace("1e-4", text)))).method.optimizer.lr == 1e-4


@pytest.mark.parametrize(
    ("text", "value"), [("1e4", 1e4), ("10", 10), ("-1", -1), ("e4", "e4"), ("1e", "1e"), ("1-4", "1-4"), ("v1e4", "v1e4")]
)
def test_only_numbers_become_numbers(text, value):
    assert parse_yaml(text) == value
    assert type(parse_yaml(text)) is type(value)


def test_other_yaml_readers_are_left_alone():
    assert yaml.safe_load("1e-4") == "1e-4"  # PyYAML's own manner, which the resolver must not change for everybody


@pytest.mark.parametrize("name", shipped_recipes())
def test_shipped_recipes_are_valid_and_described(name):
    recipe = load_recipe(name)
    method, data = name.split("/")
    assert method == recipe.method.name
    if recipe.data.name == "toy":  # called after its density, or else a study of the ring
        assert recipe.data.density == (data if data in DENSITIES else "ring")
    elif recipe.data.name == "images":  # called after the folder or the Hub's data set
        assert recipe.data.path.split("/")[-1] == data
    elif recipe.data.name == "prompts":  # called after the model that is distilled
        assert data.startswith(("sd15_", "sd3_", "sdxl_"))
    else:  # cifar10_small is of cifar10
        assert data.split("_")[0] == recipe.data.name
    assert len(parse_yaml(shipped_recipes()[name].read_text())["about"]) > 20


def test_a_recipe_of_ones_own(write):
    recipe = load_recipe(str(write(GOOD)))
    assert recipe.method.optimizer.lr == 1e-4
    assert recipe.network.channels == [8, 16]
    assert recipe.batch_size == 128  # a default


def test_overrides_win_over_the_file_and_later_ones_over_earlier(write):
    overrides = ["method.optimizer.lr=2e-4", "steps=5", "trainer.log_every=7", "method.optimizer.lr=3e-4", "network.channels=[4, 8]"]
    recipe = load_recipe(str(write(GOOD)), overrides)
    assert (recipe.method.optimizer.lr, recipe.steps, recipe.trainer.log_every, recipe.network.channels) == (3e-4, 5, 7, [4, 8])


def test_an_override_can_hold_an_equals_sign_and_null():
    recipe = load_recipe("dmd2/digits", ["method.teacher=runs/lr=1e-3", "method.generator_optimizer.clip=null"])
    assert recipe.method.teacher == "runs/lr=1e-3"
    assert recipe.method.generator_optimizer.clip is None
    assert load_recipe("dmd2/digits", ["method.guidance_optimizer.clip="]).method.guidance_optimizer.clip is None


@pytest.mark.parametrize("override", ["steps", "=3", "method..lr=3", ".steps=3", "method.=3", ""])
def test_an_override_of_another_form(override):
    message = refused("teacher/digits", override)
    assert f"{override!r} is not of the form key=value" in message
    assert "steps=500" in message  # an example


@pytest.mark.parametrize(
    ("override", "word"), [("steps.x=3", "steps is not a section"), ("method.optimizer.lr.x=3", "lr is not a section")]
)
def test_an_override_under_a_value(override, word):
    assert word in refused("teacher/digits", override)


def test_an_override_that_is_not_yaml():
    message = refused("teacher/digits", "network.channels=[8")
    assert "'network.channels=[8' is not YAML" in message
    assert "quotes" in message


@pytest.mark.parametrize("text", ["a: b: c", "a: [1", "\tx: 1", b"\xff\xfe\x00abc", "x: !!python/object/apply:os.getcwd []"])
def test_a_file_that_is_not_yaml(text, write):
    path = write(text)
    message = refused(path)
    assert message.startswith(f"{path} is not YAML: ")
    assert "\n" not in message


@pytest.mark.parametrize(("text", "kind"), [("[1, 2]", "list"), ("", "NoneType"), ("teacher/digits", "str"), ("3", "int")])
def test_a_file_that_is_no_mapping(text, kind, write):
    path = write(text)
    message = refused(path)
    assert message.startswith(f"{path} holds {kind}; a recipe has the keys ")
    assert "method, data, network, trainer, seed, steps, batch_size" in message


def test_a_key_given_twice_in_a_file_is_a_mistake(write):
    assert "steps" in refused(write(GOOD + "steps: 5\nbatch_size: 8\nsteps: 6\n"))


def test_a_missing_file_and_a_folder(tmp_path):
    for path in (tmp_path, tmp_path / "none.yaml"):
        assert f"there is no recipe {str(path)!r}" in refused(path)


@pytest.mark.parametrize("name", shipped_recipes())
def test_a_resolved_recipe_reads_back_as_itself(name, tmp_path):
    recipe = load_recipe(name, ["seed=3", "trainer.devices=auto"])
    tree = resolved(recipe)
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({**tree, "made_by": {"fewstep": "0"}}, sort_keys=False))
    again = load_recipe(str(path))
    assert again == recipe
    assert resolved(again) == tree
    # every default is filled in, and nothing is left to be found but by the recipes that say so
    assert set(tree) == set(Recipe.model_fields) - ({"finds"} if not recipe.finds else set())
    assert bool(recipe.finds) == (name in ("teacher/images", "dmd2/images"))
    assert tree["trainer"]["num_nodes"] == 1


def test_the_recipe_of_a_run_reads_back_as_the_run_was_given(teacher_run, teacher_overrides):
    assert load_recipe(str(teacher_run / "recipe.yaml")) == load_recipe(
        "teacher/digits",
        [*teacher_overrides, "trainer.precision=32-true"],  # which was chosen
    )


@pytest.mark.parametrize("text", ["010", "1:30", "0x10", "08"])
def test_a_whole_number_of_another_notation_is_not_guessed(text):
    """PyYAML reads an octal, a sexagesimal and a hexadecimal number."""
    with pytest.raises(UserError, match=f"steps is '{text}'; allowed: an integer"):
        load_recipe("teacher/ring", [f"steps={text}"])
    assert load_recipe("teacher/ring", ["steps=1_000", "seed=0"]).steps == 1_000


def test_settings_from_python_may_be_paths_tuples_and_numbers_of_numpy(tmp_path):
    given = {
        "method.teacher": tmp_path,
        "steps": np.int64(7),
        "method.generator_optimizer.lr": np.float32(0.5),
        "trainer.wandb.tags": ("a",),
    }
    recipe = load_recipe("dmd2/digits", list(given.items()))
    assert recipe.method.teacher == str(tmp_path)
    assert (recipe.steps, recipe.method.generator_optimizer.lr, recipe.trainer.wandb.tags) == (7, 0.5, ["a"])
