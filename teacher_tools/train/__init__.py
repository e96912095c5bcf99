"""`teacher train`: trains checkpoints on pictures that the planner labels."""
