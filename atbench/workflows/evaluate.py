"""The verb `eval`: checkpoints of a run or an external network, from configuration to records."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from torch import nn

from atbench.config import argv, validate, values
from atbench.config.overrides import setting
from atbench.config.untrusted import (
    EVALUATED,
    interpolations,
    only_repeats_targets,
    refuse_code,
    refuse_interpolations,
)
from atbench.data import Images, Source
from atbench.errors import ConfigError, DataError
from atbench.evaluation import (
    EvalModel,
    EvalResults,
    Plan,
    ResultCache,
    eval_names,
    evaluate_model,
    record_files,
    summarize,
    weights_sha256,
)
from atbench.evaluation.verify import CONSISTENT, FieldCheck, verify_record
from atbench.reporting import report
from atbench.reporting.console import (
    print_attack_result,
    print_facts,
    print_summary,
    print_verification,
    print_warnings,
)
from atbench.reporting.progress import EvalProgress
from atbench.reporting.wandb_logger import log_evaluation
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
from atbench.training import World, reused_memory, threads, world
from atbench.workflows import external_model, factory
from atbench.workflows.eval_plan import load_network, make_plan
from atbench.workflows.extension import extended_at
from atbench.workflows.resume import is_external, own_code, resolve_target

SCHEMA = 3
CACHE = Path(EVALUATION) / PARTS


def evaluate(composed: DictConfig) -> float:
    """`atbench eval`: attacks checkpoints of a run or an external network; returns the last worst-case accuracy."""
    target = composed.verify or composed.target
    if target is None:
        return _evaluate_external(external_model.new_config(composed), None)
    folder, names, saved = resolve_target(str(target), [str(name) for name in composed.eval.checkpoints])
    if is_external(saved):
        cfg = external_model.config_from_folder(composed, saved, argv.as_typed())
        if not composed.verify:
            return _evaluate_external(cfg, folder)
    else:
        cfg = _run_eval_config(composed, saved)
    warnings = validate.validate_config(cfg)
    with threads(cfg.threads), reused_memory(), world(cfg.device) as processes:
        source = factory.shared_source(cfg, processes)
        if composed.verify:
            return verify_run(cfg, source, processes, folder)
        if processes.main:
            print_warnings(warnings, Console(stderr=True))
        with interrupt_on_signals(argv.shell_line(*(argv.as_typed() or ["eval", str(folder)])), folder):
            records = evaluate_checkpoints(cfg, source, processes, folder, names)
            if processes.main:
                _report(cfg, folder, records, argv.shell_line("report", folder))
                _log(composed, saved, folder, records)
        return float(records[-1]["robust"]["accuracy"])


def _log(composed: DictConfig, saved: dict[str, Any], folder: Path, records: list[dict[str, Any]]) -> None:
    """Send the records to the W&B run of the training, unless `logger` says otherwise."""
    logger = saved.get("logger") if composed.logger is None else values.plain(values.resolve(composed).logger)
    if found := next(interpolations({"logger": logger}), None):
        said = f"{found[0]}: {found[1]} is not looked up for a folder; to send the figures to W&B name logger=wandb"
        print_warnings([said], Console(stderr=True))
    else:
        log_evaluation(folder, logger, saved, records)


def _report(cfg: DictConfig, folder: Path, records: list[dict[str, Any]], following: str) -> None:
    """Write the report, and print the results with the commands that verify them and that come next."""
    report.write_report(folder, every_format=False)
    verify = argv.shell_line("eval", setting("verify", folder), *own_code(cfg))
    print_summary(records, folder, [verify, following], Console())


def _evaluate_external(cfg: DictConfig, folder: Path | None) -> float:
    """Attack an external network, in a new folder or in that of an earlier evaluation of it."""
    warnings = validate.validate_config(cfg)
    with threads(cfg.threads), reused_memory(), world(cfg.device) as processes:
        source = factory.shared_source(cfg, processes)
        # All before a folder exists: what cannot be attacked is refused and leaves nothing.
        network, test = external_model.load_external_network(cfg, source, processes.device), source.test()
        external_model.check_logits(cfg, network, source, test.floats(slice(1)))
        make_plan(cfg, source, processes, test)
        cfg.weights_sha256 = weights_sha256(network)
        if processes.main:
            console = Console(stderr=True)
            print_facts(external_model.external_facts(cfg, network, source, _count(cfg, test)), console)
            print_warnings(warnings, console)
            folder = folder or external_model.create_folder(cfg, network, source, processes.device, processes.size)
        folder = Path(processes.share_object(folder))
        with (
            status_recorded(folder) if processes.main else nullcontext(),
            interrupt_on_signals(argv.shell_line("eval", folder, *own_code(cfg)), folder),
        ):
            if processes.main:
                write_text(folder / "config.yaml", OmegaConf.to_yaml(cfg))
            records = evaluate_checkpoints(cfg, source, processes, folder, list(cfg.eval.checkpoints))
            if processes.main:
                set_status(folder, state="done", exit_code=0, ended=now())
                _report(cfg, folder, records, argv.shell_line("export", folder, *own_code(cfg)))
        return float(records[-1]["robust"]["accuracy"])


def _run_eval_config(composed: DictConfig, saved: dict[str, Any]) -> DictConfig:
    """The configuration of an evaluation of a run: the run's data set, model and threat, and what was typed."""
    if composed.checkpoint is not None:
        why = "a run has checkpoints of its own"
        raise ConfigError("checkpoint", composed.checkpoint, why, "leave the run out, or name RUN/checkpoints/NAME.pt")
    from_run = {key: saved[key] for key in ("dataset", "model", "data_dir")}
    from_run["dataset"] = {key: node for key, node in saved["dataset"].items() if key != "augment"}
    for key in ("dataset", "model"):
        if only_repeats_targets(composed[key], saved[key]):
            composed[key] = None
    if composed.model is not None:
        external_model.refuse_nameless(composed.model)
    from_run = {key: value for key, value in from_run.items() if composed[key] is None}
    refuse_code(from_run, EVALUATED, argv.as_typed())
    refuse_interpolations(from_run)
    external_model.refuse_radius(argv.as_typed())
    if composed.dataset is None:
        composed.dataset = from_run["dataset"]  # an attack of the training side has the data set's radius
    typed = values.resolve(composed)
    cfg = OmegaConf.create({key: typed[key] for key in ("seed", "device", "threads", "dataset", "eval")})
    cfg.attack = {key: saved["attack"][key] for key in ("norm", "eps")}
    cfg.update({key: from_run.get(key, typed[key]) for key in ("model", "data_dir")})
    if typed.attack is not None:
        cfg.eval.attacks = {**cfg.eval.attacks, typed.attack.about.name: typed.attack}
    return cfg


