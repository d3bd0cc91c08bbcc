"""Prompts: the published formats to the letter, padded, cut with one warning, picklable."""

import pickle
import warnings

import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from examples.pi0.config import Pi0Config
from examples.pi0.tokenizer import Tokenizer, discretize, train_tokenizer
from taskcond import NULL_TASK

SENTENCES = ["pick up the radio", "turn on the radio"]
STATE = np.array([-1.0, 0.0, 1.0])


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return train_tokenizer(tmp_path_factory.mktemp("text") / "tiny.model", SENTENCES)


@pytest.fixture(scope="module")
def reference(path):
    return sentencepiece.SentencePieceProcessor(model_file=str(path))


def test_pi0_reads_the_prompt_and_a_newline_of_its_own(path, reference):
    tokens, mask = Tokenizer(path)("  pick_up\nthe radio ", STATE)
    expected = reference.encode("pick up the radio", add_bos=True) + reference.encode("\n")
    assert tokens[mask].tolist() == expected
    assert expected[0] == reference.bos_id()


def test_pi05_reads_the_state_in_the_prompt(path, reference):
    tokens, mask = Tokenizer(path, discrete_state=True)(" pick_up\nthe radio", STATE)
    text = "Task: pick up the radio, State: 0 128 255;\nAction: "
    assert tokens[mask].tolist() == reference.encode(text, add_bos=True)


def test_pi05_without_a_state_is_refused(path):
    with pytest.raises(ValueError, match="pass state"):
        Tokenizer(path, discrete_state=True)("pick up the radio")


def test_config_decides_format_and_length(path):
    assert Tokenizer.for_config(Pi0Config(pi05=False), path) == Tokenizer(path, max_token_len=48)
    assert Tokenizer.for_config(Pi0Config(num_tasks=50), path, task_prefix=True) == Tokenizer(
        path, max_token_len=200, discrete_state=True, task_prefix=True, num_tasks=50
    )


@settings(deadline=None)
@given(st.integers(0, 255), st.floats(0, 1, exclude_max=True, width=16))
def test_bins_are_equal_parts_of_the_range(number, part):
    value = -1 + (number + part) / 128
    assert discretize(np.array([value], np.float32)).tolist() == [number]


def test_bins_beyond_the_range_are_those_of_the_released_weights():
    assert discretize(np.array([-1.01, 1.01, 9.0])).tolist() == [-1, 255, 255]


def test_a_number_of_a_bin_costs_one_token(path, reference):
    assert all(len(reference.encode(f" {number}")) == 1 for number in range(256))


@pytest.mark.parametrize(
    ("num_tasks", "task_id", "prefix"),
    [(50, 1, "[01] "), (100, 99, "[99] "), (101, 1, "[001] "), (3, np.int32(2), "[02] ")],
)
def test_prefix_is_as_wide_as_the_largest_id(path, num_tasks, task_id, prefix):
    tokenizer = Tokenizer(path, task_prefix=True, num_tasks=num_tasks)
    assert tokenizer.prompt("wipe", task_id=task_id) == f"{prefix}wipe\n"


def test_prefix_is_part_of_the_task_in_the_format_of_pi05(path):
    tokenizer = Tokenizer(path, discrete_state=True, task_prefix=True, num_tasks=5)
    assert tokenizer.prompt("wipe", STATE[:1], 4) == "Task: [04] wipe, State: 0;\nAction: "


def test_no_task_has_no_prefix(path):
    tokenizer = Tokenizer(path, task_prefix=True, num_tasks=5)
    assert tokenizer.prompt("wipe", task_id=NULL_TASK) == "wipe\n"


def test_prefix_is_off_by_default(path):
    assert Tokenizer(path, num_tasks=5).prompt("wipe", task_id=3) == "wipe\n"


@pytest.mark.parametrize(
    ("task_id", "message"), [(5, "task_id out of range"), (None, "pass task_id")]
)
def test_prefix_refuses_ids_that_are_none(path, task_id, message):
    tokenizer = Tokenizer(path, task_prefix=True, num_tasks=5)
    with pytest.raises(ValueError, match=message):
        tokenizer("wipe", task_id=task_id)


def test_prefix_needs_the_number_of_tasks(path):
    with pytest.raises(ValueError, match="num_tasks="):
        Tokenizer(path, task_prefix=True)


def test_padding_is_masked(path):
    tokens, mask = Tokenizer(path, max_token_len=30)("wipe")
    assert tokens.shape == mask.shape == (30,)
    assert (tokens.dtype, mask.dtype) == (np.int32, np.bool_)
    length = mask.sum()
    assert mask[:length].all()
    assert not tokens[length:].any()


def test_a_prompt_that_just_fits_is_not_cut(path, recwarn):
    _, mask = Tokenizer(path)("wipe")
    _, full = Tokenizer(path, max_token_len=int(mask.sum()))("wipe")
    assert full.all()
    assert not recwarn.list


def test_a_long_prompt_is_cut_and_each_tokenizer_warns_once(path):
    whole, _ = Tokenizer(path)("turn on the radio")
    for _ in range(2):
        tokenizer = Tokenizer(path, max_token_len=3)
        with pytest.warns(UserWarning, match="max_token_len=3; raise"):
            first, mask = tokenizer("turn on the radio")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            tokenizer("turn on the radio")
            tokenizer("another long prompt")
        assert first.tolist() == whole[:3].tolist()
        assert mask.all()


def test_pickles_as_settings_after_use(path):
    tokenizer = Tokenizer(path, max_token_len=3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tokens, _ = tokenizer("turn on the radio")
        pickled = pickle.dumps(tokenizer)
        assert len(pickled) < 1000  # the SentencePiece model stays behind
        copy = pickle.loads(pickled)
        assert copy == tokenizer
        assert copy("turn on the radio")[0].tolist() == tokens.tolist()


def test_a_missing_file_says_where_to_get_it(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        Tokenizer(tmp_path / "none.model")
    message = str(error.value)
    assert str(tmp_path / "none.model") in message
    assert "gs://big_vision/paligemma_tokenizer.model" in message


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>"])
def test_a_file_that_is_something_else_is_refused(tmp_path, content):
    broken = tmp_path / "broken.model"
    broken.write_bytes(content)
    with pytest.raises(ValueError, match=r"broken.model is not a SentencePiece model.*fetch"):
        Tokenizer(broken)("wipe")


def test_training_is_deterministic_and_bounded(tmp_path):
    files = [train_tokenizer(tmp_path / str(i), SENTENCES, vocab_size=512) for i in range(2)]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert Tokenizer(files[0]).vocab_size <= 512


@settings(deadline=None, max_examples=50)
@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0▁")))
def test_every_text_can_be_tokenized_and_read_back(reference, text):
    assert reference.decode(reference.encode(text)) == text
