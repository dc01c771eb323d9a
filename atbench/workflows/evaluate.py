"""Evaluation as part of a run: which checkpoints, under which plan, and where what was found is written."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from torch import nn

from atbench.config import argv, validate, values
from atbench.config.untrusted import (
    EVALUATED,
    only_repeats_targets,
    refuse_code,
    refuse_interpolations,
    target_overrides,
)
from atbench.data import Images, Source
from atbench.errors import ConfigError, DataError
from atbench.evaluation import EvalModel, Evaluation, ResultCache, eval_names, record, record_files, weights_sha256
from atbench.evaluation import evaluate as evaluate_network
from atbench.evaluation.verify import CONSISTENT, Number, verify
from atbench.reporting import report
from atbench.reporting.console import Heartbeat, echo, finished, notices, summary, verification
from atbench.runs.run_dir import (
    EVALUATION,
    PARTS,
    list_records,
    now,
    set_status,
    status_recorded,
    write_json,
    write_text,
)
from atbench.runs.signals import interrupt_on_signals
from atbench.training import World, threads, world
from atbench.workflows import external_model, factory
from atbench.workflows.eval_plan import load, make_plan
from atbench.workflows.resume import is_external, target_of

SCHEMA = 3
CACHE = Path(EVALUATION) / PARTS


def evaluate(composed: DictConfig) -> float:
    """`atbench eval`: attacks checkpoints of a run, or anybody's network; returns the last worst-case accuracy."""
    target = composed.verify or composed.target
    if target is None:
        return evaluate_external(external_model.asked(composed), None)
    folder, names, saved = target_of(str(target), [str(name) for name in composed.eval.checkpoints])
    if is_external(saved):
        cfg = external_model.again(composed, saved, argv.as_typed())
        if not composed.verify:
            return evaluate_external(cfg, folder)
    else:
        cfg = _asked(composed, saved)
    warnings = validate.validate_config(cfg)
    with threads(cfg.threads), world(cfg.device) as here:
        source = factory.shared_source(cfg, here)
        if composed.verify:
            return verified(cfg, source, here, folder)
        if here.main:
            notices(warnings, Console(stderr=True))
        records = checkpoints(cfg, source, here, folder, names)
        if here.main:
            report.write(folder)
            again = target_overrides(values.recorded(cfg))
            summary(records, folder, [f"atbench eval verify={folder}{again}", f"atbench report {folder}"], Console())
        return float(records[-1]["robust"]["accuracy"])


def evaluate_external(cfg: DictConfig, folder: Path | None) -> float:
    """Attack a network that no run of ours trained, in a new folder or on in the one of an earlier evaluation."""
    warnings = validate.validate_config(cfg)
    with threads(cfg.threads), world(cfg.device) as here:
        source = factory.shared_source(cfg, here)
        # All before a folder exists: what cannot be attacked is refused and leaves nothing.
        network, test = external_model.network(cfg, source, here.device), source.test()
        external_model.probe(cfg, network, source, test.floats(slice(1)))
        make_plan(cfg, source, here, test)
        cfg.weights_sha256 = weights_sha256(network)
        if here.main:
            echo(
                external_model.facts(cfg, network, source, min(cfg.eval.limit or len(test), len(test))),
                Console(stderr=True),
            )
            notices(warnings, Console(stderr=True))
            folder = folder or external_model.open_folder(cfg, network, source, here.device, here.size)
        folder = Path(here.share_object(folder))
        with (
            status_recorded(folder) if here.main else nullcontext(),
            interrupt_on_signals(f"atbench eval {folder}", folder),
        ):
            if here.main:
                write_text(folder / "config.yaml", OmegaConf.to_yaml(cfg))
            records = checkpoints(cfg, source, here, folder, list(cfg.eval.checkpoints))
            if here.main:
                set_status(folder, state="done", exit_code=0, ended=now())
                report.write(folder)
                again = target_overrides(values.recorded(cfg))
                commands = [f"atbench eval verify={folder}{again}", f"atbench export {folder}{again}"]
                summary(records, folder, commands, Console())
        return float(records[-1]["robust"]["accuracy"])


