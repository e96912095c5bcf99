"""Environments as a student and a teacher need them: observations, pictures, missions, named actions."""
