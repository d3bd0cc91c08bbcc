"""`python -m taskcond`: what it prints, what it writes, and how it exits."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from taskcond import TaskVocabulary
from taskcond.checkpoint import Checkpoint, TaskConditioning, load_params, save_params
from taskcond.checkpoint.cli.main import main
from taskcond.trees import flatten
from tests.support import FIXTURES

DATA = FIXTURES
TINY = DATA / "checkpoints/pi05_tiny"
TASKS = DATA / "checkpoints/pi05_tasks_tiny"
TABLE = "task_embeddings/embedding"
WIDTH = 16  # of the tiny action expert


def run(capsys, *arguments) -> tuple[int, str, str]:
    code = main([str(a) for a in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture
def named(tmp_path) -> Path:
    """A checkpoint of three named tasks."""
    params = {
        "dense": {"kernel": np.ones((4, 4), np.float32)},
        "task_embeddings": {"embedding": np.arange(12, dtype=np.float32).reshape(3, 4)},
    }
    vocabulary = TaskVocabulary(["pour", "wipe", "cut"])
    conditioning = TaskConditioning(3, 4, 0.5, "add", vocabulary, (10, 0, 30))
    save_params(params, tmp_path / "named", conditioning=conditioning)
    return tmp_path / "named"


def identical(report: dict) -> bool:
    """Tells whether a report of `diff` has no difference."""
    return not any(report[x] for x in ("changed", "reshaped", "only_first", "only_second"))


def table(path: Path) -> np.ndarray:
    return flatten(load_params(path))[TABLE]


def test_the_module_runs():
    command = [sys.executable, "-m", "taskcond", "inspect", str(TASKS / "released"), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    report = json.loads(done.stdout)
    assert report["table"] == [TABLE, [7, WIDTH]]
    assert report["layout"] == "released"


@pytest.mark.parametrize("command", ["inspect", "diff", "merge", "tasks", "combine"])
def test_help_shows_an_example(capsys, command):
    with pytest.raises(SystemExit) as exit:
        main([command, "--help"])
    assert exit.value.code == 0
    assert f"Example: python -m taskcond {command} " in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("arguments", [[], ["fly"], ["merge", "a"], ["diff", "a", "b", "--no"]])
def test_wrong_usage_exits_with_2(arguments):
    with pytest.raises(SystemExit) as exit:
        main(arguments)
    assert exit.value.code == 2


def test_a_refusal_exits_with_1_and_says_why(capsys, tmp_path):
    code, out, err = run(capsys, "inspect", tmp_path / "nothing", "--json")
    assert code == 1
    assert "nothing does not exist" in err
    assert "does not exist" in json.loads(out)["error"]


def test_inspect_names_tasks_and_their_norms(capsys, named):
    code, out, _ = run(capsys, "inspect", named)
    assert code == 0
    for text in ("pour", "wipe", "cut", "28 in 2 leaves", "NaN/Inf"):
        assert text in out
    _, out, _ = run(capsys, "inspect", named, "--quick")
    assert "NaN/Inf" not in out


def test_inspect_finds_nan(capsys, tmp_path):
    save_params({"w": np.array([1.0, np.nan, np.inf])}, tmp_path / "x")
    code, out, _ = run(capsys, "inspect", tmp_path / "x", "--json")
    assert code == 0
    assert json.loads(out)["nonfinite"] == {"w": 2}


def test_diff(capsys, tmp_path):
    _, out, _ = run(capsys, "diff", TINY / "released", TINY / "trained", "--json")
    assert identical(json.loads(out))
    _, out, _ = run(capsys, "diff", TINY / "released", TASKS / "released", "--json")
    assert json.loads(out)["only_second"] == [TABLE]


def test_merge_adds_a_table_and_keeps_the_rest(capsys, tmp_path):
    out_path = tmp_path / "params"
    arguments = (
        "merge", TINY / "released", out_path, "--num-tasks", 50, "--features", WIDTH,
        "--scale", 2.0, "--fusion", "add",
    )  # fmt: skip
    code, out, _ = run(capsys, *arguments, "--dry-run")
    assert code == 0
    assert TABLE in out
    assert not out_path.exists()
    assert run(capsys, *arguments)[0] == 0
    assert 0.5 / WIDTH**0.5 < table(out_path).std() < 2 / WIDTH**0.5
    conditioning = Checkpoint(out_path).conditioning
    assert conditioning is not None
    assert (conditioning.num_tasks, conditioning.scale, conditioning.fusion) == (50, 2.0, "add")
    _, out, _ = run(capsys, "diff", TINY / "released", out_path, "--json")
    report = json.loads(out)
    assert report["only_second"] == [TABLE]
    assert not report["changed"]
    code, _, err = run(capsys, *arguments)
    assert code == 1
    assert "--overwrite" in err
    assert run(capsys, *arguments, "--overwrite", "--new-rows", "zeros")[0] == 0
    assert not table(out_path).any()


def test_merge_into_the_shapes_of_a_file(capsys, tmp_path):
    shapes = {
        path: {"shape": leaf.shape, "dtype": "bfloat16"}
        for path, leaf in Checkpoint(TINY / "released").leaves.items()
    }
    (tmp_path / "model.json").write_text(json.dumps(shapes))
    arguments = ("merge", TINY / "released", tmp_path / "x", "--target", tmp_path / "model.json")
    assert run(capsys, *arguments)[0] == 0
    assert {leaf.dtype.name for leaf in Checkpoint(tmp_path / "x").leaves.values()} == {"bfloat16"}
    del shapes["action_in_proj/bias"]
    (tmp_path / "model.json").write_text(json.dumps(shapes))
    code, _, err = run(capsys, *arguments, "--overwrite")
    assert code == 1
    assert "action_in_proj/bias" in err
    assert run(capsys, *arguments, "--overwrite", "--drop", "action_in_proj/bias")[0] == 0


def test_tasks_are_added_removed_and_reordered(capsys, named, tmp_path):
    code, out, _ = run(
        capsys, "tasks", named, tmp_path / "x", "--add", "peel=cut", "--add", "fold",
        "--add", "stir=mean", "--remove", "wipe",
    )  # fmt: skip
    assert code == 0
    assert TABLE in out
    old = table(named)
    np.testing.assert_array_equal(
        table(tmp_path / "x"), [old[0], old[2], old[2], np.zeros(4), old.mean(0)]
    )
    conditioning = Checkpoint(tmp_path / "x").conditioning
    assert conditioning is not None
    assert list(conditioning.vocabulary or ()) == ["pour", "cut", "peel", "fold", "stir"]
    assert conditioning.frames_seen == (10, 30, 0, 0, 0)
    TaskVocabulary(["cut", "pour"]).save(tmp_path / "tasks.json")
    arguments = ("tasks", named, tmp_path / "y", "--vocabulary", tmp_path / "tasks.json")
    assert run(capsys, *arguments)[0] == 0
    np.testing.assert_array_equal(table(tmp_path / "y"), old[[2, 0]])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--remove", "fly"), r"no tasks ['fly'] to remove"),
        (("--add", "cut"), "['cut'] are there already"),
        (("--add", "fold=fly"), "cannot start from 'fly'"),
        ((), "no names to go by"),
    ],
)
def test_impossible_changes_of_tasks_are_refused(capsys, named, tmp_path, options, message):
    code, _, err = run(capsys, "tasks", named, tmp_path / "x", *options)
    assert code == 1
    assert message in err
    assert not (tmp_path / "x").exists()


def test_combine(capsys, named, tmp_path):
    (tmp_path / "recipe.toml").write_text('[[specialist]]\npath = "named"\ntasks = ["cut"]\n')
    code, _, err = run(capsys, "combine", tmp_path / "recipe.toml", tmp_path / "x", "--json")
    assert code == 0, err
    assert (tmp_path / "x" / "recipe.json").exists()
    np.testing.assert_array_equal(table(tmp_path / "x"), table(named))


def test_safetensors_and_back(capsys, tmp_path):
    first, second = tmp_path / "torch", tmp_path / "params"
    arguments = ("merge", TASKS / "released", first, "--format", "safetensors")
    assert run(capsys, *arguments)[0] == 0
    assert run(capsys, "merge", first, second)[0] == 0
    _, out, _ = run(capsys, "diff", TASKS / "released", second, "--json")
    assert identical(json.loads(out))


def test_a_merge_that_does_not_fit_says_so_in_flags(capsys, tmp_path):
    code, _, err = run(
        capsys, "merge", TASKS / "released", tmp_path / "x", "--target", TINY / "released"
    )
    assert code == 1
    assert "to accept this: --drop 'task_embeddings/embedding'" in err
    assert "keep=" not in err


def test_leaves_are_dropped_and_renamed_without_a_target(capsys, named, tmp_path):
    options = ("--drop", "dense/.*", "--rename", r"task_embeddings/(.*)=cond/\1")
    code, out, _ = run(capsys, "merge", named, tmp_path / "x", *options)
    assert code == 0
    assert "dropped  dense/kernel" in out
    found = Checkpoint(tmp_path / "x")
    assert list(found.leaves) == [found.table] == ["cond/embedding"]
    assert found.conditioning is not None
    assert found.conditioning.vocabulary == TaskVocabulary(["pour", "wipe", "cut"])
    rows = flatten(load_params(tmp_path / "x"))["cond/embedding"]
    np.testing.assert_array_equal(rows, table(named))


def test_an_interrupt_is_no_traceback(capsys, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("taskcond.checkpoint.cli.commands.inspect_checkpoint", interrupted)
    code, out, err = run(capsys, "inspect", TINY / "released", "--json")
    assert code == 130
    assert err.strip() == "taskcond: interrupted; nothing was written"
    assert "error" in json.loads(out)


def test_termination_cleans_up(capsys, monkeypatch, named, tmp_path):
    before = signal.getsignal(signal.SIGTERM)

    def terminate(*_):
        assert [path.name for path in tmp_path.glob(".x.*.partial")]  # it is being written
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr("taskcond.checkpoint.cli.commands.ByteProgress.__call__", terminate)
    code, out, err = run(capsys, "merge", named, tmp_path / "x", "--json")
    assert code == 143
    assert err.strip() == "taskcond: terminated; nothing was written"
    assert "error" in json.loads(out)
    assert [path.name for path in tmp_path.iterdir()] == ["named"]
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize("name", ["task_conditioning.json", "tree.json"])
def test_absurd_json_is_refused_in_one_line(capsys, tmp_path, named, name):
    (named / name).write_text("[" * 100_000)
    options = () if name == "task_conditioning.json" else ("--target", named / name)
    code, out, err = run(capsys, "merge", named, tmp_path / "x", *options, "--json")
    assert code == 1
    assert name in json.loads(out)["error"]
    assert "Traceback" not in err


def test_who_stops_reading_is_no_error(named):
    command = f"{sys.executable} -m taskcond inspect {named} | true"
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert "Error" not in done.stderr


def test_odd_letters_of_a_name_are_escaped(tmp_path):
    params = {"task_embeddings": {"embedding": np.ones((1, 4), np.float32)}}
    about = TaskConditioning(1, 4, vocabulary=TaskVocabulary(["größer"]))
    save_params(params, tmp_path / "x", conditioning=about)
    command = [sys.executable, "-m", "taskcond", "inspect", tmp_path / "x"]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert r"gr\xf6\xdfer" in done.stdout


def test_convert_changes_the_format_and_nothing_else(named, tmp_path, capsys):
    one, two = tmp_path / "one", tmp_path / "two"
    assert run(capsys, "convert", named, one, "--format", "safetensors", "--dry-run")[0] == 0
    assert not one.exists()
    assert run(capsys, "convert", named, one, "--format", "safetensors")[0] == 0
    assert (one / "model.safetensors").exists()
    assert run(capsys, "convert", one, two, "--format", "orbax")[0] == 0
    for path in (one, two):
        assert identical(json.loads(run(capsys, "diff", named, path, "--json")[1]))
        assert Checkpoint(path).conditioning == Checkpoint(named).conditioning
    file = tmp_path / "one.safetensors"
    assert run(capsys, "convert", named, file, "--format", "safetensors")[0] == 0
    assert file.is_file()
    assert identical(json.loads(run(capsys, "diff", named, file, "--json")[1]))
    assert Checkpoint(file).conditioning == Checkpoint(named).conditioning
    code, _, error = run(capsys, "convert", named, one, "--format", "safetensors")
    assert (code, "--overwrite" in error) == (1, True)
