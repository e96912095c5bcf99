"""`teacher score`, `compare` and `replay`: measure how good teachers are."""
