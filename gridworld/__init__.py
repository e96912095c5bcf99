"""What teacher and student both know of MiniGrid: tasks, views, pictures and the optimal planner."""
