"""combine_checkpoints: rows from their owners, shared weights by formula, nothing in silence."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest

from taskcond import TaskVocabulary
from taskcond.checkpoint import (
    Checkpoint,
    CheckpointError,
    Recipe,
    Rule,
    Specialist,
    TaskConditioning,
    combine_checkpoints,
    diff_checkpoints,
    load_params,
    save_params,
)
from taskcond.checkpoint.combining.lora import FoldedLora
from taskcond.checkpoint.combining.methods import magnitude_threshold
from taskcond.checkpoint.storage import leaf as leaf_module
from taskcond.checkpoint.storage.leaf import read_leaf
from taskcond.trees import flatten
from tests.support import FIXTURES, as_untyped_code

KERNEL, BIAS, TABLE = "dense/kernel", "norm/scale", "task_embeddings/embedding"
NAMES = TaskVocabulary(["pour", "wipe", "cut"])


def tree(seed: int | None = None, rows: int = 3) -> dict:
    """The base, or a fine-tune of it."""
    rng = np.random.default_rng(0)
    base = {
        "dense": {"kernel": rng.standard_normal((30, 20)).astype(np.float32)},
        "norm": {"scale": rng.standard_normal(20).astype(np.float32)},
        "task_embeddings": {"embedding": rng.standard_normal((rows, 4)).astype(np.float32)},
    }
    if seed is not None:
        rng = np.random.default_rng(seed)
        for module in base.values():
            for name, x in module.items():
                module[name] = x + 0.1 * rng.standard_normal(x.shape).astype(np.float32)
    return base


def about(frames=None, **changes) -> TaskConditioning:
    return TaskConditioning(3, 4, vocabulary=NAMES, frames_seen=frames, **changes)


@pytest.fixture
def saved(tmp_path):
    """Paths of a base and of two specialists, each trained on tasks of its own."""
    save_params(tree(), tmp_path / "base", conditioning=about((0, 0, 0)))
    save_params(tree(1), tmp_path / "a", conditioning=about((9, 0, 0)))
    save_params(tree(2), tmp_path / "b", conditioning=about((0, 7, 0)))
    return {name: str(tmp_path / name) for name in ("base", "a", "b")}


def recipe(saved, *, weights=(1.0, 1.0), **kwargs) -> Recipe:
    specialists = (Specialist(saved["a"], weights[0]), Specialist(saved["b"], weights[1]))
    return Recipe(specialists, base=saved["base"], **kwargs)


def combine(saved, tmp_path, **kwargs) -> dict[str, np.ndarray]:
    combine_checkpoints(recipe(saved, **kwargs), tmp_path / "out", overwrite=True)
    return flatten(load_params(tmp_path / "out"))


def parts(path: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A leaf of the base, and the differences of both specialists."""
    base, a, b = (flatten(tree(seed))[path] for seed in (None, 1, 2))
    return base, a - base, b - base


# Task rows.


def test_each_row_is_its_owners_exactly(saved, tmp_path):
    report = combine_checkpoints(recipe(saved), tmp_path / "out")
    assert report.owners == {"pour": saved["a"], "wipe": saved["b"], "cut": saved["base"]}
    table = flatten(load_params(tmp_path / "out"))[TABLE]
    for row, seed in enumerate((1, 2, None)):
        assert table[row].tobytes() == flatten(tree(seed))[TABLE][row].tobytes()
    conditioning = Checkpoint(tmp_path / "out").conditioning
    assert conditioning is not None
    assert conditioning.frames_seen == (9, 7, 0)
    assert conditioning.vocabulary == NAMES


def test_a_recipe_says_whose_tasks_are_whose(saved, tmp_path):
    specialists = (
        Specialist(saved["a"], tasks=("cut", 0)),
        Specialist(saved["b"], weight=0.0, tasks=("wipe",)),
    )
    combine_checkpoints(Recipe(specialists, vocabulary=("wipe", "cut")), tmp_path / "out")
    result = flatten(load_params(tmp_path / "out"))
    a, b = flatten(tree(1)), flatten(tree(2))
    np.testing.assert_array_equal(result[TABLE], np.stack([b[TABLE][1], a[TABLE][2]]))
    # A weight of zero gives rows and nothing else, to the bit.
    assert result[KERNEL].tobytes() == a[KERNEL].tobytes()


