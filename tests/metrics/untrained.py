"""Files of untrained feature networks, as tools/train_features.py writes trained ones."""

from pathlib import Path

import torch

from fewstep.metrics.classifiers import ResidualClassifier, save_classifier


def network(channels: int = 1, size: int = 8, classes: int = 10, widths=(6, 8), seed: int = 0, **form: bool) -> ResidualClassifier:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = ResidualClassifier(channels, size, classes, widths, **form).eval()
    made.class_names = tuple(str(k) for k in range(classes))
    made.mean.copy_(torch.linspace(-0.1, 0.1, len(made.mean)))
    made.std.copy_(torch.linspace(0.5, 2.0, len(made.std)))
    return made.requires_grad_(False)


def write(path: Path, **arguments) -> Path:
    save_classifier(network(**arguments), path, {"data": "digits", "accuracy": 0.5, "command": "made in a test"})
    return path
