"""The published sets: which form is read, what is refused, and that the network is asked last and once."""

from __future__ import annotations

import gzip
import hashlib
import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchvision import datasets

from atbench.cli.main import main
from atbench.data import download
from atbench.data.npz import Array
from atbench.data.torchvision_sets import DATASET_FILES, published, read_idx
from atbench.errors import ConfigError, DataError
from atbench.training import World
from atbench.workflows import factory
from tests.support.configs import resolved
from tests.support.published_files import RNG, made, opened, write_idx, write_mnist

REPOSITORY = Path(__file__).resolve().parent.parent.parent
REAL = REPOSITORY.parent / "shared" / "data" / "unpack.py"
NAMES = sorted(DATASET_FILES)


@pytest.fixture(autouse=True)
def unplugged(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """No network: every address is noted, and refuses."""
    asked: list[str] = []

    def refuse(url: str, *rest: Any, **options: Any) -> None:
        asked.append(url)
        raise OSError("the network is unreachable")

    monkeypatch.setattr(datasets.utils, "download_url", refuse)
    return asked


@pytest.mark.parametrize("packed", [False, True])
def test_raw_idx_files_are_read_as_they_are(tmp_path: Path, packed: bool, unplugged: list[str]) -> None:
    splits = write_mnist(tmp_path / "MNIST" / "raw", packed)
    source = opened("mnist", tmp_path)
    for images, part in ((source.train, "train"), (source.test(), "t10k")):
        image, label = splits[part]
        assert torch.equal(images.x, torch.from_numpy(image).permute(0, 3, 1, 2))
        assert images.y.tolist() == label.tolist()
    assert not unplugged


@pytest.mark.parametrize("name", NAMES)
def test_a_prepared_archive_comes_first_and_asks_no_network(tmp_path: Path, name: str, unplugged: list[str]) -> None:
    config = resolved(f"dataset={name}").dataset
    classes, channels = len(config.source.classes), len(config.source.mean)
    image, label = RNG.integers(0, 256, (200, 8, 8, channels), dtype=np.uint8), np.arange(200) % classes
    (tmp_path / name).mkdir()
    for split in ("train", "test"):
        np.savez(tmp_path / name / f"{split}.npz", image=image, label=label)
    write_mnist(tmp_path / DATASET_FILES[name].folder)
    source = opened(name, tmp_path)
    assert len(source.train) == 200 and torch.equal(source.test().y, torch.from_numpy(label))
    assert len(source.classes) == classes == len(set(source.classes)) and len(source.std) == channels
    assert not unplugged


def test_half_of_a_prepared_set_is_refused_before_training(tmp_path: Path) -> None:
    (tmp_path / "mnist").mkdir()
    image, label = made()
    np.savez(tmp_path / "mnist" / "train.npz", image=image, label=label)
    with pytest.raises(DataError, match=r"test\.npz — is not there"):
        opened("mnist", tmp_path)


@pytest.mark.parametrize("name", NAMES)
def test_without_network_one_line_says_file_place_and_way(tmp_path: Path, name: str, unplugged: list[str]) -> None:
    with pytest.raises(DataError) as refusal:
        opened(name, tmp_path)
    first = download.downloads(name, tmp_path)[0]
    assert unplugged == list(first.urls)
    for word in (str(first.folder / first.name), first.urls[0], f"{tmp_path}/{name}/train.npz", "network is unreach"):
        assert word in str(refusal.value)
    assert "\n" not in str(refusal.value) and not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", NAMES)
def test_what_is_not_to_be_fetched_is_not(tmp_path: Path, name: str, unplugged: list[str]) -> None:
    with pytest.raises(DataError, match=f"dataset={name} data_dir="):
        opened(name, tmp_path, **{"download": False})
    assert not unplugged and not list(tmp_path.iterdir())


def test_every_parcel_has_a_checksum(tmp_path: Path) -> None:
    for name in NAMES:
        for parcel in download.downloads(name, tmp_path):
            assert len(parcel.md5) == 32 and all(url.endswith(parcel.name) for url in parcel.urls)


def test_a_second_address_is_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched = []

    def second(url: str, root: Path, filename: str, md5: str) -> None:
        if url.startswith(datasets.MNIST.mirrors[0]):
            raise RuntimeError("File not found or corrupted.")
        fetched.append((url, md5))

    def archive(url: str, root: Path, filename: str, md5: str) -> None:
        second(url, root, filename, md5)

    monkeypatch.setattr(datasets.utils, "download_and_extract_archive", archive)
    download.fetch("mnist", tmp_path)
    assert fetched == [(datasets.MNIST.mirrors[1] + name, md5) for name, md5 in datasets.MNIST.resources]


def test_processes_agree_on_a_set_that_cannot_be_had(tmp_path: Path, unplugged: list[str]) -> None:
    """Rank 0 alone asks the network; the others are told of its refusal and raise the same."""

    class Second(World):
        def share_object(self, value: Any) -> Any:
            assert value is None, "a process that is not the first has nothing to tell"
            return DataError("cifar10", "x", "why", "fix")

    cfg = resolved("dataset=cifar10", f"data_dir={tmp_path}")
    with pytest.raises(DataError, match="cifar10: x"):
        factory.shared_source(cfg, Second(torch.device("cpu"), 1, 2))
    assert not unplugged
    with pytest.raises(DataError, match="unreachable"):
        factory.shared_source(cfg, World(torch.device("cpu")))


@pytest.mark.parametrize("change", ["short", "long", "magic", "empty", "gzip"])
def test_a_damaged_idx_file_is_named(tmp_path: Path, change: str) -> None:
    path = tmp_path / "labels"
    write_idx(path, np.arange(10))
    content = path.read_bytes()
    damaged = {"short": content[:-1], "long": content + b"x", "magic": b"PK" + content[2:], "empty": b""}
    if change == "gzip":
        path.unlink()
        (tmp_path / "labels.gz").write_bytes(gzip.compress(content)[:-9])
    else:
        path.write_bytes(damaged[change])
    with pytest.raises(DataError, match="labels"):
        read_idx(path)


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, ("raise SystemExit('a file was executed')",))


