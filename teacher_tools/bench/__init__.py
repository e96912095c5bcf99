"""`teacher bench`: measures how fast running teachers answer over HTTP."""
