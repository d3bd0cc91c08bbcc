"""The sizes of π0 and π0.5, as published and for a laptop."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, get_args

import jax.numpy as jnp
import numpy as np

from taskcond import StageVocabulary
from taskcond.ids import check_integer
from taskcond.nn.fusion import FUSIONS

AttentionImplementation = Literal["auto", "cudnn", "xla", "plain"]
"""The implementations of attention; `Pi0Config.attention` explains them."""

IMAGE_KEYS = ("base_0_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb")
"""The model's cameras, in the order of their tokens in the prefix."""


def _require_positive(config: Any, *names: str) -> None:
    for name in names:
        value = check_integer(f"{type(config).__name__}.{name}", getattr(config, name), low=1)
        object.__setattr__(config, name, value)  # a Python int, which JSON can hold


def _require_one_of(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {list(allowed)}, got {value!r}")


@dataclasses.dataclass(frozen=True)
class LoRAConfig:
    """A low-rank update of an expert's attention and feed-forward weights.

    Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021.

    Attributes:
        rank: Inner dimension of the update.
        alpha: The attention's update is scaled by `alpha / rank`; the feed-forward's is not, as in
            the published weights.
    """

    rank: int
    alpha: float

    def __post_init__(self) -> None:
        _require_positive(self, "rank")


@dataclasses.dataclass(frozen=True)
class GemmaConfig:
    """The sizes of one expert.

    Two experts that share an attention may differ in `width`, `mlp_dim` and `lora`, and in nothing
    else.

    Attributes:
        width: Features of a token; even.
        depth: Layers.
        mlp_dim: Hidden features of the feed-forward.
        num_heads: Query heads.
        num_kv_heads: Key-value heads; divides `num_heads`.
        head_dim: Features of a head; even, because RoPE turns pairs of features.
        lora: The low-rank update, or `None` for none.
    """

    width: int
    depth: int
    mlp_dim: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    lora: LoRAConfig | None = None

    def __post_init__(self) -> None:
        _require_positive(
            self, "width", "depth", "mlp_dim", "num_heads", "num_kv_heads", "head_dim"
        )
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads={self.num_heads} must be a multiple of num_kv_heads="
                f"{self.num_kv_heads}: each key-value head serves as many query heads"
            )
        for name, size in (("width", self.width), ("head_dim", self.head_dim)):
            if size % 2:
                raise ValueError(
                    f"{name} must be even, got {size}: sines and cosines take half of it each"
                )


@dataclasses.dataclass(frozen=True)
class SiglipConfig:
    """The image encoder, a vision transformer.

    Attributes:
        width: Features of a patch; a multiple of `num_heads`.
        depth: Layers.
        mlp_dim: Hidden features of the feed-forward.
        num_heads: Attention heads.
        patch_size: Pixels along the side of a patch.
    """

    width: int
    depth: int
    mlp_dim: int
    num_heads: int
    patch_size: int

    def __post_init__(self) -> None:
        _require_positive(self, "width", "depth", "mlp_dim", "num_heads", "patch_size")
        if self.width % self.num_heads:
            raise ValueError(
                f"width={self.width} must be a multiple of num_heads={self.num_heads}: every head "
                "gets an equal part of the features"
            )


GEMMA_2B = GemmaConfig(2048, 18, 16384, num_heads=8, num_kv_heads=1, head_dim=256)
GEMMA_300M = GemmaConfig(1024, 18, 4096, num_heads=8, num_kv_heads=1, head_dim=256)
SIGLIP_SO400M = SiglipConfig(1152, 27, 4304, num_heads=16, patch_size=14)


