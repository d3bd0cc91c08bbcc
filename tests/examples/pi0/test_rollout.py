"""A trained π0.5 in Meta-World's scene: what it is shown, and what it answers."""

import numpy as np

from examples.metaworld.camera import Camera
from examples.metaworld.episodes import Actor, Job, SeeingActor, run_episode
from examples.metaworld.tasks import TEN
from examples.metaworld.world import World
from examples.pi0.policy import Policy
from examples.pi0.rollout import PolicyActor, SeeingPolicyActor
from taskcond import TaskVocabulary


class Recorder(Policy):
    """A policy that keeps what it is asked."""

    vocabulary = TaskVocabulary(["reach up"])
    asked = ()

    def __init__(self):
        object.__setattr__(self, "asked", [])

    def act(self, frame, task, seed):
        self.asked.append((frame, task, seed))
        return np.ones((8, 4))


class Still(Camera):
    """A camera whose pictures are numbered."""

    def __init__(self):
        self.count = 0

    def picture(self):
        self.count += 1
        return np.full((4, 4, 3), self.count, np.uint8)


def test_a_seeing_policy_gets_a_new_picture_and_no_puck():
    policy, camera = Recorder(), Still()
    actor = SeeingPolicyActor(policy, "front", 4)
    assert isinstance(actor, SeeingActor)
    assert not isinstance(actor, Actor)
    job = Job(TEN[2], TEN[2], 0)
    episode = run_episode(World(), actor, job, camera=camera)
    frames = [frame for frame, _, _ in policy.asked]
    assert [frame["images"]["front"][0, 0, 0] for frame in frames[:3]] == [1, 2, 3]
    np.testing.assert_array_equal(frames[1]["state"], episode.observations[8, :4])
    assert {task for _, task, _ in policy.asked} == {"reach up"}


def test_a_policy_without_cameras_reads_the_puck():
    policy = Recorder()
    actor = PolicyActor(policy)
    assert isinstance(actor, Actor)
    assert actor.vocabulary is Recorder.vocabulary
    actor.act(np.arange(7.0), None, 3)
    ((frame, task, seed),) = policy.asked
    assert (frame["state"].shape, frame["images"], task, seed) == ((7,), {}, None, 3)
