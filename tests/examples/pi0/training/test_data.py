"""The data of a run: several datasets, workers, what is read ahead, prompts, and its speed."""

import dataclasses
import io
import shutil
import time

import numpy as np
import pytest
from rich.console import Console

from examples.comparison.cups import write_demo_dataset
from examples.pi0.training import examples
from examples.pi0.training.data import RunData, wrong_prompts
from examples.pi0.training.loader_speed import measure_loader
from examples.pi0.training.plan import make_plan


@pytest.fixture(scope="module")
def data(make_config) -> RunData:
    return make_plan(make_config("data")).data


def test_several_datasets_are_drawn_by_their_weights(make_config, dataset, tmp_path):
    other = write_demo_dataset(
        tmp_path / "other", num_tasks=2, episodes_per_task=3, frames=8, video=False
    )
    roots = {"root": (str(dataset), str(other)), "weights": (1.0, 3.0)}
    mixed = make_plan(make_config("mixed", data=roots)).data
    # 3 x 2 and 2 x 2 episodes of 8 frames are trained on; a frame of the second counts as three.
    first, second = 3 * 2 * 8, 3 * 2 * 2 * 8
    assert len(mixed.train) == first + second
    ids = [
        batch["task_id"] for batch in mixed.train_batches(4, first=0, last=(first + second) // 4)
    ]
    counts = np.bincount(np.concatenate(ids))
    assert counts.tolist() == [16 + 48, 16 + 48, 16]


def test_a_run_that_goes_on_reads_the_same_with_any_number_of_workers(data):
    whole = list(data.train_batches(4, first=0, last=5))
    with_worker = dataclasses.replace(data, config=dataclasses.replace(data.config, num_workers=1))
    batches = with_worker.train_batches(4, first=3, last=5)
    for expected, found in zip(whole[3:], batches, strict=True):
        assert expected.keys() == found.keys()
        np.testing.assert_array_equal(expected["position"], found["position"])
        np.testing.assert_array_equal(expected["actions"], found["actions"])
        np.testing.assert_array_equal(expected["tokenized_prompt"], found["tokenized_prompt"])
    batches.close()


def test_only_a_few_batches_are_read_ahead(data, monkeypatch):
    read = []
    get = examples.Examples.__getitem__

    def counted(self, index):
        read.append(index)
        return get(self, index)

    monkeypatch.setattr(examples.Examples, "__getitem__", counted)
    batches = data.train_batches(4, first=0, last=1000)
    next(batches)
    before = -1
    while before < len(read):  # until nothing more is read
        before = len(read)
        time.sleep(0.3)
    batches.close()
    assert before <= 4 * 16


def test_wrong_prompts_are_those_of_other_tasks(data):
    (right,) = data.val_batches(6, 1)
    (wrong,) = data.val_batches(6, 1, data.wrong_prompts)
    np.testing.assert_array_equal(right["actions"], wrong["actions"])
    np.testing.assert_array_equal(right["task_id"], wrong["task_id"])
    same = (right["tokenized_prompt"] == wrong["tokenized_prompt"]).all(-1)
    assert not same.any()
    one_prompt = dataclasses.replace(data.config, prompt="do it")
    assert wrong_prompts(data.val, one_prompt) is None
    with_number = dataclasses.replace(data.config, task_prefix=True)
    assert wrong_prompts(data.val, with_number) is None


def test_tokens_can_be_read_as_text(data):
    (batch,) = data.val_batches(6, 1)
    tokenizer = data.transform.tokenizer
    text = tokenizer.decode(batch["tokenized_prompt"][0], batch["tokenized_prompt_mask"][0])
    assert text.startswith(f"Task: reach cup {batch['task_id'][0]}, State: ")
    assert text.endswith(";\nAction: ")


def test_the_speed_of_the_loader_is_measured_without_training(make_config, monkeypatch):
    plan = make_plan(make_config("speed", bench_loader=20))
    get = examples.Examples.__getitem__

    def slow(self, index):
        time.sleep(0.02)
        return get(self, index)

    monkeypatch.setattr(examples.Examples, "__getitem__", slow)
    console = Console(file=io.StringIO(), width=120)
    console.print(measure_loader(plan))
    text = console.file.getvalue()
    assert "20 batches of 4 frames" in text
    speed = float(text.splitlines()[-2].split("│")[4].replace(",", ""))
    assert 50 < speed <= 4 / 0.02 * 1.2  # four threads
    assert not plan.config.folder.exists()
    with pytest.raises(FileNotFoundError, match="--data.root"):
        measure_loader(dataclasses.replace(plan, data=None))


def test_a_run_without_a_complete_checkpoint_begins_anew_and_says_so(make_config, finished):
    config = make_config("incomplete", ema_decay=0.9)
    shutil.copytree(finished.folder, config.folder, ignore=shutil.ignore_patterns("[0-9]*"))
    file = config.folder / "train_config.json"
    file.write_text(file.read_text().replace('"finished"', '"incomplete"'))
    plan = make_plan(dataclasses.replace(config, resume=True))
    assert "The run has no complete checkpoint, so that it begins anew." in plan.notes
