"""The code of README and docs runs as it stands, page by page; commands parse; paths exist."""

import ast
import importlib
import re
import shlex
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tyro
from flax import nnx

import taskcond
from taskcond import TaskConditioner, TaskVocabulary
from taskcond.checkpoint import TaskConditioning, save_params
from taskcond.checkpoint.cli.commands import Command
from taskcond.checkpoint.cli.main import main as taskcond_main
from taskcond.trees import to_dict
from tests.support import FIXTURES, write_tasks
from tests.support.pages import ROOT, blocks, run

PAGES = [
    "README.md",
    *sorted(
        str(path.relative_to(ROOT))
        for path in (ROOT / "docs").rglob("*.md")
        if "_build" not in path.parts
    ),
]


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_every_page_with_python_has_its_test():
    here = (ROOT / "tests/integrations/test_pages.py").read_text()
    here += (ROOT / "tests/examples/pi0/training/test_task_stages.py").read_text()
    with_code = {page for page in PAGES if blocks(page, "python")}
    untested = [page for page in with_code if f'"{page}"' not in here]
    assert not untested


def test_readme():
    names = run("README.md")
    assert names["task_id"].tolist() == [1, 0, -1]
    np.testing.assert_array_equal(names["time_emb"][2], 1.0)
    assert not np.array_equal(names["time_emb"][0], names["time_emb"][2])


def test_index():
    class Model(SimpleNamespace):
        pass

    names = run(
        "docs/index.md",
        self=Model(),
        taskcond=taskcond,
        num_tasks=3,
        rngs=nnx.Rngs(0),
        time_emb=jnp.ones((2, 1024)),
        observation=SimpleNamespace(task_id=np.array([2, -1])),
    )
    assert names["time_emb"].shape == (2, 1024)


def test_getting_started(capsys):
    run("docs/start.md")
    (expected,) = blocks("docs/start.md", "text")
    assert capsys.readouterr().out.splitlines()[-3:] == expected.splitlines()


def test_linen(capsys):
    names = run("docs/howto/linen.md")
    assert capsys.readouterr().out.startswith("(50, 32)\nloaded")
    model, inputs = names["model"], names["inputs"]
    base = names["ScoreNetwork"]().apply({"params": names["released"]}, *inputs)
    told = model.apply({"params": names["merged"]}, *inputs, jnp.array([3, -1]))
    np.testing.assert_array_equal(told[:, 1], base[:, 1])
    assert not np.array_equal(told[:, 0], base[:, 0])
    grads = jax.grad(lambda p: model.apply({"params": p}, *inputs, jnp.array([3, -1])).sum())
    table = grads(names["merged"])["task_embeddings"]["embedding"]
    assert np.flatnonzero(np.abs(table).sum(1)).tolist() == [3]


def test_nnx(tmp_path):
    names = run("docs/howto/nnx.md")
    assert names["batch"]["task_id"].tolist() == [1, 0]
    model = names["Policy"](3, nnx.Rngs(5))
    taskcond.checkpoint.load_into(model, tmp_path / "policy")
    trained, old = (nnx.state(m, nnx.Param) for m in (names["model"], model))
    jax.tree.map(np.testing.assert_array_equal, trained, old)


def test_functional(capsys):
    run("docs/howto/functional.md")
    printed = capsys.readouterr().out
    assert printed.startswith("(2, 2)\nloaded  2 leaves\n")
    assert printed.endswith("[2]\n")


def test_film(capsys):
    run("docs/howto/film.md")
    assert capsys.readouterr().out == "True\n"


def test_condition():
    class Model(nnx.Module):
        def __init__(self):
            self.task_embeddings = TaskConditioner(5, 8, rngs=nnx.Rngs(0))
            self.out = nnx.Linear(8, 2, rngs=nnx.Rngs(1))

    model = Model()

    def step(params, task_id):
        return taskcond.functional.embed(params, task_id)

    import optax
    from jax.experimental import checkify

    with pytest.raises(checkify.JaxRuntimeError, match="out-of-bounds"):
        run(
            "docs/howto/condition.md",
            self=SimpleNamespace(),
            taskcond=taskcond,
            num_tasks=5,
            width=8,
            rngs=nnx.Rngs(0),
            time_emb=jnp.ones((2, 8)),
            task_id=np.array([1, 2]),
            nnx=nnx,
            model=model,
            optax=optax,
            checkify=checkify,
            jax=jax,
            step=step,
            params=jnp.ones((5, 8)),
            batch=jnp.array([7]),
        )


def test_methods():
    names = run("docs/howto/methods.md")
    assert names["tokens"].shape == (2, 14, 64)
    np.testing.assert_array_equal(names["y"], names["layer"](names["x"]))
    assert names["frame"]["prompt"] == "[07] wipe the table"
    assert names["stage_conditioner"].embedding.shape == (3, 15, names["width"])
    np.testing.assert_array_equal(names["time_emb"], 1)
    assert names["row"].shape == (1, 128)