@dataclasses.dataclass(frozen=True)
class Pi0Config:
    """The sizes and choices of a whole model.

    The defaults are those of the released π0.5; `pi05=False` is the released π0.

    Attributes:
        pi05: True for π0.5, where the time enters by adaptive norms; false for π0, where it enters
            by an MLP over the action tokens.
        dtype: The dtype of the computation. Parameters are always float32.
        action_dim: Features of an action and of the state; shorter vectors are zero-padded.
        action_horizon: Actions in a chunk.
        max_token_len: Tokens that a prompt is padded to; `None` means 200 for π0.5 and 48 for π0.
        image_size: Pixels along the side of an image; a multiple of the patch size.
        vocab_size: Rows of the text embedding.
        paligemma: The expert that reads images and text.
        action_expert: The expert that writes actions.
        siglip: The image encoder.
        num_tasks: Rows of the task table; 0 means no task conditioning.
        task_embedding_scale: The factor on a task's row. It belongs to the checkpoint.
        task_dropout_rate: The probability that a training example acts without its task.
        task_embedding_init: `"normal"` draws the rows as `nnx.Embed` does. With `"zeros"`, loaded
            weights act exactly as before until they are trained.
        task_fusion: How a row of the table changes the timestep embedding; see
            `taskcond.TaskConditioner`. `"none"` leaves the table out.
        num_task_tokens: The number of learned tokens of a task in front of the images; see
            `taskcond.TaskTokens`.
        task_lora_rank: The rank of each task's update of the action expert's weights: those of
            attention and feed-forward in all layers, and the projections of actions and time. See
            `taskcond.TaskLoRA`. 0 means none.
        task_heads: Whether each task has its own projection to actions beside the common one; see
            `taskcond.TaskLinear`.
        task_stages: The number of stages of each task, which an observation may name; see
            `taskcond.StageConditioner`. Empty means none.
        image_keys: The cameras, in order.
        attention: `"plain"` is the exact reference; `"xla"` and `"cudnn"` are implementations in
            `jax.nn.dot_product_attention`; `"auto"` takes cuDNN where it can and the logits are
            large, and otherwise XLA.

    >>> Pi0Config().action_expert.width
    1024
    >>> Pi0Config.small(num_tasks=5).num_tasks
    5
    """

    pi05: bool = True
    dtype: str = "bfloat16"
    action_dim: int = 32
    action_horizon: int = 50
    max_token_len: int | None = None
    image_size: int = 224
    vocab_size: int = 257_152
    paligemma: GemmaConfig = GEMMA_2B
    action_expert: GemmaConfig = GEMMA_300M
    siglip: SiglipConfig = SIGLIP_SO400M
    num_tasks: int = 0
    task_embedding_scale: float = 1.0
    task_dropout_rate: float = 0.0
    task_embedding_init: Literal["normal", "zeros"] = "normal"
    task_fusion: Literal["add", "film", "gate", "concat", "none"] = "add"
    num_task_tokens: int = 0
    task_lora_rank: int = 0
    task_heads: bool = False
    task_stages: tuple[int, ...] = ()
    image_keys: tuple[str, ...] = IMAGE_KEYS
    attention: AttentionImplementation = "auto"

    def __post_init__(self) -> None:
        if self.max_token_len is None:
            object.__setattr__(self, "max_token_len", 200 if self.pi05 else 48)
        object.__setattr__(self, "dtype", jnp.dtype(self.dtype).name)
        _require_positive(
            self, "action_dim", "action_horizon", "max_token_len", "image_size", "vocab_size"
        )
        _require_one_of("attention", self.attention, get_args(AttentionImplementation))
        _require_one_of("task_embedding_init", self.task_embedding_init, ("normal", "zeros"))
        _require_one_of("task_fusion", self.task_fusion, (*FUSIONS, "none"))
        for name in ("num_tasks", "num_task_tokens", "task_lora_rank"):
            object.__setattr__(self, name, check_integer(name, getattr(self, name), low=0))
        stages = tuple(check_integer("task_stages", count, low=1) for count in self.task_stages)
        object.__setattr__(self, "task_stages", stages)
        if self.task_stages and len(self.task_stages) != self.num_tasks:
            raise ValueError(
                f"task_stages has {len(self.task_stages)} numbers, but num_tasks={self.num_tasks}: "
                "give the number of stages of each task"
            )
        for name in ("depth", "num_heads", "num_kv_heads", "head_dim"):
            ours, theirs = getattr(self.paligemma, name), getattr(self.action_expert, name)
            if ours != theirs:
                raise ValueError(
                    f"paligemma.{name}={ours} and action_expert.{name}={theirs} must be equal: "
                    "the experts share one attention in every layer"
                )
        if self.image_size % self.siglip.patch_size:
            raise ValueError(
                f"image_size={self.image_size} must be a multiple of "
                f"siglip.patch_size={self.siglip.patch_size}"
            )

    @property
    def has_table(self) -> bool:
        """Returns whether rows of a table change the timestep embedding."""
        return self.num_tasks > 0 and self.task_fusion != "none"

    @property
    def stages(self) -> StageVocabulary:
        """Returns the stages of the tasks."""
        return StageVocabulary(self.task_stages)

    @property
    def compute_dtype(self) -> np.dtype:
        """The dtype of the computation."""
        return jnp.dtype(self.dtype)

    @classmethod
    def small(cls, **overrides: Any) -> Pi0Config:
        """Returns a model that a laptop trains in minutes; any field can be overridden.

        >>> Pi0Config.small(pi05=False, action_horizon=4).action_horizon
        4
        """
        heads: dict[str, Any] = {"depth": 4, "num_heads": 4, "num_kv_heads": 1, "head_dim": 32}
        sizes: dict[str, Any] = {
            "dtype": "float32",
            "action_horizon": 16,
            "max_token_len": 48,
            "image_size": 56,
            "vocab_size": 2048,
            "paligemma": GemmaConfig(width=128, mlp_dim=256, **heads),
            "action_expert": GemmaConfig(width=128, mlp_dim=256, **heads),
            "siglip": SiglipConfig(width=96, depth=2, mlp_dim=192, num_heads=4, patch_size=14),
        }
        return cls(**{**sizes, **overrides})

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Pi0Config:
        """Returns the config whose `dataclasses.asdict` has these values, also read from JSON.

        Raises:
            TypeError: A key is no field.

        >>> config = Pi0Config.small()
        >>> Pi0Config.from_dict(dataclasses.asdict(config)) == config
        True
        """
        values = dict(values)
        for name in ("paligemma", "action_expert"):
            if isinstance(values.get(name), Mapping):
                values[name] = _gemma_from_dict(values[name])
        if isinstance(values.get("siglip"), Mapping):
            values["siglip"] = SiglipConfig(**values["siglip"])
        for name in ("image_keys", "task_stages"):
            if name in values:
                values[name] = tuple(values[name])  # JSON has lists
        return cls(**values)


def _gemma_from_dict(values: Mapping[str, Any]) -> GemmaConfig:
    lora = values.get("lora")
    return GemmaConfig(**{**values, "lora": LoRAConfig(**lora) if lora else None})
