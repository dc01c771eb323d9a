"""Data sets of class folders with picture files: the user's own, ImageNet, Tiny-ImageNet."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from atbench.data.dataset import Images, Source, stratified
from atbench.data.lazy_images import GIB, DecoderPool, LazyImages
from atbench.data.npz import SPLIT_SEED, find_folder, npz, split_size, test_size
from atbench.errors import ConfigError, DataError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm")
TEST_NAMES = ("test", "val")


def folder(
    data_dir: Path,
    path: str,
    size: int,
    resize: int | None = None,
    memory: float = 4.0,
    workers: int | None = None,
    mean: list[float] | None = None,
    std: list[float] | None = None,
    validation: float = 0.1,
    test: float = 0.2,
    origin: str = "",
) -> Source:
    """`<path>/train/<class>/` and `<path>/test/<class>/` (or `val`); or `<path>/<class>/` alone; or `train.npz`.

    Classes are the folders' names in alphabetical order; pictures may lie in folders below.

    Args:
        path: the folder, as it stands or under `data_dir`; `origin`: where it comes from, for the refusal if it is not.
        size: side of the square that networks see: the middle of the picture, its shorter side scaled to `resize`
            (None: `size`).
        memory: GiB up to which a part (train, validation, pool, test) is decoded once and kept on the device; what is
            larger is decoded anew at each visit by `workers` threads (None: the cores there are).
        mean, std: of [0, 1] pixels, for each channel; None is 0.5 and 0.25, near what natural pictures have.
        validation: how much of the train part is held out: a share below 1, or a number of pictures.
        test: the same for the test split, where there is no folder for it. Both splits are fixed.

    Raises DataError for a folder that is not there, a class without pictures, an empty file.
    """
    root = find_folder(data_dir, path, origin=origin)
    if (root / "train.npz").is_file():
        return npz(data_dir, str(root), mean=mean, std=std, validation=validation, test=test)
    images = _decoder(size, resize, memory, workers)
    apart = (root / "train").is_dir()
    classes, files, labels = scan(root / "train" if apart else root)
    if apart:
        rows, held = torch.arange(len(files)), _test_split(root, classes)
    else:
        held_rows, rows = stratified(labels, (test_size(test, len(files)),), SPLIT_SEED)
        held = [files[row] for row in held_rows.tolist()], labels[held_rows]
    return Source(
        name=root.name,
        train=images([files[row] for row in rows.tolist()], labels[rows]),
        test=lambda: images(*held),
        classes=classes,
        mean=tuple(mean or [0.5] * 3),
        std=tuple(std or [0.25] * 3),
        validation=split_size(validation, len(rows), "validation"),
    )


def tiny_imagenet(
    data_dir: Path,
    mean: list[float],
    std: list[float],
    validation: float,
    memory: float = 4.0,
    workers: int | None = None,
    origin: str = "",
) -> Source:
    """`<data_dir>/tiny_imagenet` or `tiny-imagenet-200` as its zip unpacks, tested on its labelled validation part.

    The arguments are those of `folder`. `val/val_annotations.txt` says what the test pictures show; where there is none
    they lie in class folders.
    """
    unpacked = not (data_dir / "tiny_imagenet").is_dir() and (data_dir / "tiny-imagenet-200").is_dir()
    name = "tiny-imagenet-200" if unpacked else "tiny_imagenet"
    place = data_dir / name
    notes = place / "val" / "val_annotations.txt"
    if not notes.is_file():
        return folder(data_dir, name, 64, None, memory, workers, mean, std, validation, origin=origin)
    images = _decoder(64, None, memory, workers)
    classes, files, labels = scan(place / "train")
    number = {name: label for label, name in enumerate(classes)}
    lines = [line.split("\t")[:2] for line in notes.read_text(encoding="utf-8").splitlines() if line]
    if unknown := [line for line in lines if len(line) < 2 or line[1] not in number]:
        raise DataError("file", notes, f"has a line of no class: {unknown[0]}", "unpack the archive again")
    shown = [str(place / "val" / "images" / file) for file, _ in lines]
    if lack := next((file for file in shown if not os.path.isfile(file)), None):
        raise DataError("picture", lack, f"is in {notes.name} but not there", "unpack the archive again")
    answers = torch.tensor([number[name] for _, name in lines])
    return Source(
        name="tiny_imagenet",
        train=images(files, labels),
        test=lambda: images(shown, answers),
        classes=_class_words(place / "words.txt", classes),
        mean=tuple(mean),
        std=tuple(std),
        validation=split_size(validation, len(files), "validation"),
    )


def scan(root: Path) -> tuple[tuple[str, ...], list[str], Tensor]:
    """The classes below `root`, the files of all of them in order, and their labels. Raises DataError."""
    classes = sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith("."))
    if len(classes) < 2:
        what = f"has {len(classes)} folders: every class needs one"
        raise DataError("dataset.source.path", root, what, "sort the pictures into a folder for each class")
    files: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        mine = sorted(pictures_below(str(root / name)))
        if not mine:
            why = f"holds no picture ({', '.join(SUFFIXES)})"
            raise DataError("class", root / name, why, "put some there, or delete the folder")
        files += mine
        labels += [label] * len(mine)
    return tuple(classes), files, torch.tensor(labels)


def pictures_below(root: str) -> Iterator[str]:
    """The picture files below a folder. Raises DataError for an empty one."""
    for entry in os.scandir(root):
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            yield from pictures_below(entry.path)
        elif entry.name.lower().endswith(SUFFIXES):
            if entry.stat().st_size == 0:
                raise DataError("picture", entry.path, "is empty", "replace it, or delete it")
            yield entry.path


def _test_split(place: Path, classes: tuple[str, ...]) -> tuple[list[str], Tensor]:
    """The test pictures beside `train`, labelled as those are. Raises DataError."""
    root = next((place / name for name in TEST_NAMES if (place / name).is_dir()), None)
    if root is None:
        why = f"has a folder train but none of {', '.join(TEST_NAMES)}"
        raise DataError("dataset.source.path", place, why, "name the test pictures' folder so, or name train itself")
    if not any(entry.is_dir() for entry in os.scandir(root)):
        why = f"has no class folders; those of train are {', '.join(classes[:3])}, ..."
        raise DataError("dataset.source.path", root, why, "sort its pictures into folders of the same names")
    names, files, labels = scan(root)
    if unknown := set(names) - set(classes):
        raise DataError("class", root / min(unknown), "is not among the classes to train on", "correct its name")
    return files, torch.tensor([classes.index(name) for name in names])[labels]


def _class_words(dictionary: Path, classes: tuple[str, ...]) -> tuple[str, ...]:
    """Tiny-ImageNet's own names of its classes, where they come with it: the first word, if it is of one class only."""
    if not dictionary.is_file():
        return classes
    lines = (line.split("\t") for line in dictionary.read_text(encoding="utf-8").splitlines())
    words = {parts[0]: parts[1].split(",")[0] for parts in lines if len(parts) == 2}
    named = [words.get(name, name) for name in classes]
    return tuple(word if named.count(word) == 1 else name for word, name in zip(named, classes, strict=True))


def _decoder(
    size: int, resize: int | None, memory: float, workers: int | None
) -> Callable[[Sequence[str], Tensor], Images]:
    """What makes a split of files and labels: `size` and `resize` in pixels, `memory` in GiB, one pool of threads."""
    shorter = size if resize is None else resize
    if size < 1 or shorter < size:
        why = f"the side of what networks see is {size}"
        raise ConfigError("dataset.source.resize", resize, why, "scale the shorter side to as much at least")
    if workers is not None and workers < 1:
        raise ConfigError("dataset.source.workers", workers, "nobody would decode", "use at least 1, or null")
    pool = DecoderPool(workers)
    return lambda files, labels: Images(LazyImages(files, size, shorter, memory * GIB, pool), labels)
