"""Classes are asked for by number or by name, and told as number = name."""

import pytest
import torch

from fewstep.class_labels import label_tensor, split_labels, told
from fewstep.errors import UserError

PETS = ("cat", "dog", "guinea pig", "salt, pepper", "b2")
NUMBERS = ("1", "2", "10")


@pytest.mark.parametrize(
    ("text", "names", "numbers"),
    [
        ("0,1,2", PETS, [0, 1, 2]),
        ("cat", PETS, [0]),
        ("3,cat", PETS, [3, 0]),
        (" dog , 0 ", PETS, [1, 0]),
        ("guinea pig,guinea pig", PETS, [2, 2]),
        ("salt, pepper,dog", PETS, [3, 1]),
        ("dog,salt, pepper", PETS, [1, 3]),
        ("b2,2", PETS, [4, 2]),
        ("2,0,+1", NUMBERS, [2, 0, 1]),  # a number is always the number of a class
        ("01", NUMBERS, [1]),
        ("0,1", (), [0, 1]),
    ],
)
def test_numbers_and_names(text, names, numbers):
    assert label_tensor(split_labels(text, names), names, max(len(names), 3)).tolist() == numbers


@pytest.mark.parametrize(
    ("text", "names", "said"),
    [
        ("", PETS, "--labels is ''; give numbers or names of classes with commas between, such as 0,1,2"),
        ("1,,2", PETS, "--labels is '1,,2'; give numbers or names"),
        ("1,", PETS, "--labels is '1,'; give numbers or names"),
        ("Dog", PETS, "labels name 'Dog', which is no class; did you mean 'dog'?; allowed are whole numbers from 0 to 4, and the names in"),
        ("3,1.5", PETS, "labels name '1.5', which is no class; allowed are whole numbers from 0 to 4, and the names in 0 = cat, 1 = dog"),
        ("5", PETS, "labels are [5]; allowed are whole numbers from 0 to 4"),
        ("-1", PETS, "labels are [-1]; allowed are whole numbers from 0 to 4"),
        (
            "10",
            NUMBERS,
            "from 0 to 2; a whole number is the number of a class, and the class that is called 10 has the number 2",
        ),
        ("cat", (), "labels name 'cat', but this generator does not know what its classes are called; give whole numbers from 0 to 2"),
        ("a", ("a", "b", "a"), "labels name 'a', which is the name of classes 0, 2; give the number of one"),
        ("9" * 30, PETS, "allowed are whole numbers from 0 to 4"),
        ("9" * 5000, PETS, "allowed are whole numbers from 0 to 4"),
    ],
)
def test_what_is_no_class_is_one_sentence(text, names, said):
    with pytest.raises(UserError) as caught:
        label_tensor(split_labels(text, names), names, max(len(names), 3))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("labels", [torch.tensor([1, 0]), [1, 0], (1, "cat"), ["dog", "cat"], [torch.tensor(1), 0]])
def test_what_python_gives(labels):
    assert label_tensor(labels, PETS, 5).tolist() == [1, 0]
    assert label_tensor("dog", PETS, 5).tolist() == [1]
    assert label_tensor(4, PETS, 5).dtype == torch.int64


@pytest.mark.parametrize("labels", [[], [0.5], torch.ones(2), [None], {}, [[0], [1, 2]]])
def test_what_python_may_not_give(labels):
    with pytest.raises(UserError, match="labels are"):
        label_tensor(labels, PETS, 5)


def test_numbers_are_told_with_their_names_once():
    assert told(PETS, [1, 0, 1]) == "1 = dog, 0 = cat"
    assert told((), [1, 0]) == ""
    names = [f"n{k}" for k in range(20)]
    assert told(names, range(20)).endswith("11 = n11, and 8 more")
