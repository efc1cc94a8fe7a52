"""A model put to use: predictions for a file of inputs, a chat in the terminal, a page in the browser."""

from .predicting import predict_file
from .tasks import TASKS, Model, open_model


__all__ = ["TASKS", "Model", "open_model", "predict_file"]
