"""action_effect and prompt_effect: distances between tasks against those between observations."""

import itertools
import json

import numpy as np
import pytest

from taskcond.diagnostics import action_effect, prompt_effect


def root_mean_square(differences):
    return np.sqrt(np.mean(np.square(differences)))


def test_distances_are_those_of_all_pairs():
    actions = np.random.default_rng(0).normal(size=(3, 5, 4, 2))
    effect = action_effect(actions, ["a", "b", "c"])
    tasks = [x - y for x, y in itertools.combinations(actions, 2)]
    observations = [x - y for x, y in itertools.combinations(actions.swapaxes(0, 1), 2)]
    assert effect.between_tasks == pytest.approx(root_mean_square(tasks))
    assert effect.between_observations == pytest.approx(root_mean_square(observations))
    assert effect.distances[1, 2] == pytest.approx(root_mean_square(actions[1] - actions[2]))
    assert effect.ratio == effect.between_tasks / effect.between_observations
    nearest = min(itertools.combinations(range(3), 2), key=lambda pair: effect.distances[pair])
    assert effect.nearest_pairs(1)[0][:2] == tuple("abc"[i] for i in nearest)
    content = json.loads(json.dumps(effect.to_dict()))
    assert content["distances"] == effect.distances.tolist()
    assert "<td>between tasks</td>" in effect._repr_html_()


def test_a_ratio_without_a_distance_between_observations():
    apart = action_effect(np.array([[[1.0], [1.0]], [[2.0], [2.0]]]))
    same = action_effect(np.ones((2, 2, 1)))
    assert (apart.ratio, apart.to_dict()["ratio"]) == (np.inf, None)
    assert np.isnan(same.ratio)


def test_a_prompt_moves_the_action_by_what_it_adds():
    observations = np.array([[0.0], [3.0]])
    effect = prompt_effect(lambda prompt: observations + len(prompt), ["pour", "wiping"])
    assert (effect.between_tasks, effect.between_observations) == (2, 3)
    assert effect.names == ("pour", "wiping")


def test_bad_actions_and_prompts_are_refused():
    with pytest.raises(ValueError, match=r"shape \[1, 2, 1\].*more tasks"):
        action_effect(np.zeros((1, 2, 1)))
    with pytest.raises(ValueError, match=r"shape \[2, 1, 1\].*more observations"):
        action_effect(np.zeros((2, 1, 1)))
    with pytest.raises(ValueError, match="2 tasks, but there are 1 names"):
        action_effect(np.zeros((2, 2, 1)), ["a"])
    with pytest.raises(ValueError, match=r"the actions of \['b'\] hold NaN or Inf"):
        action_effect(np.array([[[0.0], [1.0]], [[0.0], [np.nan]]]), ["a", "b"])
    with pytest.raises(ValueError, match=r"got \['pour', 'pour'\]"):
        prompt_effect(lambda prompt: np.zeros((2, 1)), ["pour", "pour"])
