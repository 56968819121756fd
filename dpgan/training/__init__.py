"""Training: one step, the loop around it, checkpoints, and Ray Train to run it on N workers."""
