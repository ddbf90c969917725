"""The one training loop and what keeps a run: its folder, checkpoints, averages, log and health."""
