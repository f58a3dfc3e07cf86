"""Augmentations change what they say, by torch's generator alone, and keep what they must."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from regard.training.augment import (
    Augmentation,
    CutMix,
    FrequencyMask,
    Gain,
    HorizontalFlip,
    MixUp,
    Noise,
    RandAugment,
    RandomCrop,
    RandomErasing,
    SoundAugmentation,
    Speed,
    TimeMask,
    TimeShift,
    one_hot,
    rand_augment,
)

PIXELS = (
    RandomCrop(3), HorizontalFlip(), RandomErasing(1.0), RandomErasing(0.5, noise=False), MixUp(), CutMix(),
    RandAugment(3, 1.0), FrequencyMask(4, 2), TimeMask(4, 2),
)  # fmt: skip
SOUNDS = (TimeShift(0.01), Speed(1.2), Noise(), Gain())


def images(count: int = 6, height: int = 9, width: int = 12) -> Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("augment", PIXELS, ids=str)
@settings(max_examples=10)
@given(seed=st.integers(0, 2**32))
def test_pixels_keep_shape_range_and_targets(augment: Augmentation, seed: int) -> None:
    inputs, targets = images(), one_hot(torch.arange(6) % 4, 4)
    kept = inputs.clone()
    torch.manual_seed(seed)
    changed, parts = augment(inputs, targets)
    assert torch.equal(inputs, kept)  # what is given is not written to
    assert changed.shape == inputs.shape and changed.dtype == inputs.dtype
    assert changed.min() >= -1e-6 and changed.max() <= 1 + 1e-6
    torch.testing.assert_close(parts.sum(1), torch.ones(6))
    torch.manual_seed(seed)
    again, parts_again = augment(inputs, targets)
    assert torch.equal(changed, again) and torch.equal(parts, parts_again)


@pytest.mark.parametrize("augment", PIXELS, ids=str)
def test_pixels_are_changed_at_all(augment: Augmentation) -> None:
    torch.manual_seed(0)
    changed, _ = augment(images(40), one_hot(torch.arange(40) % 4, 4))
    assert not torch.equal(changed, images(40))


def test_a_crop_is_a_window_of_the_mirrored_image() -> None:
    inputs = images(30)
    torch.manual_seed(0)
    padded = torch.nn.functional.pad(inputs, (2, 2, 2, 2), mode="reflect")
    places: set[tuple[int, int]] = set()
    for image, found in zip(padded, RandomCrop(2).change(inputs), strict=True):
        windows = {(y, x): image[:, y : y + 9, x : x + 12] for y in range(5) for x in range(5)}
        (place,) = [place for place, window in windows.items() if torch.equal(window, found)]
        places.add(place)
    assert len(places) > 10  # every image its own
    assert torch.equal(RandomCrop(0).change(inputs), inputs)
    with pytest.raises(ValueError, match=r"padding is 9: it must be less than the images' 9 × 12 pixels"):
        RandomCrop(9).change(inputs)


def test_a_flip_mirrors_some() -> None:
    inputs = images(40)
    torch.manual_seed(0)
    flipped = [torch.equal(a, b.flip(-1)) for a, b in zip(HorizontalFlip().change(inputs), inputs, strict=True)]
    assert 10 < sum(flipped) < 30
    assert torch.equal(HorizontalFlip(1.0).change(inputs), inputs.flip(-1))


def test_erasing_fills_a_box_of_the_wanted_area() -> None:
    torch.manual_seed(0)
    inputs = images(50, 32, 32) * 0.1
    changed = RandomErasing(1.0, area=(0.1, 0.2), noise=False).change(inputs)
    for found, image in zip(changed, inputs, strict=True):
        differ = (found != image).all(0)
        rows, columns = differ.any(1).sum(), differ.any(0).sum()
        assert differ.sum() == rows * columns  # one box
        assert 0.07 < float(differ.sum()) / 32**2 < 0.24 and bool((found[:, differ] == 0.5).all())


def test_mixing_gives_each_class_its_part() -> None:
    count = 8
    inputs = torch.arange(count, dtype=torch.float32)[:, None, None, None].expand(-1, 1, 10, 10) / count
    targets = torch.eye(count)
    for seed in range(20):
        torch.manual_seed(seed)
        for augment in (MixUp(1.0), CutMix()):
            mixed, parts = augment(inputs, targets)
            levels = torch.arange(count, dtype=torch.float32) / count
            torch.testing.assert_close(mixed.mean((1, 2, 3)), parts @ levels)  # by area, or by weight
    torch.manual_seed(0)
    assert torch.equal(CutMix(p=0.0)(inputs, targets)[0], inputs)


def test_every_operation_does_nothing_at_no_strength_but_those_without_one() -> None:
    inputs = images(4, 12, 12)
    for name, operation in rand_augment.COLOURS.items():
        changed = operation(inputs, torch.zeros(4, 1, 1, 1))
        same = torch.allclose(changed, inputs, atol=1 / 255)
        assert same == (name not in ("invert", "stretch")), name
    for name, operation in rand_augment.SHAPES.items():
        assert torch.equal(operation(torch.zeros(2)), torch.eye(2, 3).repeat(2, 1, 1)), name
        assert not torch.equal(operation(torch.ones(2)), torch.eye(2, 3).repeat(2, 1, 1)), name
    assert torch.equal(RandAugment(p=0.0).change(inputs), inputs)


def test_a_shift_moves_an_image_and_leaves_grey() -> None:
    image = torch.zeros(1, 3, 10, 10)
    level = torch.tensor([0.1 / 0.3])  # a tenth of the width: one pixel
    kind = torch.tensor([rand_augment.OPERATIONS.index("shift_x")])
    image[:, :, :, 4] = 1
    moved = rand_augment._shaped(image, kind, level)  # pyright: ignore[reportPrivateUsage]
    torch.testing.assert_close(moved[:, :, :, 3], torch.ones(1, 3, 10))
    torch.testing.assert_close(moved[:, :, :, 9], torch.full((1, 3, 10), 0.5))


def test_a_turn_keeps_right_angles_in_images_that_are_no_squares() -> None:
    rows, columns = torch.meshgrid(torch.arange(40.0), torch.arange(80.0), indexing="ij")
    disc = ((rows - 19.5).square() + (columns - 39.5).square() < 15**2).float()[None, None]
    kind = torch.tensor([rand_augment.OPERATIONS.index("turn")])
    turned = rand_augment._shaped(disc, kind, torch.ones(1))  # pyright: ignore[reportPrivateUsage]
    inside = ((rows - 19.5).square() + (columns - 39.5).square() < 17.5**2)[None, None]  # off the open corners
    assert (turned - disc)[inside].abs().mean() < 0.05


@pytest.mark.parametrize("augment", SOUNDS, ids=str)
@settings(max_examples=10)
@given(seed=st.integers(0, 2**32), length=st.integers(1, 2000))
def test_sound_stays_finite_and_repeats_by_the_seed(augment: SoundAugmentation, seed: int, length: int) -> None:
    samples = torch.sin(torch.arange(length) * 0.1)
    torch.manual_seed(seed)
    changed = augment(samples, 16_000)
    assert changed.isfinite().all() and changed.ndim == 1 and changed.dtype == samples.dtype
    if not isinstance(augment, Speed):
        assert len(changed) == length
    torch.manual_seed(seed)
    assert torch.equal(changed, augment(samples, 16_000))


def test_sound_changes_by_what_it_says() -> None:
    samples = torch.sin(torch.arange(16_000) * 0.1)
    lengths, ratios, gains = [], [], []
    for seed in range(50):
        torch.manual_seed(seed)
        lengths.append(16_000 / len(Speed(1.25)(samples, 16_000)))
        ratios.append(
            float(10 * (samples.square().mean() / (Noise(10, 20)(samples, 16_000) - samples).square().mean()).log10())
        )
        gains.append(float(20 * (Gain(3)(samples, 16_000)[1] / samples[1]).log10()))
    assert 0.8 <= min(lengths) < 0.85 and 1.2 < max(lengths) <= 1.2501
    assert 9.8 < min(ratios) < 11 and 19 < max(ratios) < 20.2
    assert -3 <= min(gains) < -2.5 and 2.5 < max(gains) <= 3
    ramp = torch.arange(1.0, 101)
    shifts: set[int] = set()
    for seed in range(80):
        torch.manual_seed(seed)
        moved = TimeShift(0.05)(ramp, 100)
        shift = int(51 - moved[50])
        assert torch.equal(moved, torch.nn.functional.pad(ramp, (shift, -shift)))
        shifts.add(shift)
    assert shifts == set(range(-5, 6))


def test_masks_hide_stripes_of_one_axis() -> None:
    features = torch.rand(30, 1, 20, 25)
    torch.manual_seed(0)
    for mask, axis in ((FrequencyMask(5), 2), (TimeMask(5), 3)):
        hidden = (mask.change(features) != features)[:, 0]  # (B, M, T)
        other = 1 if axis == 3 else 2
        assert torch.equal(hidden.any(other), hidden.all(other))  # whole stripes
        widths = hidden.any(other).sum(1)
        assert set(widths.tolist()) == set(range(6))
    assert torch.equal(replace(TimeMask(3), count=0).change(features), features)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RandomCrop(-1), "padding is -1"),
        (lambda: HorizontalFlip(1.5), "p is 1.5"),
        (lambda: RandomErasing(area=(0.5, 0.2)), r"area is \(0.5, 0.2\)"),
        (lambda: MixUp(0), "alpha is 0"),
        (lambda: CutMix(p=-1), "p is -1"),
        (lambda: RandAugment(0), "count is 0"),
        (lambda: RandAugment(1, 2), "magnitude is 2"),
        (lambda: Speed(0.9), "most is 0.9"),
        (lambda: Noise(20, 10), "least is 20 dB"),
        (lambda: Gain(0), "decibels is 0"),
        (lambda: TimeShift(-1), "seconds is -1"),
        (lambda: TimeMask(-1), "width is -1"),
    ],
)
def test_what_cannot_be_is_refused(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()  # pyright: ignore[reportCallIssue]


def test_mixing_inputs_alone_is_refused() -> None:
    for augment in (MixUp(), CutMix()):
        with pytest.raises(TypeError, match="inputs and targets together"):
            augment.change(images())
