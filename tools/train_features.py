"""Train a classifier in whose features images are measured, and write it as a file that `--features` takes.

    python tools/train_features.py mnist --data ../shared/data/mnist            about 10 minutes on one core
    python tools/train_features.py cifar10 --data ../shared/data/cifar10        two hours and a half on one core
    python tools/train_features.py digits                                       under a minute
    python tools/train_features.py PATH --size 32 --channels 3                  a folder of labelled images of your own

`--second` trains the network of the second judge, which is plain and smaller. Every classifier sees the train split alone, shifted by up
to two pixels, with smoothed labels and, where mirroring keeps a class, mirrored in every other pass (Jordan 2024, arXiv 2404.00498).
Images of MNIST and of a folder also lose contrast (`faded`), because a judge that has only seen black on white rates images with a tenth
less contrast as worse than broken digits. The classifier of CIFAR-10 sees half of the images under noise in its last passes, because to
one that has never seen noise, a little grain outweighs blur. The accuracy that is printed is that on the held-out split. Once results are
published in them, the files of the package are never made anew: figures measured in other features do not compare.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, dropout, pad

from fewstep.data import DataError, ImageData, cifar10, image_folder, load_digits, mnist
from fewstep.errors import UserError
from fewstep.metrics.classifiers import ResidualClassifier, in_half, save_classifier
from fewstep.metrics.features import DigitClassifier
from fewstep.training.progress import Progress, reading_bar

PACKAGE = Path(__file__).parents[1] / "src/fewstep/metrics"
EPOCHS, BATCH, SEED = 60, 128, 0  # of the digits' classifier
SMOOTHING, SHIFT, MOMENTUM, DECAY, RISE = 0.1, 2, 0.9, 5e-4, 0.2  # of the other classifiers; RISE: share of steps in which the rate rises
FADED = 0.4  # largest share of its contrast that an image loses
WHITENED = 2000  # images whose patches whiten the first convolution
PEAK = 0.2  # highest learning rate, for batches of 128
GRAIN, FINAL_PEAK = 0.25, 0.04  # largest standard deviation of noise in the last passes, and their learning rate at first


@dataclass(frozen=True)
class Plan:
    """A classifier's architecture, and how long it trains."""

    widths: tuple[int, ...]
    epochs: float
    residual: bool = True
    pooled: bool = False
    faded: bool = True  # whether images lose contrast; photographs vary in it by themselves
    mirrored: bool = False  # whether features average an image and its mirror image
    grainy: float = 0  # further epochs, in which half of the images have noise


FIRST, OTHER = "", "-second"
PLANS = {
    "mnist": Plan((24, 48, 64), 8),
    "mnist-second": Plan((16, 32, 48), 6, residual=False),
    "cifar10": Plan((64, 128, 192), 24, pooled=True, faded=False, mirrored=True, grainy=4),
    "cifar10-second": Plan((48, 64, 96), 10, residual=False, faded=False, mirrored=True),
    FIRST: Plan((32, 64, 96), 20),
    OTHER: Plan((24, 48, 64), 20, residual=False),
}


def train_classifier(images: Tensor, labels: Tensor, epochs: int = EPOCHS, seed: int = SEED) -> DigitClassifier:
    """Return a frozen classifier of the digits `images` [N, 1, 8, 8] with `labels` [N], trained by AdamW with cosine decay."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = DigitClassifier()
        optimizer = torch.optim.AdamW(network.parameters(), 2e-3, weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
        for _ in range(epochs):
            for index in torch.randperm(len(images)).split(BATCH):
                logits = network.classify(dropout(network(images[index]), 0.2))
                loss = cross_entropy(logits, labels[index], label_smoothing=0.05)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            schedule.step()
    return network.requires_grad_(False).eval()


def shifted(x: Tensor, rng: torch.Generator, by: int = SHIFT) -> Tensor:
    """Return each of the images x [B, C, H, W] moved by up to `by` pixels in each direction, with its edge mirrored."""
    num, channels, height, width = x.shape
    padded = pad(x, (by,) * 4, mode="reflect")
    down, right = (torch.randint(0, 2 * by + 1, (num, 1), generator=rng) for _ in range(2))
    rows = (down + torch.arange(height))[:, None, :, None]
    columns = (right + torch.arange(width))[:, None, None, :]
    return padded[torch.arange(num)[:, None, None, None], torch.arange(channels)[None, :, None, None], rows, columns]


def faded(x: Tensor, rng: torch.Generator) -> Tensor:
    """Return images x [B, C, H, W] in [-1, 1], each with less contrast by up to `FADED`, anywhere between dark and bright."""
    share = 1 - FADED * torch.rand(len(x), 1, 1, 1, generator=rng)
    offset = (1 - share) * (2 * torch.rand(len(x), 1, 1, 1, generator=rng) - 1)
    return share * x + offset


def grained(x: Tensor, rng: torch.Generator) -> Tensor:
    """Return images x [B, C, H, W], the first half with Gaussian noise of a random standard deviation up to `GRAIN` in each."""
    half = len(x) // 2
    noise = GRAIN * torch.rand(half, 1, 1, 1, generator=rng) * torch.randn(half, *x.shape[1:], generator=rng)
    return torch.cat([x[:half] + noise, x[half:]])


def trained(data: ImageData, plan: Plan, seed: int = SEED) -> ResidualClassifier:
    """Return a classifier of the train split of `data`: trained for the epochs of `plan`, then for those with noise, if any."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = untrained(data, plan).to(memory_format=torch.channels_last)
        network.whiten(scaled(data, data.train[:WHITENED]))
    learn(network, data, plan, seed)
    if plan.grainy:
        learn(network, data, plan, seed + 1, grainy=True)
    return network


