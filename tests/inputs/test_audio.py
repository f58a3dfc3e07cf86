"""Sound: the same samples whatever file they come from, in memory that does not grow with its length."""

import io
import struct
import tracemalloc
from pathlib import Path

import numpy
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from regard.elements import Band, Seconds
from regard.inputs.audio import audio_blocks, check_heard, frame_elements, read_audio, spectrogram_elements
from regard.inputs.features import whisper_features
from regard.inputs.source import InputError
from tests.inputs.recordings import film, sound, tone

GREY = [numpy.full((32, 32, 3), 90, numpy.uint8)] * 10


def wav(channels: int, rate: int, bits: int, data: bytes, form: int = 1) -> bytes:
    """A WAV file, header and all."""
    block = channels * bits // 8
    head = struct.pack("<HHIIHH", form, channels, rate, rate * block, block, bits)
    body = b"WAVEfmt " + struct.pack("<I", len(head)) + head + b"data" + struct.pack("<I", len(data)) + data
    return b"RIFF" + struct.pack("<I", len(body)) + body


@pytest.mark.parametrize(
    ("form", "codec", "error"),
    [
        ("wav", "pcm_s16le", 1e-4), ("wav", "pcm_u8", 1e-2), ("wav", "pcm_s24le", 1e-6), ("wav", "pcm_f32le", 1e-7),
        ("wav", "pcm_f64le", 1e-7), ("wav", "pcm_alaw", 0.02), ("flac", "flac", 1e-4), ("aiff", "pcm_s16be", 1e-4),
        ("matroska", "pcm_s32le", 1e-7),
    ],
)  # fmt: skip
def test_lossless_forms_give_the_samples(form: str, codec: str, error: float):
    samples = tone(16_000, 0.7)
    read = read_audio(sound(samples, 16_000, form, codec), 16_000)
    assert read.dtype == torch.float32
    assert read.shape == (11_200,)
    assert abs(read.numpy() - samples[0]).max() < error


@pytest.mark.parametrize(
    ("form", "codec"), [("mp3", "libmp3lame"), ("ogg", "libopus"), ("mp4", "aac"), ("adts", "aac")]
)
def test_lossy_forms_give_the_sound(form: str, codec: str):
    rate = 48_000
    read = read_audio(sound(tone(rate, 1.0), rate, form, codec), 16_000)
    assert len(read) == pytest.approx(16_000, abs=16_000 * 0.13)  # encoders pad
    spectrum = torch.fft.rfft(read[4000:12_000]).abs()
    assert int(spectrum.argmax()) * 2 == pytest.approx(440, abs=2)
    assert read[4000:12_000].std() == pytest.approx(0.5 / 2**0.5, rel=0.05)


@pytest.mark.parametrize("rate", [8000, 11_025, 22_050, 44_100, 48_000, 96_000])
def test_resampled_tones_are_tones(rate: int):
    read = read_audio(sound(tone(rate, 1.0), rate, "wav", "pcm_f32le"), 16_000)
    expected = torch.from_numpy(tone(16_000, 1.0)[0])
    assert len(read) == 16_000
    assert (read[500:-500] - expected[500 : len(read) - 500]).abs().max() < 2e-3
    array = read_audio(tone(rate, 1.0), 16_000, source_rate=rate)
    assert torch.allclose(array, read, atol=1e-6)


