"""Stands in for a module that transformers' source distribution leaves out."""


class GenerationTesterMixin:
    """Marks the tests of models that generate."""
