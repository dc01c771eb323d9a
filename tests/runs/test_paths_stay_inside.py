"""Nothing a run folder or a name says leads out of the folder; what is read of the environment is not written down."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

from atbench.cli.main import main
from atbench.config import values
from atbench.errors import ConfigError, DataError
from atbench.reporting import run_folder
from atbench.runs.run_dir import new_run_dir, refuse_links, write_text
from atbench.workflows.resume import resumed_config
from tests.support.configs import composed
from tests.support.unpacked import put


@pytest.mark.parametrize(
    "link", ["metrics.jsonl", "evaluation/best.npz", "checkpoints", "stages/a/b/status.json", "wandb"]
)
@pytest.mark.parametrize(
    "words", [["train", "resume=run"], ["eval", "run"], ["export", "run"]], ids=lambda words: words[0]
)
def test_links_in_a_run_folder_are_not_followed(link: str, words: list[str], unpacked: Path, capsys: Any) -> None:
    put(unpacked / "run")
    (unpacked / "precious").write_text("precious\n" * 50)
    (unpacked / "elsewhere").mkdir()
    path = unpacked / "run" / link
    if path.is_dir():
        path.rename(unpacked / "moved")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(unpacked / ("precious" if path.suffix else "elsewhere"))
    assert main(words) == 3
    assert f"{link} — is a symbolic link" in capsys.readouterr().err
    assert (unpacked / "precious").read_text() == "precious\n" * 50 and not list((unpacked / "elsewhere").iterdir())


def test_the_folder_itself_and_what_wandb_makes_may_be_links(here: Path) -> None:
    (here / "real" / "wandb").mkdir(parents=True)
    (here / "real" / "wandb" / "latest-run").symlink_to(here)
    (here / "real" / "notes").symlink_to(here)
    (here / "run").symlink_to(here / "real")
    refuse_links(here / "run")
    (here / "real" / "config.yaml").symlink_to(here / "nowhere")
    with pytest.raises(DataError, match="symbolic link"):
        refuse_links(here / "run")


def test_a_link_where_a_file_is_written_aside_is_not_followed(here: Path) -> None:
    (here / "precious").write_text("precious")
    (here / f".report.md.{os.getpid()}").symlink_to(here / "precious")
    write_text(here / "report.md", "new")
    assert (here / "precious").read_text() == "precious" and (here / "report.md").read_text() == "new"


@pytest.mark.parametrize("name", ["x/../../../y", "../y", "a/b", "a\\b", "/abs"])
def test_a_name_is_of_one_folder(name: str, here: Path) -> None:
    with pytest.raises(ConfigError, match="is a path and not the name"):
        new_run_dir(here / "runs", f"eval-{name}")
    assert list(here.iterdir()) == []


def test_names_of_checkpoints_are_of_one_file(unpacked: Path, capsys: Any) -> None:
    put(unpacked / "run")
    for words in (["eval", "run", "eval.checkpoints=[../../x]"], ["eval", "verify=run", "eval.checkpoints=[/x]"]):
        assert main(words) == 2
        assert "eval.checkpoints: " in capsys.readouterr().err


class TestEnvironment:
    @pytest.fixture(autouse=True)
    def secret(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SECRET", "hunter2")
        monkeypatch.setenv("RADIUS", "8/255")

    def test_it_is_used_and_written_down_as_typed(self) -> None:
        words = ["data_dir='${oc.env:SECRET}/data'", "+logger.key='${oc.env:SECRET}'", "runs='${data_dir}/runs'"]
        words += [
            "+logger.more={a: '${..key}', b: ['x-${oc.env:SECRET}']}",
            "+logger.twin='${logger.more}'",
            "name='${seed}'",
        ]
        cfg = values.resolve(composed(*words))
        assert cfg.data_dir == "hunter2/data" and cfg.runs == "hunter2/data/runs" and cfg.logger.twin.b == ["x-hunter2"]
        assert values.plain(cfg)["logger"]["more"] == {"a": "hunter2", "b": ["x-hunter2"]}
        assert "hunter2" not in OmegaConf.to_yaml(cfg) and "hunter2" not in str(values.recorded(cfg))
        assert values.recorded(cfg)["data_dir"] == "${oc.env:SECRET}/data" and values.recorded(cfg)["name"] == "0"

    def test_a_number_is_written_down(self) -> None:
        assert values.recorded(values.resolve(composed("attack.eps='${oc.env:RADIUS}'")))["attack"]["eps"] == 8 / 255

    @pytest.mark.parametrize(
        "words",
        [["train", "resume=run"], ["eval", "run"], ["eval", "run/checkpoints/best.pt"], ["export", "run"]],
        ids=str,
    )
    def test_a_file_reads_nothing(self, words: list[str], unpacked: Path, capsys: Any) -> None:
        put(unpacked / "run", data_dir="${oc.env:SECRET}")
        assert main(words) == 2
        said = capsys.readouterr().err
        assert "data_dir: ${oc.env:SECRET} — a file that is read" in said and "hunter2" not in said

    def test_a_file_is_shown_as_it_is(self, unpacked: Path) -> None:
        put(unpacked / "run", name="${oc.env:SECRET}")
        assert run_folder._yaml(unpacked / "run" / "config.yaml")["name"] == "${oc.env:SECRET}"

    def test_a_run_goes_on_with_what_is_said_again(self, unpacked: Path) -> None:
        whole = {**values.recorded(values.resolve(composed())), "data_dir": "${oc.env:SECRET}"}
        (unpacked / "run" / "config.yaml").write_text(yaml.safe_dump(whole))
        again = resumed_config(unpacked / "run", composed("data_dir='${oc.env:SECRET}'"), ["data_dir=x"])
        assert again.data_dir == "hunter2" and values.recorded(again)["data_dir"] == "${oc.env:SECRET}"
        again = resumed_config(unpacked / "run", composed("data_dir=here"), ["data_dir=here"])
        assert again.data_dir == "here"