def test_two_owners_of_one_task_are_refused_by_name(saved, tmp_path):
    specialists = tuple(Specialist(saved[name], tasks=("pour", "wipe")) for name in "ab")
    with pytest.raises(CheckpointError, match=r"claim the same tasks: .*'pour'.*'wipe'"):
        combine_checkpoints(Recipe(specialists), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_tasks_without_owner_and_unknown_tasks_are_refused(saved, tmp_path):
    specialists = (Specialist(saved["a"]), Specialist(saved["b"]))
    with pytest.raises(CheckpointError, match=r"nobody claims \['cut'\]"):
        combine_checkpoints(Recipe(specialists), tmp_path / "out")
    unknown = Recipe((Specialist(saved["a"], tasks=("fly", 3)),))
    message = r"not in the table of their specialist: \['fly', 3\]"
    with pytest.raises(CheckpointError, match=message):
        combine_checkpoints(unknown, tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "message"),
    [({"scale": 2.0}, "scale: .*1.0.*2.0"), ({"fusion": "film"}, "fusion: .*'add'.*'film'")],
)
def test_tables_of_other_meaning_are_refused(saved, tmp_path, change, message):
    known = {"scale": 1.0, "fusion": "add"}
    save_params(tree(1), saved["a"], conditioning=about((9, 0, 0), **known), overwrite=True)
    save_params(
        tree(2), saved["b"], conditioning=about((0, 7, 0), **{**known, **change}), overwrite=True
    )
    with pytest.raises(CheckpointError, match=message):
        combine_checkpoints(recipe(saved), tmp_path / "out")


def test_tables_of_other_width_are_refused(saved, tmp_path):
    wide = tree(2)
    wide["task_embeddings"]["embedding"] = np.ones((3, 5), np.float32)
    conditioning = TaskConditioning(3, 5, vocabulary=NAMES)
    save_params(wide, saved["b"], conditioning=conditioning, overwrite=True)
    with pytest.raises(CheckpointError, match=r"width: .*4.*5"):
        combine_checkpoints(recipe(saved), tmp_path / "out")


# Shared weights, against each paper's formula in plain NumPy.


