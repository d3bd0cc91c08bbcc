"""Prompts become token ids, in the formats that π0 and π0.5 were trained on."""

from __future__ import annotations

import dataclasses
import functools
import io
import os
import re
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
from etils import epath
from jaxtyping import Bool, Float, Int, Integer

from examples.pi0.config import Pi0Config
from taskcond import NULL_TASK
from taskcond.ids import check_ids

StrPath = str | os.PathLike[str]

_BINS = 256
_EDGES = np.linspace(-1, 1, _BINS + 1)[:-1]


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    r"""A tokenizer of prompts, by a SentencePiece model.

    π0 reads `{prompt}\n`; π0.5 reads `Task: {prompt}, State: {numbers of the bins};\nAction: `.
    Only the settings are pickled: each process reads the model when it first needs it.

    Args:
        path: The SentencePiece model, on any file system that etils reads; the released weights
            need `paligemma_tokenizer.model`.
        max_token_len: Tokens that a prompt is padded to or cut to.
        discrete_state: Whether the state is part of the prompt, as in π0.5.
        task_prefix: Whether the prompt begins with the task's number, as in
            `[01] pick up the radio`.
        num_tasks: The number of tasks, which decides how many digits a prefix has.

    Raises:
        FileNotFoundError: There is no such file. The message says where the released one is.
        ValueError: `task_prefix` is set without `num_tasks`.

    >>> import tempfile
    >>> path = train_tokenizer(Path(tempfile.mkdtemp(), "tiny.model"), ["pick up the radio"])
    >>> tokenizer = Tokenizer(path, max_token_len=20, discrete_state=True)
    >>> tokenizer.prompt("pick up\nthe radio ", np.array([-1.0, 0.0, 1.0]))
    'Task: pick up the radio, State: 0 128 255;\nAction: '
    >>> tokens, mask = tokenizer("pick up the radio", np.array([-1.0, 0.0, 1.0]))
    >>> tokens.shape, int(mask.sum())
    ((20,), 19)
    """

    path: StrPath
    max_token_len: int = 48
    discrete_state: bool = False
    task_prefix: bool = False
    num_tasks: int = 0

    def __post_init__(self) -> None:
        if not epath.Path(self.path).is_file():
            raise FileNotFoundError(
                f"there is no tokenizer model at {self.path}; the released one is published in the "
                "public Google Cloud bucket big_vision: fetch it with `gcloud storage cp "
                f"gs://big_vision/paligemma_tokenizer.model {self.path}`, and pass its path"
            )
        if self.task_prefix and self.num_tasks < 1:
            raise ValueError(
                f"task_prefix=True is set with num_tasks={self.num_tasks}, but a prefix needs at "
                "least one task: pass num_tasks=..., the number of tasks"
            )

    @classmethod
    def for_config(cls, config: Pi0Config, path: StrPath, **settings: Any) -> Tokenizer:
        """Returns the tokenizer of a model.

        Args:
            config: The model's.
            path: The SentencePiece model.
            **settings: Fields to set, such as `task_prefix=True`. A model without a task table
                then needs `num_tasks=...` too.
        """
        fields = {
            "max_token_len": config.max_token_len,
            "discrete_state": config.pi05,
            "num_tasks": config.num_tasks,
        }
        return cls(path, **{**fields, **settings})

    @property
    def vocab_size(self) -> int:
        """The number of tokens of the SentencePiece model; all token ids are below it."""
        return self._processor.vocab_size()

    def __call__(
        self,
        prompt: str,
        state: Float[np.ndarray, " s"] | None = None,
        task_id: int | np.integer | None = None,
    ) -> tuple[Int[np.ndarray, " length"], Bool[np.ndarray, " length"]]:
        """Returns the tokens, int32 `[max_token_len]`, and a mask that is false on padding.

        Args:
            prompt: What to do.
            state: Normalized to [-1, 1] and not padded; only needed with `discrete_state`. NaN
                stands for a hidden number, which becomes `*`.
            task_id: The model's task id; only needed with `task_prefix`. `NULL_TASK` has no prefix.

        Warns:
            UserWarning: A prompt is too long and is cut. Only the first such prompt warns.

        Raises:
            ValueError: The state or the task id is needed and missing, or the task id is out of
                range.
        """
        ids = self._encode(self.prompt(prompt, state, task_id))
        if len(ids) > self.max_token_len:
            self._warn_once(len(ids), prompt)
            ids = ids[: self.max_token_len]
        tokens = np.zeros(self.max_token_len, np.int32)
        tokens[: len(ids)] = ids
        return tokens, np.arange(self.max_token_len) < len(ids)

    def prompt(
        self,
        prompt: str,
        state: Float[np.ndarray, " s"] | None = None,
        task_id: int | np.integer | None = None,
    ) -> str:
        """Returns the text that is tokenized; see `__call__`."""
        text = re.sub("[_\n]", " ", prompt.strip())
        if self.task_prefix:
            text = self._prefix(task_id) + text
        if not self.discrete_state:
            return f"{text}\n"
        if state is None:
            raise ValueError(
                "no state is given, but the prompt of π0.5 contains it: pass state, normalized"
            )
        hidden = np.isnan(state)
        bins = discretize(np.where(hidden, 0, state)).tolist()
        numbers = " ".join("*" if h else str(n) for n, h in zip(bins, hidden, strict=True))
        return f"Task: {text}, State: {numbers};\nAction: "

    def decode(self, tokens: Int[np.ndarray, " length"], mask: Bool[np.ndarray, " length"]) -> str:
        """Returns the text of tokens, as the model sees it, without its padding."""
        return self._processor.decode(np.asarray(tokens)[np.asarray(mask)].tolist())

    def _prefix(self, task_id: int | np.integer | None) -> str:
        if task_id is None:
            raise ValueError(
                "no task_id is given, but task_prefix=True writes it into the prompt: pass "
                "task_id, or taskcond.NULL_TASK for no prefix"
            )
        check_ids(np.asarray(task_id), self.num_tasks)
        digits = max(2, len(str(self.num_tasks - 1)))
        return "" if task_id == NULL_TASK else f"[{task_id:0{digits}d}] "

    def _encode(self, text: str) -> list[int]:
        if self.discrete_state:
            return self._processor.encode(text, add_bos=True)
        # The newline, which asks for the answer, must never be part of another token.
        return self._processor.encode(text[:-1], add_bos=True) + self._processor.encode("\n")

    @functools.cached_property
    def _processor(self) -> Any:
        processor = sentencepiece.SentencePieceProcessor()
        try:
            processor.LoadFromSerializedProto(epath.Path(self.path).read_bytes())
        except RuntimeError as error:
            raise ValueError(
                f"{self.path} is not a SentencePiece model, or is incomplete; fetch the file again"
            ) from error
        return processor

    def _warn_once(self, length: int, prompt: str) -> None:
        if "_warned" in self.__dict__:
            return
        object.__setattr__(self, "_warned", True)
        warnings.warn(
            f"a prompt of {length} tokens is cut to max_token_len={self.max_token_len}; raise it "
            f"in Pi0Config, or shorten {prompt!r}. Later prompts are cut without a warning",
            stacklevel=3,
        )

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}


