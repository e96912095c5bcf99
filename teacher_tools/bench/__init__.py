"""`teacher bench`: how fast running teachers answer, asked over HTTP."""