def close(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("path", [KERNEL, BIAS])
def test_mean(saved, tmp_path, path):
    base, a, b = parts(path)
    close(combine(saved, tmp_path, weights=(1.0, 3.0))[path], base + (a + 3 * b) / 4)


def test_the_mean_of_equal_weights_is_those_weights_to_the_bit(saved, tmp_path):
    save_params(tree(1), saved["b"], conditioning=about((0, 7, 0)), overwrite=True)
    result = combine(saved, tmp_path, weights=(0.3, 0.7))
    assert result[KERNEL].tobytes() == flatten(tree(1))[KERNEL].tobytes()


@pytest.mark.parametrize("path", [KERNEL, BIAS])
def test_task_arithmetic(saved, tmp_path, path):
    base, a, b = parts(path)
    result = combine(saved, tmp_path, method="task_arithmetic", weights=(1.0, -0.5), scale=0.4)
    close(result[path], base + 0.4 * (a - 0.5 * b))


def trimmed(x: np.ndarray, density: float) -> np.ndarray:
    count = max(1, round(density * x.size))
    return np.where(np.abs(x) >= np.sort(np.abs(x), axis=None)[-count], x, 0)


@pytest.mark.parametrize("density", [None, 0.5, 1.0])
@pytest.mark.parametrize("path", [KERNEL, BIAS])
def test_ties(saved, tmp_path, path, density):
    result = combine(saved, tmp_path, method="ties", density=density, scale=0.7)
    base, *changes = parts(path)
    a, b = (trimmed(x, density or 0.2) for x in changes)
    sign = np.sign(a + b)
    votes = [np.where(np.sign(x) == sign, x, 0) for x in (a, b)]
    count = sum((vote != 0).astype(int) for vote in votes)
    close(result[path], base + 0.7 * sum(votes) / np.maximum(count, 1))


def test_dare_drops_most_and_scales_the_rest(saved, tmp_path):
    result = combine(saved, tmp_path, method="dare", density=0.25, weights=(1.0, 0.0))
    base, a, _ = parts(KERNEL)
    change = result[KERNEL] - base
    kept = change != 0
    assert abs(kept.mean() - 0.25) < 0.06
    np.testing.assert_allclose(change[kept], 4 * a[kept], rtol=1e-3, atol=1e-5)
    same = combine(saved, tmp_path, method="dare", density=0.25, weights=(1.0, 0.0))
    other = combine(saved, tmp_path, method="dare", density=0.25, weights=(1.0, 0.0), seed=1)
    np.testing.assert_array_equal(same[KERNEL], result[KERNEL])
    assert not np.array_equal(other[KERNEL], result[KERNEL])


@pytest.mark.parametrize("method", ["mean", "task_arithmetic", "ties", "dare"])
def test_how_leaves_are_cut_does_not_matter(saved, tmp_path, monkeypatch, method):
    whole = combine(saved, tmp_path, method=method)
    monkeypatch.setattr(leaf_module, "PIECE_BYTES", 160)
    cut = combine(saved, tmp_path, method=method)
    for path, x in whole.items():
        assert cut[path].tobytes() == x.tobytes()


@pytest.mark.parametrize("method", ["mean", "task_arithmetic", "ties", "dare"])
@pytest.mark.parametrize("limit", [160, 1 << 22])
def test_how_inputs_are_stored_does_not_matter(
    saved, tmp_path, monkeypatch, write_chunked, method, limit
):
    wanted = combine(saved, tmp_path, method=method)
    hashes = json.loads((tmp_path / "out/recipe.json").read_text())["inputs"]
    monkeypatch.setattr(leaf_module, "PIECE_BYTES", limit)
    # As from one device, from several along either axis, and from a grid of them.
    for name, seed, chunk in (("base", None, (30, 20)), ("a", 1, (10, 20)), ("b", 2, (15, 5))):
        shutil.rmtree(saved[name])
        write_chunked(Path(saved[name]), flatten(tree(seed)), {KERNEL: chunk})
        frames = {"base": (0, 0, 0), "a": (9, 0, 0), "b": (0, 7, 0)}[name]
        about(frames).save(saved[name])
    result = combine(saved, tmp_path, method=method)
    for path, x in wanted.items():
        assert result[path].tobytes() == x.tobytes(), path
    if limit == 1 << 22:  # pieces are the same
        assert json.loads((tmp_path / "out/recipe.json").read_text())["inputs"] == hashes


def test_ties_trims_float64_by_its_own_differences(tmp_path):
    base = np.ones((2, 2))
    save_params({"w": base}, tmp_path / "base")
    save_params({"w": base + np.array([[4e-9, 3e-9], [2e-9, 1e-9]])}, tmp_path / "a")
    specialists = (Specialist(str(tmp_path / "a")),)
    ties = Recipe(specialists, base=str(tmp_path / "base"), method="ties", density=0.25)
    combine_checkpoints(ties, tmp_path / "out")
    change = load_params(tmp_path / "out")["w"] - base
    np.testing.assert_allclose(change, [[4e-9, 0], [0, 0]], atol=1e-15)


def test_what_is_not_floating_point_must_be_equal(tmp_path):
    for name, extra in (("a", 0), ("b", 1)):
        save_params({"w": np.array([1, 2 + extra * 1j], np.complex64)}, tmp_path / name)
    both = tuple(Specialist(str(tmp_path / name)) for name in "ab")
    threads = threading.active_count()
    with pytest.raises(CheckpointError, match=r"w differs, and is complex64"):
        combine_checkpoints(Recipe(both, check_base=False), tmp_path / "out")
    assert threading.active_count() == threads  # or Python could not exit
    combine_checkpoints(Recipe(both[:1]), tmp_path / "out")


def test_nan_is_reported(saved, tmp_path):
    broken = tree(1)
    broken["dense"]["kernel"][0, :2] = np.nan
    save_params(broken, saved["a"], conditioning=about((9, 0, 0)), overwrite=True)
    with pytest.warns(UserWarning, match="NaN or Inf"):
        report = combine_checkpoints(recipe(saved), tmp_path / "out")
    assert report.nonfinite == {saved["a"]: {KERNEL: 2}}


def test_rules_choose_a_method_by_path(saved, tmp_path):
    rules = (
        Rule("norm/.*", "task_arithmetic", (2.0, 0.0), 0.5),
        Rule(".*kernel", "mean", (0.0, 1.0)),
    )
    result = combine(saved, tmp_path, rules=rules)
    base, a, _ = parts(BIAS)
    close(result[BIAS], base + a)
    np.testing.assert_array_equal(result[KERNEL], flatten(tree(2))[KERNEL])


def test_thresholds_are_exact():
    values = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    for density in (0.001, 0.2, 0.5, 1.0):
        threshold = magnitude_threshold(lambda: [values[:300], values[300:]], density)
        assert (np.abs(values) >= threshold).sum() == round(1000 * density)


# Refusals.


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"weights": (1.0, -1.0)}, "sum to zero"),
        ({"weights": (0.0, 0.0)}, "sum to zero"),
        ({"weights": (float("nan"), 1.0)}, "weight is nan, but must be a finite number"),
        ({"method": "average"}, r"'average', not one of \['mean'"),
        ({"method": "ties", "density": 1.5}, "density"),
        ({"rules": (Rule("(", "mean"),)}, "not a regular expression"),
        ({"rules": (Rule(".*", "mean", (1.0,)),)}, "1 weights .*2 specialists"),
        ({"rules": (Rule(".*", "mean", ()),)}, "0 weights .*2 specialists"),
        ({"method": "ties", "weights": (1.0, -1.0)}, "negative"),
        ({"vocabulary": ("pour", "pour")}, "'pour'. twice"),
    ],
)
def test_recipes_that_cannot_be_followed_are_refused(saved, kwargs, message):
    with pytest.raises(CheckpointError, match=message):
        recipe(saved, **kwargs)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vocabulary": "abc"}, "vocabulary is 'abc', but must be a valid list"),
        ({"vocabulary": 5}, "vocabulary is 5, but must be a valid list"),
        ({"seed": 1.5, "check_base": "no"}, "seed is 1.5, .*check_base is 'no', "),
    ],
)
def test_values_of_another_type_are_refused(saved, change, message):
    with as_untyped_code(), pytest.raises(CheckpointError, match=message):
        recipe(saved, **change)


