"""The answer store: an SQLite file with every answer, so that a teacher answers each question once."""