def _count(cfg: DictConfig, test: Images) -> int:
    return min(cfg.eval.limit or len(test), len(test))


def evaluate_checkpoints(
    cfg: DictConfig, source: Source, world: World, folder: Path, names: list[str]
) -> list[dict[str, Any]]:
    """Evaluate checkpoints of a run on the test split and write their records. The audit is of the first one."""
    world.barrier()  # the main process has written the checkpoints
    test = source.test().to(world.device)
    title = eval_names.evaluation_name(cfg.eval, _count(cfg, test), len(test))
    out = Path(world.share_object(eval_names.record_dir(folder, values.recorded(cfg), title)))
    title = title if out == folder / EVALUATION else out.name
    records: list[dict[str, Any]] = []
    evaluated: dict[str, tuple[EvalResults, dict[str, Any]]] = {}
    for name in names:
        network, epoch = load_network(cfg, source, world.device, folder / "checkpoints" / f"{name}.pt")
        # The last epoch is often the best one: the same weights are evaluated once.
        weights = weights_sha256(network)
        if weights not in evaluated:
            plan = make_plan(cfg, source, world, test)
            if name != names[0]:
                plan = replace(plan, audit=0)
            evaluated[weights] = evaluate_checkpoint(cfg, source, plan, world, folder, out, name, network, test)
        results, content = evaluated[weights]
        records.append({**content, "name": title, "checkpoint": name, "epoch": epoch, **_marks(folder, epoch)})
        if world.main:
            examples = results.examples if cfg.eval.examples else {}
            settings = eval_names.record_settings(values.recorded(cfg))
            record_files.save_record(out, name, records[-1], results.outcomes, examples, settings)
        world.barrier()
    if world.main:
        ResultCache(folder / CACHE, {}).clear()
    return records


def _marks(folder: Path, epoch: int | None) -> dict[str, Any]:
    """What the record of this epoch's weights says of the training besides."""
    marks = extended_at(folder, epoch) if epoch is not None else []
    return {"extended_at": marks} if marks else {}


