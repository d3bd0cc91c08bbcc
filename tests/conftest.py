"""What several tests make."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import hypothesis
import numpy as np
import pytest

# A busy machine must not decide whether a test passes.
hypothesis.settings.register_profile("taskcond", deadline=None)
hypothesis.settings.load_profile("taskcond")


@pytest.fixture
def write_chunked() -> Callable[..., None]:
    """Writes arrays as Orbax does, in chunks of our choice: as if several devices had held them."""
    import tensorstore as ts

    def write(
        path: Path,
        arrays: Mapping[str, np.ndarray],
        chunks: Mapping[str, tuple[int, ...]] | None = None,
        compressed: bool = True,
    ) -> None:
        tree = {}
        for name, value in arrays.items():
            spec = {
                "driver": "zarr",
                "kvstore": {
                    "driver": "ocdbt",
                    "base": f"file://{path}/",
                    "path": f"{name.replace('/', '.')}/",
                },
                "metadata": {
                    "shape": value.shape,
                    "chunks": (chunks or {}).get(name, value.shape),
                    "dtype": value.dtype.str,
                    "compressor": {"id": "zstd", "level": 1} if compressed else None,
                },
            }
            ts.open(spec, create=True).result().write(value).result()
            keys = [{"key": key} for key in name.split("/")]
            tree[name] = {"key_metadata": keys, "value_metadata": {"value_type": "jax.Array"}}
        (path / "_METADATA").write_text(json.dumps({"tree_metadata": tree}))

    return write
