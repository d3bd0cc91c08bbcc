"""diagnose: each way of spoiling a policy has its finding, and a healthy one has none."""

import dataclasses
import html
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from taskcond import NULL_TASK, functional
from taskcond.diagnostics import (
    PolicyFunctions,
    diagnose,
    table_change,
    table_gradient,
    table_report,
    thresholds,
)
from tests.support import as_untyped_code

NAMES = ("pour", "wipe", "fold", "stack")
GOALS = np.array([[2.0, 0], [-2, 0], [0, 2], [0, -2]], np.float32)
WIDTH = 8
PATH = "task_embeddings/embedding"


def make_batch(seed=0):
    """Actions go from where the robot is to the goal of the task, with some noise."""
    rng = np.random.default_rng(seed)
    task_id = np.arange(256, dtype=np.int32) % 4
    state = rng.normal(size=(256, 2)).astype(np.float32)
    noise = rng.normal(0, 0.5, (256, 2)).astype(np.float32)
    return {
        "task_id": task_id,
        "episode_index": np.arange(256) // 4,
        "state": state,
        "actions": GOALS[task_id] - state + noise,
    }


def start():
    """Parameters before training."""
    keys = jax.random.split(jax.random.key(1), 3)
    return {
        PATH: jax.random.normal(keys[0], (4, WIDTH)) / WIDTH**0.5,
        "task": jax.random.normal(keys[1], (WIDTH, 2)) / WIDTH**0.5,
        "state": jax.random.normal(keys[2], (2, 2)),
    }


def act(params, key, batch, task_id):
    """Returns actions: linear in the state and in the conditioned embedding of a random time."""
    angles = jax.random.uniform(key, (len(task_id), 1)) * jnp.arange(1, WIDTH // 2 + 1)
    time_emb = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=1)
    told = functional.condition(params[PATH], time_emb, task_id)
    return told @ params["task"] + batch["state"] @ params["state"]


def loss(params, key, batch, task_id):
    return jnp.square(act(params, key, batch, task_id) - batch["actions"]).mean(-1)


def train(batch, params, frozen=()):
    def step(i, params):
        key = jax.random.fold_in(jax.random.key(2), i)
        grads = jax.grad(lambda p: loss(p, key, batch, batch["task_id"]).mean())(params)
        rates = {name: 0.0 if name in frozen else 0.1 for name in params}
        return {name: params[name] - rates[name] * grads[name] for name in params}

    return jax.jit(lambda params: jax.lax.fori_loop(0, 1000, step, params))(params)


@pytest.fixture(scope="module")
def trained():
    return train(make_batch(), start())


def functions(params, **changes):
    """Returns the functions of a policy, all of them."""
    table = changes.pop("table", None)

    def prompted(key, batch, prompt):
        return act(params, key, batch, np.full(256, NAMES.index(prompt), np.int32))

    policy = PolicyFunctions(
        NAMES,
        loss=lambda *args: loss(params, *args),
        actions=lambda *args: act(params, *args),
        prompted=prompted,
        observe=lambda batch: batch["state"],
        table=table or table_report(params[PATH], names=NAMES, initial=0 * params[PATH]),
        learning=table_change(start(), params),
    )
    return dataclasses.replace(policy, **changes)


def examine(params, **changes):
    return diagnose(functions(params, **changes), [make_batch(3)])


def kinds(diagnosis):
    return sorted({finding.kind for finding in diagnosis.findings})


def test_a_healthy_policy_passes_with_the_margin(trained):
    diagnosis = examine(trained)
    assert diagnosis.is_healthy, str(diagnosis)
    assert str(diagnosis).startswith("No fault was found: the policy is healthy in all that was m")
    told = next(passed for passed in diagnosis.passed if passed.kind == "id ignored")
    effect = diagnosis.measurements.confusion.effect
    assert (told.measured, told.threshold) == (effect, thresholds.MIN_LOSS_EFFECT)
    assert f"That is {effect / 0.01:.0f} times the least that counts, 0.01." in told.sentence
    assert {passed.kind for passed in diagnosis.passed} == {
        "id ignored",
        "id harms",
        "prompt ignored",
        "tasks not told apart",
        "scale too small",
        "scale too large",
        "row untrained",
        "table does not learn",
        "observation tells the task",
    }


def test_an_ignored_id_is_found():
    batch = make_batch()
    null = np.full(256, NULL_TASK, np.int32)
    params = train({**batch, "task_id": null}, {**start(), PATH: jnp.zeros((4, WIDTH))})
    diagnosis = examine(params, learning=None, prompted=None, table=table_report(np.eye(4)))
    assert kinds(diagnosis) == ["id ignored"]
    assert [finding.measured for finding in diagnosis.findings] == [0, 0]
    assert diagnosis.measurements.confusion.accuracy == diagnosis.measurements.confusion.chance
    assert "A wrong id changes the loss by +0%" in str(diagnosis)


