"""What a file is: content first, suffix second."""

import io
import os
from pathlib import Path

import av
import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from regard.inputs.kind import SUFFIXES, kind_of
from regard.inputs.source import InputError
from tests.inputs.recordings import film, sound, tone

GREY = [numpy.full((32, 32, 3), 9 * i, numpy.uint8) for i in range(5)]
PICTURE = Image.fromarray(numpy.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=numpy.uint8))
FORMS = ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "AVIF", "JPEG2000", "ICO", "PCX", "PPM", "TGA"]


def picture(form: str, **options: object) -> bytes:
    file = io.BytesIO()
    (PICTURE.convert("P") if form == "GIF" else PICTURE).save(file, form, **options)
    return file.getvalue()


def cover() -> bytes:
    """An MP3 with a picture of its cover."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp3") as container:
        stream = container.add_stream("libmp3lame", rate=16_000, layout="mono")
        art = container.add_stream("mjpeg")
        art.width, art.height, art.pix_fmt, art.disposition = 32, 32, "yuvj420p", av.stream.Disposition.attached_pic
        container.mux(art.encode(av.VideoFrame.from_ndarray(GREY[2], "rgb24")))
        container.mux(art.encode(None))
        frame = av.AudioFrame.from_ndarray(tone(16_000, 0.5).astype(numpy.float32), "fltp", "mono")
        frame.sample_rate = 16_000
        container.mux([*stream.encode(frame), *stream.encode(None)])
    return file.getvalue()


FILES = {
    **{f"image {form}": ("image", picture(form)) for form in FORMS},
    "text": ("text", "Grüße,\r\n\tWelt".encode()),
    "text with a mark": ("text", b"\xef\xbb\xbftext"),
    "text in colour": ("text", b"\x1b[31mred\x1b[0m"),
    "subtitles": ("text", b"1\n00:00:01,000 --> 00:00:02,000\nHello\n"),
    "svg": ("text", b'<svg xmlns="http://www.w3.org/2000/svg"></svg>'),
    "a playlist": ("text", b"ffconcat version 1.0\nfile other.wav\n"),
    "wav": ("audio", sound(tone(8000, 0.2), 8000)),
    "flac": ("audio", sound(tone(8000, 0.2), 8000, "flac", "flac")),
    "mp3": ("audio", sound(tone(16_000, 0.5), 16_000, "mp3", "libmp3lame")),
    "mp3 with a cover": ("audio", cover()),
    "opus": ("audio", sound(tone(48_000, 0.2), 48_000, "ogg", "libopus")),
    "m4a": ("audio", sound(tone(16_000, 0.2), 16_000, "mp4", "aac")),
    "mp4": ("video", film(GREY)),
    "mp4 with sound": ("video", film(GREY, samples=tone(16_000, 0.2))),
    "webm": ("video", film(GREY, form="webm", codec="libvpx-vp9")),
    "avi": ("video", film(GREY, form="avi", codec="mpeg4")),
    "mpeg": ("video", film(GREY, form="mpeg", codec="mpeg2video")),
    "transport stream": ("video", film(GREY * 5, form="mpegts", codec="mpeg2video")),
    "moving gif": ("video", picture("GIF", save_all=True, append_images=[Image.new("P", (30, 20))])),
    "moving png": ("video", picture("PNG", save_all=True, append_images=[Image.new("RGB", (30, 20))])),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("suffix", ["", ".txt", ".png", ".mp4"])
def test_content_decides(tmp_path: Path, name: str, suffix: str):
    kind, content = FILES[name]
    path = tmp_path / f"file{suffix}"
    path.write_bytes(content)
    assert kind_of(path) == kind_of(str(path)) == kind


def test_suffix_decides_where_content_cannot(tmp_path: Path):
    for kind, suffixes in SUFFIXES.items():
        for suffix in (*suffixes, suffixes[0].upper()):
            path = tmp_path / f"noise{suffix}"
            path.write_bytes(bytes([0, 255, 1, 254]) * 50)
            assert kind_of(path) == kind
    (tmp_path / "letters.ppm").write_bytes(b"P3 1 1 255 9 9 9\n")
    assert kind_of(tmp_path / "letters.ppm") == "image"


def test_what_is_nothing_of_these(tmp_path: Path):
    (tmp_path / "noise.bin").write_bytes(bytes([0, 255, 1, 254]) * 50)
    (tmp_path / "empty.txt").touch()
    os.mkfifo(tmp_path / "pipe")
    for name, said in [("noise.bin", "neither text"), ("empty.txt", "empty"), ("pipe", "pipe"), ("no.png", "no such")]:
        with pytest.raises(InputError, match=said) as caught:
            kind_of(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)
    with pytest.raises(InputError, match="directory"):
        kind_of(tmp_path)


def test_a_character_across_the_end_of_the_head(tmp_path: Path):
    path = tmp_path / "long"
    path.write_bytes(b"a" * 65_535 + "é".encode() * 9)
    assert kind_of(path) == "text"
    path.write_bytes(b"a" + "é".encode()[:1])
    with pytest.raises(InputError, match="neither"):
        kind_of(path)


@settings(max_examples=150)
@given(
    name=st.sampled_from(sorted(FILES)),
    flips=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=4),
    cut=st.floats(0.01, 1),
)
def test_damage_is_an_input_error(
    tmp_path_factory: pytest.TempPathFactory, name: str, flips: list[tuple[float, int]], cut: float
):
    data = bytearray(FILES[name][1])
    for place, value in flips:
        data[int(place**3 * (len(data) - 1))] = value
    path = tmp_path_factory.getbasetemp() / "damaged"
    path.write_bytes(data[: max(1, int(len(data) * cut))])
    try:
        assert kind_of(path) in SUFFIXES
    except InputError as error:
        assert "neither" in str(error)
