"""The answer store: each question is asked once, ever, whichever process asked it."""

from teacher_server.answers.errors import StoreError
from teacher_server.answers.rows import Key
from teacher_server.answers.store import AnswerStore

__all__ = ["AnswerStore", "Key", "StoreError"]
