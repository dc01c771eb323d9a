"""Class folders: labels, splits, decoding, damage; what does not fit is streamed and is the same to the last bit."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from atbench.cli.main import main
from atbench.data import Images, PadCropFlip, Shard, TrainData, lazy_images
from atbench.data.image_folder import folder, tiny_imagenet
from atbench.data.lazy_images import GIB, DecoderPool, LazyImages, decode
from atbench.errors import ConfigError, DataError
from tests.support.class_folders import CLASSES, SIDE, draw, trees
from tests.support.runs import final, rows, same_weights

ONE = 3 * SIDE * SIDE / GIB  # of a decoded picture


def data(root: Path, memory: float, **options: Any) -> TrainData:
    origin = folder(root.parent, root.name, SIDE, memory=memory, workers=3, validation=6, test=9)
    return TrainData(origin, **{"batch_size": 8, "seed": 0, "augment": PadCropFlip(1, True), **options})


class TestDecoding:
    def test_a_picture_of_the_size_is_taken_as_it_is(self, tmp_path: Path) -> None:
        draw(tmp_path / "a.png", 1, 0)
        assert (
            decode(str(tmp_path / "a.png"), SIDE, SIDE) == np.asarray(Image.open(tmp_path / "a.png")).transpose(2, 0, 1)
        ).all()

    @pytest.mark.parametrize("size", [(40, 20), (20, 40), (25, 25)])
    def test_the_middle_is_cut_out(self, tmp_path: Path, size: tuple[int, int]) -> None:
        path = tmp_path / "a.png"
        x, y = np.meshgrid(np.linspace(0, 255, size[0]), np.linspace(0, 255, size[1]))
        Image.fromarray(np.stack([x, y, x], axis=2).astype(np.uint8)).save(path)
        pixels = decode(str(path), 8, 10).astype(float)
        assert pixels.shape == (3, 8, 8)
        for channel, along, across in ((0, 1, size[0]), (1, 0, size[1])):
            assert pixels[channel].mean() == pytest.approx(127.5, abs=4)
            share = 255 * 7 / (10 * across / min(size))  # seven steps of the whole gradient
            assert np.ptp(pixels[channel].mean(axis=1 - along)) == pytest.approx(share, rel=0.15)

    @pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK"])
    def test_other_colours_become_rgb(self, tmp_path: Path, mode: str) -> None:
        path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
        Image.new("RGB", (SIDE, SIDE), (255, 255, 255)).convert(mode).save(path)
        assert np.abs(decode(str(path), SIDE, SIDE).astype(int) - 255).max() < 3

    @pytest.mark.parametrize("kept", [0.5, 0.97, 8], ids=str)
    @pytest.mark.parametrize("suffix", [".jpg", ".png"])
    def test_a_torn_file_is_named(self, tmp_path: Path, suffix: str, kept: float) -> None:
        path = tmp_path / f"torn{suffix}"
        draw(path, 0, 0, (64, 64))
        content = path.read_bytes()
        path.write_bytes(content[: int(kept * len(content)) if kept < 1 else int(kept)])
        with pytest.raises(DataError, match=f"torn{suffix}"):
            decode(str(path), SIDE, SIDE)


class TestFolder:
    def test_classes_are_the_folders_and_every_picture_keeps_its_class(self, tmp_path: Path) -> None:
        source = folder(tmp_path, trees(tmp_path / "trees").name, SIDE, validation=6, test=9)
        assert source.classes == CLASSES and source.shape == (3, SIDE, SIDE) and source.validation == 6
        assert (len(source.train), len(source.test())) == (51, 9)
        for images in (source.train, source.test()):
            colours = images.floats(torch.arange(len(images))).mean(dim=(2, 3)).argmax(dim=1)
            assert torch.equal(colours, images.y)

    def test_train_and_test_folders_are_kept_apart(self, tmp_path: Path) -> None:
        trees(tmp_path / "trees" / "train", 5)
        for name in ("cedar", "ash"):  # in the order of train, though one class is missing
            draw(tmp_path / "trees" / "val" / name / "deep" / "x.png", CLASSES.index(name), 99)
        source = folder(tmp_path, "trees", SIDE)
        assert len(source.train) == 15 and source.test().y.tolist() == [0, 2]

    def test_splits_are_fixed(self, tmp_path: Path) -> None:
        trees(tmp_path / "trees")
        first, again = (data(tmp_path / "trees", 1.0, seed=seed) for seed in (0, 1))
        assert torch.equal(first.validation.x, again.validation.x)
        parts = [first.train, first.validation, first.source.test().to(torch.device("cpu"))]
        seen = [{image.numpy().tobytes() for image in images.x} for images in parts]
        assert [len(part) for part in seen] == [45, 6, 9] and len(set.union(*seen)) == 60

    @pytest.mark.parametrize(
        ("spoil", "says"),
        [
            (lambda root: (root / "dogwood").mkdir(), "dogwood — holds no picture"),
            (lambda root: (root / "ash" / "000.jpg").write_bytes(b""), r"ash.000\.jpg — is empty"),
            (lambda root: (root / "train" / "x").mkdir(parents=True), "train — has 1 folders"),
            (lambda root: trees(root / "train", 1), "none of test, val"),
            (lambda root: (trees(root / "train", 1), (root / "val").mkdir()), "val — has no class folders"),
            (
                lambda root: (trees(root / "train", 1), trees(root / "val", 1), draw(root / "val/x/1.png", 0, 0)),
                "x — is not",
            ),
        ],
    )
    def test_what_cannot_be_is_named(self, tmp_path: Path, spoil: Callable[[Path], Any], says: str) -> None:
        spoil(trees(tmp_path / "trees", 2))
        with pytest.raises(DataError, match=says):
            folder(tmp_path, "trees", SIDE).test()

    def test_a_set_that_is_not_there_says_where_it_comes_from(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"imagenet — there is no such folder.*image-net\.org"):
            folder(tmp_path, "imagenet", SIDE, origin="image-net.org")

    def test_sizes_that_make_no_sense(self, tmp_path: Path) -> None:
        trees(tmp_path / "trees", 2)
        with pytest.raises(ConfigError, match=r"source\.resize: 8"):
            folder(tmp_path, "trees", SIDE, resize=8)
        with pytest.raises(ConfigError, match=r"source\.workers: 0"):
            folder(tmp_path, "trees", SIDE, workers=0)

    def test_a_prepared_archive_is_used_instead(self, tmp_path: Path) -> None:
        (tmp_path / "trees").mkdir()
        image = np.zeros((30, 8, 8, 3), np.uint8)
        np.savez(tmp_path / "trees" / "train.npz", image=image, label=np.arange(30) % 3)
        assert folder(tmp_path, "trees", SIDE).shape == (3, 8, 8)


class TestStreaming:
    def test_what_fits_becomes_a_tensor_and_what_does_not_is_streamed(self, tmp_path: Path) -> None:
        trees(tmp_path / "trees")
        fits, streams = data(tmp_path / "trees", 45 * ONE), data(tmp_path / "trees", 44 * ONE)
        assert isinstance(fits.train.x, torch.Tensor) and not fits.train.streamed
        assert isinstance(streams.train.x, LazyImages) and streams.train.streamed
        assert isinstance(streams.validation.x, torch.Tensor)

    @pytest.mark.parametrize("options", [{}, {"labelled": 0.5, "extra": 0.5}], ids=["plain", "pool"])
    @pytest.mark.parametrize("shard", [Shard(), Shard(1, 2)], ids=["alone", "second"])
    def test_streamed_batches_are_the_resident_ones(self, tmp_path: Path, options: Any, shard: Shard) -> None:
        trees(tmp_path / "trees")
        whole, streamed = (data(tmp_path / "trees", memory, shard=shard, **options) for memory in (1.0, 5 * ONE))
        others = [given.stream("other", 4) for given in (whole, streamed)]
        for epoch, step in [(0, 0), (0, 1), (0, 2), (1, 0), (0, 4), (0, 1)]:
            a, b = (given.batch(epoch, step) for given in (whole, streamed))
            assert torch.equal(a.x, b.x) and torch.equal(a.y, b.y) and torch.equal(a.index, b.index)
            if a.extra is not None and b.extra is not None:
                assert torch.equal(a.extra.x, b.extra.x)
            assert torch.equal(*(other.batch(epoch, step).x for other in others))
        assert torch.equal(whole.fit_sample(5).x, streamed.fit_sample(5).x)

    def test_the_next_batch_is_decoded_before_it_is_asked_for(self, tmp_path: Path, monkeypatch: Any) -> None:
        seen: list[str] = []
        lock = threading.Lock()

        def spy(file: str, size: int, resize: int) -> Any:
            with lock:
                seen.append(file)
            return decode(file, size, resize)

        given = data(trees(tmp_path / "trees"), ONE)
        monkeypatch.setattr(lazy_images, "decode", spy)
        given.batch(0, 0)
        assert isinstance(given.train.x, LazyImages)
        for future in next(iter(given.train.x._pending.values())):
            future.result()
        assert len(seen) == 16
        given.batch(0, 1)
        following = given.batch(0, 2)
        assert len(seen) == len(set(seen)) <= 32, "nothing is decoded twice in an epoch"
        assert len(following) == 8

    def test_no_more_than_a_few_batches_are_held(self, tmp_path: Path) -> None:
        given = data(trees(tmp_path / "trees"), ONE)
        assert isinstance(given.train.x, LazyImages)
        for epoch in range(6):
            given.batch(epoch, 0)
        assert len(given.train.x._pending) <= LazyImages.AHEAD

    def test_a_damaged_file_is_named_at_the_start_or_in_its_batch(self, tmp_path: Path) -> None:
        root = trees(tmp_path / "trees")
        held = {*data(root, 1.0).source.test().x.files}  # type: ignore[union-attr]
        path = next(path for path in sorted(root.rglob("*.jpg")) if str(path) not in held)
        content = path.read_bytes()
        path.write_bytes(b"not a picture")
        for memory in (1.0, ONE):
            with pytest.raises(DataError, match=path.name):
                data(root, memory)
        path.write_bytes(content[:-40])
        with pytest.raises(DataError, match=path.name):
            given = data(root, ONE, batch_size=1)
            for step in range(given.steps):
                given.batch(0, step)

    def test_a_checksum_needs_no_decoding_and_sees_names_and_labels(self, tmp_path: Path) -> None:
        draw(tmp_path / "a" / "1.png", 0, 1)
        draw(tmp_path / "b" / "1.png", 0, 1)
        first, other = str(tmp_path / "a" / "1.png"), str(tmp_path / "b" / "1.png")
        sums = [
            Images(LazyImages(files, SIDE, SIDE, GIB, DecoderPool(1)), torch.tensor(labels)).sha256()
            for files, labels in (([first], [0]), ([other], [0]), ([first], [1]), ([first, other], [0, 0]))
        ]
        assert len(set(sums)) == 4


def test_tiny_imagenet_as_its_archive_unpacks(tmp_path: Path) -> None:
    root = tmp_path / "tiny-imagenet-200"
    for colour, name in enumerate(("n01", "n02", "n03")):
        for number in range(4):
            draw(root / "train" / name / "images" / f"{name}_{number}.JPEG", colour, number, (64, 64))
    lines = []
    for number, name in enumerate(("n03", "n01", "n03")):
        draw(root / "val" / "images" / f"val_{number}.JPEG", int(name[-1]) - 1, 50 + number, (64, 64))
        lines.append(f"val_{number}.JPEG\t{name}\t0\t0\t63\t63\n")
    (root / "val" / "val_annotations.txt").write_text("".join(lines))
    (root / "words.txt").write_text("n01\tgoldfish, Carassius\nn02\tcat\nn03\tcat, wildcat\nn99\tother\n")
    source = tiny_imagenet(tmp_path, [0.5] * 3, [0.25] * 3, 3)
    test = source.test()
    assert source.classes == ("goldfish", "n02", "n03") and source.validation == 3 and len(source.train) == 12
    assert test.y.tolist() == [2, 0, 2]
    assert torch.equal(test.floats().mean(dim=(2, 3)).argmax(dim=1), test.y)
    (root / "val" / "images" / "val_1.JPEG").unlink()
    with pytest.raises(DataError, match=r"val_1\.JPEG"):
        tiny_imagenet(tmp_path, [0.5] * 3, [0.25] * 3, 3)


QUICK = ("logger=none", "model.width=4", "attack.steps=1", "train.epochs=2", "train.selection.n=6", "threads=1")
SHORT = (
    "train.selection.steps=1",
    "train.batch_size=8",
    "eval=smoke",
    "eval.eps_grid=[1]",
    "eval.eps_steps=1",
    "eval.steps=[1]",
)


@pytest.mark.slow
def test_two_lines_of_yaml_train_on_a_folder(here: Path) -> None:
    trees(here / "flowers")
    (here / "conf" / "dataset").mkdir(parents=True)
    (here / "conf" / "dataset" / "flowers.yaml").write_text("defaults: [folder]\nsource: {path: flowers, size: 12}\n")
    assert main(["train", "--config-dir", "conf", "dataset=flowers", "method=standard", *QUICK, *SHORT]) == 0
    (run,) = (here / "runs").iterdir()
    record = json.loads((run / "evaluation" / "best.json").read_text())
    assert record["n"] == 12 and json.loads((run / "environment.json").read_text())["splits"]["train"] == 43


@pytest.mark.slow
def test_a_folder_larger_than_memory_streams_and_resumes_in_the_middle_of_an_epoch(here: Path) -> None:
    """20 pictures may be held, 43 are trained on: stopped within an epoch, whole, or all held, a run ends alike."""
    trees(here / "flowers")
    words = ["dataset=folder", "dataset.source.path=flowers", "dataset.source.size=12", "method=trades", *QUICK, *SHORT]
    words += ["dataset.augment={_target_: atbench.data.augment.PadCropFlip, pad: 1, flip: true}"]
    memory = f"dataset.source.memory={20 * ONE}"
    assert main(["train", *words, "name=resident"]) == 0
    assert main(["train", *words, "name=whole", memory]) == 0
    assert main(["train", *words, "name=broken", memory, "train.time_limit=1e-6"]) == 75
    found = {path.name.split("-")[-1]: path for path in (here / "runs").iterdir()}
    stopped = final(found["broken"])
    assert (stopped["epoch"], stopped["step"]) == (0, 1)
    assert main(["train", f"resume={found['broken']}", "train.time_limit=10"]) == 0
    for name in ("resident", "broken"):
        assert same_weights(found["whole"], found[name]) and rows(found["whole"]) == rows(found[name])
