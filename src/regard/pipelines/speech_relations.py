"""What a model of speech attends to: the sound to itself, the text to the text before it, and the text to the sound."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from regard.attention import Watch
from regard.elements import Element
from regard.inputs.audio import audio_blocks, check_heard, frame_elements
from regard.inputs.source import InputError, Source, name_of
from regard.pipelines.drawing import spectrogram_data
from regard.pipelines.hearing import Heard
from regard.pipelines.media import top_of
from regard.pipelines.texts import text_sequence
from regard.pipelines.transcription import TranscriptionPipeline
from regard.pipelines.windows import Recording
from regard.relations import Relations, Sequence, observe


def speech_report(pipeline: TranscriptionPipeline, source: Source) -> dict[str, Any]:
    """The first window of a recording, what is said in it, and relations, as data that views draw.

    Elements of the sound are the encoder's positions, of 20 ms each in Whisper; those of the text are the pieces that
    the decoder reads, whose spans are characters of the text without time stamps.

    Args:
        pipeline: of the model.
        source: an audio or video file that FFmpeg reads, or its bytes.

    Raises:
        InputError: if the recording cannot be read, is silent, or shorter than a frame.
    """
    features, name = pipeline.features, name_of(source)
    samples = Recording(audio_blocks(source, features.rate)).window(0, features.samples + 1)
    longer, samples = len(samples) > features.samples, samples[: features.samples]
    check_heard(samples, name)
    if len(samples) < features.hop:
        raise InputError(f"{name} has {len(samples)} samples at {features.rate} a second: {features.hop} are needed")
    heard = pipeline.reader.read(samples, pipeline.speech.language(pipeline.language))
    text = pipeline.tokenizer.decode(pipeline.speech.spoken_of(heard.pieces))
    relations = relate(pipeline, heard)
    report: dict[str, Any] = relations.to_dict() | {"input": name, "answer": text.strip(), "alignment": None}
    seconds, step = len(samples) / features.rate, 2 * features.hop / features.rate
    count = pipeline.model.config.source_positions
    shown = f"the first {seconds:.2f} s" if longer else f"{seconds:.2f} s"
    about = f"{shown} of sound, heard in {count:,} positions of {1000 * step:.0f} ms"
    real = sum(element.span is not None for element in relations.sequences[0]["sound"].elements)
    if real < count:
        about += f", of which {real:,} hold sound; the silence after it is heard, too"
    drawn = spectrogram_data(heard.sources.read[0].T.cpu(), len(samples) // features.hop, lowest=0)
    places = [[0, 2 * i, 0, 2 * i + 2, features.mels] for i in range(count)]
    report["sequences"]["sound"] |= {"about": about, "pictures": [drawn], "places": places}
    return report


def relate(pipeline: TranscriptionPipeline, heard: Heard) -> Relations:
    """Which piece attended to which and to which stretch of sound, from one pass over a window and its text.

    The last piece is written and never read: it has no row.
    """
    features, model = pipeline.features, pipeline.model
    elements = _elements(pipeline, heard)
    text = pipeline.tokenizer.decode(pipeline.speech.spoken_of(heard.pieces))
    step, config = 2 * features.hop / features.rate, model.config
    frames = frame_elements(config.source_positions, step, duration=len(heard.samples) / features.rate)
    sequences = {
        "encoder": Sequence("sound", "sound", tuple(frames), modality="audio"),
        "decoder": text_sequence("text", "transcript", text, elements[:-1], [e.label for e in elements[1:]]),
    }
    rows = config.encoder_layers * config.encoder_heads * len(frames)
    rows += 2 * config.decoder_layers * config.decoder_heads * (len(elements) - 1)
    about = {"name": pipeline.checkpoint.directory.name, "task": "transcribe", "description": ""}
    read = torch.tensor([[*heard.prompt, *heard.answer.ids[:-1]]], device=pipeline.device)
    watch = Watch(top=top_of(rows, len(frames)))
    with (
        torch.no_grad(),
        observe(model, watch=watch, elements=sequences, about=about, this_thread=True) as relations,
    ):
        model(heard.sources.read.to(pipeline.device), heard.sources.lengths, read)
    return relations


def _elements(pipeline: TranscriptionPipeline, heard: Heard) -> list[Element]:
    """The pieces of prompt and answer; those of the prompt, the stamps and the end have no place in the text."""
    tokenizer, speech = pipeline.tokenizer, pipeline.speech
    spoken = iter(tokenizer.elements(speech.spoken_of(heard.pieces)))
    found = [Element(i, tokenizer.piece(piece)) for i, piece in enumerate(heard.prompt)]
    for place, piece in enumerate(heard.answer.ids):
        index = len(found)
        in_text = place < len(heard.pieces) and piece < speech.first_stamp
        found.append(replace(next(spoken), index=index) if in_text else Element(index, tokenizer.piece(piece)))
    return found