def discretize(state: Float[np.ndarray, " s"]) -> Integer[np.ndarray, " s"]:
    """Returns the number of each value's bin, of 256 equal bins of [-1, 1].

    >>> discretize(np.array([-1.0, 0.0, 0.999, 3.0, -3.0])).tolist()
    [0, 128, 255, 255, -1]
    """
    # A value below -1 is in bin -1 and not 0, because the released weights were trained so.
    return np.digitize(state, _EDGES) - 1


def train_tokenizer(path: StrPath, sentences: Iterable[str], vocab_size: int = 1024) -> Path:
    """Trains a tiny SentencePiece model for demos and tests, and returns its path.

    It can also tokenize texts other than `sentences`, byte by byte if necessary. The number of a
    bin is a single token, so that long states make short prompts. The same sentences give the same
    file.

    Args:
        path: Where to write the model.
        sentences: Prompts; the fixed parts of the formats are added.
        vocab_size: The largest number of tokens.
    """
    numbers = [f" {number}" for number in range(-1, _BINS)]
    fixed = ["Task: , State: ", "Action: ", *(f"[{number:02d}] " for number in range(10))]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*sentences, *fixed, *numbers]),
        model_writer=model,
        model_type="bpe",
        vocab_size=vocab_size,
        hard_vocab_limit=False,
        byte_fallback=True,
        character_coverage=1.0,
        # As in PaliGemma's model, text is not changed, and token ids 0 to 3 have these meanings.
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        user_defined_symbols=["\n"],
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        num_threads=1,
        minloglevel=2,
    )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.getvalue())
    return path
