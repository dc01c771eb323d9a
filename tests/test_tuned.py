"""What the embedded digits need stays with them: no paper's experiment trains with a number of ours."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
import yaml
from omegaconf import DictConfig, OmegaConf

from atbench.config import registry
from atbench.config.validate import validate_config
from tests.support.configs import PAPERS, composed, resolved

CONF = registry.conf_dir()
METHODS = registry.options("method", [CONF])
TUNED = registry.options("tuned", [CONF])
#: A file of the authors', one of their options, or a paper.
SOURCE = re.compile(r"\w\.(py|sh|json|ya?ml|lua)\b|--\w|README|arXiv|et al\.|(?i:from memory)")


def settings(text: str) -> Iterator[tuple[str, str]]:
    """Every value of a YAML, with the comments on its line and on the lines above it or above what it stands in."""
    lines = text.splitlines()

    def said(number: int) -> str:
        comment = lines[number].partition(" #")[2]
        while number > 0 and lines[number - 1].lstrip().startswith("#"):
            number -= 1
            comment = f"{lines[number].strip()} {comment}"
        return comment

    def walk(node: yaml.Node, key: str, comments: str) -> Iterator[tuple[str, str]]:
        if not isinstance(node, yaml.MappingNode):
            yield key, comments
            return
        for name, value in node.value:
            yield from walk(value, f"{key}.{name.value}".lstrip("."), f"{comments} {said(name.start_mark.line)}")

    tree = yaml.compose(text)
    assert tree is not None
    yield from walk(tree, "", "")


def unsourced(text: str) -> list[str]:
    """What a method's YAML sets of the training, beside what is selected by, without a source or for the digits."""
    parts = ("train", "plus", "model", "dataset", "recipe")
    found = [(key, said) for key, said in settings(text) if key.split(".")[0] in parts]
    trained = [(key, said) for key, said in found if not re.search(r"^train\.selection\.|\._\w+_$", key)]
    return [key for key, said in trained if not SOURCE.search(said) or "digits" in said.lower()]


@pytest.mark.parametrize("name", METHODS)
def test_a_method_s_training_is_its_authors(name: str) -> None:
    assert unsourced((CONF / "method" / f"{name}.yaml").read_text(encoding="utf-8")) == []


def test_a_number_without_a_source_would_be_seen() -> None:
    assert unsourced("train:\n  clip_norm: 1.0 # or it diverges\n") == ["train.clip_norm"]
    assert unsourced("train:\n  optimizer: {lr: 0.1, momentum: 0.9}\n") == [
        "train.optimizer.lr",
        "train.optimizer.momentum",
    ]
    assert unsourced("# train.py\ntrain:\n  # but on digits\n  clip_norm: 1.0\n") == ["train.clip_norm"]
    assert unsourced("train:\n  # train.py\n  optimizer:\n    lr: 0.1\n  selection: {steps: 0}\n") == []


@pytest.mark.parametrize("name", TUNED)
def test_what_is_tuned_is_for_one_data_set_and_method_and_for_no_paper(name: str) -> None:
    dataset, _, method = name.partition("_")
    assert method in METHODS and dataset in registry.options("dataset", [CONF])
    paper = composed(f"experiment=paper/{method}")
    with_it = (CONF / "tuned" / f"{name}.yaml").read_text(encoding="utf-8")
    for key, _ in settings(with_it):
        assert OmegaConf.select(paper, key) != OmegaConf.select(OmegaConf.create(yaml.safe_load(with_it)), key), key


@pytest.mark.parametrize("name", PAPERS)
@pytest.mark.every_method("name")
def test_a_paper_s_training_takes_no_number_of_the_data_set_s_own(name: str) -> None:
    """`dataset.train` is what this program trains a data set with; an experiment that follows it says so."""
    cfg = composed(f"experiment={name}")
    text = (CONF / "experiment" / f"{name}.yaml").read_text(encoding="utf-8")
    ours = {key for key, said in settings(text) if "ours" in said}
    follow = {key for key in followers(cfg, "train") if key not in ours}
    assert follow == set()
    assert cfg.train.clip_norm is None, "no paper here clips gradients; one that does says so in its experiment"
    validate_config(resolved(f"experiment={name}"))


def followers(cfg: DictConfig, part: str) -> Iterator[str]:
    """The keys of a part that are interpolations of `dataset.train`."""
    raw = OmegaConf.to_container(cfg[part], resolve=False)

    def walk(node: object, key: str) -> Iterator[str]:
        if isinstance(node, dict):
            for name, value in node.items():
                yield from walk(value, f"{key}.{name}")
        elif isinstance(node, str) and "${dataset.train." in node:
            yield key

    return walk(raw, part)


def test_the_digits_keep_what_they_need() -> None:
    for method in ("rlfat", "rlfat_trades"):
        assert resolved(f"method={method}").train.clip_norm == 1.0
        assert resolved(f"method={method}", "dataset=cifar10").train.clip_norm is None
        assert resolved(f"method={method}", "train.clip_norm=2").train.clip_norm == 2, "the command line wins"
    for dataset in ("digits", "mnist", "cifar10"):
        assert resolved("method=rst", f"dataset={dataset}").train.extra_data.labelled == 0.5, "it runs without a file"
    assert resolved("experiment=paper/rst").train.extra_data.labelled is None, "all are used"
    assert resolved("method=trades").train.clip_norm is None
