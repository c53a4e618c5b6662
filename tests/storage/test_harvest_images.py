"""Rows of images are the patches of a vision model; class and register tokens are marked as special."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from harvest_cases import harvest_file, read_column, read_site, refusal, temporary_folder, tiny_model
from PIL import Image
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    BitImageProcessor,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2WithRegistersConfig,
    ViTConfig,
    ViTImageProcessor,
)

from lexray.storage.errors import UserError
from lexray.storage.harvest.harvest import harvest
from lexray.storage.harvest.harvest_file import ImageChoice
from lexray.storage.harvest.image_corpus import open_images
from lexray.storage.harvest.token_rows import decode_image
from lexray.storage.objects.settings import StorageSettings

SETTINGS = StorageSettings()

SIZE: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}
CONFIGS = {
    "vit": ViTConfig(**SIZE, intermediate_size=32),
    "dinov2": Dinov2Config(**SIZE),
    "registers": Dinov2WithRegistersConfig(**SIZE, num_register_tokens=4),
    "clip": CLIPConfig(
        vision_config=SIZE | {"intermediate_size": 32},
        text_config={"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 50},
    ),
}
SPECIAL = {"vit": 1, "dinov2": 1, "registers": 5, "clip": 1}
NUM_IMAGES, NUM_PATCHES = 5, 16
CROPPED = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}


def vision_model(name: str) -> Path:
    folder = temporary_folder() / f"vision-{name}"
    if not folder.exists():
        with torch.random.fork_rng():
            torch.manual_seed(0)
            AutoModel.from_config(CONFIGS[name]).save_pretrained(folder)
        if name == "vit":
            processor: Any = ViTImageProcessor(size={"height": 32, "width": 32})
        else:
            processor = {"clip": CLIPImageProcessor}.get(name, BitImageProcessor)(**CROPPED)
        processor.save_pretrained(folder)
    return folder


def pictures() -> list[Image.Image]:
    """Of several sizes, one of them grey."""
    draw = np.random.default_rng(0)
    found = [Image.fromarray(draw.integers(0, 255, (40 + 9 * i, 64, 3), np.uint8)) for i in range(NUM_IMAGES - 1)]
    return [*found, Image.fromarray(draw.integers(0, 255, (50, 50), np.uint8))]


def encoded() -> list[bytes]:
    files = []
    for picture in pictures():
        buffer = io.BytesIO()
        picture.save(buffer, format="PNG")
        files.append(buffer.getvalue())
    return files


def write_images(folder: Path) -> str:
    folder.mkdir(exist_ok=True)
    for number, data in enumerate(encoded()):
        (folder / f"{number}.png").write_bytes(data)
    return str(folder / "*.png")


def image_file(tmp_path: Path, name: str, **changes: Any) -> Any:
    settings: dict[str, Any] = {
        "model": str(vision_model(name)),
        "text": None,
        "context_length": None,
        "images": write_images(tmp_path / "images"),
        "dtype": "float32",
        "batch_tokens": 40,
        "shard_rows": 32,
    }
    return harvest_file(tmp_path, **settings | changes)


def whole_model(name: str) -> tuple[Any, torch.Tensor]:
    """The vision model and its input for all images."""
    folder = vision_model(name)
    model = (CLIPVisionModel if name == "clip" else AutoModel).from_pretrained(folder).eval()
    processor = AutoImageProcessor.from_pretrained(folder)
    return model, processor([p.convert("RGB") for p in pictures()], return_tensors="pt")["pixel_values"]


@pytest.mark.parametrize("name", list(CONFIGS))
def test_rows_are_the_patches_of_the_whole_model(name: str, tmp_path: Path) -> None:
    sites = {
        "state": {"hidden_state": 2},
        "attended": {"layer": 1, "read": "attention_out"},
        "mlp": {"layer": 0, "read": "mlp_in"},
    }
    config = image_file(tmp_path, name, sites=sites, special_tokens="keep")
    manifest, _ = harvest(config)
    model, pixels = whole_model(name)
    seen: dict[str, torch.Tensor] = {}
    layers = next(m for m in model.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == 3)
    attention = layers[1].self_attn if name == "clip" else layers[1].attention
    attention.register_forward_hook(lambda _, args, out: seen.update(attended=out[0]))
    layers[0].mlp.register_forward_pre_hook(lambda _, args: seen.update(mlp=args[0]))
    with torch.no_grad():
        seen["state"] = model(pixel_values=pixels, output_hidden_states=True).hidden_states[2]
    special = SPECIAL[name]
    assert manifest.rows == NUM_IMAGES * (special + NUM_PATCHES)
    for site in sites:
        torch.testing.assert_close(read_site(config, manifest, site), seen[site].flatten(0, 1), rtol=0, atol=2e-6)
    kinds = [-2, *[-3] * (special - 1), *[-1] * NUM_PATCHES]
    assert read_column(config, manifest, "token_id").tolist() == kinds * NUM_IMAGES
    assert read_column(config, manifest, "position").tolist() == [*range(special), *range(NUM_PATCHES)] * NUM_IMAGES
    assert read_column(config, manifest, "document").tolist() == np.repeat(range(NUM_IMAGES), len(kinds)).tolist()
    assert manifest.special_token_ids == [-3, -2]


def test_only_patches_are_stored_by_default_and_max_rows_is_exact(tmp_path: Path) -> None:
    whole = image_file(tmp_path, "registers", spread=True)
    manifest, _ = harvest(whole)
    assert manifest.rows == NUM_IMAGES * NUM_PATCHES
    assert set(read_column(whole, manifest, "token_id")) == {-1}
    part = image_file(tmp_path, "registers", output=str(tmp_path / "part"), max_rows=37)
    found, _ = harvest(part)
    assert found.rows == 37
    assert read_column(part, found, "document").tolist() == [0] * 16 + [1] * 16 + [2] * 5
    assert harvest(part)[1]


def test_every_source_gives_the_same_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    expected = harvest(image_file(tmp_path, "vit"))[0].id
    (tmp_path / "table").mkdir()
    table = pa.table({"image": [{"bytes": data, "path": None} for data in encoded()]})
    pq.write_table(table, tmp_path / "table" / "train.parquet")
    for name, images in {
        "parquet": {"parquet": str(tmp_path / "table" / "*.parquet")},
        "dataset": {"dataset": str(tmp_path / "table")},
    }.items():
        config = image_file(tmp_path, "vit", output=str(tmp_path / f"out-{name}"), images=images)
        assert harvest(config)[0].id == expected
        assert harvest(config)[1]


def test_images_that_cannot_be_read(tmp_path: Path) -> None:
    config = image_file(tmp_path, "vit", shard_rows=1000)
    (tmp_path / "images" / "3.png").write_bytes(b"no image")
    place = f"images: {tmp_path}/images/3.png"
    assert refusal(config) == f"{place} is not an image of a kind that can be read"
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert (
        refusal(image_file(tmp_path, "vit", images="no/such/*.png")) == "images.files: no file matches 'no/such/*.png'"
    )
    assert refusal(image_file(tmp_path, "vit", model=str(tiny_model("bert")))).startswith("images: ")


def saved(picture: Image.Image, format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format=format, **options)
    return buffer.getvalue()


def test_damaged_images_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = {format: saved(pictures()[0], format) for format in ("PNG", "JPEG", "GIF", "TIFF", "WEBP")}
    draw = np.random.default_rng(0)
    for format, data in whole.items():
        for kept in (0, 5, 40, len(data) // 2):
            with pytest.raises(UserError, match=r"images: a\.png is (empty|not an image)"):
                decode_image(data[:kept], "a.png")
        for _ in range(40):
            changed = bytearray(data)
            for place in draw.integers(0, len(data), 3):
                changed[place] ^= int(draw.integers(1, 256))
            try:
                assert decode_image(bytes(changed), "a.png").mode == "RGB"
            except UserError as error:
                said = str(error)
                assert said.startswith("images: a.png is not an image "), format
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    with pytest.raises(
        UserError, match=r"a\.png is not an image that can be read \(Image size \(2560 pixels\) exceeds"
    ):
        decode_image(whole["PNG"], "a.png")


def test_images_of_other_modes_and_animations_are_pictures() -> None:
    first, second = pictures()[:2]
    animated = saved(first, "GIF", save_all=True, append_images=[second.resize(first.size)], duration=100)
    assert decode_image(animated, "a.gif").tobytes() == decode_image(saved(first, "GIF"), "b.gif").tobytes()
    for mode, format in (("CMYK", "JPEG"), ("P", "PNG"), ("1", "PNG"), ("LA", "PNG"), ("RGBA", "WEBP")):
        picture = decode_image(saved(first.convert(mode), format), "a")
        assert (picture.mode, picture.size) == ("RGB", first.size)


def test_images_are_found_under_odd_names_and_behind_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    write_images(tmp_path / "blobs")
    folder = tmp_path / "snapshot [v1]"
    folder.mkdir()
    for number in range(NUM_IMAGES):
        (folder / f"{number}.png").symlink_to(f"../blobs/{number}.png")
    table = pa.table({"image": [{"bytes": data, "path": None} for data in encoded()]})
    pq.write_table(table, folder / "a.parquet")
    expected = open_images(ImageChoice(files=f"{tmp_path}/blobs/*.png"), SETTINGS)
    for choice in (ImageChoice(files=f"{folder}/*.png"), ImageChoice(parquet=f"{folder}/*.parquet")):
        corpus = open_images(choice, SETTINGS)
        assert corpus.select(np.arange(5)).images == expected.select(np.arange(5)).images
    (folder / "9.png").symlink_to("nowhere.png")
    with pytest.raises(UserError, match=r"images\.files: .*/9\.png is a link that leads nowhere \(nowhere\.png\)"):
        open_images(ImageChoice(files=f"{folder}/*.png"), SETTINGS)


def test_images_of_several_sizes_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    AutoModel.from_config(AutoConfig.from_pretrained(vision_model("dinov2"))).save_pretrained(folder)
    BitImageProcessor(do_center_crop=False, size={"shortest_edge": 32}).save_pretrained(folder)
    message = refusal(image_file(tmp_path, "dinov2", model=str(folder)))
    assert message.startswith("images: the model's image processor ")