@pytest.mark.parametrize("alpha", [float("nan"), 0.0, -1.0, "foo"])
def test_a_lora_alpha_must_be_one(alpha):
    with pytest.raises(
        CheckpointError,
        match="lora_alpha is .*, but must be a (finite|valid) number|greater than 0 or 'rank'",
    ):
        Recipe((Specialist("x", lora_alpha=alpha),))


def test_rules_that_match_nothing_are_refused(saved, tmp_path):
    rules = (Rule("dnse/.*", "mean"), Rule("dense/.*", "mean"))
    with pytest.raises(CheckpointError, match=r"match no leaf: \['dnse/\.\*'\]"):
        combine_checkpoints(recipe(saved, rules=rules), tmp_path / "out")


def test_all_inputs_that_are_missing_are_named(saved, tmp_path):
    lost = Recipe((Specialist("x"), Specialist(saved["a"]), Specialist("y")))
    with pytest.raises(CheckpointError, match=r"(?s)/x does not exist.*/y does not exist"):
        combine_checkpoints(lost, tmp_path / "out")


def test_differences_need_a_base(saved):
    with pytest.raises(CheckpointError, match="base"):
        Recipe((Specialist(saved["a"]),), method="task_arithmetic")


def test_another_base_is_refused(saved, tmp_path):
    other = tree(2)
    other["dense"]["kernel"] = np.random.default_rng(5).standard_normal((30, 20))
    other["dense"]["kernel"] = other["dense"]["kernel"].astype(np.float32)
    save_params(other, saved["b"], conditioning=about((0, 7, 0)), overwrite=True)
    with pytest.raises(CheckpointError, match="not fine-tuned from the base"):
        combine_checkpoints(recipe(saved), tmp_path / "out")
    combine_checkpoints(recipe(saved, check_base=False), tmp_path / "out")


