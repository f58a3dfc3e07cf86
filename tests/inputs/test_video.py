"""Videos: the frames that the rule names, in time and upright, and every tubelet knows its place."""

import io
import itertools
import tracemalloc
from fractions import Fraction
from pathlib import Path

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from regard.elements import Box, Seconds, Tubelet
from regard.inputs.image import ImageSettings
from regard.inputs.source import InputError
from regard.inputs.video import Video, frame_indices, read_frames, read_video, tubelet_elements
from tests.inputs.recordings import film, sound, tone

VIDEOMAE = {"image_processor_type": "VideoMAEImageProcessor"}
SMALL = ImageSettings(size=32, crop=(32, 32))


def numbered(count: int, height: int = 48, width: int = 64) -> list[numpy.ndarray]:
    """Frames that are as bright as their number says, five grey levels each."""
    return [numpy.full((height, width, 3), 5 * i, numpy.uint8) for i in range(count)]


def number_of(image: Image.Image) -> int:
    return round(numpy.asarray(image).mean() / 5)


@given(total=st.integers(1, 10_000), count=st.integers(1, 64), step=st.none() | st.integers(1, 9))
def test_the_rule(total: int, count: int, step: int | None):
    indices = frame_indices(total, count, step)
    assert len(indices) == count
    assert indices == sorted(indices)
    assert 0 <= indices[0] <= indices[-1] < total
    if step is None:
        for i, index in enumerate(indices):  # the middle of part i, (i + ½) · total / count, falls into the frame
            assert index <= Fraction((2 * i + 1) * total, 2 * count) < index + 1
        assert abs(indices[0] - (total - 1 - indices[-1])) <= 1  # as far from the beginning as from the end
    elif (count - 1) * step < total:
        assert {b - a for a, b in itertools.pairwise(indices)} <= {step}
        assert abs(indices[0] - (total - 1 - indices[-1])) <= 1
    else:
        assert indices == [min(i * step, total - 1) for i in range(count)]


def test_the_rule_in_numbers():
    assert frame_indices(8, 4) == [1, 3, 5, 7]
    assert frame_indices(100, 4) == [12, 37, 62, 87]
    assert frame_indices(2, 4) == [0, 0, 1, 1]
    assert frame_indices(100, 4, 10) == [34, 44, 54, 64]
    for wrong in ((0, 4, None), (4, 0, None), (4, 4, 0)):
        with pytest.raises(ValueError, match="must be positive"):
            frame_indices(*wrong)


@pytest.mark.parametrize(
    ("form", "codec", "pixels"),
    [
        ("mp4", "libx264", "yuv420p"), ("matroska", "libx264", "yuv444p"), ("avi", "mpeg4", "yuv420p"),
        ("webm", "libvpx-vp9", "yuv420p"), ("mpegts", "mpeg2video", "yuv420p"), ("avi", "mjpeg", "yuvj420p"),
        ("gif", "gif", "rgb8"), ("matroska", "ffv1", "yuv444p"),
    ],
)  # fmt: skip
def test_frames_of_every_form(form: str, codec: str, pixels: str):
    bright = [numpy.full((48, 64, 3), 60 * (i % 4), numpy.uint8) for i in range(20)]  # levels that a GIF has, too
    frames = read_frames(film(bright, 25, form, codec, pixels), 5)
    assert [f.index for f in frames] == [2, 6, 10, 14, 18]
    for frame in frames:
        assert frame.image.mode == "RGB"
        assert frame.image.size == (64, 48)
        assert abs(numpy.asarray(frame.image).mean() - 60 * (frame.index % 4)) < 20
        assert frame.seconds.first == pytest.approx(frame.index / 25, abs=0.002)
        assert frame.seconds.stop == pytest.approx((frame.index + 1) / 25, abs=0.011)


@settings(max_examples=20)
@given(total=st.integers(1, 50), count=st.integers(1, 20), step=st.none() | st.integers(1, 6))
def test_the_chosen_frames_are_those(total: int, count: int, step: int | None):
    frames = read_frames(film(numbered(total), preset="ultrafast"), count, step=step)
    assert [f.index for f in frames] == frame_indices(total, count, step)
    assert [number_of(f.image) for f in frames] == [f.index for f in frames]


