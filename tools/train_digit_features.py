"""Train the digit classifier whose features all digit metrics use, and write it into the package.

    python tools/train_digit_features.py

One CPU core, under a minute. It sees the train split alone, with dropout on the features and smoothed labels. The file is
committed: numbers measured in other features do not compare.
"""

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import cross_entropy, dropout

from fewstep.data import load_digits
from fewstep.metrics.features import DigitClassifier

EPOCHS, BATCH, SEED = 60, 128, 0
OUT = "src/fewstep/metrics/digit_features.safetensors"


def train_classifier(images: Tensor, labels: Tensor, epochs: int = EPOCHS, seed: int = SEED) -> DigitClassifier:
    """A classifier of `images` [N, 1, 8, 8] with `labels` [N], frozen: AdamW, cosine decay."""
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


def main() -> None:
    """Train, print the accuracies, write the file."""
    torch.set_num_threads(1)
    data = load_digits()
    network = train_classifier(data.images("train"), data.labels("train"))
    for split in ("train", "heldout"):
        hits = network.classify(network(data.images(split))).argmax(1) == data.labels(split)
        print(f"{split} accuracy {hits.double().mean():.4f} of {len(hits)}")
    save_file(network.state_dict(), OUT)
    print(f"wrote {OUT}")


if __name__ == "__main__":
    main()
