"""The training loop that all methods share, and a run's folder, checkpoints, averaged weights, log and health figures."""