def write_cifar(folder: Path, monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    folder.mkdir(parents=True)
    names = [f"data_batch_{k}" for k in range(1, 6)] + ["test_batch"]
    for name in names:
        (folder / name).write_bytes(content)
    md5 = hashlib.md5(content).hexdigest()
    monkeypatch.setattr(datasets.CIFAR10, "train_list", [(name, md5) for name in names[:5]])
    monkeypatch.setattr(datasets.CIFAR10, "test_list", [(names[5], md5)])


def batch_of_cifar() -> tuple[Array, bytes]:
    """Ten planar images, and the file that Python 2 would have made of them."""
    rows = RNG.integers(0, 256, (10, 3072), dtype=np.uint8)
    content = pickle.dumps({"data": rows, "labels": list(range(10))}, protocol=3)
    return rows, content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


def test_cifar_batches_are_put_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, content = batch_of_cifar()
    write_cifar(tmp_path / "cifar-10-batches-py", monkeypatch, content)
    source = opened("cifar10", tmp_path)
    assert len(source.train) == 50 and len(source.test()) == 10
    assert torch.equal(source.train.x[13], torch.from_numpy(rows[3]).view(3, 32, 32)) and source.train.y[13] == 3


def test_cifar_files_are_checked_and_cannot_run_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cifar(tmp_path / "cifar-10-batches-py", monkeypatch, pickle.dumps(Bomb(), protocol=3))
    with pytest.raises(DataError, match=r"data_batch_1.*builtins\.exec"):
        opened("cifar10", tmp_path)
    (tmp_path / "cifar-10-batches-py" / "data_batch_1").write_bytes(b"other")
    with pytest.raises(DataError, match=r"data_batch_1.*MD5"):
        opened("cifar10", tmp_path)


def test_svhn_calls_the_digit_zero_ten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from scipy.io import savemat

    image = RNG.integers(0, 256, (32, 32, 3, 20), dtype=np.uint8)
    table = {}
    for split in ("train", "test"):
        path = tmp_path / f"{split}_32x32.mat"
        savemat(path, {"X": image, "y": (np.arange(20) % 10 + 1)[:, None].astype(np.uint8)})
        table[split] = ["", path.name, hashlib.md5(path.read_bytes()).hexdigest()]
    monkeypatch.setattr(datasets.SVHN, "split_list", table)
    train = opened("svhn", tmp_path).train
    assert train.y.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0] * 2
    assert torch.equal(train.x[4, 2], torch.from_numpy(image[:, :, 2, 4]))


