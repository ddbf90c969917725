import math
import os
import signal
import time

import pytest
import torch
from lightning_fabric import Fabric

from fewstep.errors import Interrupted, UserError
from fewstep.methods import Optimizer
from fewstep.recipe import load_recipe
from fewstep.training.batches import Shuffled
from fewstep.training.checkpoint import load_checkpoint
from fewstep.training.loop import Loop, LoopSettings
from fewstep.training.progress import Progress
from fewstep.training.run_folder import RunFolder
from fewstep.training.window import Window
from linear_method import Data, Linear, run_loop
from same_run import snapshot

# --- the parts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "batch_size"), [(10, 5), (10, 3), (7, 7), (4, 11), (1437, 64)])
def test_every_item_comes_once_an_epoch(size, batch_size):
    batches = Shuffled(size, batch_size, seed=0)
    epochs = 3
    steps = -(-epochs * size // batch_size)
    stream = torch.cat([batches(step) for step in range(steps)])
    assert len(stream) == steps * batch_size
    for epoch in range(epochs):
        part = stream[epoch * size : (epoch + 1) * size]
        assert sorted(part.tolist()) == list(range(size))
    if size > 4:
        assert stream[:size].tolist() != list(range(size))
        assert stream[:size].tolist() != stream[size : 2 * size].tolist()


def test_a_batch_depends_on_the_seed_and_the_step_alone():
    in_turn = Shuffled(10, 4, seed=7)
    expected = [in_turn(step).tolist() for step in range(9)]
    assert [Shuffled(10, 4, seed=7)(step).tolist() for step in range(9)] == expected  # as after a resume
    backwards = Shuffled(10, 4, seed=7)
    assert [backwards(step).tolist() for step in reversed(range(9))][::-1] == expected
    torch.manual_seed(123)
    assert Shuffled(10, 4, seed=7)(3).tolist() == expected[3]
    assert Shuffled(10, 4, seed=8)(0).tolist() != expected[0]


@pytest.mark.parametrize(
    ("settings", "updates", "expected"),
    [
        ({}, 4, [1, 1, 1, 1]),
        ({"warmup": 4}, 6, [0.25, 0.5, 0.75, 1, 1, 1]),
        ({"decay_from": 0.0, "final": 0.0}, 4, [1, 0.75, 0.5, 0.25]),
        ({"decay_from": 0.5, "final": 0.2}, 8, [1, 1, 1, 1, 1, 0.8, 0.6, 0.4]),
        ({"decay_from": 0.5, "final": 2.0}, 4, [1, 1, 1, 1.5]),
        ({"warmup": 2, "decay_from": 0.0, "final": 0.0}, 4, [0.5, 0.75, 0.5, 0.25]),
        ({"decay_from": 1.0, "final": 0.0}, 3, [1, 1, 1]),
        ({"decay_from": 0.5, "final": 0.0}, 3, [1, 1, 2 / 3]),
    ],
)
def test_learning_rate_schedule(settings, updates, expected):
    optimizer = Optimizer(lr=3.0).model_copy(update=settings)  # a rise too, which no recipe may ask for
    assert [optimizer.lr_at(u, updates) for u in range(updates)] == pytest.approx([3 * e for e in expected])


def test_learning_rate_stays_at_its_end_beyond_the_last_update():
    assert Optimizer(lr=1.0, decay_from=0.5, final=0.25).lr_at(50, 10) == pytest.approx(0.25)


def test_window_means_are_over_each_names_own_records():
    window = Window()
    for value in (1.0, 2.0, 6.0):
        window.add({"a": torch.tensor(value)})
    window.add({"b": torch.tensor(5.0), "a": torch.tensor(3.0)})
    assert window.means() == {"a": 3.0, "b": 5.0}


def test_window_goes_on_to_the_last_bit_after_a_stop():
    values = torch.rand(20, generator=torch.Generator().manual_seed(0)) / 3
    whole, before = Window(), Window()
    for value in values:
        whole.add({"a": value})
    for value in values[:7]:
        before.add({"a": value})
    after = Window()
    after.load_state_dict(before.state_dict(), torch.device("cpu"))
    for value in values[7:]:
        after.add({"a": value})
    assert after.means() == whole.means()
    before.add({"a": torch.tensor(100.0)})  # what was taken out is a copy
    assert after.means() == whole.means()


def test_window_keeps_no_graph():
    window = Window()
    window.add({"a": torch.ones((), requires_grad=True) * 2})
    assert not window.sums["a"].requires_grad


# --- a whole run -----------------------------------------------------------------------------------------------------


def test_cadences(tmp_path):
    sampled = []
    run = run_loop(tmp_path / "run", Linear(), on_sample=lambda generator, step: sampled.append(step), steps=7, keep_checkpoints=10)
    assert sampled == [3, 6, 7]
    assert [record["step"] for record in run.metrics()] == [2, 4, 6, 7]
    assert {path.name for path in run.checkpoint_folder.iterdir()} == {"step_2", "step_4", "step_6", "step_7"}
    assert [record["images_seen"] for record in run.metrics()] == [32, 64, 96, 112]


@pytest.mark.parametrize(
    ("every", "due", "logged"),
    [
        (None, [], [2, 4, 6, 7]),
        (1, [1, 2, 3, 4, 5, 6, 7], [1, 2, 3, 4, 5, 6, 7]),
        (2, [2, 4, 6, 7], [2, 4, 6, 7]),
        (3, [3, 6, 7], [2, 3, 4, 6, 7]),
        (100, [7], [2, 4, 6, 7]),
    ],
)
def test_what_is_measured_goes_into_the_records_that_are_due_and_to_the_tracker(every, due, logged, tmp_path):
    """A measurement between two records of the log makes a record of its own."""
    measured, tracked = [], []

    def measure(generator, measuring):
        step = generator.config["step"]
        measured.append(step)
        return {"eval.tenth": step / 10, "eval.third": step / 3}

    class Tracker:
        def begin(self, step):
            assert (step, tracked) == (0, [])

        def log(self, record):
            tracked.append(record)

        def close(self):
            pass

    run = run_loop(tmp_path / "run", Linear(), on_evaluate=measure, tracker=Tracker(), steps=7, evaluate_every=every)
    records = run.metrics()
    assert measured == due
    assert [record["step"] for record in records] == logged
    assert tracked == records
    for record in records:
        figures = {name: value for name, value in record.items() if name.startswith("eval.")}
        expected = {"eval.tenth": record["step"] / 10, "eval.third": record["step"] / 3} if record["step"] in due else {}
        assert figures == pytest.approx(expected, rel=1e-8)
        assert "second.error" in record
        assert record["images_seen"] == 16 * record["step"]


def test_what_is_measured_is_the_average_after_it_is_saved_and_before_it_is_shown(tmp_path):
    path, order, weights = tmp_path / "run", [], {}

    def measure(generator, measuring):
        saved = RunFolder(path).latest_checkpoint()[0]
        order.append(("measured", saved.state["step"] if saved else 0))
        weights[generator.config["step"]] = generator.weight.detach().clone()
        return {}

    method = Linear(every=1)
    run = run_loop(
        path,
        method,
        on_sample=lambda generator, step: order.append(("shown", step)),
        on_evaluate=measure,
        steps=4,
        evaluate_every=2,
        sample_every=2,
    )
    assert order == [("measured", 2), ("shown", 2), ("measured", 4), ("shown", 4)]
    for step in (2, 4):
        assert torch.equal(weights[step], load_checkpoint(run.checkpoint_folder / f"step_{step}").networks["ema"]["0.weight"])
    assert not torch.allclose(weights[4], method.networks["model"][0].weight)


def test_a_record_of_a_measurement_begins_a_new_mean(tmp_path):
    one, other = (
        run_loop(
            tmp_path / str(every),
            Linear(noise=0.5),
            on_evaluate=lambda generator, measuring: {},
            steps=6,
            log_every=3,
            evaluate_every=every,
        )
        for every in (1, 100)
    )
    errors = [record["second.error"] for record in one.metrics()]
    assert len(errors) == 6
    assert [record["second.error"] for record in other.metrics()] == pytest.approx([sum(errors[:3]) / 3, sum(errors[3:]) / 3], rel=1e-6)
    for name in ("model/model.safetensors", "checkpoints/step_6/ema.safetensors", "checkpoints/step_6/rng.safetensors"):
        assert (one.path / name).read_bytes() == (other.path / name).read_bytes()  # and nothing learned is another


def test_the_speed_is_that_of_training_without_measuring(tmp_path):
    pause = 0.5
    slow = {"on_evaluate": lambda generator, measuring: time.sleep(pause) or {}, "evaluate_every": 3}
    records = run_loop(tmp_path / "run", Linear(), **slow, steps=6, log_every=3).metrics()
    assert records[-1]["seconds"] > 2 * pause
    assert all(record["images_per_second"] > 3 * 16 / pause for record in records)  # 3 steps of 16 items in less than the pause


def test_a_cadence_without_anybody_to_measure_is_none(tmp_path):
    run = run_loop(tmp_path / "run", Linear(), evaluate_every=3)
    assert [record["step"] for record in run.metrics()] == [2, 4, 6, 8]


def test_turns_take_the_steps_that_are_theirs_in_their_order(tmp_path):
    method = Linear(every=3)
    run = run_loop(tmp_path / "run", method, steps=7)
    order = [seen["turn"] for seen in method.seen]
    assert order == ["first", "second", "second", "second"] * 2 + ["first", "second"]
    state = run.latest_checkpoint()[0].state
    assert state["updates"] == {"first": 3, "second": 7}
    assert state["ema_updates"] == 3  # the average follows what ships, and nothing else


def test_only_a_turns_own_networks_can_learn_in_it(tmp_path):
    method = Linear()
    before = {name: {k: v.clone() for k, v in module.state_dict().items()} for name, module in method.networks.items()}
    gradients = []

    def look(turn: str, call: int) -> None:
        gradients.append({name: any(p.grad is not None for p in module.parameters()) for name, module in method.networks.items()})

    method.before = look
    run_loop(tmp_path / "run", method, steps=5)
    for seen in method.seen:
        assert seen["learns"] == {"model": seen["turn"] == "first", "critic": seen["turn"] == "second", "frozen": False}
    assert gradients == [dict.fromkeys(method.networks, False)] * len(gradients)  # none is left over from a turn before
    after = {name: module.state_dict() for name, module in method.networks.items()}
    for name, tensors in before.items():
        same = all(torch.equal(after[name][key], value) for key, value in tensors.items())
        assert same == (name == "frozen")


def test_the_turns_of_a_step_share_its_batch_and_its_scratch(tmp_path):
    method = Linear(every=2)
    run_loop(tmp_path / "run", method, steps=4, accumulate=2)
    turns = [seen["turn"] for seen in method.seen]
    assert turns == ["first", "first", "second", "second", "second", "second"] * 2
    for start in (0, 6):
        first, later = method.seen[start : start + 2], method.seen[start + 2 : start + 6]
        for part in (0, 1):
            assert torch.equal(first[part]["x"], later[part]["x"])
            assert "made" in later[part]["scratch"]
            assert not later[2 + part]["scratch"]  # another step
        assert not torch.equal(later[0]["scratch"]["made"], later[1]["scratch"]["made"])
        assert not torch.equal(first[0]["x"], first[1]["x"])


def test_the_batches_are_those_of_the_shuffle(tmp_path):
    method, data = Linear(every=1), Data()
    run_loop(tmp_path / "run", method, steps=4, seed=9)
    expected = Shuffled(40, 16, 9)
    for step, seen in enumerate(seen for seen in method.seen if seen["turn"] == "first"):
        assert torch.equal(seen["x"], data.train[expected(step)])


def test_the_record_holds_means_norms_and_rates(tmp_path):
    """One turn, plain arithmetic beside it: AdamW by hand, the loss and the gradient norm at each step."""
    optimizer = Optimizer(lr=0.1, beta1=0.9, beta2=0.99, weight_decay=0.02, clip=0.3, warmup=2, decay_from=0.5, final=0.1)
    method = Linear(every=1, optimizer=optimizer)
    layer = method.networks["model"][0]
    weights = [layer.weight.detach().clone(), layer.bias.detach().clone()]
    frozen = method.networks["frozen"][0]
    run = run_loop(tmp_path / "run", method, steps=4, log_every=2)
    x_of, moments = Shuffled(40, 16, 3), [[torch.zeros_like(w), torch.zeros_like(w)] for w in weights]
    errors, norms, rates = [], [], []
    for step in range(4):
        x = Data().train[x_of(step)]
        leaves = [w.clone().requires_grad_() for w in weights]
        made = x @ leaves[0].T + leaves[1]
        error = (made @ frozen.weight.T + frozen.bias - x).square().mean()
        gradients = torch.autograd.grad(error, leaves)
        norm = math.sqrt(sum(g.square().sum().item() for g in gradients))
        lr = optimizer.lr_at(step, 4)
        for w, g, m in zip(weights, gradients, moments, strict=True):
            g = g * min(1.0, 0.3 / (norm + 1e-6))
            m[0] = 0.9 * m[0] + 0.1 * g
            m[1] = 0.99 * m[1] + 0.01 * g.square()
            corrected = m[0] / (1 - 0.9 ** (step + 1)), m[1] / (1 - 0.99 ** (step + 1))
            w.mul_(1 - lr * 0.02).sub_(lr * corrected[0] / (corrected[1].sqrt() + 1e-8))
        errors.append(error.item()), norms.append(norm), rates.append(lr)
    assert max(norms) > 0.3  # clipping was at work
    torch.testing.assert_close(layer.weight.detach(), weights[0])
    torch.testing.assert_close(layer.bias.detach(), weights[1])
    for record, steps in zip(run.metrics(), ([0, 1], [2, 3]), strict=True):
        assert record["first.error"] == pytest.approx(sum(errors[s] for s in steps) / 2, rel=1e-6)
        assert record["first.grad_norm"] == pytest.approx(sum(norms[s] for s in steps) / 2, rel=1e-6)
        assert record["first.lr"] == pytest.approx(rates[steps[-1]])


def test_the_rate_falls_over_a_turns_own_updates(tmp_path):
    """Seven steps are four updates of a turn that is due at every second one."""
    optimizer = Optimizer(lr=1e-2, decay_from=0.0, final=0.0)
    run = run_loop(tmp_path / "run", Linear(every=2, optimizer=optimizer), steps=7, log_every=1)
    rates = [(record["first.lr"], record["second.lr"]) for record in run.metrics()]
    assert [first for first, _ in rates] == pytest.approx([1e-2 * k / 4 for k in (4, 4, 3, 3, 2, 2, 1)])
    assert [second for _, second in rates] == pytest.approx([1e-2 * k / 7 for k in (7, 6, 5, 4, 3, 2, 1)])


def test_samples_and_the_model_folder_are_of_the_average(tmp_path):
    shown = {}
    method = Linear(every=1)
    run = run_loop(tmp_path / "run", method, on_sample=lambda generator, step: shown.update({step: generator.weight.clone()}), steps=6)
    checkpoint = run.latest_checkpoint()[0]
    average = checkpoint.networks["ema"]["0.weight"]
    assert torch.equal(shown[6], average)
    assert not torch.allclose(average, method.networks["model"][0].weight)
    from safetensors.torch import load_file

    assert torch.equal(load_file(run.model_folder / "model.safetensors")["weight"], average)
    assert '"step": 6' in (run.model_folder / "config.json").read_text()


@pytest.mark.parametrize("accumulate", [2, 4, 16])
def test_accumulated_gradients_give_the_same_update(accumulate, tmp_path):
    whole, parts = Linear(), Linear()
    run_loop(tmp_path / "whole", whole)
    run_loop(tmp_path / "parts", parts, accumulate=accumulate)
    assert parts.calls == {turn: accumulate * calls for turn, calls in whole.calls.items()}
    for name, module in whole.networks.items():
        torch.testing.assert_close(parts.networks[name].state_dict(), module.state_dict(), rtol=1e-9, atol=1e-9)
    metrics = [RunFolder(tmp_path / name).metrics() for name in ("whole", "parts")]
    for one, other in zip(*metrics, strict=True):
        assert other["first.error"] == pytest.approx(one["first.error"], rel=1e-6)
        assert other["second.grad_norm"] == pytest.approx(one["second.grad_norm"], rel=1e-6)


def test_training_leaves_the_process_random_state_and_signals_alone(tmp_path):
    torch.manual_seed(77)
    state = torch.get_rng_state()
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    run_loop(tmp_path / "run", Linear(dropout=0.5, noise=1.0))
    assert torch.equal(torch.get_rng_state(), state)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers


@pytest.mark.parametrize("other", [{"seed": 4}, {}])
def test_the_seed_and_only_the_seed_decides(other, tmp_path):
    torch.manual_seed(1)
    one = run_loop(tmp_path / "one", Linear(dropout=0.5, noise=1.0))
    torch.manual_seed(2)
    two = run_loop(tmp_path / "two", Linear(dropout=0.5, noise=1.0), **other)
    weights = [run.latest_checkpoint()[0].networks["ema"]["0.weight"] for run in (one, two)]
    assert torch.equal(*weights) == (not other)


@pytest.mark.parametrize(("batch_size", "accumulate"), [(15, 2), (16, 3), (2, 4)])
def test_a_batch_that_does_not_divide(batch_size, accumulate, tmp_path):
    settings = LoopSettings(steps=2, batch_size=batch_size, accumulate=accumulate)
    fabric = Fabric(accelerator="cpu", devices=1)
    with pytest.raises(UserError, match=rf"batch_size is {batch_size}.*trainer.accumulate {accumulate}.*multiple of {accumulate}"):
        Loop(Linear(), Data(), fabric, RunFolder(tmp_path), settings)


# --- losses that are not finite --------------------------------------------------------------------------------------


def bad_at(call: int, value: torch.Tensor, turn: str = "second"):
    return lambda name, number: value if (name, number) == (turn, call) else torch.zeros(())


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(("turn", "call", "step"), [("second", 6, 6), ("first", 3, 5)])
def test_a_loss_that_is_not_finite_stops_and_overwrites_nothing(value, turn, call, step, tmp_path):
    path = tmp_path / "run"
    last_good, content = {}, {}

    def before(name: str, number: int) -> torch.Tensor:
        if (name, number) != (turn, call):
            return torch.zeros(())
        last_good.update({k: v.clone() for k, v in method.networks["critic"].state_dict().items()})
        content.update(snapshot(path))
        return torch.tensor(value)

    method = Linear(before=before)
    with pytest.raises(UserError) as error:
        run_loop(path, method)
    message = str(error.value)
    assert message.startswith(f"step {step}: {turn}.added is {value}. Nothing was overwritten; the last good checkpoint is step 4. ")
    assert "method.*lr" in message
    assert "method.*clip" in message
    assert {name: torch.equal(tensor, method.networks["critic"].state_dict()[name]) for name, tensor in last_good.items()} == {
        "0.weight": True,
        "0.bias": True,
    }
    assert snapshot(path) == content
    assert "checkpoints/step_4/manifest.json" in content
    assert "model/model.safetensors" in content


def test_a_loss_that_is_bad_while_its_terms_are_not(tmp_path):
    method = Linear()
    loss = method.loss

    def hidden(*arguments):
        output = loss(*arguments)
        return type(output)(output.loss * math.nan, output.terms)

    method.loss = hidden
    with pytest.raises(UserError, match=r"step 1: the loss of first is nan.*no checkpoint had been written yet"):
        run_loop(tmp_path / "run", method)


@pytest.mark.parametrize("clip", [10.0, None])
def test_a_gradient_that_is_not_finite_never_reaches_what_is_kept(clip, tmp_path):
    """The loss is finite, its gradient is not: sqrt at 0."""
    method = Linear(every=1, optimizer=Optimizer(lr=0.01, clip=clip))

    def before(turn: str, call: int) -> torch.Tensor:
        weight = method.networks["critic"][0].weight
        return (0 * weight).square().sum().sqrt() if (turn, call) == ("second", 4) else torch.zeros(())

    method.before = before
    with pytest.raises(UserError, match=r"step [45]: .* is nan.*the last good checkpoint is step 2\."):
        run_loop(tmp_path / "run", method)  # step 4 is one that would be saved
    for folder in (tmp_path / "run" / "checkpoints").iterdir():
        for tensors in load_checkpoint(folder).networks.values():
            assert all(tensor.isfinite().all() for tensor in tensors.values())


def test_after_a_bad_loss_the_last_good_checkpoint_goes_on(tmp_path):
    whole = run_loop(tmp_path / "whole", Linear())
    with pytest.raises(UserError, match="step 6"):
        run_loop(tmp_path / "run", Linear(before=bad_at(6, torch.tensor(math.nan))))
    run = run_loop(tmp_path / "run", Linear(), resume=True)
    assert (run.checkpoint_folder / "step_8" / "ema.safetensors").read_bytes() == (
        whole.checkpoint_folder / "step_8" / "ema.safetensors"
    ).read_bytes()


def test_an_absurd_learning_rate_is_told_at_the_command_line(mistake, teacher_overrides, tmp_path):
    run = tmp_path / "run"
    message = mistake("train", "teacher/digits", *teacher_overrides, "method.optimizer.lr=1e30", "trainer.checkpoint_every=1", "--out", run)
    assert "\nerror: step 2: denoiser.denoising is nan. Nothing was overwritten; the last good checkpoint is step 1. " in message
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step_1"]
    assert load_checkpoint(run / "checkpoints" / "step_1").state["step"] == 1


# --- signals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_the_step_end_saves_and_stops(number, tmp_path):
    method = Linear(before=lambda turn, call: os.kill(os.getpid(), number) if (turn, call) == ("second", 3) else None)
    with pytest.raises(Interrupted, match=r"stopped at step 3 of 8, all saved; go on with --resume"):
        run_loop(tmp_path / "run", method)
    checkpoint = RunFolder(tmp_path / "run").latest_checkpoint()[0]
    assert checkpoint.state["step"] == 3
    assert checkpoint.state["updates"] == {"first": 2, "second": 3}
    assert '"step": 3' in (tmp_path / "run" / "model" / "config.json").read_text()


def test_a_second_ctrl_c_stops_at_once(tmp_path):
    handler = signal.getsignal(signal.SIGINT)  # a shell's background job inherits an ignored one

    def before(turn: str, call: int) -> None:
        if call == 3:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run_loop(tmp_path / "run", Linear(before=before))
    assert RunFolder(tmp_path / "run").latest_checkpoint()[0].state["step"] >= 2
    assert signal.getsignal(signal.SIGINT) is handler


def test_a_signal_at_the_last_step_changes_nothing(tmp_path):
    whole = run_loop(tmp_path / "whole", Linear())
    run = run_loop(
        tmp_path / "run", Linear(before=lambda turn, call: os.kill(os.getpid(), signal.SIGTERM) if (turn, call) == ("second", 8) else None)
    )
    assert (run.model_folder / "model.safetensors").read_bytes() == (whole.model_folder / "model.safetensors").read_bytes()


def test_sigterm_at_the_command_line_exits_130_with_everything_saved(command, teacher_overrides, tmp_path, monkeypatch):
    from fewstep.methods.teacher import Teacher

    loss, calls = Teacher.loss, []

    def counted(self, *arguments):
        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return loss(self, *arguments)

    monkeypatch.setattr(Teacher, "loss", counted)
    run = tmp_path / "run"
    outcome = command("train", "teacher/digits", *teacher_overrides, "--out", run)
    assert outcome.code == 130
    assert "Traceback" not in outcome.err
    assert "finishing this step and saving" in outcome.err
    assert outcome.err.splitlines()[-1] == "stopped at step 3 of 6, all saved; go on with --resume"
    assert (run / "checkpoints" / "step_3").is_dir()


def test_the_cadences_default_to_a_tenth_of_the_run(monkeypatch, tmp_path):
    from fewstep.run import train_recipe

    settings = []

    class StopHereError(Exception):
        pass

    def spy(method, data, fabric, run, given, *rest):
        settings.append(given)
        raise StopHereError

    monkeypatch.setattr("fewstep.training.loop.Loop", spy)
    for steps in (1000, 5):
        recipe = load_recipe("teacher/digits", [f"steps={steps}", "trainer.accelerator=cpu", "trainer.log_every=7", "method.ema_warmup=3"])
        with pytest.raises(StopHereError):
            train_recipe(recipe, tmp_path / str(steps))
    found = [(s.steps, s.sample_every, s.checkpoint_every, s.log_every, s.ema_warmup, s.evaluate_every) for s in settings]
    assert found == [(1000, 100, 100, 7, 3, None), (5, 1, 1, 7, 3, None)]  # measuring is asked for


def test_it_is_called_healthy_only_when_that_can_be_told(tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(Progress, "show", lambda self, text: told.append(text.split(",")[0]))
    run_loop(tmp_path / "run", Linear(), steps=20, log_every=1, checkpoint_every=20)
    assert told == ["too early to say"] * 3 + ["healthy"] * 17
