"""Classes of labelled data: their names, the same in every split."""

from dataclasses import dataclass

from datasets import ClassLabel, Dataset, Features

from hf_llm.training.settings import suggestion


def check_columns(data: dict[str, Dataset], columns: tuple[str, ...]) -> None:
    """Check that every split has the columns that a task reads, and texts in those of texts.

    Raises:
        ValueError: naming the missing column, those that exist, and the likely one; or the row that has no text.
    """
    for split, examples in data.items():
        for column in columns:
            if column not in examples.column_names:
                raise ValueError(
                    f"data: the {split} split has no column {column!r}{suggestion(column, examples.column_names)}. "
                    f"Its columns are {', '.join(examples.column_names)}: map them with data.dataset: {{name: ..., "
                    f"columns: {{{column}: ...}}}}"
                )
        for column in _TEXTS & {*columns, "text_pair"} & set(examples.column_names):
            check_texts(examples, column, split)
        for column in _LISTS & set(columns):
            check_texts(examples, column, split, lists=True)


_TEXTS = {"text", "text_pair", "question", "context"}
_LISTS = {"words", "choices"}


def check_texts(examples: Dataset, column: str, split: str, lists: bool = False) -> None:
    """Raise ValueError on the first row of a split that has something else than a text, or a list of texts, in
    `column`."""
    for i, value in enumerate(examples[column]):
        texts = (value if isinstance(value, list) else [None]) if lists else [value]
        if not all(isinstance(text, str) for text in texts):
            kind = "list of texts" if lists else "text"
            raise ValueError(f"data: example {i} of {split} has {value!r} as {column!r}, which is no {kind}")


@dataclass(frozen=True)
class Classes:
    """The classes of a column.

    Attributes:
        names: of the classes.
        declared: whether the data set declares them (`ClassLabel`), so that its values are places in `names`.
    """

    names: list[str]
    declared: bool

    def numbers(self, values: list) -> list[int]:
        """Places of values in `names`."""
        if self.declared:
            return list(values)
        places = {name: place for place, name in enumerate(self.names)}
        return [places[str(value)] for value in values]


def find_classes(data: dict[str, Dataset], column: str) -> Classes:
    """
    The classes in a column of classes, or of lists of them: as the data declares them, else sorted values.

    Raises:
        ValueError: values that are no classes, fewer than two classes, or classes that the training split lacks.
    """
    found = {split: set(_flat(examples[column])) for split, examples in data.items()}
    features = {split: _class_feature(examples.features, column) for split, examples in data.items()}
    declared = {split: feature.names for split, feature in features.items() if isinstance(feature, ClassLabel)}
    if declared:
        names = declared["train"]
        for split, others in declared.items():
            if others != names:
                raise ValueError(f"data: the classes of {column!r} differ: {names} in train, {others} in {split}")
        for split, values in found.items():
            if wrong := [value for value in values if value not in range(len(names))]:
                raise ValueError(
                    f"data: {column!r} of {split} has {wrong[0]}, which is none of the classes 0 to {len(names) - 1}. "
                    f"Where labels are kept back (-1), name a split that has them as data.dataset.splits.{split}"
                )
        return Classes(names, declared=True)
    if wrong := [v for values in found.values() for v in values if not isinstance(v, (str, int))]:
        raise ValueError(f"data: {column!r} has {wrong[0]!r}, which is no class; for numbers take task: regression")
    for split, values in found.items():
        if unknown := sorted(values - found["train"]):
            raise ValueError(
                f"data: {column!r} has classes in {split} that train does not have: {unknown}; train has "
                f"{sorted(found['train'])}"
            )
    if len(found["train"]) < 2:
        raise ValueError(f"data: {column!r} has one class only, {sorted(found['train'])}: there is nothing to learn")
    return Classes([str(value) for value in sorted(found["train"])], declared=False)


def config_fields(names: list[str]) -> dict:
    """Fields of a model's configuration that name its classes."""
    return {
        "num_labels": len(names),
        "id2label": dict(enumerate(names)),
        "label2id": {name: place for place, name in enumerate(names)},
    }


def _class_feature(features: Features, column: str):
    feature = features[column]
    return getattr(feature, "feature", feature)  # of lists, that of their entries


def _flat(values) -> list:
    return [v for value in values for v in (value if isinstance(value, list) else [value])]
