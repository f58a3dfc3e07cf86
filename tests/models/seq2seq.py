"""What every encoder-decoder's parity with transformers is tested by."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from regard.generation import generate_ids, read_settings
from regard.generation.decoding import Sources
from regard.models.checkpoint import Checkpoint
from tests.models.parity import assert_round_trip, assert_same

VOCABULARY = 97
LENGTHS = torch.tensor([17, 9, 1])
"""Of the padded sources."""
SCALE = 3.0
"""What matrices are multiplied by, so that attention is not uniform."""


def sources(pad: int) -> tuple[Tensor, Tensor]:
    """Three sources, padded on the right, and transformers' mask of them."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(4, VOCABULARY, (3, 17), generator=generator)
    real = torch.arange(17) < LENGTHS[:, None]
    return ids.where(real, pad), real.long()


def vary(theirs: Any) -> None:
    """Let a random model of BART's kind heed positions more than sources, so that it does not repeat one piece."""
    scaled = theirs.config.scale_embedding
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "encoder_attn.out" in name:
                parameter.mul_(0.1)
            elif "embed_positions" in name:
                parameter.mul_(3.0)
            elif scaled and ("shared" in name or "embed_tokens" in name):
                parameter.mul_(0.05)
        theirs.final_logits_bias.copy_(0.02 * torch.randn(1, VOCABULARY))


def check_logits(theirs: Any, ours: Checkpoint, pad: int, length: int = 21) -> None:
    """The scores of whole targets are the same, whatever the padding, cached or not."""
    source, mask = sources(pad)
    target = torch.randint(4, VOCABULARY, (3, length), generator=torch.Generator().manual_seed(4))
    model: Any = ours.model
    assert_same(model(source, LENGTHS, target), theirs(source, attention_mask=mask, decoder_input_ids=target).logits)
    for i, size in enumerate(LENGTHS.tolist()):
        alone = model(source[i : i + 1, :size], LENGTHS[i : i + 1], target[i : i + 1])
        torch.testing.assert_close(model(source, LENGTHS, target)[i], alone[0], atol=5e-5, rtol=0)


def check_cached(ours: Checkpoint, pad: int) -> None:
    """Decoding a few pieces at a time gives what decoding them all gives."""
    source, _ = sources(pad)
    model: Any = ours.model
    target = torch.randint(4, VOCABULARY, (3, 33), generator=torch.Generator().manual_seed(4))
    memory, cache = model.encode(source, LENGTHS), model.cache()
    parts = [
        model.logits(model.decode(target[:, first:stop], memory, LENGTHS, start=first, caches=cache))
        for first, stop in ((0, 9), (9, 10), (10, 26), (26, 27), (27, 33))
    ]
    torch.testing.assert_close(torch.cat(parts, 1), model(source, LENGTHS, target), atol=5e-5, rtol=0)


def check_greedy(theirs: Any, ours: Checkpoint, pad: int) -> None:
    """64 steps of greedy search write the same pieces."""
    source, mask = sources(pad)
    model: Any = ours.model
    expected = theirs.generate(
        source, attention_mask=mask, max_new_tokens=64, do_sample=False, eos_token_id=None, forced_eos_token_id=None
    )
    written = torch.full((3, 1), model.decoder_start)
    memory, cache = model.encode(source, LENGTHS), model.cache()
    for step in range(64):
        hidden = model.decode(written[:, -1:], memory, LENGTHS, start=step, caches=cache)
        written = torch.cat([written, model.logits(hidden[:, -1:]).argmax(-1)], 1)
    assert torch.equal(written, expected)
    assert len(set(written[0].tolist())) > 3, "a text of a few pieces shows nothing"


def check_round_trip(theirs: Any, place: Path, again: Path, pad: int) -> None:
    """What regard writes is the file that it read, and transformers reads it."""
    assert_round_trip(place, again)
    source, mask = sources(pad)
    target = torch.randint(4, VOCABULARY, (3, 11))
    read = type(theirs).from_pretrained(again).eval()
    inputs = {"attention_mask": mask, "decoder_input_ids": target}
    found, expected = read(source, **inputs).logits, theirs(source, **inputs).logits
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def check_beams(theirs: Any, read: Checkpoint, pad: int) -> None:
    """Beam search writes the same pieces, whatever the settings."""
    source, mask = sources(pad)
    ours: Any = read.model
    start = ours.decoder_start
    greedy = theirs.generate(
        source, attention_mask=mask, max_new_tokens=20, do_sample=False, eos_token_id=None, forced_eos_token_id=None
    )
    ends = greedy[0, [6, 12, 20]].tolist()  # pieces that are written: so that texts end
    base = {"decoder_start_token_id": start, "eos_token_id": ends, "max_length": 24, "num_beams": 4}
    lengths: set[int] = set()
    for settings in (
        {"length_penalty": 1.0, "early_stopping": True},
        {"length_penalty": 0.0, "early_stopping": False},
        {"length_penalty": 2.0, "early_stopping": False, "forced_eos_token_id": ends[0]},
        {"length_penalty": 0.6, "early_stopping": "never", "forced_bos_token_id": 9, "no_repeat_ngram_size": 2},
        {"num_beams": 1, "no_repeat_ngram_size": 3, "min_length": 9, "forced_eos_token_id": ends[0]},
        {"min_length": 9, "bad_words_ids": [[11], [17, 18], [pad]], "renormalize_logits": True},
    ):
        values = base | settings
        expected = theirs.generate(
            source, attention_mask=mask, **{"forced_eos_token_id": None, "do_sample": False} | values
        )
        chosen = read_settings(values, "settings", vocab_size=VOCABULARY, start=1)
        answers = generate_ids(ours, [[start]] * len(source), chosen, sources=Sources(source, LENGTHS))
        for answer, row in zip(answers, expected.tolist(), strict=True):
            stop = next((i for i, piece in enumerate(row) if i and piece in ends), len(row))
            assert [*answer.ids] == row[1 : stop + 1], settings
            lengths.add(len(answer.ids))
    assert len(lengths) > 1, "answers of one length show nothing"
