"""The table of tasks: what a head is fine-tuned for, distilled on, and evaluated by."""

from hf_llm.training.settings import build_section, suggestion

from .classification import MultipleChoice, Regression, SequenceClassification, TokenClassification
from .language_modeling import CausalLanguageModeling, MaskedLanguageModeling
from .question_answering import QuestionAnswering
from .task import Task


TASKS: dict[str, type[Task]] = {
    "sequence_classification": SequenceClassification,
    "regression": Regression,
    "token_classification": TokenClassification,
    "question_answering": QuestionAnswering,
    "multiple_choice": MultipleChoice,
    "masked_language_modeling": MaskedLanguageModeling,
    "causal_language_modeling": CausalLanguageModeling,
}


def make_task(section: str | dict) -> Task:
    """The task of a `task` section, a name or a mapping of `name` and options. Raises ValueError on an unknown one."""
    section = {"name": section} if isinstance(section, str) else section
    name = section.get("name") if isinstance(section, dict) else None
    if name not in TASKS:
        raise ValueError(f"task.name = {name!r} is unknown{suggestion(str(name), TASKS)}")
    return build_section(TASKS[name], {k: v for k, v in section.items() if k != "name"}, "task")