def test_an_unknown_name_gets_a_near_miss(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cifar10"):
        published(tmp_path, "cifra10", [], [], [], 0)


@pytest.mark.parametrize("name", NAMES)
def test_each_brings_radii_augmentation_and_sizes(name: str) -> None:
    for norm in ("linf", "l2", "l1"):
        cfg = resolved(f"dataset={name}", f"attack.norm={norm}")
        assert 0 < cfg.attack.step_size < cfg.attack.eps <= 10 * cfg.attack.step_size
    assert cfg.train.epochs > 0 and cfg.dataset.source.validation == 1000
    flip = cfg.dataset.augment is not None and cfg.dataset.augment[0].flip
    assert flip == (name not in ("mnist", "svhn")), "digits are not mirrored"


def test_doctor_tells_what_is_there_and_asks_no_network(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], unplugged: list[str]
) -> None:
    write_mnist(tmp_path / "MNIST" / "raw", n=1040)
    assert main(["doctor", "--json", "--data-dir", str(tmp_path), "--runs", str(tmp_path)]) == 0
    findings = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert findings["mnist"]["value"].startswith("1040 images") and findings["mnist"]["state"] == "ok"
    assert findings["cifar10"]["state"] == "note"
    assert f"dataset=cifar10 data_dir={tmp_path}" in findings["cifar10"]["value"]
    assert "dataset.source.path=" in findings["npz"]["value"] and not unplugged


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("real")
    subprocess.run([sys.executable, str(REAL), "--out", str(folder), "mnist"], check=True, capture_output=True)
    return folder


@pytest.mark.skipif(not REAL.is_file(), reason="the real images are not beside this checkout (../shared/data)")
class TestRealImages:
    def test_mnist_is_the_same_from_archive_and_from_idx(self, real: Path) -> None:
        source = opened("mnist", real)
        raw = DATASET_FILES["mnist"].read(real / "MNIST" / "raw", "test")
        assert (len(source.train), len(raw), source.shape) == (60000, 10000, (1, 28, 28))
        assert source.test().sha256() == raw.sha256()
        pixels = source.train.floats()
        assert pixels.mean().item() == pytest.approx(source.mean[0], abs=2e-4)
        assert pixels.std().item() == pytest.approx(source.std[0], abs=2e-4)

    @pytest.mark.slow
    def test_a_run_on_real_digits(self, real: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """Every twentieth image: a minute of training becomes a second."""
        for split in ("train", "test"):
            with np.load(real / "mnist" / f"{split}.npz") as archive:
                (here / "few" / "mnist").mkdir(parents=True, exist_ok=True)
                few = {key: archive[key][::20] for key in archive.files}
            np.savez(here / "few" / "mnist" / f"{split}.npz", **few)
        quick = ["train.epochs=2", "attack.steps=1", "train.selection.steps=1", "train.selection.n=100", "threads=1"]
        words = ["dataset=mnist", "data_dir=few", "model.width=8", "train.optimizer.lr=0.1", "method=standard"]
        look = ["eval=smoke", "eval.steps=[1]", "eval.eps_grid=[1]", "eval.eps_steps=1"]
        assert main(["train", *words, *quick, *look, "eval.limit=200", "logger=none"]) == 0
        (run,) = (here / "runs").iterdir()
        record = json.loads((run / "evaluation" / "last.json").read_text())
        assert record["n"] == 200 and record["clean"]["accuracy"] > 0.5
        (here / "few").rename(here / "moved")
        assert main(["eval", str(run), *look, "eval.limit=50"]) == 3
        assert "few/MNIST/raw" in capsys.readouterr().err
        assert main(["eval", str(run), *look, "eval.limit=50", "eval.checkpoints=[last]", "data_dir=moved"]) == 0
