"""Download of the published sets: torchvision's addresses and checksums, one line of error without a network."""

from __future__ import annotations

import contextlib
import io
import socket
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from atbench.errors import DataError

TIMEOUT = 30.0  # seconds without an answer


@dataclass(frozen=True)
class Download:
    """One file to fetch: its addresses in the order they are tried, its MD5, the folder it is put and unpacked in."""

    urls: Sequence[str]
    name: str
    md5: str
    folder: Path


def fetch(name: str, data_dir: Path) -> None:
    """Put the set `name` under `data_dir` as torchvision does. What is there with its checksum is not fetched again.

    Raises DataError, with the addresses to get it from by hand, where no address gives the file.
    """
    from torchvision.datasets import utils  # a second to import: only where it is used

    for download in downloads(name, data_dir):
        refusals = []
        empty = [path for path in (download.folder, *download.folder.parents) if not path.exists()]  # innermost first
        for url in download.urls:
            print(f"fetching {url} to {download.folder}", file=sys.stderr)
            try:
                with _socket_timeout(), contextlib.redirect_stdout(io.StringIO()):
                    if download.name.endswith(".gz"):
                        utils.download_and_extract_archive(
                            url, download.folder, filename=download.name, md5=download.md5
                        )
                    else:
                        utils.download_url(url, download.folder, download.name, download.md5)
                break
            except (OSError, RuntimeError) as fault:  # no network, no such page, a wrong checksum
                refusals.append(str(fault).splitlines()[0] if str(fault) else type(fault).__name__)
        else:
            for folder in empty:  # torchvision has made them for what did not come
                if folder.is_dir() and not any(folder.iterdir()):
                    folder.rmdir()
            raise _unreachable(name, data_dir, download, refusals[0])


def _unreachable(name: str, data_dir: Path, download: Download, reason: str) -> DataError:
    path, prepared = download.folder / download.name, data_dir / name
    why = f"is not there, nor is {prepared}/train.npz, and {download.urls[0]} cannot be fetched ({reason})"
    unpack = " and unpack it there" if download.name.endswith(".tar.gz") else ""
    fix = f"get it where there is a network, put it at that path{unpack}; or save {prepared}/train.npz and test.npz"
    return DataError(name, path, why, fix + ", image uint8 (N, H, W, C), label int64 (N,)")


def downloads(name: str, data_dir: Path) -> list[Download]:
    from torchvision import datasets

    if name in ("mnist", "fashion_mnist"):
        digits = datasets.MNIST if name == "mnist" else datasets.FashionMNIST
        folder = data_dir / digits.__name__ / "raw"
        return [Download([base + file for base in digits.mirrors], file, md5, folder) for file, md5 in digits.resources]
    if name in ("cifar10", "cifar100"):
        cifar = datasets.CIFAR10 if name == "cifar10" else datasets.CIFAR100
        return [Download([cifar.url], cifar.filename, cifar.tgz_md5, data_dir)]
    assert name == "svhn", name
    return [
        Download([url], file, md5, data_dir)
        for url, file, md5 in (datasets.SVHN.split_list[s] for s in ("train", "test"))
    ]


@contextlib.contextmanager
def _socket_timeout() -> Iterator[None]:
    """A block in which a silent connection is given up after TIMEOUT: behind a firewall it would hang for ever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