@given(count=st.integers(1, 3000), rate=st.integers(100, 200_000), wanted=st.sampled_from([8000, 16_000, 48_000]))
@example(count=1, rate=6_144_000, wanted=8000)
def test_no_sample_is_lost(count: int, rate: int, wanted: int):
    read = read_audio(torch.ones(count), wanted, source_rate=rate)
    assert len(read) == -(-count * wanted // rate)
    assert read.abs().max() < 1.3
    if count / rate > 0.02:
        middle = len(read) // 2
        assert read[middle] == pytest.approx(1, abs=0.02)


def test_the_rate_may_change_on_the_way():
    parts = [sound(tone(rate, 1.0), rate, "adts", "aac") for rate in (48_000, 32_000)]
    read = read_audio(b"".join(parts), 16_000)
    assert len(read) == pytest.approx(32_000, rel=0.1)
    for second in (read[4000:12_000], read[20_000:28_000]):
        assert int(torch.fft.rfft(second).abs().argmax()) * 2 == pytest.approx(440, abs=2)


def test_channels_become_their_mean():
    stereo = numpy.concatenate([tone(16_000, 0.2, 300), -0.5 * tone(16_000, 0.2, 700)])
    six = numpy.concatenate([tone(16_000, 0.2, 100.0 * i) for i in range(1, 7)])
    for samples in (stereo, six):
        for source, rate in ((sound(samples, 16_000, codec="pcm_f32le"), None), (samples, 16_000)):
            read = read_audio(source, 16_000, source_rate=rate)
            assert abs(read.numpy() - samples.mean(0)).max() < 1e-6
    three = numpy.arange(12, dtype="<i2").reshape(4, 3) * 3000  # an order of channels that has no name
    read = read_audio(wav(3, 16_000, 16, three.tobytes()), 16_000)
    assert torch.allclose(read, torch.tensor(three).double().mean(1).float() / 2**15)


def test_arrays_and_tensors():
    floats = torch.tensor([0.0, 0.5, -1.0])
    sixteen = torch.tensor([0, 16384, -32768], dtype=torch.int16)
    same = [
        floats,
        floats.double(),
        floats.half(),
        sixteen,
        sixteen.int() * 65536,
        floats[None],
        torch.stack([floats] * 2),
    ]
    same += [torch.tensor([128, 192, 0], dtype=torch.uint8), floats.requires_grad_()]
    for tensor in same:
        assert torch.equal(read_audio(tensor, 8000, source_rate=8000), floats)
        array = tensor.detach().numpy()
        assert torch.equal(read_audio(array, 8000, source_rate=8000), floats)
        assert torch.equal(read_audio(array.astype(array.dtype.newbyteorder(">")), 8000, source_rate=8000), floats)


@pytest.mark.parametrize(
    ("samples", "said"),
    [
        (torch.zeros(0), "holds no sound"),
        (torch.zeros(100, 2), "shape \\(100, 2\\)"),
        (torch.zeros(1, 2, 3), "shape"),
        (torch.zeros(5, dtype=torch.int64), "holds torch.int64"),
        (torch.tensor([0.0, float("nan")]), "a sample of nan"),
        (numpy.array([0.0, numpy.inf]), "a sample of inf"),
        (numpy.array(["a", "b"]), "no sound"),
    ],
)
def test_samples_that_are_no_sound(samples: object, said: str):
    with pytest.raises(InputError, match=said):
        read_audio(samples, 16_000, source_rate=16_000)


def test_a_rate_belongs_to_samples_alone():
    with pytest.raises(ValueError, match="source_rate is None"):
        read_audio(torch.zeros(5), 8000)
    with pytest.raises(ValueError, match="source_rate is 8000"):
        read_audio(b"RIFF", 8000, source_rate=8000)
    with pytest.raises(InputError, match="has 1 samples a second"):
        read_audio(torch.zeros(5), 8000, source_rate=1)
    with pytest.raises(ValueError, match="rate is 0"):
        audio_blocks(b"RIFF", 0)
    with pytest.raises(TypeError, match="source is list"):
        read_audio([0.0], 8000, source_rate=8000)  # type: ignore[arg-type]


@given(block=st.integers(1, 40_000), rate=st.sampled_from([8000, 16_000, 44_100]))
@settings(max_examples=25)
def test_blocks_are_the_whole(block: int, rate: int):
    data = sound(tone(16_000, 1.3), 16_000)
    whole = read_audio(data, rate)
    blocks = [*audio_blocks(data, rate, block=max(block, 50))]
    assert torch.equal(torch.cat(blocks), whole)
    assert {len(b) for b in blocks[:-1]} <= {max(block, 50)}
    assert 0 < len(blocks[-1]) <= max(block, 50)


def test_memory_does_not_grow_with_length(tmp_path: Path):
    def peak(seconds: int) -> int:
        with (tmp_path / "a.wav").open("wb") as file:
            file.write(wav(1, 48_000, 16, bytes(2 * 48_000 * seconds)))
        tracemalloc.start()
        count = sum(len(block) for block in audio_blocks(tmp_path / "a.wav", 16_000))
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert count == 16_000 * seconds
        return most

    peak(1)
    assert peak(120) < peak(4) + 1_000_000


def test_a_block_keeps_nothing_else_alive():
    first = next(audio_blocks(sound(tone(16_000, 2.0), 16_000), 16_000, block=10))
    assert first.untyped_storage().nbytes() == 40


def test_long_files_are_streamed():
    data = sound(tone(8000, 5.0), 8000)
    with pytest.raises(InputError, match="longer than 3 s: read it with audio_blocks"):
        read_audio(data, 8000, most_seconds=3)
    assert len(read_audio(data, 8000, most_seconds=5)) == 40_000


def test_the_sound_of_a_video():
    read = read_audio(film(GREY, samples=tone(16_000, 1.0)), 16_000)
    assert len(read) == pytest.approx(16_000, abs=2100)
    assert read.abs().max() == pytest.approx(0.5, rel=0.15)


def test_silence_is_sound():
    read = read_audio(sound(numpy.zeros((1, 8000)), 8000), 16_000)
    assert read.eq(0).all()
    assert whisper_features(read).isfinite().all()


@given(level=st.sampled_from([0.0, -0.25, 1.0]), count=st.integers(1, 50))
def test_silence_can_be_refused(level: float, count: int):
    with pytest.raises(InputError, match=f"a.wav is silent: its {count} samples are all {level:g}"):
        check_heard(torch.full((count,), level), "a.wav")
    check_heard(torch.cat([torch.full((count,), level), torch.tensor([0.5])]), "a.wav")


def test_files_without_sound(tmp_path: Path):
    def says(name: str, content: bytes, said: str) -> None:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=said) as caught:
            read_audio(tmp_path / name, 16_000)
        assert str(tmp_path / name) in str(caught.value)
        assert "\n" not in str(caught.value)

    says("none.wav", wav(1, 8000, 16, b""), "no sound")
    says("empty.wav", b"", "empty")
    says("text.wav", b"a text, and no sound\n" * 9, "neither audio nor video")
    says("film.mp4", film(GREY), "no audio in it")
    says("cut.mp4", film(GREY, samples=tone(16_000, 1.0))[:900], "neither|damaged|no audio")
    says("nan.wav", wav(1, 8000, 32, struct.pack("<3f", 0, float("nan"), 0), form=3), "a sample of nan")
    says("loud.wav", wav(1, 8000, 32, struct.pack("<3f", 0, 1e38, 0), form=3), "a sample of 1e\\+38")
    says("slow.wav", wav(1, 1, 16, bytes(1000)), "has 1 samples a second")
    (tmp_path / "other.wav").write_bytes(sound(tone(8000, 1.0), 8000))
    says("list.ffconcat", f"ffconcat version 1.0\nfile {tmp_path}/other.wav\n".encode(), "neither audio nor video")
    with pytest.raises(InputError, match="no such file"):
        read_audio(tmp_path / "missing.wav", 16_000)
    with pytest.raises(InputError, match="directory"):
        read_audio(tmp_path, 16_000)


