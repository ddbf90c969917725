"""Samples by a compiled network: the same to rounding, said in results, and a sentence where there is no compiler."""

import json
import os

import pytest
import torch

import fewstep
from fewstep.compiling import compile_to_sample
from fewstep.errors import UserError


@pytest.fixture
def compilers(monkeypatch):
    """``compilers(make)``: what stands for `torch.compile`; gives the options it was called with."""
    asked = []

    def put(make):
        monkeypatch.setattr(torch, "compile", lambda function, **options: asked.append(options) or make(function))
        return asked

    return put


def test_the_network_is_compiled_and_draws_what_it_drew(still_teacher, compilers):
    called = []

    def counting(function):
        def compiled(*args, **kwargs):
            called.append(len(args[0]))
            return function(*args, **kwargs)

        return compiled

    generator = fewstep.load(still_teacher)
    before = generator.sample(5, seed=0, steps=2)
    asked = compilers(counting)
    compile_to_sample(generator.denoiser, "--compile")
    assert torch.equal(generator.sample(5, seed=0, steps=2), before)
    assert called == [5, 5, 5]  # evaluations of Heun's two steps
    assert asked == [{"dynamic": False, "options": {"freezing": True}}]


def broken(error):
    def compiled(*args, **kwargs):
        raise error

    return lambda function: compiled


def test_without_a_compiler_that_is_a_sentence(still_teacher, compilers, command):
    import torch._inductor.exc

    compilers(broken(torch._inductor.exc.InvalidCxxCompiler()))
    outcome = command("evaluate", still_teacher, "-n", "60", "--compile")
    assert outcome.code != 0
    said = " ".join(outcome.err.split())
    assert "--compile was asked for, and this network cannot be compiled here (No working C++ compiler" in said
    assert "leave it out, or install what is missing" in said
    assert "Traceback" not in said


def test_other_faults_stay_what_they_are(still_teacher, compilers):
    generator = fewstep.load(still_teacher)
    compilers(broken(RuntimeError("the network's own")))
    compile_to_sample(generator.denoiser, "--compile")
    with pytest.raises(RuntimeError, match="the network's own") as caught:
        generator.sample(2, seed=0)
    assert not isinstance(caught.value, UserError)


def test_an_evaluation_says_that_it_was_compiled(still_teacher, compilers, done):
    asked = compilers(lambda function: function)
    done("evaluate", still_teacher, "-n", "60", "--steps", "1", "--compile")
    assert json.loads((still_teacher / "results.json").read_text())["compiled"] is True
    assert len(asked) == 1
    done("evaluate", still_teacher, "-n", "60", "--steps", "1")
    assert json.loads((still_teacher / "results.json").read_text())["compiled"] is False


@pytest.mark.slow
@pytest.mark.skipif(os.system("c++ --version > /dev/null 2>&1") != 0, reason="torch.compile needs a C++ compiler on a CPU")
def test_a_compiler_of_this_machine_agrees_to_rounding(still_teacher):
    generator = fewstep.load(still_teacher)
    before = generator.sample(5, seed=0, steps=3)
    compile_to_sample(generator.denoiser, "--compile")
    torch.testing.assert_close(generator.sample(5, seed=0, steps=3), before, rtol=0, atol=1e-3)
