"""The record of training that `teacher train` writes beside a checkpoint's weights; it changes no answer."""

from pathlib import Path

from pydantic import ValidationError

from teacher_api.schemas import TrainedOn
from teacher_server.checkpoints.folders import unusable

RECORD = "trained_on.json"


def read_record(folder: Path) -> TrainedOn | None:
    """Returns a folder's record, or None.

    Raises:
        Unusable: the record is damaged.
    """
    try:
        return TrainedOn.model_validate_json((folder / RECORD).read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError):
        raise unusable(RECORD, "is not a training record of `teacher train`: remove it") from None


def write_record(folder: Path, record: TrainedOn) -> None:
    """Writes a folder's record."""
    content = record.model_dump_json(indent=2, exclude_none=True)
    (folder / RECORD).write_text(f"{content}\n", encoding="utf-8")
