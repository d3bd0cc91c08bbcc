"""The policies, and the demo dataset with its tokenizer, that several tests share."""

import pytest
from flax import nnx

from examples.comparison.cups import write_demo_dataset
from examples.lerobot import LeRobotData
from examples.pi0.model import Pi0
from examples.pi0.tokenizer import Tokenizer, train_tokenizer
from tests.support.tiny_pi0 import ROBOT_CONFIG, shaken, tiny


@pytest.fixture(scope="module", params=["pi05", "pi0"])
def policy(request) -> Pi0:
    config = tiny(pi05=request.param == "pi05", num_tasks=7, task_embedding_scale=3.0)
    return shaken(Pi0(config, rngs=nnx.Rngs(0)))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "demo"
    return write_demo_dataset(root, num_tasks=3, episodes_per_task=2, frames=8)


@pytest.fixture(scope="module")
def data(root):
    return LeRobotData(root, horizon=4)


@pytest.fixture(scope="module")
def model_file(tmp_path_factory):
    return train_tokenizer(tmp_path_factory.mktemp("text") / "tiny.model", ["reach cup 0"])


@pytest.fixture(scope="module")
def tokenizer(model_file):
    return Tokenizer.for_config(ROBOT_CONFIG, model_file)
