"""`teacher train`: trains Qwen2.5-VL checkpoints on pictures that the planner labels."""