@pytest.mark.parametrize("turned", [90, 180, -90])
def test_a_film_that_was_turned(turned: int):
    frame = numpy.zeros((32, 64, 3), numpy.uint8)
    frame[:16, :32] = 255  # top left
    [read] = read_frames(film([frame] * 3, turned=turned), 1)
    seen = numpy.asarray(read.image.convert("L")) > 128
    expected = numpy.rot90(frame[:, :, 0] > 128, turned // 90)
    assert seen.shape == expected.shape
    assert (seen == expected).mean() > 0.95
    video = read_video(film([frame] * 3, turned=turned), SMALL, 1)
    assert (video.height, video.width) == expected.shape


@pytest.mark.parametrize(
    "changes",
    [{}, {"size": 36, "crop_size": 30}, {"size": {"height": 30, "width": 50}, "do_center_crop": False, "resample": 3}],
)
@pytest.mark.parametrize("shape", [(48, 64), (90, 50)])
def test_as_transformers_does_it(changes: dict[str, object], shape: tuple[int, int]):
    from transformers.models.videomae.image_processing_pil_videomae import VideoMAEImageProcessorPil

    noise = numpy.random.default_rng(0).integers(0, 256, (6, *shape, 3), dtype=numpy.uint8)
    data = film([*noise], codec="ffv1", form="matroska", pixels="yuv444p")
    images = [numpy.asarray(f.image) for f in read_frames(data, 4)]
    expected = VideoMAEImageProcessorPil.from_dict({**VIDEOMAE, **changes})(images, return_tensors="np")["pixel_values"]
    video = read_video(data, ImageSettings.from_json({**VIDEOMAE, **changes}), 4)
    assert video.pixels.shape == expected.shape[1:]
    assert video.pixels.dtype == torch.float32
    assert (video.pixels - torch.from_numpy(expected[0])).abs().max() < 0.01 * 2 / 255


def test_memory_does_not_grow_with_length():
    def peak(count: int) -> int:
        data = film(numbered(count, 240, 320), preset="ultrafast")
        tracemalloc.start()
        read_frames(data, 2)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    peak(2)
    assert peak(50) < peak(4) + 300_000  # a frame is 230,400 bytes


def test_what_is_stored_may_not_be_decoded():
    """A file that is cut off within a frame, or claims more frames than it has, is chosen from what is there."""
    data = film(numbered(30), form="mpegts", codec="mpeg2video", g="1")
    packets = [i for i in range(0, len(data), 188)]
    broken = bytearray(data)
    for place in packets[-3:]:  # the last pictures lose their bytes, and the decoder drops them or says so
        broken[place + 4 : place + 188] = bytes(184)
    try:
        frames = read_frames(bytes(broken), 4)
    except InputError as error:
        assert "damaged" in str(error)
    else:
        assert [number_of(f.image) for f in frames] == [f.index for f in frames]


def test_fewer_frames_than_packets(monkeypatch: pytest.MonkeyPatch):
    from regard.inputs import video

    data = film(numbered(12), preset="ultrafast")
    monkeypatch.setattr(video, "_stored_frames", lambda source: 40)
    frames = read_frames(data, 4)
    assert [f.index for f in frames] == frame_indices(12, 4)
    assert [number_of(f.image) for f in frames] == frame_indices(12, 4)


def test_files_without_video(tmp_path: Path):
    def says(name: str, content: bytes, said: str) -> None:
        (tmp_path / name).write_bytes(content)
        for read in (lambda p: read_frames(p, 4), lambda p: read_video(p, SMALL, 4)):
            with pytest.raises(InputError, match=said) as caught:
                read(tmp_path / name)
            assert str(tmp_path / name) in str(caught.value)
            assert "\n" not in str(caught.value)

    says("sound.mp4", sound(tone(16_000, 0.3), 16_000, "mp4", "aac"), "has no video in it")
    says("text.mp4", b"a text, and no video\n" * 9, "neither audio nor video")
    whole = film(numbered(9), form="avi", codec="mpeg4")
    says("none.avi", whole[: whole.index(b"movi") + 4], "has no frame in its video")
    says("cut.mp4", film(numbered(9))[:600], "neither audio nor video that can be read: Invalid data")
    says("empty.mp4", b"", "is empty")
    with pytest.raises(InputError, match="no such file"):
        read_frames(tmp_path / "missing.mp4", 4)
    with pytest.raises(InputError, match="directory"):
        read_video(tmp_path, SMALL)
    with pytest.raises(ValueError, match="must be positive"):
        read_frames(film(numbered(3)), 0)


def test_frames_that_change_their_size():
    parts = [film(numbered(5, *shape), form="mpegts", codec="mpeg2video") for shape in ((48, 64), (64, 48))]
    with pytest.raises(InputError, match="changes its size: it has frames of 48 × 64 and 64 × 48 pixels"):
        read_video(b"".join(parts), SMALL, 10)


def test_huge_frames_are_refused():
    data = film(numbered(2), form="avi", codec="ffv1")
    width, height = (64).to_bytes(4, "little"), (48).to_bytes(4, "little")
    assert width + height in data
    huge = data.replace(width + height, (14_000).to_bytes(4, "little") * 2)
    with pytest.raises(InputError, match="frames of 14000 × 14000 pixels: more than"):
        read_frames(huge, 1)


FILES = {
    "mp4": film(numbered(6), samples=tone(16_000, 0.2)),
    "avi": film(numbered(6), form="avi", codec="mpeg4"),
    "mkv": film(numbered(6), form="matroska", codec="libvpx-vp9"),
    "ts": film(numbered(6), form="mpegts", codec="mpeg2video"),
    "gif": film(numbered(6), form="gif", codec="gif", pixels="rgb8"),
}


@settings(max_examples=200)
@given(
    form=st.sampled_from(sorted(FILES)),
    flips=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=4),
    cut=st.floats(0.01, 1),
)
def test_damage_is_an_input_error(form: str, flips: list[tuple[float, int]], cut: float):
    data = bytearray(FILES[form])
    for place, value in flips:
        data[int(place**3 * (len(data) - 1))] = value  # mostly in the header
    try:
        video = read_video(bytes(data[: int(len(data) * cut)]), SMALL, 3)
    except InputError as error:
        assert "\n" not in str(error)
    else:
        assert video.pixels.shape == (3, 3, 32, 32)
        assert video.pixels.isfinite().all()


