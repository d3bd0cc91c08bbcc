"""All problems of a dataset are reported by one error, each kind with its fix."""

from examples.lerobot import write_dataset
from tests.support.lerobot import edit_column, episode_file, recordings, refusal


def test_missing_files_are_all_named_at_once(root):
    episode_file(root, 0).unlink()
    episode_file(root, 2).unlink()
    message = refusal(root)
    assert "missing file (2)" in message
    assert "data/chunk-000/episode_000000.parquet" in message
    assert "data/chunk-000/episode_000002.parquet" in message
    assert "pass episodes=[...]" in message


def test_problems_of_several_kinds_are_reported_together(root):
    episode_file(root, 0).unlink()
    edit_column(episode_file(root, 1), "task_index", lambda values: [9] * len(values))
    message = refusal(root)
    assert "missing file (1)" in message
    assert "unlisted task_index (1)" in message


def test_a_long_list_is_cut_short_with_its_length(tmp_path):
    root = write_dataset(tmp_path / "data", recordings(lengths=[2] * 30))
    for path in root.glob("data/*/*.parquet"):
        path.unlink()
    message = refusal(root)
    assert "missing file (30)" in message
    assert "... and 10 more" in message