def evaluate_checkpoint(
    cfg: DictConfig,
    source: Source,
    plan: Plan,
    world: World,
    folder: Path,
    out: Path,
    name: str,
    network: nn.Module,
    test: Images,
) -> tuple[EvalResults, dict[str, Any]]:
    """Run the plan on one network: results and record. Partial records go to `out`; an interrupted evaluation resumes
    from the cache in the folder.
    """
    about = {
        "schema": SCHEMA,
        "checkpoint": name,
        "split": "test",
        "weights_sha256": weights_sha256(network),
        "data_sha256": test.sha256(),
        "versions": {"torch": torch.__version__},
    }
    key = {**about, "seed": cfg.seed, "n": _count(cfg, test)}
    del key["checkpoint"]
    cache = ResultCache(folder / CACHE, key)
    eval_model = EvalModel(network, cfg.eval.batch_size, world.rank, world.size, world.sum)
    console = Console(stderr=True)

    def on_progress(results: EvalResults) -> None:
        if world.main:
            content = {**about, "complete": False, **summarize(results, source.classes)}
            write_json(out / f"{name}.partial.json", content)
            print_attack_result(name, content, console)

    with EvalProgress(name, console) if world.main else nullcontext() as progress:
        if progress is not None:
            eval_model.on_forward, eval_model.say = lambda model: progress(model.activity), progress.say
        results = evaluate_model(eval_model, test, plan, cache, on_progress)
    return results, {**about, "complete": True, **summarize(results, source.classes)}


def verify_run(cfg: DictConfig, source: Source, world: World, folder: Path) -> float:
    """`atbench eval verify=RUN`: recompute all records. Raises DataError where anything differs."""
    checks: list[tuple[str, FieldCheck]] = []
    for path in list_records(folder):
        name = "/".join(path.relative_to(folder / EVALUATION).with_suffix("").parts)
        checks += [(name, check) for check in _verify_record_file(cfg, source, world, folder, path)]
    if world.main:
        print_verification(checks, CONSISTENT, Console())
    differing = [f"{name} {check.name}" for name, check in checks if not check.agrees]
    if differing or not checks:
        what = f"{len(differing)} of {len(checks)} recorded values differ when recomputed ({', '.join(differing[:3])})"
        if any(check.name == "random" and check.recomputed == "other" for _, check in checks):
            what += "; the network draws random numbers that torch's seed does not control"
        raise DataError("verify", folder, what, "evaluate it again")
    return 1.0


def _verify_record_file(cfg: DictConfig, source: Source, world: World, folder: Path, path: Path) -> list[FieldCheck]:
    """One record, under the configuration beside it."""
    content, name = record_files.read_record(path), path.stem
    if not content.get("examples"):
        raise DataError("verify", path, "it kept no adversarial images", "evaluate it again with eval.examples=true")
    known = eval_names.record_settings(values.recorded(cfg))
    settings = record_files.read_settings(path.with_suffix(".yaml"))
    # Like any configuration that is read: what of it the folder's own does not say chooses no code.
    from_record = {key: value for key, value in settings.items() if key in known and value != known[key]}
    refuse_code(from_record, EVALUATED, argv.as_typed())
    refuse_interpolations(from_record)
    record_cfg = OmegaConf.create({**values.plain(cfg), **from_record})
    record_cfg.eval.batch_size = cfg.eval.batch_size
    source = source if record_cfg.dataset == cfg.dataset else factory.make_source(record_cfg)
    test = source.test().to(world.device)
    network, epoch = load_network(record_cfg, source, world.device, folder / "checkpoints" / f"{name}.pt")
    checksums = {"weights_sha256": weights_sha256(network), "data_sha256": test.sha256()}
    for key, value in checksums.items():
        if (recorded := str(content.get(key))) != value:
            why = f"{key} is {value[:12]}, the record has {recorded[:12]}"
            raise DataError("verify", path, why, "restore the checkpoint and the data")
    title = eval_names.evaluation_name(record_cfg.eval, _count(record_cfg, test), len(test))
    about = {
        "schema": SCHEMA, "checkpoint": name, "split": "test", **checksums, "complete": True, "epoch": epoch,
        "name": title if path.parent == folder / EVALUATION else path.parent.name,
        "outcomes": f"{name}.npz", "examples": f"{name}.examples.npz", **_marks(folder, epoch),
    }  # fmt: skip
    outcomes, examples = (record_files.read_arrays(path.with_suffix(end)) for end in (".npz", ".examples.npz"))
    plan, eval_model = make_plan(record_cfg, source, world, test), EvalModel(network, record_cfg.eval.batch_size)
    return verify_record(eval_model, test, plan, content, outcomes, examples, source.classes, about)
