"""Labelled data sets by one string: embedded ones, local files and folders, datasets on the Hub."""

from .loading import SPLITS, TaskSpec, load_task, parse_task
from .table import TASKS
from .task import Task


__all__ = ["SPLITS", "TASKS", "Task", "TaskSpec", "load_task", "parse_task"]
