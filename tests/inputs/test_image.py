"""Images: what a model is given is what the Hugging Face processors give it, and every patch knows its place."""

import io
import json
import math
from pathlib import Path

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from regard.elements import Box
from regard.inputs.image import RESAMPLE, ImageSettings, image_tensor, patch_boxes, patch_elements, read_image
from regard.inputs.source import InputError

VIT = {"image_processor_type": "ViTImageProcessor"}
sizes = st.integers(1, 90)


def scene(width: int, height: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    """Flat colours with an edge between them, and noise."""
    noise = numpy.random.default_rng(seed).integers(0, 256, (height, width, len(mode)), dtype=numpy.uint8)
    noise[: height // 2, : width // 2] //= 8
    return Image.fromarray(noise[:, :, 0] if mode == "L" else noise)


def encoded(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def theirs(kind: str, data: dict[str, object]) -> object:
    from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
    from transformers.models.deit.image_processing_pil_deit import DeiTImageProcessorPil
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    classes = {"ViT": ViTImageProcessorPil, "DeiT": DeiTImageProcessorPil, "Bit": BitImageProcessorPil}
    return classes[kind].from_dict(data)


def three(least: float, most: float) -> st.SearchStrategy[tuple[float, ...]]:
    return st.tuples(*[st.floats(least, most)] * 3)


@given(
    size=st.none() | sizes | st.tuples(sizes, sizes),
    crop=st.none() | st.tuples(sizes, sizes),
    resample=st.sampled_from(RESAMPLE),
    rescale=st.none() | st.floats(1e-4, 2),
    colours=st.none() | st.tuples(three(-1, 2), three(0.01, 2)),
)
def test_settings_are_written_as_they_are_read(size, crop, resample, rescale, colours) -> None:
    mean, std = colours or (None, None)
    made = ImageSettings(size, crop, "bilinear" if size is None else resample, rescale, mean, std)
    assert ImageSettings.from_json(json.loads(json.dumps(made.to_json()))) == made


# What checkpoints say: google/vit-base-patch16-224, facebook/deit-base-distilled-patch16-224 (both spellings of a
# size), facebook/dinov2-base; and combinations that none of them has.
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
CHECKPOINTS = [
    ("ViT", {}),
    ("ViT", {"size": 384, "resample": 3}),
    ("ViT", {"size": [40, 31], "do_normalize": False}),
    ("ViT", {"do_resize": False}),
    ("ViT", {"size": 30, "do_rescale": None, "rescale_factor": None, "crop_size": None, "do_center_crop": None}),
    ("ViT", {"size": 30, "do_normalize": None, "image_mean": None, "device": None, "pad_size": None, "do_pad": None}),
    ("ViT", {"do_rescale": False, "image_mean": 120, "image_std": [50, 60.5, 70]}),
    ("ViT", {"do_center_crop": True, "crop_size": {"height": 50, "width": 41}, "size": {"shortest_edge": 33}}),
    ("DeiT", {}),
    ("DeiT", {"size": 256, "crop_size": 224, "resample": 3, **IMAGENET}),
    ("DeiT", {"do_center_crop": False, "size": {"height": 23, "width": 57}}),
    ("DeiT", {"size": {"height": 20, "width": 61}, "crop_size": {"height": 35, "width": 32}}),
    ("Bit", {}),
    ("Bit", {"size": {"shortest_edge": 256}, "resample": 3, "do_convert_rgb": True, "rescale_factor": 1 / 255}),
    ("Bit", {"size": {"shortest_edge": 256}, **IMAGENET}),
    ("Bit", {"size": 32, "crop_size": {"height": 29, "width": 30}}),
    ("Bit", {"size": 32, "default_to_square": True, "do_center_crop": False}),
]  # fmt: skip


def differs(kind: str, changes: dict[str, object], picture: bytes) -> float:
    """The largest difference from transformers, in grey levels."""
    data = {"image_processor_type": f"{kind}ImageProcessor", **changes}
    ours = ImageSettings.from_json(data)
    tensor = image_tensor(picture, ours)
    image = Image.open(io.BytesIO(picture)).convert("RGB")
    expected = torch.as_tensor(theirs(kind, data)(image, return_tensors="np")["pixel_values"][0])
    assert tensor.shape == expected.shape == (3, *ours.output(image.height, image.width))
    assert tensor.dtype == torch.float32
    level = torch.tensor([ours.rescale or 1.0] * 3) / torch.tensor(ours.std or (1.0, 1.0, 1.0))
    return float(((tensor - expected).abs() / level[:, None, None]).max())


@pytest.mark.parametrize(("kind", "changes"), CHECKPOINTS)
@settings(max_examples=10)
@given(width=sizes, height=sizes, form=st.sampled_from(["PNG", "JPEG", "BMP", "WEBP"]))
def test_as_transformers_does_it(kind: str, changes: dict[str, object], width: int, height: int, form: str):
    assert differs(kind, changes, encoded(scene(width, height), form)) < 0.01


@pytest.mark.parametrize("resample", range(len(RESAMPLE)))
@settings(max_examples=10)
@given(width=st.integers(1, 700), height=st.integers(1, 400), edge=st.integers(1, 300))
def test_every_filter(resample: int, width: int, height: int, edge: int):
    if max(width, height) / min(width, height) * edge > 3000:
        edge = 8
    changes = {"size": {"shortest_edge": edge}, "resample": resample, "do_center_crop": False}
    assert differs("Bit", changes, encoded(scene(width, height))) < 0.01


@pytest.mark.shared("cifar10", "tracking")
def test_photographs(shared_data: Path):
    cifar = numpy.load(shared_data / "cifar10" / "cifar10.npz")
    first, stop = cifar["test_offsets"][:2]
    frame = (shared_data / "tracking" / "Car4" / "img" / "0001.jpg").read_bytes()
    for picture in (cifar["test_jpeg"][first:stop].tobytes(), frame):
        for kind in ("ViT", "DeiT", "Bit"):
            assert differs(kind, {}, picture) < 0.01


@pytest.mark.parametrize("name", ["ViTImageProcessorFast", "ViTImageProcessorPil", "ViTFeatureExtractor"])
def test_other_names_mean_the_same(name: str):
    assert ImageSettings.from_json({"image_processor_type": name}) == ImageSettings.from_json(VIT) == ImageSettings()
    assert ImageSettings.from_json({"feature_extractor_type": name}) == ImageSettings()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({}, "has no image_processor_type: it may be ViTImageProcessor"),
        ({"image_processor_type": "CLIPImageProcessor"}, "image_processor_type in .* is 'CLIPImageProcessor'"),
        ({"image_processor_type": ["ViT"]}, "is \\['ViT'\\]"),
        ({**VIT, "crop_pct": 0.9, "auto_map": {}}, "not known here: auto_map, crop_pct"),
        ({**VIT, "size": {"longest_edge": 3}}, "size in .* is {'longest_edge': 3}: it must be"),
        ({**VIT, "size": {"shortest_edge": True}}, "size"),
        ({**VIT, "size": {"height": 0, "width": 3}}, "from 1 to"),
        ({**VIT, "size": 10**9}, "from 1 to"),
        ({**VIT, "size": None}, "size in .* is None"),
        ({**VIT, "image_mean": None}, "image_mean in .* is None"),
        ({**VIT, "do_center_crop": True}, "crop_size in .* is None"),
        ({**VIT, "do_resize": 1}, "do_resize in .* is 1: it must be true or false"),
        ({**VIT, "resample": 6}, "resample in .* is 6: it must be an integer from 0 to 5"),
        ({**VIT, "resample": True}, "resample"),
        ({**VIT, "do_pad": True}, "do_pad in .* is True: only False"),
        ({**VIT, "data_format": "channels_last"}, "data_format"),
        ({**VIT, "image_mean": [0.5, 0.5]}, "image_mean .* it must be a number, or three"),
        ({**VIT, "image_std": [0.5, 0, 0.5]}, "image_std .* positive"),
        ({**VIT, "rescale_factor": float("nan")}, "rescale_factor .* is nan"),
        ({**VIT, "rescale_factor": 10**400}, "rescale_factor"),
    ],
)
def test_unknown_settings(data: dict[str, object], said: str):
    with pytest.raises(ValueError, match=said) as caught:
        ImageSettings.from_json(data)
    assert "\n" not in str(caught.value)


def test_settings_check_themselves():
    for changes in ({"resample": "linear"}, {"mean": None}, {"std": (1.0, 0.0, 1.0)}):
        with pytest.raises(ValueError, match=next(iter(changes))):
            ImageSettings(**changes)


def test_every_mode_becomes_rgb():
    colours = scene(9, 7)
    expected = numpy.asarray(colours)
    grey = colours.convert("L")
    for image in (colours, colours.convert("RGBA"), colours.convert("RGBX")):
        assert numpy.array_equal(read_image(encoded(image, "TIFF")), expected)
    assert numpy.array_equal(read_image(encoded(grey)), numpy.asarray(grey.convert("RGB")))
    bits, palette = colours.convert("1"), colours.quantize(8)
    assert numpy.array_equal(read_image(encoded(bits)), numpy.asarray(bits.convert("RGB")))
    assert numpy.array_equal(read_image(encoded(palette, "GIF")), numpy.asarray(palette.convert("RGB")))
    cmyk = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    red = numpy.asarray(read_image(encoded(cmyk, "JPEG", quality=100)))
    assert (abs(red.astype(int) - [255, 0, 0]) <= 2).all()


def test_sixteen_bits_keep_their_levels():
    levels = numpy.arange(0, 65536, 257, dtype=numpy.uint16).reshape(16, 16)
    grey = numpy.repeat(numpy.arange(256, dtype=numpy.uint8).reshape(16, 16, 1), 3, 2)
    for form in ("PNG", "TIFF", "PPM"):
        assert numpy.array_equal(read_image(encoded(Image.fromarray(levels), form)), grey), form
    assert numpy.array_equal(read_image(levels), grey)
    floats = Image.fromarray((levels / 65535).astype(numpy.float32))
    assert numpy.array_equal(read_image(encoded(floats, "TIFF")), grey)
    with pytest.raises(InputError, match="0 to 65535"):
        read_image(Image.fromarray(numpy.array([[70000]], dtype=numpy.int32)))


def test_transparency_is_white():
    image = Image.new("RGBA", (2, 1), (200, 0, 0, 255))
    image.putpixel((1, 0), (200, 0, 0, 0))
    expected = [[200, 0, 0], [255, 255, 255]]
    assert numpy.asarray(read_image(encoded(image)))[0].tolist() == expected
    assert numpy.asarray(read_image(numpy.asarray(image)))[0].tolist() == expected
    keyed = Image.new("RGB", (2, 1), (200, 0, 0))
    keyed.putpixel((1, 0), (1, 2, 3))
    assert numpy.asarray(read_image(encoded(keyed, transparency=(1, 2, 3))))[0].tolist() == expected
    palette = Image.new("P", (2, 1))
    palette.putpalette([200, 0, 0, 9, 9, 9])
    palette.putpixel((1, 0), 1)
    assert numpy.asarray(read_image(encoded(palette, transparency=1)))[0].tolist() == expected


@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns_it_upright(form: str, orientation: int):
    upright = Image.new("RGB", (32, 16))
    ImageDraw.Draw(upright).rectangle((0, 0, 15, 7), fill=(255, 0, 0))
    ImageDraw.Draw(upright).rectangle((16, 0, 31, 7), fill=(0, 255, 0))
    op = Image.Transpose
    # Orientation n says where the stored image's first row and column are: the inverse of what turns it upright.
    stored = {
        1: None, 2: op.FLIP_LEFT_RIGHT, 3: op.ROTATE_180, 4: op.FLIP_TOP_BOTTOM, 5: op.TRANSPOSE,
        6: op.ROTATE_90, 7: op.TRANSVERSE, 8: op.ROTATE_270,
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = upright if stored is None else upright.transpose(stored)
    read = numpy.asarray(read_image(encoded(image, form, exif=exif))).astype(int)
    assert read.shape == (16, 32, 3)
    assert abs(read[2:6, 2:12] - [255, 0, 0]).max() < 60
    assert abs(read[2:6, 20:30] - [0, 255, 0]).max() < 60
    assert read[10:].max() < 60


def test_damaged_exif_says_nothing():
    data = encoded(scene(5, 4), exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01\x12")
    assert read_image(data).size == (5, 4)


def test_arrays_and_tensors():
    image = scene(6, 5)
    array = numpy.array(image)
    tensor = torch.from_numpy(array).permute(2, 0, 1)
    sources = [
        image, array, array / 255, (array / 255).astype(numpy.float16), array.astype(numpy.int64), tensor,
        tensor.float() / 255, tensor.double() / 255, tensor.long(), (tensor.float() / 255).requires_grad_(),
        numpy.asfortranarray(array),
    ]  # fmt: skip
    for source in sources:
        assert numpy.array_equal(read_image(source), array)
    assert numpy.array_equal(read_image(array[:, :, 0]), array[:, :, [0, 0, 0]])
    assert numpy.array_equal(read_image(tensor[:1]), array[:, :, [0, 0, 0]])
    assert numpy.array_equal(read_image(array > 99), (array > 99) * numpy.uint8(255))
    assert read_image(tensor.to(torch.bfloat16) / 256).size == (6, 5)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (numpy.zeros((3, 4, 5, 3)), "shape \\(3, 4, 5, 3\\): it must be \\(H, W\\) or \\(H, W, C\\)"),
        (torch.zeros(5, 4, 3), "the tensor has shape \\(5, 4, 3\\): .* \\(C, H, W\\)"),
        (numpy.zeros((0, 4, 3)), "4 × 0 pixels"),
        (numpy.full((2, 2), numpy.nan), "from nan to nan: they must be from 0 to 1"),
        (numpy.full((2, 2), 1.5), "from 1.5 to 1.5"),
        (numpy.full((2, 2), -1), "from -1 to -1: they must be from 0 to 255"),
        (numpy.zeros((2, 2), complex), "holds complex128"),
        (numpy.array([["a"]]), "holds <U1"),
    ],
)
def test_arrays_that_are_no_image(source: object, said: str):
    with pytest.raises(InputError, match=said):
        read_image(source)


def test_files_that_are_no_image(tmp_path: Path):
    def says(name: str, content: bytes, said: str) -> None:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=said) as caught:
            read_image(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)
        assert "\n" not in str(caught.value)

    png, jpeg = encoded(scene(64, 48)), encoded(scene(64, 48), "JPEG")
    says("text.png", b"a text, not an image\n", "not an image")
    says("cut.png", png[: len(png) // 2], "truncated")
    says("cut.jpg", jpeg[: len(jpeg) // 2], "truncated")
    says("header.png", png[:20], "image")
    says("pages.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "PostScript")
    bomb = bytearray(png)
    bomb[16:24] = (60_000).to_bytes(4, "big") * 2
    bomb[29:33] = __import__("zlib").crc32(bytes(bomb[12:29])).to_bytes(4, "big")
    says("bomb.png", bytes(bomb), "3600000000 pixels|bomb")
    with pytest.raises(InputError, match="no such file"):
        read_image(tmp_path / "none.png")


def test_a_thread_of_pixels_is_refused():
    with pytest.raises(InputError, match="would be resized to"):
        image_tensor(numpy.zeros((1, 40_000), numpy.uint8), ImageSettings(size=224))


forms = st.sampled_from(["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "TGA", "ICO", "PCX", "JPEG2000"])


@settings(max_examples=300)
@given(form=forms, flips=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=4), cut=st.floats(0.01, 1))
def test_damage_is_an_input_error(form: str, flips: list[tuple[float, int]], cut: float):
    data = bytearray(encoded(scene(33, 21), form))
    for place, value in flips:
        data[int(place**3 * (len(data) - 1))] = value  # mostly in the header
    try:
        tensor = image_tensor(bytes(data[: math.ceil(len(data) * cut)]), ImageSettings(size=(8, 8)))
    except InputError as error:
        assert "\n" not in str(error)
    else:
        assert tensor.shape == (3, 8, 8)
        assert tensor.isfinite().all()


@given(width=st.integers(8, 300), height=st.integers(8, 300), rows=st.integers(1, 9), columns=st.integers(1, 9))
def test_patches_tile_what_the_tensor_shows(width: int, height: int, rows: int, columns: int):
    plain = ImageSettings(size=(56, 42))
    boxes = patch_boxes(height, width, plain, (rows, columns))
    assert boxes[0].left == boxes[0].top == 0
    assert (boxes[-1].right, boxes[-1].bottom) == pytest.approx((width, height))
    area = sum((b.right - b.left) * (b.bottom - b.top) for b in boxes)
    assert area == pytest.approx(width * height)
    cropped = patch_boxes(height, width, ImageSettings(size=60, crop=(56, 42)), (rows, columns))
    assert all(0 <= b.left < b.right <= width and 0 <= b.top < b.bottom <= height for b in cropped)
    scale = min(width, height) / 60
    assert sum((b.right - b.left) * (b.bottom - b.top) for b in cropped) == pytest.approx(56 * 42 * scale**2, rel=0.04)


@pytest.mark.parametrize(("width", "height"), [(203, 121), (90, 151)])
@pytest.mark.parametrize("changes", [ImageSettings(size=(64, 48)), ImageSettings(size=70, crop=(64, 48))])
def test_a_box_is_where_the_patch_was_seen(width: int, height: int, changes: ImageSettings):
    """Paint the box of a patch: the patch turns white, and the patches that do not touch it stay black."""
    grid = (4, 3)
    for index, box in enumerate(patch_boxes(height, width, changes, grid)):
        image = Image.new("L", (width, height))
        ImageDraw.Draw(image).rectangle(
            (round(box.left), round(box.top), round(box.right) - 1, round(box.bottom) - 1), 255
        )
        seen = (image_tensor(image, changes)[0] + 1) / 2  # (64, 48), 0 … 1
        patches = seen.reshape(4, 16, 3, 16).permute(0, 2, 1, 3).reshape(12, 16, 16)
        assert patches[index, 2:-2, 2:-2].min() > 0.9
        row, column = divmod(index, 3)
        for other in range(12):
            if max(abs(other // 3 - row), abs(other % 3 - column)) > 1:
                assert patches[other].max() < 0.01


def test_what_makes_no_whole_patch_is_left_out():
    settings_of = ImageSettings(size=(50, 75))
    boxes = patch_boxes(100, 300, settings_of, (3, 4), (16, 17))  # 48 of 50 rows, 68 of 75 columns
    assert boxes[0] == Box(0, 0, pytest.approx(68), pytest.approx(32))
    assert boxes[-1] == Box(*map(pytest.approx, (204, 64, 272, 96)))
    [element] = patch_elements(100, 300, settings_of, (1, 1), patch=(16, 17))
    assert element.span == boxes[0]


def test_patches_as_elements():
    settings_of = ImageSettings(size=100, crop=(140, 120))  # higher and wider than what it is resized to
    elements = patch_elements(200, 200, settings_of, (7, 6), before=("[CLS]",))
    assert [e.index for e in elements] == list(range(43))
    assert (elements[0].label, elements[0].span, elements[0].modality) == ("[CLS]", None, "image")
    assert (elements[1].label, elements[1].span) == ("0,0", None)  # padding
    assert elements[1 + 6 * 3 + 2].label == "3,2"
    assert elements[1 + 6 * 3 + 2].span == Box(60, 80, 100, 120)
    assert sum(e.span is None for e in elements) == 1 + 2 * 6
    with pytest.raises(ValueError, match="grid"):
        patch_elements(9, 9, settings_of, (0, 3))