def test_another_model_is_refused(saved, tmp_path):
    other = tree(2)
    other["dense"]["kernel"] = other["dense"]["kernel"][:10]
    other["extra"] = {"bias": np.ones(3, np.float32)}
    save_params(other, saved["b"], conditioning=about((0, 7, 0)), overwrite=True)
    with pytest.raises(CheckpointError, match=r"(?s)not of one model.*kernel.*|.*extra/bias"):
        combine_checkpoints(recipe(saved), tmp_path / "out")


def test_other_normalization_statistics_are_refused(saved, tmp_path):
    for name, mean in (("a", 0.0), ("b", 1.0)):
        step = tmp_path / f"run_{name}"
        (step / "assets/owner/dataset").mkdir(parents=True)
        stats = json.dumps({"state": {"mean": [mean]}})
        (step / "assets/owner/dataset/norm_stats.json").write_text(stats)
        saved[name] = str(Path(saved[name]).rename(step / "params"))
    with pytest.raises(CheckpointError, match="other normalization statistics"):
        combine_checkpoints(recipe(saved), tmp_path / "out")
    combine_checkpoints(recipe(saved, check_norm_stats=False), tmp_path / "out")


def test_a_dry_run_writes_nothing(saved, tmp_path):
    report = combine_checkpoints(recipe(saved), tmp_path / "out", dry_run=True)
    assert report.owners["pour"] == saved["a"]
    assert not (tmp_path / "out").exists()


# Recipes in files.


def test_a_recipe_in_toml_and_its_record(saved, tmp_path):
    (tmp_path / "recipe.toml").write_text(
        'base = "base"\nmethod = "ties"\nscale = 1\n'
        '[[specialist]]\npath = "a"\nweight = 2\n[[specialist]]\npath = "b"\n'
        '[[rule]]\nmatch = "norm/.*"\nmethod = "mean"\nweights = [1, 0]\n'
    )
    combine_checkpoints(tmp_path / "recipe.toml", tmp_path / "first")
    record = json.loads((tmp_path / "first" / "recipe.json").read_text())
    assert set(record) == {"recipe", "versions", "inputs"}
    assert set(record["inputs"]) == set(saved.values())
    combine_checkpoints(tmp_path / "first" / "recipe.json", tmp_path / "again")
    assert diff_checkpoints(tmp_path / "first", tmp_path / "again").identical
    save_params(tree(3), saved["a"], conditioning=about((9, 0, 0)), overwrite=True)
    with pytest.raises(CheckpointError, match=r"have changed"):
        combine_checkpoints(tmp_path / "first" / "recipe.json", tmp_path / "third")
    assert not (tmp_path / "third").exists()


