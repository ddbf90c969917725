"""How many steps take so many seconds, on a machine that does other things now and then."""

import equal_time
from fewstep.training.loop import Loop


def test_steps_that_were_disturbed_and_what_a_run_does_once_do_not_count(monkeypatch):
    now, made = [0.0], []

    def advance(loop):
        """A tenth of a second: the first of them, which warm up, ten times, and two that other work makes long."""
        made.append(loop)
        now[0] += 1.0 if len(made) <= equal_time.FIRST else 7.0 if len(made) in (20, 30) else 0.1

    def train(recipe, folder, **options):
        now[0] += 50.0  # reading the data
        for _ in range(recipe.steps):
            Loop.advance(recipe)
        now[0] += 30.0  # measuring

    monkeypatch.setattr(Loop, "advance", advance)
    monkeypatch.setattr(equal_time, "train_recipe", train)
    monkeypatch.setattr(equal_time.time, "process_time", lambda: now[0])
    assert equal_time.steps_within(30.0, "teacher/digits", "batch_size=8") == 300
    assert len(made) == equal_time.TRIED
    assert made[0].batch_size == 8
    assert equal_time.steps_within(0.5, "teacher/digits") == equal_time.TRIED  # no fewer than were tried
    assert Loop.advance is advance