def test_load_weights():
    old, new = TaskVocabulary(["pick up the radio", "pour"]), TaskVocabulary(["pour", "wipe"])

    class Model(nnx.Module):
        def __init__(self, num_tasks):
            self.task_embeddings = TaskConditioner(num_tasks, 4, rngs=nnx.Rngs(0))

    target = to_dict(nnx.state(Model(2), nnx.Param))
    model = Model(2)
    about = TaskConditioning.of(model, vocabulary=old)
    save_params(target, "released/params", conditioning=about)
    run(
        "docs/howto/load-weights.md",
        taskcond=taskcond,
        model=model,
        target=target,
        old_vocabulary=old,
        new_vocabulary=new,
    )
    table = target["task_embeddings"]["embedding"]
    expected = np.stack([table[1], table.mean(0)])
    np.testing.assert_allclose(model.task_embeddings.embedding[...], expected, rtol=1e-6)


def test_ids(tmp_path):
    for name, rows in {"dataset": [(2, "pour"), (5, "wipe")], "other": [(0, "cut")]}.items():
        root = tmp_path / "path/to" / name
        root.mkdir(parents=True)
        write_tasks(root, rows)
    (tmp_path / "checkpoint").mkdir()
    names = run(
        "docs/howto/ids.md", TaskVocabulary=TaskVocabulary, ExtractTaskID=taskcond.ExtractTaskID
    )
    assert names["vocabulary"].names == ("pour", "wipe", "cut")
    assert names["transform"]({"task_index": 0})["task_id"] == 2


def test_data(capsys):
    pytest.importorskip("grain")
    run("docs/howto/data.md")
    assert capsys.readouterr().out == "1\n(2,) int32\n0\n{'pour': 0.37, 'wipe': 0.63}\n"


def test_lerobot(tmp_path):
    pytest.importorskip("av")
    from examples.lerobot.write import Recording, write_dataset
    from tests.support.lerobot import add_columns

    rng = np.random.default_rng(0)
    episode = Recording(rng.normal(size=(100, 3)), rng.normal(size=(100, 2)), "pour")
    root = write_dataset(tmp_path / "path/to/dataset", [episode, episode])
    names = ("next.reward", "observation.effort")
    add_columns(root, **{name: lambda table: np.ones(len(table)) for name in names})
    names = run("docs/howto/lerobot.md")
    assert names["batch"]["actions"].shape == (64, 16, 2)
    assert len(set(names["train"].task_frames.values())) == 1


def test_openpi(tmp_path):
    """Runs what surrounds the change, with stand-ins; test_openpi.py applies the change itself."""
    folder = tmp_path / "checkpoints/pi05_libero_tasks/run/29999/params"
    sent = []
    table = {"task_embeddings": {"embedding": np.zeros((50, 1024), np.float32)}}
    save_params(table, folder)
    run(
        "docs/howto/openpi.md",
        TrainConfig=SimpleNamespace,
        pi0_config=SimpleNamespace(Pi0Config=SimpleNamespace),
        LeRobotLiberoDataConfig=SimpleNamespace,
        DataConfig=SimpleNamespace,
        weight_loaders=SimpleNamespace(CheckpointWeightLoader=str),
        nnx=nnx,
        taskcond=taskcond,
        vocabulary=TaskVocabulary(map(str, range(50))),
        client=SimpleNamespace(infer=sent.append),
        observation={"observation/state": np.zeros(8)},
    )
    about = taskcond.checkpoint.open_checkpoint(folder).conditioning
    assert (about.num_tasks, about.fusion, about.vocabulary[7]) == (50, "add", "7")
    assert sent[0]["task_id"] == 7


def test_add_tasks(capsys):
    names = run("docs/howto/add-tasks.md")
    assert capsys.readouterr().out == "(3, 8) 2\n"
    old, new = names["old"], names["params"]["task_embeddings"]["embedding"]
    before = taskcond.functional.init_table(jax.random.key(0), len(old), 8)
    np.testing.assert_array_equal(new[:2], before)
    np.testing.assert_allclose(names["state"][0].mu["out"], 0.9 * 0.1 + 0.1, rtol=1e-6)


def test_diagnose(capsys):
    names = run("docs/howto/diagnose.md")
    assert capsys.readouterr().out.startswith("No fault was found")
    assert names["confusion"].accuracy == 1
    assert names["confusion"].names == names["names"]


def test_serve(capsys):
    names = run("docs/howto/serve.md")
    assert "did you mean 'wipe'" in capsys.readouterr().out
    assert names["action"].shape == (7,)
    server = names["server"]
    assert not np.array_equal(server.act(np.ones(7, np.float32), None), names["action"])


