"""Remote checkpoints: fetched once, resumed, checked, and shared with openpi's cache."""

import os
import socket

import fsspec
import pytest
from gcp_storage_emulator.server import create_server

from examples.pi0.training import download
from examples.pi0.training.download import cached, fetch

FILES = {"params/_METADATA": b"about", "params/d/ab": bytes(range(256)) * 5000}
URL = "gs://openpi-assets/checkpoints/pi05_tiny/params"


@pytest.fixture(scope="module")
def bucket():
    """A server on this machine with a few files in the bucket openpi-assets."""
    with socket.create_server(("localhost", 0)) as free:
        port = free.getsockname()[1]
    server = create_server("localhost", port, in_memory=True, default_bucket="openpi-assets")
    server.start()
    os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"
    os.environ["STORAGE_EMULATOR_HOST"] = f"http://localhost:{port}"
    system = fsspec.filesystem("gs", token="anon", skip_instance_cache=True)
    for name, content in FILES.items():
        system.pipe(f"openpi-assets/checkpoints/pi05_tiny/{name}", content)
    yield system
    del os.environ["STORAGE_EMULATOR_HOST"]
    fsspec.filesystem("gs", token="anon").clear_instance_cache()
    server.stop()


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENPI_DATA_HOME", str(tmp_path))
    return tmp_path


def content(folder):
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {f"params/{path.relative_to(folder)}": path.read_bytes() for path in files}


def test_a_folder_is_fetched_into_openpis_cache(bucket, home):
    local = fetch(URL)
    assert local == home / "openpi-assets/checkpoints/pi05_tiny/params" == cached(URL)
    assert content(local) == FILES


def test_what_openpi_fetched_is_not_fetched_again(home, monkeypatch):
    monkeypatch.setattr(download, "_file_system", None)  # nobody may ask the network
    cached(URL).mkdir(parents=True)
    assert fetch(URL) == cached(URL)


def test_an_interrupted_download_goes_on_within_a_file(bucket, monkeypatch):
    read = []

    class Cut:
        """A file system whose files end the program after a chunk."""

        def __getattr__(self, name):
            return getattr(bucket, name)

        def open(self, path, mode):
            file = bucket.open(path, mode)
            whole = file.read

            def once(size):
                read.append(file.tell())
                if len(read) == 3:
                    raise KeyboardInterrupt
                return whole(size)

            file.read = once
            return file

    monkeypatch.setattr(download, "_CHUNK", 300_000)
    monkeypatch.setattr(download, "_file_system", lambda path: (Cut(), path.removeprefix("gs://")))
    with pytest.raises(KeyboardInterrupt):
        fetch(URL)
    assert not cached(URL).exists()
    read[:] = [0] * 3  # from now on it does not end
    assert content(fetch(URL)) == FILES
    assert 300_000 in read  # it began where it had ended
    assert not cached(URL).with_name("params.part").exists()


def test_a_file_of_another_size_is_refused(bucket, monkeypatch):
    class Short:
        def __getattr__(self, name):
            return getattr(bucket, name)

        def find(self, path, detail):
            found = bucket.find(path, detail=detail)
            return {name: {**about, "size": about["size"] + 1} for name, about in found.items()}

    monkeypatch.setattr(
        download, "_file_system", lambda path: (Short(), path.removeprefix("gs://"))
    )
    with pytest.raises(OSError, match=r"has \d+ bytes, but \d+ came; run the command again"):
        fetch(URL)
    assert not cached(URL).exists()


def test_a_full_disk_is_seen_before_the_download(bucket, monkeypatch):
    usage = download.shutil.disk_usage("/")
    monkeypatch.setattr(download.shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(OSError, match="make space, or set OPENPI_DATA_HOME"):
        fetch(URL)


def test_a_url_with_nothing_behind_it(bucket):
    with pytest.raises(FileNotFoundError, match="there is nothing at gs://openpi-assets/other"):
        fetch("gs://openpi-assets/other")


@pytest.mark.parametrize(("url", "library"), [("gs://a/b", "gcsfs"), ("s3://a/b", "s3fs")])
def test_a_missing_library_is_named(url, library, monkeypatch):
    def missing(*_, **__):
        raise ImportError

    monkeypatch.setattr(fsspec, "url_to_fs", missing)
    with pytest.raises(ImportError, match=f"pip install {library}"):
        fetch(url)


def test_local_paths_stay(tmp_path):
    assert fetch(str(tmp_path)) == tmp_path
