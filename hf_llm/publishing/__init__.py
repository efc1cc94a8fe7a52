"""Whether others can use a checkpoint (`hf-llm check`), and giving it to them (`hf-llm publish`)."""

from .checking import Report, Row, check
from .hub import CheckFailed, publish


__all__ = ["CheckFailed", "Report", "Row", "check", "publish"]