def test_an_id_that_is_always_right_and_changes_next_to_nothing_is_ignored():
    def barely(key, batch, task_id):
        return 1.0 + 5e-4 * (task_id != batch["task_id"])

    diagnosis = diagnose(PolicyFunctions(NAMES, barely), [make_batch()])
    assert diagnosis.measurements.confusion.accuracy == 1
    assert kinds(diagnosis) == ["id ignored"]
    assert diagnosis.findings[0].measured == pytest.approx(5e-4, rel=1e-3)


def test_ids_that_make_a_policy_worse_are_found(trained):
    params = {**trained, PATH: trained[PATH][jnp.array([1, 0, 3, 2])]}  # in another order
    diagnosis = examine(params, learning=None)
    assert kinds(diagnosis) == ["id harms", "id ignored"]
    confusion = diagnosis.measurements.confusion
    harm = next(f for f in diagnosis.findings if f.kind == "id harms")
    assert harm.measured == -confusion.effect_without > 0.5
    assert "The policy is better without its task." in str(diagnosis)


def test_an_ignored_prompt_is_found(trained):
    def prompted(key, batch, prompt):
        return act(trained, key, batch, batch["task_id"])

    diagnosis = examine(trained, prompted=prompted)
    assert kinds(diagnosis) == ["prompt ignored"]
    assert diagnosis.findings[0].measured == 0


def test_tasks_that_share_a_row_are_found(trained):
    table = trained[PATH].at[1].set(trained[PATH][0])
    diagnosis = examine({**trained, PATH: table})
    assert kinds(diagnosis) == ["tasks not told apart"]
    by_losses, by_rows = diagnosis.findings
    assert "The tasks of 1 pair share a row: ['pour / wipe']." in by_rows.sentence
    assert "never tells 1 pair of tasks apart: ['pour / wipe']." in by_losses.sentence
    assert (by_rows.measured, by_losses.measured) == (0, 0)


def test_tasks_that_are_never_told_apart_are_found(trained):
    unread = np.linalg.svd(trained["task"].T)[2][-1]  # a direction that no action depends on
    table = trained[PATH].at[3].set(trained[PATH][2] + unread)
    diagnosis = examine({**trained, PATH: table})
    assert kinds(diagnosis) == ["tasks not told apart"]
    assert ["fold / stack" in finding.sentence for finding in diagnosis.findings] == [True]
    assert abs(diagnosis.findings[0].measured) < 1e-5


def test_a_scale_that_drowns_the_time_is_found(trained):
    params = {**trained, PATH: trained[PATH] * 100, "task": trained["task"] / 100}
    diagnosis = examine(params, learning=None)
    assert kinds(diagnosis) == ["scale too large"]
    longest = np.linalg.norm(params[PATH], axis=1).max() / np.sqrt(WIDTH / 2)
    assert diagnosis.findings[0].measured == pytest.approx(longest)


def test_a_scale_that_is_drowned_by_the_time_is_found(trained):
    scaled = table_report(trained[PATH], scale=1e-3, names=NAMES)
    params = {**trained, PATH: trained[PATH] * 1e-3}
    diagnosis = examine(params, table=scaled, learning=None, prompted=None)
    assert kinds(diagnosis) == ["id ignored", "scale too small"]
    shortest = 1e-3 * np.linalg.norm(trained[PATH], axis=1).min() / np.sqrt(WIDTH / 2)
    found = next(f for f in diagnosis.findings if f.kind == "scale too small")
    assert found.measured == pytest.approx(shortest)


def test_an_untrained_row_is_found(trained):
    table = table_report(trained[PATH], names=NAMES, frames_seen=[9, 9, 0, 9])
    diagnosis = examine(trained, table=table)
    assert kinds(diagnosis) == ["row untrained"]
    assert "1 of 4 rows" in diagnosis.findings[0].sentence
    assert "['fold']" in diagnosis.findings[0].sentence
    zero = {**trained, PATH: trained[PATH].at[3].set(0)}
    assert kinds(examine(zero)) == ["row untrained"]


def test_a_table_that_is_frozen_is_found():
    params = train(make_batch(), start(), frozen=(PATH,))
    diagnosis = examine(params)  # the rest learns to read the random rows
    assert kinds(diagnosis) == ["table does not learn"]
    assert diagnosis.findings[0].measured == 0


def test_a_table_whose_gradient_is_tiny_is_found(trained):
    batch = make_batch()
    params = {**start(), "task": start()["task"] * 1e-4}
    grads = jax.grad(lambda p: loss(p, jax.random.key(0), batch, batch["task_id"]).mean())(params)
    diagnosis = examine(trained, learning=table_gradient(grads))
    assert kinds(diagnosis) == ["table does not learn"]
    assert "The gradient of the table is" in diagnosis.findings[0].sentence


def test_an_observation_that_tells_the_task_is_found(trained):
    def observe(batch):
        return np.concatenate([batch["state"], 100.0 * np.eye(4)[batch["task_id"]]], axis=1)

    diagnosis = examine(trained, observe=observe)
    assert kinds(diagnosis) == ["observation tells the task"]
    assert diagnosis.findings[0].measured == 1


