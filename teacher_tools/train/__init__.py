"""`teacher train`: makes teachers, Qwen2.5-VL checkpoints taught by the planner in endless pictures."""
