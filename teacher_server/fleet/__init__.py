"""The service as replicas of Ray Serve, on one machine or several."""
