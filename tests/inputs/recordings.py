"""Small recordings, written with the encoders that come with PyAV."""

import io
from fractions import Fraction

import av
import numpy


def sound(samples: numpy.ndarray, rate: int, form: str = "wav", codec: str = "pcm_s16le", **options: str) -> bytes:
    """A file with this sound: (C, N) floating point."""
    file = io.BytesIO()
    with av.open(file, "w", format=form) as container:
        layout = {1: "mono", 2: "stereo", 6: "5.1"}[len(samples)]
        stream = container.add_stream(codec, rate=rate, layout=layout, options=options)
        if samples.shape[1]:
            frame = av.AudioFrame.from_ndarray(numpy.ascontiguousarray(samples, numpy.float32), "fltp", layout)
            frame.sample_rate, frame.time_base, frame.pts = rate, Fraction(1, rate), 0
            resampler = av.AudioResampler(stream.format, layout, rate, frame_size=stream.frame_size or None)
            for part in (*resampler.resample(frame), *resampler.resample(None)):
                container.mux(stream.encode(part))
        container.mux(stream.encode(None))
    return file.getvalue()


def tone(rate: int, seconds: float, hertz: float = 440.0, loud: float = 0.5) -> numpy.ndarray:
    """(1, N) of a sine."""
    return loud * numpy.sin(2 * numpy.pi * hertz * numpy.arange(int(rate * seconds)) / rate)[None]


def film(
    frames: list[numpy.ndarray],
    fps: int = 25,
    form: str = "mp4",
    codec: str = "libx264",
    pixels: str = "yuv420p",
    turned: int = 0,
    samples: numpy.ndarray | None = None,
    **options: str,
) -> bytes:
    """A file with these frames, (H, W, 3) uint8, to be turned by so many degrees, with sound at 16 kHz if given."""
    file = io.BytesIO()
    with av.open(file, "w", format=form) as container:
        stream = container.add_stream(codec, rate=fps, options=options)
        stream.height, stream.width = frames[0].shape[:2] if frames else (32, 32)
        stream.pix_fmt = pixels
        if turned:
            stream.set_display_rotation(turned)
        other = container.add_stream("aac", rate=16_000, layout="mono") if samples is not None else None
        for array in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(array, "rgb24")))
        container.mux(stream.encode(None))
        if other is not None:
            frame = av.AudioFrame.from_ndarray(numpy.ascontiguousarray(samples, numpy.float32), "fltp", "mono")
            frame.sample_rate = 16_000
            container.mux([*other.encode(frame), *other.encode(None)])
    return file.getvalue()