def test_files(tmp_path):
    class Model(nnx.Module):
        def __init__(self):
            self.out = nnx.Linear(2, 3, rngs=nnx.Rngs(0))

    save_params(nnx.state(Model(), nnx.Param), tmp_path / "runs/pi05/1000")
    replicated = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    run("docs/reference/files.md", model=Model(), replicated=replicated, nnx=nnx, taskcond=taskcond)


def test_pi0(tmp_path, monkeypatch):
    pytest.importorskip("sentencepiece")
    from examples.pi0 import model
    from tests.support.tiny_pi0 import observe, tiny

    monkeypatch.setattr(model, "Pi0Config", lambda **fields: tiny(**fields))
    base = model.Pi0(tiny(), rngs=nnx.Rngs(1))
    save_params(nnx.state(base, nnx.Param), tmp_path / "pi05_base/params")
    names = run(
        "docs/reference/pi0.md",
        rng=jax.random.key(0),
        observation=observe(tiny(), (1,), task_id=np.array([7])),
        np=np,
    )
    assert names["actions"].shape == (1, 4, 5)


def test_the_transcript_of_the_commands_is_true(tmp_path, capsys):
    """Runs the page's commands in one folder, and compares all that they print."""
    import shutil

    shutil.copytree(FIXTURES / "checkpoints", tmp_path / "checkpoints")
    (text,) = blocks("docs/reference/commands.md", "console")
    for part in text.replace("\\\n", "").split("$ ")[1:]:
        line, expected = part.split("\n", 1)
        program, *arguments = shlex.split(line)
        if program == "cat":
            Path(arguments[0]).write_text(expected.rstrip() + "\n")
            continue
        taskcond_main(arguments[2:])
        captured = capsys.readouterr()
        printed = (captured.out + captured.err).replace(str(tmp_path), "/data")
        lines = [line.rstrip() for line in printed.splitlines() if not line.startswith("\r")]
        assert "\n".join(lines).strip() == expected.strip(), line


COMMANDS = [
    (page, line.split("python -m ")[1].split("   #")[0])
    for page in PAGES
    for text in blocks(page, "sh")
    for line in text.replace("\\\n", "").splitlines()
    if "python -m " in line
]


@pytest.mark.parametrize(("page", "line"), COMMANDS)
def test_commands_have_no_flag_that_does_not_exist(page, line):
    pytest.importorskip("tensorboardX")
    module, *arguments = shlex.split(line)
    if module == "taskcond":
        tyro.cli(Command, args=arguments, config=(tyro.conf.FlagCreatePairsOff,))
    elif module == "examples.pi0.train":
        importlib.import_module(module).parse(arguments)
    else:
        tyro.cli(importlib.import_module(module).Args, args=arguments)


def strings(path: Path) -> list[str]:
    """Returns the texts of a source file, with a break where a value is put in."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.JoinedStr):
            parts = [part.value if isinstance(part, ast.Constant) else "\0" for part in node.values]
            found.append("".join(map(str, parts)))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.append(node.value)
    return found


def test_the_error_messages_of_the_reference_exist():
    page = (ROOT / "docs/reference/errors.md").read_text()
    sources = [path for folder in ("src", "examples") for path in (ROOT / folder).rglob("*.py")]
    text = "\n".join(text for path in sources for text in strings(path))
    cells = re.findall(r"^\| `([^`]+)`", page, re.MULTILINE)
    assert len(cells) > 15
    missing = []
    for cell in cells:
        parts = re.split(r"'[^']*'|-?\d[\d.]*|\.\.\.|\(.*?\)|[:;]", cell)
        missing += [
            part.strip() for part in parts if len(part.strip()) > 7 and part.strip() not in text
        ]
    assert not missing


def test_files_that_pages_name_exist():
    named = {
        (page, name)
        for page in [*PAGES, "CONTRIBUTING.md"]
        for name in re.findall(
            r"`((?:tests|examples|src|benchmarks|docs)/[\w./-]+)`", (ROOT / page).read_text()
        )
    }
    built = "docs/_build/"
    missing = [
        pair for pair in sorted(named) if not (ROOT / pair[1]).exists() and built not in pair[1]
    ]
    assert not missing
    assert len(named) > 50


def test_no_page_has_a_place_that_was_not_filled():
    left = [
        (page, text)
        for page in PAGES
        for text in re.findall(
            r"TODO|TBD|XXX|\b[A-Z]{4,}TABLE\b|\| [A-Z]{2}\d \|", (ROOT / page).read_text()
        )
    ]
    assert not left


def test_links_between_pages_lead_somewhere():
    missing = []
    for page in [*PAGES, "CONTRIBUTING.md"]:
        for target in re.findall(r"\]\(([^)\s]+)\)", (ROOT / page).read_text()):
            path = target.split("#")[0]
            if path and "://" not in path and not (ROOT / page).parent.joinpath(path).exists():
                missing.append((page, target))
    assert not missing
