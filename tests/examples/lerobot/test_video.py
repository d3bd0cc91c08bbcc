"""Any frame of a video is found by its time, and a damaged video is refused."""

import os
import threading

import av
import numpy as np
import pytest

from examples.lerobot.video import VideoReader, probe
from examples.lerobot.write import write_video

FRAMES = 120
FPS = 20


def images(count=FRAMES):
    """The frame's number in two squares: tens in the left one, ones in the right."""
    result = np.zeros((count, 32, 64, 3), np.uint8)
    for i in range(count):
        result[i, :, :32] = 10 + 18 * (i // 10)
        result[i, :, 32:] = 10 + 24 * (i % 10)
    return result


def number(image):
    tens, ones = image[8:24, 8:24].mean(), image[8:24, 40:56].mean()
    return 10 * round((tens - 10) / 18) + round((ones - 10) / 24)


@pytest.fixture(scope="module", params=["libx264", "libsvtav1", "mpeg4", "libvpx-vp9"])
def video(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("video") / f"{request.param}.mp4"
    write_video(path, images(), FPS, request.param)
    return path


@pytest.mark.skipif(
    not hasattr(os, "sched_getscheduler"),
    reason="macOS and Windows have no real-time scheduling that an encoder could switch on",
)
def test_an_encoder_does_not_keep_a_real_time_priority(tmp_path):
    before = os.sched_getscheduler(0), os.sched_getparam(0)
    write_video(tmp_path / "a.mp4", images(), FPS, "libsvtav1")
    assert (os.sched_getscheduler(0), os.sched_getparam(0)) == before


def test_any_frame_is_found_in_any_order(video):
    reader = VideoReader(video, FPS)
    order = np.random.default_rng(0).permutation(FRAMES)[:50]
    assert [number(reader.read(i / FPS)) for i in order] == order.tolist()


def test_frames_in_order_and_twice_the_same(video):
    reader = VideoReader(video, FPS)
    order = np.repeat(np.arange(FRAMES), 2)
    assert [number(reader.read(i / FPS)) for i in order] == order.tolist()


def test_the_end_is_that_of_the_last_frame(video):
    info = probe(video)
    assert info.end == pytest.approx((FRAMES - 1) / FPS, abs=1e-3)
    assert info.fps == pytest.approx(FPS)
    assert info.size == (32, 64)


def test_reading_on_decodes_no_frame_twice(tmp_path):
    path = tmp_path / "a.mp4"
    write_video(path, images(), FPS)
    reader = VideoReader(path, FPS)
    for i in range(FRAMES):
        reader.read(i / FPS)
    assert reader.decoded == FRAMES


def test_frames_that_are_kept_are_read_again_without_decoding(tmp_path):
    path = tmp_path / "a.mp4"
    write_video(path, images(), FPS)
    reader = VideoReader(path, FPS, keep=4)
    for first in range(20):
        times = [i / FPS for i in range(first, first + 4)]
        assert [number(image) for image in reader.read_all(times)] == [*range(first, first + 4)]
    assert reader.decoded == 19 + 4
    assert number(reader.read(18 / FPS)) == 18  # one more than are kept
    assert reader.decoded == 23 + 19


def test_a_seek_goes_to_the_keyframe_before_not_to_the_start(tmp_path):
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"g": "10"})
        stream.width, stream.height, stream.pix_fmt = 64, 32, "yuv420p"
        for image in images():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    reader = VideoReader(path, FPS)
    assert number(reader.read(87 / FPS)) == 87
    assert reader.decoded == 87 - 80 + 1


def test_a_time_past_the_end_is_refused_and_the_reader_goes_on(tmp_path):
    path = tmp_path / "a.mp4"
    write_video(path, images(10), FPS)
    reader = VideoReader(path, FPS)
    with pytest.raises(ValueError, match=r"a.mp4 has no frame at 0.500 s: the video is shorter"):
        reader.read(10 / FPS)
    assert number(reader.read(9 / FPS)) == 9
    assert number(reader.read(0)) == 0


@pytest.mark.parametrize(
    ("codec", "parameters", "muxer"),
    [
        ("libx264", "open-gop=1:keyint=12:bframes=3:scenecut=0", {}),
        ("libx264", "open-gop=1:keyint=12:bframes=3:scenecut=0", {"use_editlist": "0"}),
        ("libx264", "intra-refresh=1:keyint=30:bframes=2", {}),
        ("libx265", "open-gop=1:keyint=12:min-keyint=12:bframes=4:log-level=none", {}),
    ],
)
def test_random_access_into_open_groups_equals_decoding_in_order(
    tmp_path, codec, parameters, muxer
):
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w", options=muxer) as container:
        options = {f"{codec[3:]}-params": parameters}
        stream = container.add_stream(codec, rate=FPS, options=options)
        stream.width, stream.height, stream.pix_fmt = 64, 32, "yuv420p"
        for image in images(60):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    with av.open(str(path)) as container:
        expected = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    reader = VideoReader(path, FPS)
    for i in [*range(59, -1, -1), *np.random.default_rng(0).permutation(60)]:
        np.testing.assert_array_equal(reader.read(i / FPS), expected[i])


@pytest.mark.parametrize("gap", [1, 31, 58])
def test_a_gap_is_refused_with_the_time_of_the_next_frame(tmp_path, gap):
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"g": "10", "bf": "0"})
        stream.width, stream.height, stream.pix_fmt = 64, 32, "yuv420p"
        for i, image in enumerate(images(60)):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts = i
            if i != gap:
                container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    reader = VideoReader(path, FPS)
    with pytest.raises(ValueError, match=f"the next frame is at {(gap + 1) / FPS:.3f} s"):
        reader.read(gap / FPS)
    assert number(reader.read((gap + 1) / FPS)) == gap + 1


def test_several_threads_share_a_reader(tmp_path):
    path = tmp_path / "a.mp4"
    write_video(path, images(), FPS)
    reader = VideoReader(path, FPS)
    wrong = []

    def read(seed):
        for i in np.random.default_rng(seed).permutation(FRAMES)[:20]:
            if number(reader.read(i / FPS)) != i:
                wrong.append(i)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_file_without_video_is_refused(tmp_path):
    path = tmp_path / "a.mp4"
    path.write_bytes(b"not a video")
    with pytest.raises(Exception, match="a.mp4"):
        probe(path)