def _asked(composed: DictConfig, saved: dict[str, Any]) -> DictConfig:
    """The parts of the run's configuration that an evaluation needs, with what `atbench eval` was told in place of what
    it had.
    """
    if composed.checkpoint is not None:
        why = "a run has checkpoints of its own"
        raise ConfigError("checkpoint", composed.checkpoint, why, "leave the run out, or name RUN/checkpoints/NAME.pt")
    brought = {key: saved[key] for key in ("dataset", "model", "data_dir")}
    brought["dataset"] = {key: node for key, node in saved["dataset"].items() if key != "augment"}
    for key in ("dataset", "model"):
        if only_repeats_targets(composed[key], saved[key]):
            composed[key] = None
    if composed.model is not None:
        external_model.refuse_nameless(composed.model)
    brought = {key: value for key, value in brought.items() if composed[key] is None}
    refuse_code(brought, EVALUATED, argv.as_typed())
    refuse_interpolations(brought)
    external_model.refuse_radius(argv.as_typed())
    if composed.dataset is None:
        composed.dataset = brought["dataset"]  # an attack of the training side has the data set's radius
    asked = values.resolve(composed)
    cfg = OmegaConf.create({key: asked[key] for key in ("seed", "device", "threads", "dataset", "eval")})
    cfg.attack = {key: saved["attack"][key] for key in ("norm", "eps")}
    cfg.update({key: brought.get(key, asked[key]) for key in ("model", "data_dir")})
    if asked.attack is not None:
        cfg.eval.attacks = {**cfg.eval.attacks, asked.attack.about.name: asked.attack}
    return cfg


def checkpoints(cfg: DictConfig, source: Source, world: World, folder: Path, which: list[str]) -> list[dict[str, Any]]:
    """Measure checkpoints of a run on the test split: the only place that reads it."""
    world.barrier()  # the main process has written the checkpoints
    test = source.test().to(world.device)
    title = eval_names.name_of(cfg.eval, min(cfg.eval.limit or len(test), len(test)), len(test))
    where = Path(world.share_object(eval_names.place(folder, values.recorded(cfg), title)))
    found: list[dict[str, Any]] = []
    measured: dict[str, tuple[Evaluation, dict[str, Any]]] = {}
    for name in which:
        network, epoch = load(cfg, source, world.device, folder / "checkpoints" / f"{name}.pt")
        # The last epoch is often the best one: the same weights under the same attack are measured once.
        weights = weights_sha256(network)
        if weights not in measured:
            measured[weights] = examine(cfg, source, world, folder, where, name, network, test)
        evaluation, content = measured[weights]
        title = title if where == folder / EVALUATION else where.name
        content = {**content, "name": title, "checkpoint": name, "epoch": epoch}
        keep(cfg, where, name, content, evaluation, world)
        found.append(content)
    if world.main:
        ResultCache(folder / CACHE, {}).forget()
    return found


def examine(
    cfg: DictConfig,
    source: Source,
    world: World,
    folder: Path,
    where: Path,
    name: str,
    network: nn.Module,
    test: Images,
) -> tuple[Evaluation, dict[str, Any]]:
    """Run the configured evaluation on one network; figures so far go to `where`. What is interrupted goes on from the
    parts in the folder.
    """
    plan = make_plan(cfg, source, world, test)
    about = {
        "schema": SCHEMA,
        "checkpoint": name,
        "split": "test",
        "weights_sha256": weights_sha256(network),
        "data_sha256": test.sha256(),
        "versions": {"torch": torch.__version__},
    }
    facts = {**about, "seed": cfg.seed, "n": min(cfg.eval.limit or len(test), len(test))}
    cache = ResultCache(folder / CACHE, {k: v for k, v in facts.items() if k != "checkpoint"})
    eval_model = EvalModel(network, cfg.eval.batch_size, world.rank, world.size, world.sum)
    console = Console(stderr=True)
    if world.main:
        pulse = Heartbeat(name, console)
        eval_model.watch = lambda at_work: pulse(at_work.doing, at_work.passes)

    def told(so_far: Evaluation) -> None:
        if world.main:
            content = {**about, "complete": False, **record.figures(so_far, source.classes)}
            write_json(where / f"{name}.partial.json", content)
            finished(name, content, console)

    evaluation = evaluate_network(eval_model, test, plan, cache, told)
    return evaluation, {**about, "complete": True, **record.figures(evaluation, source.classes)}


