"""`TextPrefix`: the task goes in front of the prompt, as text."""

from __future__ import annotations

import dataclasses
import string
from collections.abc import Mapping
from typing import Any

import numpy as np

from taskcond.data.vocabulary import TaskVocabulary
from taskcond.ids import NULL_TASK, check_ids


@dataclasses.dataclass(frozen=True)
class TextPrefix:
    """A transform that writes the task in front of a frame's prompt.

    It tells tasks apart without any new parameter, if the text model tells the prefixes apart. A
    frame of `NULL_TASK` keeps its prompt.

    Args:
        template: The new prompt: text with `{id}`, `{name}` and `{prompt}`, formatted as
            `str.format` does. The default is that of the 2025 BEHAVIOR challenge.
        vocabulary: The names of the tasks, for `{name}`.
        source: Key of the task id, which `ExtractTaskID` makes.
        target: Key of the prompt, a string or an array or list of them.
        num_tasks: The number of tasks; by default that of the vocabulary.

    Raises:
        ValueError: The template is malformed or names another field, or uses `{name}` without a
            vocabulary.

    >>> TextPrefix()({"task_id": 7, "prompt": "wipe"})
    {'task_id': 7, 'prompt': '[07] wipe'}
    """

    template: str = "[{id:02d}] {prompt}"
    vocabulary: TaskVocabulary | None = None
    source: str = "task_id"
    target: str = "prompt"
    num_tasks: int | None = None

    def __post_init__(self) -> None:
        try:
            fields = {field for _, field, _, _ in string.Formatter().parse(self.template) if field}
            self.template.format(id=0, name="", prompt="")
        except (ValueError, KeyError, IndexError) as error:
            raise ValueError(
                f"template {self.template!r} cannot be formatted ({error!r}); use text with "
                "{id}, {name} and {prompt}, and {{ for a brace"
            ) from None
        if not fields & {"id", "name"}:
            raise ValueError(
                f"template {self.template!r} names no task; use {{id}} or {{name}} in it"
            )
        if "name" in fields and self.vocabulary is None:
            raise ValueError(f"template {self.template!r} uses {{name}}; pass a vocabulary")
        if self.num_tasks is None and self.vocabulary is not None:
            object.__setattr__(self, "num_tasks", len(self.vocabulary))

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """Returns a copy of `data` with the new prompt, of the type that it had.

        Raises:
            KeyError: There is no task id or no prompt.
            ValueError: The id is out of range, or ids and prompts have different shapes.
            TypeError: The id is not an integer.
        """
        if missing := [key for key in (self.source, self.target) if data.get(key) is None]:
            raise KeyError(
                f"{missing} not found in the frame, which has {sorted(data)}; put ExtractTaskID "
                "and the transform that makes the prompt in front of TextPrefix"
            )
        ids, prompts = np.asarray(data[self.source]), data[self.target]
        check_ids(ids, self.num_tasks)
        if isinstance(prompts, str):
            if ids.size != 1:
                raise ValueError(f"task_id has shape {ids.shape}, but there is one prompt")
            return {**data, self.target: self._format(int(ids.reshape(())), prompts)}
        texts = np.asarray(prompts)
        if texts.shape != ids.shape:
            raise ValueError(
                f"task_id has shape {ids.shape}, but the prompts have {texts.shape}; one id for "
                "each prompt is needed"
            )
        pairs = zip(ids.flat, texts.flat, strict=True)
        made = [self._format(int(i), str(text)) for i, text in pairs]
        result: Any = np.array(made, dtype=object if texts.dtype == object else None)
        result = result.reshape(texts.shape)
        return {**data, self.target: result.tolist() if isinstance(prompts, list) else result}

    def _format(self, task: int, prompt: str) -> str:
        if task == NULL_TASK:
            return prompt
        name = "" if self.vocabulary is None else self.vocabulary[task]
        return self.template.format(id=task, name=name, prompt=prompt)
