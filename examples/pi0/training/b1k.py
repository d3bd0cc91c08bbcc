"""Facts of the BEHAVIOR-1K challenge of 2025: tasks, the robot's numbers, annotated skills.

Source: the public dataset `behavior-1k/2025-challenge-demos`, and the recipes trained on it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool

from examples.pi0.training.configs import ActionGroup
from examples.pi0.transform import Place

EPISODES_PER_TASK = 10_000
"""The episode with the index `task * EPISODES_PER_TASK + n` shows a task."""

TASKS = (
    "turning_on_radio",
    "picking_up_trash",
    "putting_away_Halloween_decorations",
    "cleaning_up_plates_and_food",
    "can_meat",
    "setting_mousetraps",
    "hiding_Easter_eggs",
    "picking_up_toys",
    "rearranging_kitchen_furniture",
    "putting_up_Christmas_decorations_inside",
    "set_up_a_coffee_station_in_your_kitchen",
    "putting_dishes_away_after_cleaning",
    "preparing_lunch_box",
    "loading_the_car",
    "carrying_in_groceries",
    "bringing_in_wood",
    "moving_boxes_to_storage",
    "bringing_water",
    "tidying_bedroom",
    "outfit_a_basic_toolbox",
    "sorting_vegetables",
    "collecting_childrens_toys",
    "putting_shoes_on_rack",
    "boxing_books_up_for_storage",
    "storing_food",
    "clearing_food_from_table_into_fridge",
    "assembling_gift_baskets",
    "sorting_household_items",
    "getting_organized_for_work",
    "clean_up_your_desk",
    "setting_the_fire",
    "clean_boxing_gloves",
    "wash_a_baseball_cap",
    "wash_dog_toys",
    "hanging_pictures",
    "attach_a_camera_to_a_tripod",
    "clean_a_patio",
    "clean_a_trumpet",
    "spraying_for_bugs",
    "spraying_fruit_trees",
    "make_microwave_popcorn",
    "cook_cabbage",
    "chop_an_onion",
    "slicing_vegetables",
    "chopping_wood",
    "cook_hot_dogs",
    "cook_bacon",
    "freeze_pies",
    "canning_food",
    "make_pizza",
)
"""The tasks; the position of a name is its id."""

RECIPE_TASKS = tuple(
    TASKS[i]
    for i in (0, 1, 2, 3, 6, 8, 13, 14, 15, 16, 22, 25, 26, 30, 34, 36, 38, 39, 40, 42, 44, 49)
)
"""The 22 tasks of stage 1."""

CAMERAS = {
    "base_0_rgb": "observation.images.rgb.head",
    "left_wrist_0_rgb": "observation.images.rgb.left_wrist",
    "right_wrist_0_rgb": "observation.images.rgb.right_wrist",
}
"""The dataset's camera for each of the model's."""

STATE_SIZE, ACTION_SIZE = 256, 23

STATE_PLACES = (
    Place(253, 256),  # velocity of the base
    Place(236, 240),  # trunk
    Place(158, 165),  # left arm
    Place(197, 204),  # right arm
    Place(193, 195, is_sum=True),  # width of the left gripper
    Place(232, 234, is_sum=True),  # width of the right gripper
)
"""The parts of the robot's 256 numbers that make the model's 23. Actions have another order."""

ACTION_GROUPS = (
    ActionGroup("base", 0, 3, 1.0),
    ActionGroup("trunk", 3, 7, 1.7),
    ActionGroup("left_arm", 7, 14, 2.0),
    ActionGroup("left_gripper", 14, 15, 2.0),
    ActionGroup("right_arm", 15, 22, 2.0),
    ActionGroup("right_gripper", 22, 23, 2.0),
    ActionGroup("padding", 23, 32, 0.0),
)
"""The weights of the loss."""


class Skill(NamedTuple):
    """An annotated part of an episode.

    Attributes:
        start: Its first frame.
        end: The frame after its last.
        text: What the robot does.
    """

    start: int
    end: int
    text: str


def skills(root: Path, episode: int) -> tuple[Skill, ...]:
    """Reads the annotated skills of an episode, in the order of their starts.

    A skill with several segments gives one for each.

    Args:
        root: The folder of the dataset.
        episode: Its index.

    Raises:
        ValueError: The file is missing or damaged. The message names it.
    """
    task = episode // EPISODES_PER_TASK
    path = root / "annotations" / f"task-{task:04d}" / f"episode_{episode:08d}.json"
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["skill_annotation"]
        found = [
            Skill(int(start), int(end), str(row["skill_description"][0]))
            for row in rows
            for start, end in _segments(row["frame_duration"])
        ]
    except FileNotFoundError as error:
        raise ValueError(
            f"There is no {path}. Copy the dataset's annotations into it, or train without them: "
            "--data.boundary_factor 1 --data.skill_prompt_rate 0."
        ) from error
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise ValueError(f"{path} is damaged: {error!r}. Fetch the file again.") from error
    return tuple(sorted(found))


def boundary_frames(
    skills: Sequence[Skill], length: int, window: int
) -> Bool[np.ndarray, " length"]:
    """Says which frames are near the end of a skill; the end of the last skill does not count.

    Args:
        skills: In the order of their starts.
        length: The number of frames.
        window: How many frames before and after are near.

    >>> near = boundary_frames([Skill(0, 4, "pick up"), Skill(4, 9, "place")], 9, 1)
    >>> np.flatnonzero(near).tolist()
    [3, 4, 5]
    """
    near = np.zeros(length, bool)
    for skill in skills[:-1]:
        near[max(skill.end - window, 0) : skill.end + window + 1] = True
    return near


def skill_at(skills: Sequence[Skill], frame: int) -> Skill | None:
    """Returns the skill of a frame, if it has one.

    >>> skill_at([Skill(0, 4, "pick up")], 3).text
    'pick up'
    """
    return next((skill for skill in skills if skill.start <= frame < skill.end), None)


def _segments(duration: Sequence[int] | Sequence[Sequence[int]]) -> list[Sequence[int]]:
    """Returns the segments of a skill, of which some files have one and some have a list."""
    return [duration] if isinstance(duration[0], int) else list(duration)  # pyright: ignore
