"""What notebook 03 trains with: optimizer and schedule, precision, the loop, checkpoints, the run's
log."""