FILES = {
    "wav": sound(tone(16_000, 0.3), 16_000),
    "flac": sound(tone(16_000, 0.3), 16_000, "flac", "flac"),
    "mp3": sound(tone(16_000, 0.3), 16_000, "mp3", "libmp3lame"),
    "ogg": sound(tone(48_000, 0.3), 48_000, "ogg", "libopus"),
    "mp4": sound(tone(16_000, 0.3), 16_000, "mp4", "aac"),
    "webm": sound(tone(48_000, 0.3), 48_000, "matroska", "libopus"),
}


@settings(max_examples=250)
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
        samples = read_audio(bytes(data[: int(len(data) * cut)]), 16_000)
    except InputError as error:
        assert "\n" not in str(error)
    else:
        assert samples.isfinite().all()


@pytest.mark.shared("fsdd", "speech_clips")
def test_real_recordings(shared_data: Path):
    import tarfile
    import wave

    with tarfile.open(shared_data / "fsdd" / "recordings.tar.gz") as archive:
        members = [m for m in archive if m.name.endswith("_0.wav")][:10]
        for member in members:
            content = archive.extractfile(member).read()  # type: ignore[union-attr]
            with wave.open(io.BytesIO(content)) as file:
                stored = numpy.frombuffer(file.readframes(file.getnframes()), "<i2") / 2**15
            assert torch.equal(read_audio(content, 8000), torch.from_numpy(stored).float())
            assert len(read_audio(content, 16_000)) == 2 * len(stored)


def test_frames_as_elements():
    elements = frame_elements(4, 0.02, width=0.025, duration=0.05, before=("[CLS]",))
    assert [e.label for e in elements] == ["[CLS]", "0.00 s", "0.02 s", "0.04 s", "padding"]
    assert [e.index for e in elements] == [0, 1, 2, 3, 4]
    assert elements[2].span == Seconds(0.02, 0.045)
    assert elements[3].span == Seconds(0.04, 0.05)
    assert (elements[0].span, elements[4].span, elements[1].modality) == (None, None, "audio")
    assert frame_elements(1500, 0.02)[-1].span == Seconds(pytest.approx(29.98), pytest.approx(30))


def test_patches_of_a_spectrogram_as_elements():
    elements = spectrogram_elements((12, 101), duration=1.0, before=("[CLS]", "[DIST]"))
    assert len(elements) == 2 + 12 * 101
    assert elements[2].span == Band(Seconds(0, pytest.approx(0.175)), (0, 16))
    assert elements[2 + 101 + 9].label == "0.90 s, mel 10–25"
    assert elements[2 + 101 + 9].span == Band(Seconds(pytest.approx(0.9), 1.0), (10, 26))
    assert (elements[2 + 101 + 10].label, elements[2 + 101 + 10].span) == ("padding", None)
    wide = spectrogram_elements((2, 3), patch=(8, 4), stride=(6, 5))
    assert wide[4].span == Band(Seconds(pytest.approx(0.05), pytest.approx(0.105)), (6, 14))
