"""The answer store: each question is asked once, ever, whichever process asked it."""
