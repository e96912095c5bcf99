"""MiniGrid as data, for teacher and student alike: tasks, views, pictures and the optimal planner."""
