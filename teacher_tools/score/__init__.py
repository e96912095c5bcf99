"""How good a teacher is, asked over HTTP: as a policy, against the planner, and stage by stage."""
