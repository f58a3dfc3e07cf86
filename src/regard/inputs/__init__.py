"""Raw data → elements and tensors."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from regard.inputs.alignment import word_indices, words
    from regard.inputs.audio import audio_blocks, frame_elements, read_audio, spectrogram_elements
    from regard.inputs.features import ASTSettings, WhisperSettings, ast_features, whisper_features
    from regard.inputs.image import ImageSettings, image_pixels, image_tensor, patch_elements, read_image
    from regard.inputs.kind import kind_of
    from regard.inputs.source import InputError
    from regard.inputs.text import EncodedText, TextTokenizer
    from regard.inputs.video import Video, read_frames, read_video, tubelet_elements

_HOME = {
    "alignment": ("word_indices", "words"),
    "audio": ("audio_blocks", "frame_elements", "read_audio", "spectrogram_elements"),
    "features": ("ASTSettings", "WhisperSettings", "ast_features", "whisper_features"),
    "image": ("ImageSettings", "image_pixels", "image_tensor", "patch_elements", "read_image"),
    "kind": ("kind_of",),
    "source": ("InputError",),
    "text": ("EncodedText", "TextTokenizer"),
    "video": ("Video", "read_frames", "read_video", "tubelet_elements"),
}
__all__ = [
    "ASTSettings",
    "EncodedText",
    "ImageSettings",
    "InputError",
    "TextTokenizer",
    "Video",
    "WhisperSettings",
    "ast_features",
    "audio_blocks",
    "frame_elements",
    "image_pixels",
    "image_tensor",
    "kind_of",
    "patch_elements",
    "read_audio",
    "read_frames",
    "read_image",
    "read_video",
    "spectrogram_elements",
    "tubelet_elements",
    "whisper_features",
    "word_indices",
    "words",
]


# Each name is imported when it is first asked for: telling what a file is, or tokenizing, needs no torch.
def __getattr__(name: str) -> Any:
    for module, names in _HOME.items():
        if name in names:
            globals()[name] = getattr(import_module(f"regard.inputs.{module}"), name)
            return globals()[name]
    raise AttributeError(f"module 'regard.inputs' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
