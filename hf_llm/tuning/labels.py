"""Classes of labelled data: their names, the same in every split."""

from datasets import ClassLabel, Dataset, Features

from hf_llm.training.settings import suggestion


def check_columns(data: dict[str, Dataset], columns: tuple[str, ...]) -> None:
    """Check that every split has the columns that a task reads.

    Raises:
        ValueError: naming the missing column, those that exist, and the likely one.
    """
    for split, examples in data.items():
        for column in columns:
            if column not in examples.column_names:
                raise ValueError(
                    f"data: the {split} split has no column {column!r}{suggestion(column, examples.column_names)}. "
                    f"Its columns are {', '.join(examples.column_names)}: map them with data.dataset: {{name: ..., "
                    f"columns: {{{column}: ...}}}}"
                )


def class_names(data: dict[str, Dataset], column: str) -> list[str]:
    """
    Names of the classes in a column of classes, or of lists of them: as the data declares them, else sorted values.

    Raises:
        ValueError: values that are no classes, fewer than two classes, or classes that the training split lacks.
    """
    features = {split: _class_feature(examples.features, column) for split, examples in data.items()}
    declared = {split: feature.names for split, feature in features.items() if isinstance(feature, ClassLabel)}
    if declared:
        names = declared["train"]
        for split, others in declared.items():
            if others != names:
                raise ValueError(f"data: the classes of {column!r} differ: {names} in train, {others} in {split}")
        return names
    found = {split: set(_flat(examples[column])) for split, examples in data.items()}
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
    return [str(value) for value in sorted(found["train"])]


def class_numbers(values: list, names: list[str]) -> list[int]:
    """Places of values in `names`; the numbers of a declared column are places already."""
    places = {name: place for place, name in enumerate(names)}
    return [places.get(str(value), value) for value in values]


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
