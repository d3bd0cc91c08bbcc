"""table_report: norms, similarities and rows that were never trained."""

import json
import math

import numpy as np
import pytest
from flax import nnx

from taskcond import TaskConditioner
from taskcond.diagnostics import PolicyFunctions, diagnose, table_report
from tests.support import as_untyped_code

ROWS = np.array([[3.0, 4.0], [6.0, 8.0], [0.0, 0.0], [-4.0, 3.0]])
NAMES = ["pour", "wipe", "fold", "stack"]


def test_norms_are_those_of_scaled_rows_over_that_of_the_time():
    report = table_report(ROWS, scale=0.5, names=NAMES)
    assert report.time_norm == 1  # sqrt(2 / 2)
    assert report.ratios.tolist() == [2.5, 5, 0, 2.5]
    assert table_report(ROWS, time_norm=10).ratios.tolist() == [0.5, 1, 0, 0.5]


def test_the_norm_of_film_is_how_far_a_row_moves_the_embedding():
    rng = np.random.default_rng(0)
    row, angles = rng.normal(size=(1, 8)), rng.uniform(0, 2 * math.pi, (200_000, 2))
    time_emb = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    moves = time_emb * row[:, :4] + row[:, 4:]
    report = table_report(row, fusion="film")
    assert report.time_norm == math.sqrt(2)
    expected = np.sqrt(np.square(moves).sum(1).mean())
    assert report.norms[0] == pytest.approx(expected, rel=0.01)


def test_the_nearest_pairs_have_the_largest_cosines():
    report = table_report(ROWS, names=NAMES)
    assert report.nearest_pairs(2) == [("pour", "wipe", 1.0), ("pour", "stack", 0.0)]
    assert np.isnan(report.cosines[2]).all()
    assert report.gaps[0].tolist() == [0, 0.5, 1, math.sqrt(2)]
    assert table_report(ROWS[[0, 0, 2, 2]]).gaps[[0, 2], [1, 3]].tolist() == [0, 0]


def test_untrained_rows_saw_no_frame_or_did_not_move():
    assert table_report(ROWS, names=NAMES).untrained == ["fold"]
    report = table_report(ROWS, names=NAMES, frames_seen=[9, 0, 7, None])
    assert report.untrained == ["wipe", "fold"]
    start = np.where(np.arange(4)[:, None] == 3, ROWS, 0.5)
    assert table_report(ROWS, names=NAMES, initial=start).untrained == ["stack"]


def test_print_shows_a_row_for_each_task():
    start = np.zeros_like(ROWS)
    report = table_report(ROWS, names=NAMES, frames_seen=[9, 8, 0, None], initial=start)
    assert str(report).splitlines() == [
        "task   row / time  frames  moved  most similar  cosine",
        "pour   5           9       yes    wipe          1.00",
        "wipe   10          8       yes    pour          1.00",
        "fold   0           0       no",
        "stack  5                   yes    pour          0.00",
        "",
        "norm of the time embedding: 1; rows never trained: ['fold']",
    ]
    assert "<td>wipe</td><td>10</td>" in report._repr_html_()
    content = json.loads(json.dumps(report.to_dict()))
    assert content["cosines"][2] == [None] * 4
    assert content["untrained"] == ["fold"]


def test_a_fresh_conditioner_is_described():
    conditioner = TaskConditioner(3, 1024, rngs=nnx.Rngs(0))
    report = table_report(conditioner.embedding[...], scale=conditioner.scale)
    # A row of the default start has the norm 1, the time embedding sqrt(512).
    np.testing.assert_allclose(report.ratios, 1 / math.sqrt(512), rtol=0.1)
    assert report.untrained == []


def test_bad_tables_are_refused():
    with pytest.raises(ValueError, match=r"rows of \['wipe'\] hold NaN or Inf"):
        table_report(np.array([[1.0], [np.nan]]), names=["pour", "wipe"])
    with pytest.raises(ValueError, match="time_norm must be positive, got 0"):
        table_report(ROWS, time_norm=0.0)
    with pytest.raises(ValueError, match="names has 1 tasks and frames_seen has 2 tasks"):
        table_report(ROWS, names=["a"], frames_seen=[1, 2])
    with pytest.raises(ValueError, match=r"shape \[0, 4\]"):
        table_report(np.zeros((0, 4)))
    with as_untyped_code(), pytest.raises(ValueError, match=r"initial has shape \[1, 2\]"):
        table_report(ROWS, initial=ROWS[:1])


def test_the_norm_of_gate_is_what_its_gate_lets_through():
    row = np.array([[0.0, 1.0, 3.0, 4.0]])
    report = table_report(row, fusion="gate")
    assert report.norms[0] == pytest.approx(4 * np.tanh(1.0))
    assert report.time_norm == pytest.approx(1.0)


def test_of_rows_whose_start_is_unknown_nothing_is_said():
    table = np.eye(2, 8)
    unknown = table_report(table)
    assert not unknown.knows_training
    assert "whether rows were trained is unknown" in str(unknown)
    assert "yes" not in str(unknown)
    assert table_report(table, initial=table * 0).knows_training
    assert table_report(table, frames_seen=[3, 4]).knows_training
    assert not table_report(table, frames_seen=[3, None]).knows_training
    assert table_report(table * [[1], [0]]).untrained == ["1"]


def test_a_diagnosis_of_a_fresh_table_does_not_call_it_trained():
    table = np.asarray(TaskConditioner(3, 8, rngs=nnx.Rngs(0)).embedding[...])
    batch = {"task_id": np.arange(3)}

    def diagnosis(**known):
        policy = PolicyFunctions(["a", "b", "c"], table=table_report(table, **known))
        return diagnose(policy, [batch])

    assert "row untrained" not in str(diagnosis())
    assert "row untrained" in str(diagnosis(initial=table))
    assert "All 3 rows of the table were trained" in str(diagnosis(initial=0 * table))
