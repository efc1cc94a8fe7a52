"""Whether others can use a checkpoint (`hf-llm check`), its way to them (`publish`), renewing its code (`update`)."""

from .checking import Report, Row, check
from .hub import CheckFailed, publish
from .updating import Update, update


__all__ = ["CheckFailed", "Report", "Row", "Update", "check", "publish", "update"]
