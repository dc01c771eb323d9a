"""The verb `export`: safetensors, ONNX, how to build the network, a RobustBench entry, a model card."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.text import Text
from safetensors.torch import save
from torch import nn

from atbench import __version__
from atbench.config import argv, registry, values
from atbench.config.instantiate import READ_BY_RUN
from atbench.config.overrides import quoted
from atbench.config.untrusted import refuse_code, refuse_interpolations
from atbench.data import Source
from atbench.errors import DataError
from atbench.evaluation import weights_sha256
from atbench.models import Network
from atbench.reporting import leaderboard, markdown, model_card
from atbench.reporting.console import print_line
from atbench.reporting.headline import select_evaluation
from atbench.reporting.run_folder import read_evaluations
from atbench.runs.run_dir import write_bytes, write_json, write_text
from atbench.workflows import factory, onnx_file
from atbench.workflows.eval_plan import load_network
from atbench.workflows.exported import CONFIG, WEIGHTS
from atbench.workflows.model_kwargs import model_kwargs
from atbench.workflows.resume import resolve_target


def export_run(run: Path, checkpoint: str, out: Path | None, with_onnx: bool = False) -> int:
    """Write the network of a run, or an evaluated external one, into `out`, by default RUN/export.

    model.safetensors: the weights that the evaluation record is of. config.json: how to build the network with plain
    Python and with atbench. <name>.json: an entry as RobustBench's model_info has them. MODEL_CARD.md: the figures.
    model.onnx: if asked for. Raises DataError without a record of these weights, ConfigError without onnxruntime.
    """
    if with_onnx:
        onnx_file.check_packages()
    folder, names, saved = resolve_target(str(run), [checkpoint])
    refuse_code(saved, ("model", "dataset.source"), argv.as_typed())
    refuse_interpolations({key: saved[key] for key in ("model", "dataset", "data_dir")})
    name, title, cfg = names[0], folder.resolve().name, OmegaConf.create(saved)
    if not (records := read_evaluations(folder).get(name)):
        raise DataError("export", folder, f"has no evaluation of '{name}'", f"first `atbench eval {folder}`")
    record = select_evaluation(records).record
    source = factory.make_source(cfg)
    network, _ = load_network(cfg, source, torch.device("cpu"), folder / "checkpoints" / f"{name}.pt")
    if weights_sha256(network) != record["weights_sha256"]:
        raise DataError("export", name, "is not what its record is of", f"evaluate it again: `atbench eval {folder}`")
    network.to(memory_format=torch.contiguous_format)  # what the format asks for
    onnx = onnx_file.to_onnx(network, source.train.floats(slice(onnx_file.CHECKED))) if with_onnx else None
    out = out or folder / "export"
    # Copies of their own: the format refuses tensors that share memory.
    tensors = {key: value.detach().contiguous().clone() for key, value in network.state_dict().items()}
    write_bytes(out / WEIGHTS, save(tensors, metadata={"weights_sha256": record["weights_sha256"]}))
    config_json = export_config(cfg, source, network, record)
    if onnx is not None:
        write_bytes(out / onnx_file.FILE, onnx.data)
        config_json["onnx"] = onnx.about
    write_json(out / CONFIG, {"name": title, **config_json})
    write_json(out / f"{title}.json", leaderboard.leaderboard_entry(saved, record, title))
    write_text(out / "MODEL_CARD.md", markdown.render_markdown(model_card.build_model_card(saved, record, config_json)))
    console = Console()
    for file in sorted(path.name for path in out.iterdir() if path.is_file()):
        print_line(Text.assemble(("wrote  ", "dim"), str(out / file)), console)
    return 0


def export_config(cfg: DictConfig, source: Source, network: nn.Module, record: Mapping[str, Any]) -> dict[str, Any]:
    """config.json: everything needed to build the network."""
    kwargs = model_kwargs(cfg.model, source)
    # Unknown for an external module, which takes images in [0, 1] like all others.
    buffers = (network.mean, network.std) if isinstance(network, Network) else ()
    mean, std = [buffer.flatten().tolist() for buffer in buffers] or (None, None)
    return {
        "schema": 1,
        "atbench": __version__,
        "weights": WEIGHTS,
        "weights_sha256": record["weights_sha256"],
        "model": {key: value for key, value in values.plain(cfg.model).items() if key != "about"},
        "given": {key: list(value) if isinstance(value, tuple) else value for key, value in kwargs.items()},
        "input": {"shape": list(source.shape), "range": [0, 1]},
        "normalisation": {"inside": True, "mean": mean, "std": std},
        "classes": list(source.classes),
        "dataset": cfg.dataset.about.name,
        "checkpoint": record["checkpoint"],
        "epoch": record["epoch"],
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "python": python_snippet(cfg.model, kwargs, source),
        "command": eval_command(cfg, record),
    }


def python_snippet(model: DictConfig, kwargs: Mapping[str, Any], source: Source) -> str:
    """Python code that builds the network and loads its weights."""
    node = {key: value for key, value in values.plain(model).items() if key not in READ_BY_RUN["model"]}
    imports = {"from safetensors.torch import load_file", "import torch"}
    built, members = _expression({**kwargs, **node}, imports), model.get("members", 1)
    if members > 1:
        imports.add("from atbench.models import Ensemble")
        built = f"Ensemble([{built} for _ in range({members})])"
    lines = [*sorted(imports, key=lambda line: (line.startswith("from"), line)), "", f"network = {built}"]
    shape = ", ".join(str(side) for side in (1, *source.shape))
    lines += [f'network.load_state_dict(load_file("{WEIGHTS}"))', "network.eval()"]
    return "\n".join([*lines, f"logits = network(torch.rand({shape}))  # pixels in [0, 1]"])


def _expression(value: Any, imports: set[str]) -> str:
    """A value of the configuration as Python; what it imports is added to `imports`."""
    if isinstance(value, Mapping) and "_target_" in value:
        module, _, name = str(value["_target_"]).rpartition(".")
        imports.add(f"from {module} import {name}")
        options = {key: inner for key, inner in value.items() if key not in ("_target_", "_partial_", "about")}
        arguments = [f"{key}={_expression(inner, imports)}" for key, inner in options.items()]
        if not value.get("_partial_"):
            return f"{name}({', '.join(arguments)})"
        imports.add("from functools import partial")
        return f"partial({', '.join([name, *arguments])})"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key!r}: {_expression(inner, imports)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return f"[{', '.join(_expression(inner, imports) for inner in value)}]"
    return repr(value)


def eval_command(cfg: DictConfig, record: Mapping[str, Any]) -> str:
    """The command that evaluates the exported weights in the threat of the record."""
    model = {key: value for key, value in values.plain(cfg.model).items() if key != "about"}
    threat = {"norm": record["threat"]["norm"], "eps": record["threat"]["eps"]}
    words = [
        *(f"model.{key}={_word(value)}" for key, value in model.items()),
        f"checkpoint={WEIGHTS}",
        f"dataset={cfg.dataset.about.name}",
        *(f"dataset.source.{key}={_word(value)}" for key, value in _own_options(cfg).items()),
        *(f"eval.{key}={_word(value)}" for key, value in threat.items()),
    ]
    return shlex.join(["atbench", "eval", *words])


def _own_options(cfg: DictConfig) -> dict[str, Any]:
    """Options of the data set's source that differ from its YAML."""
    file = registry.conf_dir() / "dataset" / f"{cfg.dataset.about.name}.yaml"
    usual = yaml.safe_load(file.read_text(encoding="utf-8"))["source"] if file.is_file() else {}
    return {key: value for key, value in values.plain(cfg.dataset.source).items() if usual.get(key) != value}


def _word(value: Any) -> str:
    """A value in Hydra's override grammar."""
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{_word(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return f"[{','.join(_word(inner) for inner in value)}]"
    if isinstance(value, str):
        # A dotted name needs no quotes; anything else might parse as a number, a list or null.
        name = value.replace(".", "").isidentifier() and value.lower() not in ("null", "true", "false", "nan", "inf")
        text = value if name else quoted(value)
        return text if name or text.startswith("'") else f"'{text}'"
    return json.dumps(value)
