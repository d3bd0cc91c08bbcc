"""The command line: the guide's commands, and what is said of wrong ones."""

import io

import pytest
from rich.console import Console

from examples.pi0 import train as command
from examples.pi0.training.plan import make_plan, show_plan

STAGE_1 = (
    "pi05_b1k_22_TASKS_oversample --exp_name=foundation_22tasks_with_task_emb --overwrite "
    "--batch_size=256 --model.num_tasks=50 --model.task_embedding_scale=1.0 "
    "--weight_loader.params_path=gs://openpi-assets/checkpoints/pi05_base/params "
    "--num_train_steps=100000 --val_log_interval=3000"
)
STAGE_2 = (
    "pi05_b1k_single_task --exp_name=finetune_task_01 --overwrite --batch_size=128 "
    "--model.num_tasks=50 --model.task_embedding_scale=1.0 "
    "--weight_loader.params_path=/path/to/stage1/checkpoint --optimizer.learning_rate=5e-6 "
    "--num_train_steps=10000 --val_log_interval=1000"
)


def shown(plan):
    console = Console(width=200, file=io.StringIO())
    console.print(show_plan(plan))
    return console.file.getvalue()


@pytest.mark.parametrize(("line", "batch", "rate"), [(STAGE_1, 256, 5e-5), (STAGE_2, 128, 5e-6)])
def test_the_guides_commands_work_word_for_word(line, batch, rate, tmp_path):
    arguments = [*line.split(), "--dry_run", f"--runs_dir={tmp_path}"]
    config = command.parse(arguments)
    assert config.batch_size == batch
    assert config.optimizer.learning_rate == rate
    assert config.model.num_tasks == 50
    assert config.model.task_embedding_scale == 1.0
    assert config.overwrite
    plan = make_plan(config)
    text = shown(plan)
    assert plan.vocabulary.names[0] == "turning_on_radio"
    assert len(plan.vocabulary) == 50
    assert "The weights at" in text
    assert "A dataset (--data.root) is not there" in text
    assert "51,200" in text  # the table, 50 x 1024
    assert "about 14.74 GiB, of which 8.03 are parameters" in text
    assert not list(tmp_path.iterdir())


def test_a_preset_that_does_not_exist_is_answered_with_the_nearest():
    with pytest.raises(ValueError, match="Did you mean pi05_lerobot"):
        command.parse(["pi05_lerobt"])


def test_a_flag_that_does_not_exist_is_refused(capsys):
    with pytest.raises(SystemExit):
        command.parse(["debug", "--batch_sze=3"])
    assert "batch_size" in "".join(capsys.readouterr())


def test_errors_are_one_clear_line_and_an_exit_code(capsys, tmp_path):
    code = command.main(["pi05_lerobot", f"--runs_dir={tmp_path}"])
    assert code == 1
    assert "ValueError" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_without_arguments_the_presets_are_listed():
    with pytest.raises(SystemExit, match="pi05_b1k_single_task"):
        command.parse([])
