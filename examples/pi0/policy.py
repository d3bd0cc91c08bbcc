"""A trained policy, loaded from its checkpoint with all that belongs to it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from examples.pi0.beside import find_beside, load_transform
from examples.pi0.model import Observation, Pi0, Pi0Config
from examples.pi0.tokenizer import StrPath
from examples.pi0.training.configs import CONFIG_FILE
from examples.pi0.transform import FrameTransform
from taskcond import NULL_TASK, StageTracker, StageVocabulary, TaskVocabulary, merge_into
from taskcond.checkpoint import TaskConditioning, load_params, open_checkpoint
from taskcond.trees import to_dict

TOKENIZER = "tokenizer.model"


@dataclasses.dataclass(frozen=True)
class Policy:
    """A π0 or π0.5 that is told tasks by name.

    Attributes:
        model: The model.
        transform: Makes its inputs, and the robot's actions.
        conditioning: What is known of the task table; `None` for a model without one.
        prompt: The prompt of all tasks; `None` for the task's own name.
        assets: The folder of the files that belong to the parameters.
    """

    model: Pi0
    transform: FrameTransform
    conditioning: TaskConditioning | None
    prompt: str | None
    assets: Path

    @property
    def vocabulary(self) -> TaskVocabulary:
        """The names of the table's rows; empty for a model without a table."""
        known = self.conditioning and self.conditioning.vocabulary
        return known or TaskVocabulary([])

    def act(
        self, frame: Mapping[str, Any], task: str | None, seed: int, stage: int = NULL_TASK
    ) -> Float[np.ndarray, "h a"]:
        """Returns a chunk of the robot's actions.

        Args:
            frame: `state` and `images`, as `FrameTransform.observe` wants them.
            task: The name of the task; `None` tells the policy none.
            seed: The seed of the noise.
            stage: The stage of the task, of a policy with stages; `NULL_TASK` tells it none.

        Raises:
            KeyError: The table has no row for the task. The message names the nearest.
            ValueError: The task has no such stage.
        """
        batch = self._observe(frame, task, stage)
        actions = _sample(self.model, jax.random.key(seed), batch)
        return self.transform.unnormalize_actions(actions, frame["state"][None])[0]

    def predict_stage(self, frame: Mapping[str, Any], task: str) -> int:
        """Returns the likeliest stage of a task, for `taskcond.StageTracker.update`.

        Args:
            frame: See `act`.
            task: The name of the task.

        Raises:
            KeyError: See `act`.
            ValueError: The model has no stages.
        """
        batch = self._observe(frame, task, NULL_TASK)
        return int(_stage_logits(self.model, batch)[0].argmax())

    def tracker(self, task: str) -> StageTracker:
        """Returns a tracker of the stages of a task, which begins with the first.

        Raises:
            KeyError: See `act`.
            ValueError: The model has no stages.
        """
        return StageTracker(self._stages().counts[self.vocabulary.id(task)])

    def _stages(self) -> StageVocabulary:
        if not self.model.config.task_stages:
            raise ValueError("this policy has no stages; train one with --data.frames_per_stage")
        return self.model.config.stages

    def _observe(self, frame: Mapping[str, Any], task: str | None, stage: int) -> Observation:
        task_id = NULL_TASK if task is None or not self.vocabulary else self.vocabulary.id(task)
        if stage != NULL_TASK:
            self._stages().rows([task_id], [stage])  # raises if the task has no such stage
        prompt = (task or "") if self.prompt is None else self.prompt
        inputs = self.transform.observe({**frame, "task": prompt, "task_id": task_id})
        inputs = inputs.replace(stage=np.int32(stage))
        return jax.tree.map(lambda value: jnp.asarray(value)[None], inputs)


def load_policy(path: str | Path) -> Policy:
    """Loads a policy from a run's folder, a step of it, or its `params`.

    Raises:
        FileNotFoundError: The files that training leaves beside the parameters are not there.
        CheckpointError: It is no checkpoint.
    """
    checkpoint = open_checkpoint(path)
    folder = find_beside(Path(checkpoint.root), "inputs.json")
    if folder is None or not (folder / TOKENIZER).exists():
        raise FileNotFoundError(
            f"{checkpoint.path} has no inputs.json and {TOKENIZER} beside it, which "
            "examples.pi0.train saves in the folder assets. Copy that folder, too."
        )
    transform = load_transform(folder, folder / TOKENIZER)
    settings = folder / CONFIG_FILE
    about = json.loads(settings.read_text(encoding="utf-8")) if settings.exists() else {}
    model = load_model(checkpoint.path, transform.config)
    prompt = about.get("data", {}).get("prompt")
    return Policy(model, transform, checkpoint.conditioning, prompt, folder)


def load_model(path: StrPath, config: Pi0Config) -> Pi0:
    """Returns a model with a checkpoint's parameters, without holding any others in memory.

    Raises:
        MergeError: The parameters are not those of a model of this config.
    """
    # Dropout is only for training, and has the only state that is not in the checkpoint.
    config = dataclasses.replace(config, task_dropout_rate=0.0)
    model = nnx.eval_shape(lambda: Pi0(config, rngs=nnx.Rngs(0)))
    like = to_dict(nnx.state(model, nnx.Param))
    merge_into(model, load_params(path, like, scale=_scale(config)))
    return model


@nnx.jit
def _sample(model: Pi0, key: Array, observation: Observation) -> Float[Array, "b h d"]:
    return model.sample_actions(key, observation)


@nnx.jit
def _stage_logits(model: Pi0, observation: Observation) -> Float[Array, "b stages"]:
    return model.stage_logits(observation)


def _scale(config: Pi0Config) -> float | None:
    return config.task_embedding_scale if config.num_tasks else None
