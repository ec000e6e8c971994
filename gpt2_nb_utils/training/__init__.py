"""What notebook 03 trains with: the loop, optimizers, number formats, checkpoints, the run's log."""
