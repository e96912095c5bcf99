"""The service as replicas of Ray Serve, on one machine or several."""

APPLICATION, DEPLOYMENT = "teacher", "Teacher"
"""The names by which Ray Serve knows the replicas."""
