"""What a cell of a label column says, and what an image is said to have."""

from __future__ import annotations

import numpy as np
import pytest

from tlkeras.data.cells import list_classes, sort_names
from tlkeras.data.sources.folders import read_table
from tlkeras.data.tables import build_dataset, drop_unlabelled
from tlkeras.data.tasks import MultiLabelTask, Task, explain_order, make_task
from tlkeras.errors import DataError

LABELS = MultiLabelTask("tags", ("cat", "dog", "night"), "|")
ONE = Task("kind", ("cat", "dog"))


def test_cells_of_labels():
    targets = LABELS.encode(["dog|night", "", " night | cat |", "?", "dog|dog"])
    assert targets.dtype == np.int8
    assert targets.tolist() == [[0, 1, 1], [0, 0, 0], [1, 0, 1], [-1, -1, -1], [0, 1, 0]]
    assert LABELS.is_labelled(targets).tolist() == [True, True, True, False, True]
    assert LABELS.format(LABELS.members(targets)) == ["dog|night", "", "cat|night", "", "dog"]


def test_cells_of_classes():
    targets = ONE.encode(["dog", "", "cat"])
    assert targets.dtype == np.int64 and targets.tolist() == [1, -1, 0]
    assert ONE.is_labelled(targets).tolist() == [True, False, True]
    assert ONE.format(ONE.members(targets)) == ["dog", "", "cat"]


def test_what_probabilities_speak_for():
    probabilities = np.array([[0.5, 0.49, 0.9], [0.1, 0.2, 0.3]])
    assert LABELS.format(LABELS.decide(probabilities)) == ["cat|night", ""]
    assert LABELS.table_columns(probabilities)[0][1] == "probability of dog"
    assert ONE.format(ONE.decide(probabilities[:, :2])) == ["cat", "dog"]
    names, told = ONE.table_columns(probabilities[:, :2])
    assert names == ["probability"] and told.tolist() == [[0.5], [0.2]]


def test_both_splits_of_a_label_are_aspects():
    aspects = LABELS.find_coverage(LABELS.encode(["dog", "?"]))
    assert np.stack([*aspects.values()], 1).tolist() == [[False, True, False, True, False, True], [False] * 6]
    assert [*aspects][3:] == ["the absence of cat", "the absence of dog", "the absence of night"]
    one = ONE.find_coverage(ONE.encode(["dog", ""]))
    assert np.stack([*one.values()], 1).tolist() == [[False, True], [False, False]]


@pytest.mark.parametrize("task", [LABELS, ONE])
def test_a_task_is_made_again_from_its_facts(task):
    assert make_task(task.name, list(task.class_names), **task.get_config()) == task


def test_classes_are_sorted_and_unknown_is_none():
    assert list_classes(["dog, cat", "?", "", "ant,dog"], ",") == ("ant", "cat", "dog")
    assert list_classes(["dog", "?", "", "ant"]) == ("?", "ant", "dog")


def read(plant, cells):
    folder = plant({f"{number}.png": number for number in range(len(cells))})
    lines = [f"{number}.png,{cell}" for number, cell in enumerate(cells)]
    (folder / "list.csv").write_text("\n".join(["path,tags", *lines]))
    return read_table(str(folder / "list.csv"))


def test_examples_with_labels(plant):
    table = read(plant, ["a b", "b", "", "?", "a", "a b"])
    dataset = build_dataset(table, ["tags"], separator=" ")
    assert dataset.tasks == (MultiLabelTask("tags", ("a", "b"), " "),)
    labelled = drop_unlabelled(dataset)
    assert labelled.targets["tags"].tolist() == [[1, 1], [0, 1], [0, 0], [1, 0], [1, 1]]
    assert [rejection.code for rejection in labelled.rejected] == ["no-label"]
    assert labelled.take(np.array([3])).targets["tags"].tolist() == [[1, 0]]


@pytest.mark.parametrize(
    ("cells", "sentences"),
    [
        (["a", "b", "a", "b"], ["no cell contains the separator '|' or is empty. The first is 'a'", "leave it out if"]),
        (["a", "", "a", ""], ["only one label, 'a'. At least two", "two classes, yes and no"]),
        (["a|b", "b|a", "a", "a|b"], ["no image: the absence of a", "Add images, or remove the label"]),
    ],
)
def test_labels_that_cannot_be_learned(plant, cells, sentences):
    with pytest.raises(DataError) as caught:
        build_dataset(read(plant, cells), ["tags"], separator="|")
    for sentence in sentences:
        assert sentence in str(caught.value)


@pytest.mark.parametrize(
    "names",
    [
        ("0", "1", "2", "10", "11"),
        ("-1.5", "-1", "0.5", "2", "1e3"),
        ("class 2", "class 9", "class 10", "dog"),
        ("Cat", "cat", "v1.9", "v1.10"),
        ("", "2 cats", "10 cats", "cat", "²"),
    ],
)
def test_names_are_in_the_order_of_counting(names):
    assert sort_names(names[::-1]) == names
    assert list_classes(names[::-1]) == tuple(filter(None, names))


@pytest.mark.parametrize(
    ("names", "told"),
    [(("0", "1", "2"), ""), (("1", "2"), "position 0 is class '1'"), (("0", "2"), "position 1 is"), (("a", "1"), "")],
)
def test_numbers_that_are_no_positions_are_told(names, told):
    notes = explain_order([Task("grade", names)])
    assert bool(notes) == bool(told) and told in " ".join(notes)


def test_classes_that_stand_for_others():
    names = {"Cat": "cat", "owl": "nowhere"}
    one, many = Task("kind", ("Cat", "cat", "owl")), MultiLabelTask("tags", ("Cat", "cat", "owl"), "|")
    assert one.merge_classes(np.array([0, 1, 2, -1]), names).tolist() == [1, 1, 2, -1]
    targets = many.encode(["Cat|owl", "cat", "Cat|cat", "", "?"])
    assert many.merge_classes(targets, names).tolist() == [[0, 1, 1], [0, 1, 0], [0, 1, 0], [0, 0, 0], [-1, -1, -1]]
    assert many.find_spellings(targets[:1]) == {"cat": "Cat"} and many.find_spellings(targets[1:2]) == {"Cat": "cat"}
    assert one.find_spellings(np.array([0, 1, 1])) == {"Cat": "cat"}