def test_a_diagnosis_goes_to_json_and_repeats_itself(trained):
    first, second = examine(trained), examine(trained)
    assert json.dumps(first.to_dict(), allow_nan=False) == json.dumps(second.to_dict())
    assert set(first.to_dict()["measurements"]) == {
        "confusion",
        "actions",
        "prompts",
        "table",
        "learning",
        "probe",
    }


def test_a_notebook_shows_a_table_of_escaped_text(trained):
    tags = tuple(f"<b>{name}</b>" for name in NAMES)
    params = {**trained, PATH: trained[PATH].at[1].set(trained[PATH][0])}
    table = table_report(params[PATH], names=tags)
    diagnosis = examine(params, names=tags, prompts=NAMES, table=table)
    lines = diagnosis._repr_html_().split("</tr>")
    heads = "".join(
        f"<th>{name}</th>" for name in ("finding", "what was measured", "what to change")
    )
    assert lines[0] == f"<p>{str(diagnosis).splitlines()[0]}</p><table><tr>{heads}"
    results = (*diagnosis.findings, *diagnosis.passed)
    assert [html.unescape(line.split("<td>")[2]) for line in lines[1:-1]] == [
        f"{result.sentence}</td>" for result in results
    ]
    assert "<td>tasks not told apart</td>" in lines[1]
    assert f"<td>no fault ({diagnosis.passed[-1].kind})</td>" in lines[-2]
    assert "&lt;b&gt;wipe&lt;/b&gt;" in lines[1]
    assert "<b>" not in "".join(lines)


def test_only_what_is_offered_is_measured(trained):
    policy = PolicyFunctions(NAMES, observe=lambda batch: batch["state"])
    diagnosis = diagnose(policy, [make_batch()])
    assert [passed.kind for passed in diagnosis.passed] == ["observation tells the task"]
    assert list(diagnosis.to_dict()["measurements"]) == ["probe"]


def test_batches_are_measured_together(trained):
    policy = PolicyFunctions(NAMES, lambda key, batch, ids: batch["loss"] + 1.0 * ids)
    batches = [
        {"task_id": np.array([0, 1]), "loss": np.array([1.0, 2.0])},
        {"task_id": np.array([3]), "loss": np.array([4.0])},
    ]
    confusion = diagnose(policy, batches, draws=2).measurements.confusion
    piecewise = diagnose(policy, batches, draws=2, ids_at_once=2).measurements.confusion
    assert piecewise.to_dict() == confusion.to_dict()
    assert confusion.loss_without.tolist()[:2] == [0, 1]
    assert confusion.right == (1 + 3 + 7) / 3
    assert confusion.matrix.sum(1).tolist() == [1, 1, 0, 1]


def test_bad_input_is_refused(trained):
    batch, policy = make_batch(), functions(trained)
    one = PolicyFunctions(("pour",), policy.loss)
    for bad, batches, message in [
        (one, [batch], r"a policy of 1 tasks \['pour'\]"),
        (policy, [], "there are no batches"),
        (policy, [{"state": batch["state"]}], r"batch 0 has no task_id, but \['state'\]"),
        (policy, [{"task_id": np.zeros(0, int)}], r"task_id of batch 0 has shape \[0\]"),
        (policy, [batch, {"task_id": np.zeros((2, 2), int)}], r"batch 1 has shape \[2, 2\]"),
        (PolicyFunctions(NAMES), [batch], "nothing to measure"),
        (policy, [{**batch, "task_id": batch["task_id"] + 9}], "task_id out of range"),
        (policy, [{**batch, "task_id": batch["task_id"] * 0 - 1}], "NULL_TASK"),
    ]:
        with pytest.raises(ValueError, match=message):
            diagnose(bad, batches)
    with pytest.raises(ValueError, match="draws must be at least 1, got 0"):
        diagnose(policy, [batch], draws=0)


def test_bad_results_are_named(trained):
    batch = make_batch()
    broken = {**trained, PATH: trained[PATH].at[2].set(jnp.nan)}
    policy = PolicyFunctions(NAMES, lambda *args: loss(broken, *args))
    with pytest.raises(ValueError, match=r"of 256 samples is NaN or Inf, under the ids \[2\]"):
        diagnose(policy, [batch])
    policy = PolicyFunctions(NAMES, actions=lambda *args: act(broken, *args))
    with pytest.raises(ValueError, match=r"the actions of \['fold'\] hold NaN or Inf"):
        diagnose(policy, [batch])
    mean = PolicyFunctions(NAMES, lambda *args: loss(trained, *args).mean())
    with as_untyped_code(), pytest.raises(ValueError, match=r"has shape \(\), but must be \[256\]"):
        diagnose(mean, [batch])


def test_a_single_batch_is_refused_with_the_remedy():
    policy = PolicyFunctions(["a", "b"], table=table_report(np.eye(2, 4)))
    with as_untyped_code(), pytest.raises(TypeError, match=r"pass \[batch\]"):
        diagnose(policy, {"task_id": np.arange(2)})