def learn(network: ResidualClassifier, data: ImageData, plan: Plan, seed: int, grainy: bool = False) -> None:
    """Train `network` by SGD with Nesterov momentum for the epochs of `plan`, or with `grainy` for its epochs with noise.

    The learning rate rises linearly and then falls to 0; in the epochs with noise it only falls.
    """
    assert data.train_label is not None
    rng = torch.Generator().manual_seed(seed)
    batch = min(BATCH, len(data.train))
    epochs, peak, rise = (plan.grainy, FINAL_PEAK, 0.0) if grainy else (plan.epochs, PEAK, RISE)
    steps, order = max(1, round(epochs * len(data.train) / batch)), torch.empty(0, dtype=torch.int64)
    sides = torch.rand(len(data.train), generator=rng) < 0.5 if data.flip else torch.empty(0)  # which are mirrored in the first pass
    passes = 0
    matrices, vectors = ([p for p in network.parameters() if p.requires_grad and (p.ndim > 1) == is_matrix] for is_matrix in (True, False))
    groups = [{"params": matrices, "weight_decay": DECAY}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(groups, lr=peak, momentum=MOMENTUM, nesterov=True)
    progress = Progress(f"training features of {data.name}{', with noise' if grainy else ''}", steps)
    progress.begin()
    try:
        for step in range(steps):
            if len(order) < batch:
                order = torch.randperm(len(data.train), generator=rng)
                passes += 1
            index, order = order[:batch], order[batch:]
            x = shifted(scaled(data, data.train[index]), rng)
            if plan.faded:
                x = faded(x, rng)
            if grainy:
                x = grained(x, rng)
            if data.flip:
                mirrored = sides[index] ^ (passes % 2 == 0)
                x[mirrored] = x[mirrored].flip(3)
            done = step / steps
            for group in optimizer.param_groups:
                group["lr"] = peak * (min(done / rise, (1 - done) / (1 - rise)) if rise else 1 - done)
            last = network.activations(x.to(memory_format=torch.channels_last))
            loss = cross_entropy(network.output(last), data.train_label[index], label_smoothing=SMOOTHING)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            progress.advance()
            if step % 50 == 0:
                progress.show(f"loss {loss.item():.3f}")
    finally:
        progress.close()


def untrained(data: ImageData, plan: Plan) -> ResidualClassifier:
    """Return the untrained network of `plan` for images and classes of `data`."""
    channels, size, _ = data.shape
    network = ResidualClassifier(channels, size, len(data.class_names), plan.widths, plan.residual, plan.pooled, plan.mirrored)
    network.class_names = data.class_names
    return network


def scaled(data: ImageData, pixels: Tensor) -> Tensor:
    """Return `pixels` of `data` as images in [-1, 1]."""
    return pixels.float() if data.half is None else pixels.float() / data.half - 1


@torch.no_grad()
def finish(network: ResidualClassifier, data: ImageData) -> float:
    """Round the weights as the file holds them, fit mean and deviation of the features on the train split; return the held-out accuracy."""
    network.eval().to(memory_format=torch.channels_last)  # as it will be loaded
    network.load_state_dict({key: value.float() for key, value in in_half(network).items()}, strict=False)
    network.mean.zero_()
    network.std.fill_(1.0)
    features = torch.cat([network(scaled(data, part)) for part in data.train.split(500)]).double()
    network.mean.copy_(features.mean(0))
    network.std.copy_(features.std(0).clamp_min(1e-6))
    answers = torch.cat([network.classify(network(scaled(data, part))).argmax(1) for part in data.heldout.split(500)])
    return (answers == data.heldout_label).double().mean().item()


def opened(name: str, folder: str | None, size: int, channels: int) -> ImageData:
    """Return the labelled images of mnist or cifar10, or of a folder at the path `name`. Raises DataError and UserError."""
    if name == "mnist":
        return mnist(folder, bar=reading_bar)
    if name == "cifar10":
        return cifar10(folder, flip=True, bar=reading_bar)
    if folder is not None:
        raise UserError(f"--data is {folder}, which is for mnist and cifar10; {name} is itself a path: leave --data out")
    data = image_folder(name, size, channels, bar=reading_bar)
    if len(data.class_names) < 2 or data.heldout_label is None:
        raise UserError(f"{name} has {len(data.class_names)} classes; a classifier needs images of two at least, a sub-folder each")
    return data


def make_digits(out: Path) -> None:
    """Train the classifier of the digits, which has an architecture of its own, and write it to `out`."""
    from safetensors.torch import save_file

    torch.set_num_threads(1)
    data = load_digits()
    labels = {split: data.labels(split) for split in ("train", "heldout")}
    assert labels["train"] is not None
    network = train_classifier(data.images("train"), labels["train"])
    for split, label in labels.items():
        hits = network.classify(network(data.images(split))).argmax(1) == label
        print(f"{split} accuracy {hits.double().mean():.4f} of {len(hits)}")
    save_file(network.state_dict(), out)


def make(arguments: argparse.Namespace, command: str) -> Path:
    """Train the classifier that is asked for, write it, and return the path of its file. Raises UserError and DataError."""
    name, kind = arguments.name, OTHER if arguments.second else FIRST
    of_package = name in ("mnist", "cifar10")
    stem = f"{Path(name).name}{kind}".replace("-", "_")
    out: Path = arguments.out or (PACKAGE if of_package else Path.cwd()) / f"{stem}_features.safetensors"
    if not out.parent.is_dir():
        raise UserError(f"--out is {out}, and there is no folder {out.parent}; make it first")
    if name == "digits":
        if arguments.second or arguments.weights or arguments.data:
            raise UserError("the digits have one network, and are a part of scikit-learn; leave --second, --weights and --data out")
        out = arguments.out or PACKAGE / "digit_features.safetensors"
        make_digits(out)
        return out
    if arguments.size % 2 or not 8 <= arguments.size <= 1024:
        raise UserError(f"--size is {arguments.size}; give an even number from 8 to 1024")
    plan = PLANS[name + kind if of_package else kind]
    plan = replace(plan, epochs=arguments.epochs or plan.epochs)
    if plan.epochs <= 0:
        raise UserError(f"--epochs is {plan.epochs}; give a positive number")
    data = opened(name, arguments.data, arguments.size, arguments.channels)
    if arguments.weights is None:
        network = trained(data, plan)
    else:
        network = untrained(data, plan)
        try:
            network.load_state_dict(torch.load(arguments.weights, weights_only=True))
        except Exception as error:  # torch raises several kinds
            raise UserError(
                f"--weights is {arguments.weights}, which is no state of this network ({str(error).splitlines()[0]})"
            ) from error
    accuracy = finish(network, data)
    about = {"data": data.name, "accuracy": accuracy, "heldout": len(data.heldout), "train": len(data.train)}
    about["epochs"] = plan.epochs + plan.grainy
    save_classifier(network, out, {**about, "seed": SEED, "command": command, "torch": str(torch.__version__)})
    print(f"held-out accuracy {accuracy:.4f} of {len(data.heldout)}; {out.stat().st_size / 1e6:.2f} MB")
    return out


def main(given: Sequence[str] | None = None) -> int:
    """Train what the command line asks for; return 0, or 2 for an error that the user can mend."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="digits, mnist, cifar10, or the path of a folder of labelled images")
    parser.add_argument("--data", help="folder of mnist or cifar10; without it they come from the Hub")
    parser.add_argument("--second", action="store_true", help="train the second judge's network")
    parser.add_argument("--out", type=Path, help="file to write; default the package's own, for a folder one in this directory")
    parser.add_argument("--epochs", type=float, help="passes over the train split")
    parser.add_argument("--size", type=int, default=32, help="for a folder of your own: images become size x size")
    parser.add_argument("--channels", type=int, default=3, choices=(1, 3), help="for a folder of your own: 1 for grey, 3 for colour")
    parser.add_argument("--weights", type=Path, help="state of the same network (.pt), trained elsewhere: write its file without training")
    arguments = parser.parse_args(given)
    try:
        places = {str(path) for path in (arguments.weights, arguments.out) if path is not None}
        told = [Path(one).name if one in places else one for one in (sys.argv[1:] if given is None else given)]  # file names alone
        out = make(arguments, shlex.join(["python", "tools/train_features.py", *told]))
    except (UserError, DataError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"wrote {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
