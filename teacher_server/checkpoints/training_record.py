"""What a checkpoint was trained on, as `teacher train` writes it beside the weights; it changes no answer."""

from pathlib import Path

from pydantic import ValidationError

from teacher_api.schemas import TrainedOn
from teacher_server.checkpoints.folders import unusable

RECORD = "trained_on.json"


def read_record(folder: Path) -> TrainedOn | None:
    """What a folder says; None where it says nothing.

    Raises:
        Unusable: its file is damaged.
    """
    try:
        return TrainedOn.model_validate_json((folder / RECORD).read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError):
        raise unusable(RECORD, "is no record of what teacher train trained on: take it away") from None


def write_record(folder: Path, record: TrainedOn) -> None:
    """Writes it down."""
    (folder / RECORD).write_text(record.model_dump_json(indent=2) + "\n", encoding="utf-8")
