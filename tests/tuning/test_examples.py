"""Classes of labelled data: what is a name, what is a place, and what is neither."""

import pytest
from datasets import ClassLabel, Dataset, Features, List, Value

from hf_llm.tuning.examples import check_columns, find_classes


def declared(labels: list, names: list[str]) -> Dataset:
    return Dataset.from_dict({"label": labels}, features=Features({"label": ClassLabel(names=names)}))


def test_declared_values_are_places_whatever_the_names_look_like():
    data = {"train": declared([0, 1, 2], ["1", "2", "3"])}
    classes = find_classes(data, "label")
    assert classes.names == ["1", "2", "3"] and classes.numbers(data["train"]["label"][:]) == [0, 1, 2]


@pytest.mark.parametrize("values", [["b", "a"], [7, 3], [True, False]])
def test_other_values_are_named_in_order(values):
    classes = find_classes({"train": Dataset.from_dict({"label": values})}, "label")
    assert classes.names == [str(value) for value in sorted(values)] and classes.numbers(values) == [1, 0]


def test_labels_that_are_kept_back_are_refused():
    """As in the test splits of GLUE: -1 would be taken for the last class."""
    data = {"train": declared([0, 1], ["no", "yes"]), "test": declared([-1, -1], ["no", "yes"])}
    with pytest.raises(ValueError, match=r"of test has -1, which is none of the classes 0 to 1.*splits.test"):
        find_classes(data, "label")


def test_declared_classes_that_differ_are_named():
    data = {"train": declared([0, 1], ["no", "yes"]), "test": declared([0, 1], ["yes", "no"])}
    with pytest.raises(ValueError, match=r"differ: \['no', 'yes'\] in train, \['yes', 'no'\] in test"):
        find_classes(data, "label")


def test_classes_of_lists():
    features = Features({"tags": List(ClassLabel(names=["O", "B"])), "n": Value("int32")})
    data = {"train": Dataset.from_dict({"tags": [[0, 1], []], "n": [0, 1]}, features=features)}
    assert find_classes(data, "tags").numbers([1, 0]) == [1, 0]


@pytest.mark.parametrize(("texts", "value"), [(["a", None], "None"), ([5, 6], "5")])
def test_rows_without_a_text_are_named(texts, value):
    data = {"train": Dataset.from_dict({"text": texts, "label": [0, 1]})}
    with pytest.raises(ValueError, match=f"of train has {value} as 'text', which is no text"):
        check_columns(data, ("text", "label"))
