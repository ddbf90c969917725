"""Guidance of the methods that learn data by themselves, with labels and without."""

import pytest

from fewstep.build import load_data, make_method
from fewstep.errors import UserError
from fewstep.recipe import load_recipe


@pytest.mark.parametrize("method", ["teacher", "dddm"])
def test_guidance_needs_classes_and_hidden_labels(method):
    with pytest.raises(UserError, match=r"guidance_scale is 1\.5, but no label is ever hidden; give label_dropout"):
        load_recipe(f"{method}/digits", ["method.guidance_scale=1.5", "method.label_dropout=0"])
    recipe = load_recipe(f"{method}/ring", ["method.guidance_scale=1.5", "method.label_dropout=0.1"])
    with pytest.raises(UserError, match=r"method\.guidance_scale is 1\.5, and ring has no classes; leave it out"):
        make_method(recipe, load_data(recipe.data))
