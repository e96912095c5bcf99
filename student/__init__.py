"""The student: a small agent that learns from rewards and from a teacher that it asks over HTTP."""