def keep(
    cfg: DictConfig, where: Path, name: str, content: dict[str, Any], evaluation: Evaluation, world: World
) -> None:
    """Write the record, its outcomes, its adversarial images and the configuration that they follow from."""
    if world.main:
        images = record.examples(evaluation) if evaluation.plan.examples else {}
        settings = eval_names.settings(values.recorded(cfg))
        record_files.save(where, name, content, record.arrays(evaluation), images, settings)
    world.barrier()


def verified(cfg: DictConfig, source: Source, world: World, folder: Path) -> float:
    """`atbench eval verify=RUN`: all that its records say, again. Raises DataError where anything differs."""
    found: list[tuple[str, Number]] = []
    for path in list_records(folder):
        name = "/".join(path.relative_to(folder / EVALUATION).with_suffix("").parts)
        found += [(name, number) for number in _verified(cfg, source, world, folder, path)]
    if world.main:
        verification(found, CONSISTENT, Console())
    wrong = [f"{name} {number.name}" for name, number in found if not number.agrees]
    if wrong or not found:
        what = f"{len(wrong)} of {len(found)} values are not what was found again ({', '.join(wrong[:3])})"
        if any(number.name == "random" and number.again == "other" for _, number in found):
            what += "; the network draws numbers that torch's seed does not rule"
        raise DataError("verify", folder, what, "evaluate it again")
    return 1.0


def _verified(cfg: DictConfig, source: Source, world: World, folder: Path, path: Path) -> list[Number]:
    """One record, under the configuration that stands beside it."""
    content, name = record_files.read(path), path.stem
    if not content.get("examples"):
        raise DataError("verify", path, "it kept no adversarial images", "evaluate it again with eval.examples=true")
    known, beside = eval_names.settings(values.recorded(cfg)), record_files.settings(path.with_suffix(".yaml"))
    # Like any configuration that is read: what of it the folder's own does not say chooses no code.
    brought = {key: value for key, value in beside.items() if key in known and value != known[key]}
    refuse_code(brought, EVALUATED, argv.as_typed())
    refuse_interpolations(brought)
    own = OmegaConf.create({**values.plain(cfg), **brought})
    own.eval.batch_size = cfg.eval.batch_size
    source = source if own.dataset == cfg.dataset else factory.make_source(own)
    test = source.test().to(world.device)
    network, epoch = load(own, source, world.device, folder / "checkpoints" / f"{name}.pt")
    sums = {"weights_sha256": weights_sha256(network), "data_sha256": test.sha256()}
    for key, value in sums.items():
        if (claimed := str(content.get(key))) != value:
            why = f"{key} is {value[:12]}, the record has {claimed[:12]}"
            raise DataError("verify", path, why, "restore the checkpoint and the data")
    size = len(test)
    title = eval_names.name_of(own.eval, min(own.eval.limit or size, size), size)
    about = {
        "schema": SCHEMA, "checkpoint": name, "split": "test", **sums, "complete": True, "epoch": epoch,
        "name": title if path.parent == folder / EVALUATION else path.parent.name,
        "outcomes": f"{name}.npz", "examples": f"{name}.examples.npz",
    }  # fmt: skip
    outcomes, kept = (record_files.unpacked(path.with_suffix(end)) for end in (".npz", ".examples.npz"))
    plan, eval_model = make_plan(own, source, world, test), EvalModel(network, own.eval.batch_size)
    return verify(eval_model, test, plan, content, outcomes, kept, source.classes, about)
