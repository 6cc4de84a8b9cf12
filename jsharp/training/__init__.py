"""The training loop with its records, checkpoints, devices and processes."""