def test_a_moving_image_is_a_video():
    file = io.BytesIO()
    images = [Image.new("L", (32, 24), 40 * i) for i in range(6)]
    images[0].save(file, "GIF", save_all=True, append_images=images[1:], duration=100)
    frames = read_frames(file.getvalue(), 3)
    assert [f.index for f in frames] == [1, 3, 5]
    assert [numpy.asarray(f.image).mean() for f in frames] == pytest.approx([40, 120, 200], abs=3)
    assert frames[1].seconds == Seconds(pytest.approx(0.3), pytest.approx(0.4))


def test_tubelets_as_elements():
    video = read_video(film(numbered(16, 40, 80), preset="ultrafast"), SMALL, 4)
    assert video.pixels.shape == (4, 3, 32, 32)
    assert video.frames == (2, 6, 10, 14)
    elements = tubelet_elements(video, SMALL, (2, 2), before=("[CLS]",))
    assert [e.index for e in elements] == list(range(1 + 2 * 4))
    assert (elements[0].label, elements[0].span) == ("[CLS]", None)
    assert [e.label for e in elements[1:6]] == ["0.08 s 0,0", "0.08 s 0,1", "0.08 s 1,0", "0.08 s 1,1", "0.40 s 0,0"]
    # 80 × 40 pixels become 64 × 32, of which the 32 × 32 in the middle are seen: columns 20 to 60 of the original.
    times = Seconds(pytest.approx(0.08), pytest.approx(0.28))
    assert elements[4].span == Tubelet((2, 6), times, Box(40, 20, 60, 40))
    assert {e.modality for e in elements} == {"video"}
    for size in (0, 3):
        with pytest.raises(ValueError, match="must divide the 4 frames"):
            tubelet_elements(video, SMALL, (2, 2), size=size)


def test_padding_is_no_part_of_a_video():
    video = Video(torch.zeros(2, 3, 8, 8), (0, 1), (Seconds(0, 1), Seconds(1, 2)), 4, 4)
    elements = tubelet_elements(video, ImageSettings(size=None, crop=(8, 8)), (4, 4))
    assert sum(e.span is None for e in elements) == 12
    assert elements[5].span == Tubelet((0, 1), Seconds(0, 2), Box(0, 0, 2, 2))
