"""Pictures that are not 8-bit colours are converted rightly, or refused by the name of their file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from atbench.data.lazy_images import decode
from atbench.errors import DataError

SIDE = 12


@pytest.mark.parametrize("suffix", [".png", ".ppm"])
def test_sixteen_bits_are_scaled_and_not_cut_off(tmp_path: Path, suffix: str) -> None:
    levels = np.linspace(0, 65535, SIDE * SIDE).reshape(SIDE, SIDE).astype(np.uint16)
    path = tmp_path / f"a{suffix}"
    if suffix == ".png":
        Image.fromarray(levels).save(path)
    else:
        path.write_bytes(b"P5 %d %d 65535\n" % (SIDE, SIDE) + levels.astype(">u2").tobytes())
    found = decode(str(path), SIDE, SIDE)
    assert (found == np.round(levels / 257).astype(np.uint8)).all()


def test_twelve_bits_that_say_so_are_scaled(tmp_path: Path) -> None:
    levels = np.linspace(0, 4095, SIDE * SIDE).reshape(SIDE, SIDE).astype(">u2")
    (tmp_path / "a.ppm").write_bytes(b"P5 %d %d 4095\n" % (SIDE, SIDE) + levels.tobytes())
    found = decode(str(tmp_path / "a.ppm"), SIDE, SIDE).astype(int)
    assert np.abs(found - levels.astype(int) * 255 / 4095).max() <= 0.6


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("twelve", "no level above 4000"),
        ("eight", "no level above 250"),
        ("transparent", "transparent pixels"),
        ("palette", "transparent pixels"),
        ("grey", "transparent pixels"),
        ("float", "floating-point"),
        ("long", "beyond 16 bits"),
        ("animated", "animation of 2 frames"),
    ],
)
def test_what_has_no_colours_is_refused_by_name(tmp_path: Path, kind: str, said: str) -> None:
    path, white = tmp_path / "a.png", Image.new("RGBA", (SIDE, SIDE), (255, 255, 255, 255))
    white.putpixel((0, 0), (0, 0, 0, 0))
    dark = np.full((SIDE, SIDE), 4000)
    if kind == "twelve":
        Image.fromarray(dark.astype(np.uint16)).save(path)
    elif kind == "eight":
        Image.fromarray((dark // 16).astype(np.uint16)).save(path)
    elif kind == "transparent":
        white.save(path)
    elif kind == "palette":
        white.convert("RGB").quantize().save(path, transparency=0)
    elif kind == "grey":
        white.convert("LA").save(path)
    elif kind == "float":
        Image.fromarray(dark.astype(np.float32)).save(path, format="TIFF")
    elif kind == "long":
        Image.fromarray((dark * 1000).astype(np.int32)).save(path, format="TIFF")
    else:
        white.convert("RGB").save(path, save_all=True, append_images=[Image.new("RGB", (SIDE, SIDE))])
    with pytest.raises(DataError, match=rf"a\.png — .*{said}"):
        decode(str(path), SIDE, SIDE)
