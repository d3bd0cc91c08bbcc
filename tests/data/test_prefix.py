"""The task as text in front of the prompt."""

import numpy as np
import pytest

from taskcond import TaskVocabulary, TextPrefix

NAMES = TaskVocabulary(["pour", "wipe"])


def test_a_batch_keeps_its_type_and_no_task_keeps_its_prompt():
    frame = {"task_id": np.array([1, -1], np.int32), "prompt": ["a", "b"]}
    assert TextPrefix()(frame)["prompt"] == ["[01] a", "b"]
    as_array = {**frame, "prompt": np.array(["a", "b"])}
    assert TextPrefix()(as_array)["prompt"].tolist() == ["[01] a", "b"]
    as_objects = {**frame, "prompt": np.array(["a", "b"], dtype=object)}
    assert TextPrefix()(as_objects)["prompt"].dtype == object
    assert frame["prompt"] == ["a", "b"]


def test_names_come_from_the_vocabulary():
    transform = TextPrefix("Task {name}. {prompt}", NAMES)
    assert transform({"task_id": 1, "prompt": "now"})["prompt"] == "Task wipe. now"
    assert TextPrefix("{name}", NAMES)({"task_id": 0, "prompt": "now"})["prompt"] == "pour"
    with pytest.raises(ValueError, match="task_id out of range"):
        transform({"task_id": 2, "prompt": "now"})


@pytest.mark.parametrize(
    ("template", "match"),
    [
        ("{prompt}", "names no task"),
        ("{idd} {prompt}", "cannot be formatted"),
        ("{id", "cannot be formatted"),
        ("{name} {prompt}", "pass a vocabulary"),
    ],
)
def test_templates_that_cannot_work_are_refused(template, match):
    with pytest.raises(ValueError, match=match):
        TextPrefix(template)


def test_what_is_missing_or_does_not_fit_is_named():
    with pytest.raises(KeyError, match="'task_id', 'prompt'"):
        TextPrefix()({"state": 0})
    with pytest.raises(ValueError, match="one id for each prompt"):
        TextPrefix()({"task_id": [0, 1, 0], "prompt": ["a", "b"]})
    with pytest.raises(ValueError, match="there is one prompt"):
        TextPrefix()({"task_id": [0, 1], "prompt": "a"})
