import dataclasses

import pytest

pytest.importorskip("tensorboardX")

from examples.comparison.cups import write_demo_dataset
from examples.pi0.training.configs import DataConfig, OptimizerConfig, TrainConfig
from tests.support.runs import run
from tests.support.tiny_pi0 import tiny


@pytest.fixture(scope="session")
def dataset(tmp_path_factory):
    root = tmp_path_factory.mktemp("training") / "dataset"
    return write_demo_dataset(root, num_tasks=3, episodes_per_task=3, frames=8, video=False)


@pytest.fixture(scope="session")
def make_config(dataset, tmp_path_factory):
    """A run of six steps on three tasks without pictures."""
    runs = tmp_path_factory.mktemp("runs")

    def make(exp_name="run", **changes):
        data = {"root": (str(dataset),), "num_workers": 0, **changes.pop("data", {})}
        model = {
            "max_token_len": 24,
            "vocab_size": 1024,
            "image_keys": ("base_0_rgb",),
            **changes.pop("model", {}),
        }
        settings = {
            "exp_name": exp_name,
            "model": tiny(**model),
            "data": DataConfig(**data),
            "optimizer": OptimizerConfig(learning_rate=1e-2),
            "batch_size": 4,
            "num_train_steps": 6,
            "log_interval": 2,
            "val_log_interval": 6,
            "val_num_batches": 1,
            "save_interval": 3,
            "keep_period": None,
            "runs_dir": str(runs),
        }
        return dataclasses.replace(TrainConfig(), **{**settings, **changes})

    return make


@pytest.fixture(scope="session")
def finished(make_config, compiled_once):
    """The settings of a run that has ended."""
    config = make_config("finished", ema_decay=0.9)
    assert run(config) == 6
    return config


@pytest.fixture(autouse=True, scope="session")
def compiled_once(tmp_path_factory):
    """Keeps what is compiled, because several tests run the same training."""
    import jax

    if jax.__version_info__ < (0, 6):  # there, what is read from the cache computes something else
        yield ""
        return
    old = jax.config.jax_compilation_cache_dir
    folder = str(tmp_path_factory.mktemp("compiled"))
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    yield folder
    jax.config.update("jax_compilation_cache_dir", old)