def test_a_record_holds_wherever_it_is_read(saved, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    combine_checkpoints(Recipe((Specialist("a"), Specialist("b")), base="base"), "out")
    monkeypatch.chdir("/")
    combine_checkpoints(tmp_path / "out/recipe.json", tmp_path / "again")
    assert diff_checkpoints(tmp_path / "out", tmp_path / "again").identical
    record = json.loads((tmp_path / "out/recipe.json").read_text())
    del record["inputs"][saved["b"]]
    (tmp_path / "cut.json").write_text(json.dumps(record))
    with pytest.raises(CheckpointError, match="not in the record"):
        combine_checkpoints(tmp_path / "cut.json", tmp_path / "third")


def test_typing_errors_in_a_recipe_are_all_named(tmp_path):
    (tmp_path / "recipe.toml").write_text('metod = "mean"\n[[specialist]]\npth = "a"\n')
    message = r"0\.path is missing; .*0\.pth is not a known.*metod is not"
    with pytest.raises(CheckpointError, match=message):
        combine_checkpoints(tmp_path / "recipe.toml", tmp_path / "out")


@pytest.mark.parametrize("text", ["[", "specialist = 3", 'colour = "red"', "[[specialist]]\n"])
def test_what_is_no_recipe_is_refused(tmp_path, text):
    (tmp_path / "recipe.toml").write_text(text)
    with pytest.raises(CheckpointError):
        combine_checkpoints(tmp_path / "recipe.toml", tmp_path / "out")


# LoRA.


def test_a_folded_lora_is_the_adapted_model(tmp_path):
    """Outputs of the plain model with folded weights, against the golden ones of the adapted."""
    jax = pytest.importorskip("jax")
    from flax import nnx

    from examples.pi0.model import Observation, Pi0, Pi0Config
    from taskcond import merge_into

    with np.load(FIXTURES / "golden/pi05_lora_f32.npz") as file:
        arrays = {key: file[key] for key in file}
    config = json.loads(str(arrays["config"]))
    alpha = config.pop("lora")["alpha"]
    del config["num_steps"]
    params = {k.removeprefix("params/"): x for k, x in arrays.items() if k.startswith("params/")}
    save_params(params, tmp_path / "lora")
    with pytest.raises(CheckpointError, match=r"LoRA fine-tune; give its lora_alpha"):
        combine_checkpoints(Recipe((Specialist(str(tmp_path / "lora")),)), tmp_path / "out")
    folded = Recipe((Specialist(str(tmp_path / "lora"), lora_alpha=alpha),))
    combine_checkpoints(folded, tmp_path / "out")
    model = Pi0(Pi0Config.from_dict({**config, "attention": "plain"}), rngs=nnx.Rngs(0))
    assert not merge_into(model, load_params(tmp_path / "out")).kept

    def given(prefix):
        return {k.removeprefix(prefix): x for k, x in arrays.items() if k.startswith(prefix)}

    observation = Observation(
        given("in/images/"),
        given("in/image_masks/"),
        *(arrays[f"in/{x}"] for x in ("state", "tokenized_prompt", "tokenized_prompt_mask")),
    )
    noise, actions, time = (arrays[f"in/{x}"] for x in ("noise", "actions", "time"))
    x_t = time[:, None, None] * noise + (1 - time[:, None, None]) * actions
    with jax.default_matmul_precision("highest"):
        velocity = nnx.jit(lambda m: m.velocity(observation, x_t, time))(model)
    wanted = arrays["out/velocity"]
    assert np.abs(velocity - wanted).max() <= 2e-5 * np.abs(wanted).max()


def test_half_a_lora_is_refused(tmp_path):
    params = {"attn": {"w": np.ones((4, 4)), "lora_a": np.ones((4, 2))}}
    save_params(params, tmp_path / "x")
    with pytest.raises(CheckpointError, match=r"other half: \['attn/lora_a'\]"):
        FoldedLora(Checkpoint(tmp_path / "x"))


def test_a_lora_that_does_not_fit_its_weight_is_refused(tmp_path):
    params = {"attn": {"w": np.ones((4, 4)), "lora_a": np.ones((4, 2)), "lora_b": np.ones((2, 5))}}
    save_params(params, tmp_path / "x")
    with pytest.raises(CheckpointError, match=r"do not fit .*attn/w.*\[2, 5\]"):
        FoldedLora(Checkpoint(tmp_path / "x"))


def test_a_folded_leaf_reads_in_pieces(tmp_path):
    rng = np.random.default_rng(0)
    w, a, b = (rng.standard_normal(s).astype(np.float32) for s in ((6, 5), (6, 2), (2, 5)))
    save_params({"mlp": {"linear": w, "linear_lora_a": a, "linear_lora_b": b}}, tmp_path / "x")
    folded = FoldedLora(Checkpoint(tmp_path / "x"))
    assert list(folded.leaves) == ["mlp/linear"]
    close(read_leaf(folded, "mlp/linear"), w + a @ b)
    close(folded.read("mlp/linear", (slice(2, 4), slice(1, 3))), (w + a @ b)[2:4, 1:3])
