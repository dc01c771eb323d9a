"""The verb `predict`: the class of a picture, and whether the run's PGD finds another one within ε."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from torch import Tensor

from atbench.config import argv, validate
from atbench.config.schema import fraction
from atbench.config.tree import select
from atbench.config.untrusted import refuse_code, refuse_interpolations
from atbench.data import Images
from atbench.data.picture import read_picture, to_png
from atbench.errors import ConfigError
from atbench.evaluation import EvalModel, PGDConfig, ResultCache
from atbench.evaluation.attack_runner import AttackRunner, round_to_8bit
from atbench.reporting.console import print_facts, print_line, print_warnings
from atbench.reporting.wording import both_forms, norm_name, percent
from atbench.runs.run_dir import write_bytes
from atbench.training.distributed import choose_device
from atbench.workflows import factory
from atbench.workflows.eval_plan import load_network
from atbench.workflows.pgd_configs import evaluation_pgd
from atbench.workflows.resume import resolve_target


def predict_pictures(
    run: Path, pictures: Sequence[Path], checkpoint: str, eps: str | None, out: Path | None, as_json: bool
) -> int:
    """Classify pictures, attack each within ε, write the adversarial ones as `<picture>.adv.png`.

    The attack is the PGD of the run's evaluation, against the predicted class: a picture has no label. eps: another
    radius. out: the folder to write to, in place of the pictures' own.
    """
    folder, names, saved = resolve_target(str(run), [checkpoint])
    refuse_code(saved, ("model", "dataset.source"), argv.as_typed())
    refuse_interpolations({key: saved[key] for key in ("model", "dataset", "data_dir")})
    cfg = OmegaConf.create(saved)
    if eps is not None:
        cfg.eval.eps = _radius(eps)
    warnings = validate.validate_config({"device": "cpu", **{key: saved[key] for key in ("attack", "dataset")},
                                         "eval": {"norm": cfg.eval.norm, "eps": cfg.eval.eps}})  # fmt: skip
    targets = [(out or path.parent) / f"{path.stem}.adv.png" for path in pictures]
    if doubled := next((path for path in targets if targets.count(path) > 1), None):
        raise ConfigError("predict", doubled, "is where two pictures' answers would go", "name one at a time")
    found, threat = _predict(cfg, folder / "checkpoints" / f"{names[0]}.pt", pictures, targets)
    if as_json:
        print(json.dumps(found, indent=2, ensure_ascii=False))
        return 0
    print_warnings(warnings, Console(stderr=True))
    console = Console()
    for number, entry in enumerate(found):
        if number:
            print_line("", console)
        print_facts(list(_facts(entry, threat)), console)
    return 0


def _radius(eps: str) -> float:
    try:
        return fraction(eps)
    except ValueError as fault:
        raise ConfigError("--eps", eps, "is no number", "write it as 8/255 or 0.5") from fault


def _predict(
    cfg: DictConfig, checkpoint: Path, pictures: Sequence[Path], targets: Sequence[Path]
) -> tuple[list[dict[str, Any]], PGDConfig]:
    """What is found of each picture, fit for JSON, and the attack. Adversarial pictures go to `targets`."""
    source, device = factory.make_source(cfg), choose_device("auto")
    resize = select(cfg, "dataset.source.resize")
    read = [read_picture(path, source.shape, resize) for path in pictures]
    network, _ = load_network(cfg, source, device, checkpoint)
    eval_model, threat = EvalModel(network, cfg.eval.batch_size), evaluation_pgd(cfg)
    x = torch.stack([pixels for pixels, _ in read])
    probabilities = _probabilities(eval_model, Images(x, torch.zeros(len(x), dtype=torch.long)).floats())
    images = Images(x, probabilities.argmax(dim=1))
    runner = AttackRunner(eval_model, images, torch.ones(len(x), dtype=torch.bool), ResultCache(None, {}), cfg.seed)
    result = runner.run_sweep(threat, [1.0], threat.steps)[1.0]
    adversarial = dict(zip(result.rows.tolist(), torch.from_numpy(result.kept["x_adv"]), strict=True))
    found = []
    for row, (path, (_, size)) in enumerate(zip(pictures, read, strict=True)):
        entry = {"picture": str(path), "width": size[0], "height": size[1], "input": list(source.shape)}
        entry |= {**_named(probabilities[row], source.classes), "holds": row not in adversarial}
        entry |= {"norm": threat.norm, "eps": threat.eps, "steps": threat.steps, "restarts": threat.restarts}
        entry["adversarial"] = None
        if row in adversarial:
            x_adv = round_to_8bit(images.floats(slice(row, row + 1)), adversarial[row][None])
            named = _named(_probabilities(eval_model, x_adv)[0], source.classes)
            if named["class"] != entry["class"]:  # else it is adversarial between the levels of 8 bits alone
                buffer = io.BytesIO()
                to_png(x_adv[0]).save(buffer, "PNG")
                write_bytes(targets[row], buffer.getvalue())
                entry["adversarial"] = {"picture": str(targets[row]), **named}
        found.append(entry)
    return found, threat


@torch.no_grad()
def _probabilities(eval_model: EvalModel, x: Tensor) -> Tensor:
    """softmax(f(x)), (N, K) on the CPU, for x in [0, 1]."""
    with eval_model.ready():
        parts = [eval_model.logits(part.to(eval_model.device, eval_model.dtype)) for part in x.split(64)]
    return torch.cat(parts).softmax(dim=1).cpu()


def _named(probabilities: Tensor, classes: Sequence[str]) -> dict[str, Any]:
    """The most probable class, with its probability, of one row (K,)."""
    confidence, label = probabilities.max(dim=0)
    return {"class": classes[int(label)], "confidence": round(float(confidence), 6)}


def _facts(entry: dict[str, Any], threat: PGDConfig) -> Iterator[tuple[str, str]]:
    """(name, value) lines about one picture."""
    _, height, width = entry["input"]
    size = f"{entry['width']}×{entry['height']}"
    fitted = "" if size == f"{width}×{height}" else f", scaled and its middle cut out: {width}×{height}"
    restarts = f", {threat.restarts} restarts" if threat.restarts > 1 else ""
    attack = f"PGD-{threat.steps} in {norm_name(threat.norm)}, eps {both_forms(threat.eps)}{restarts}"
    yield "picture", f"{entry['picture']}, {size}{fitted}"
    yield "class", f"{entry['class']}, confidence {percent(entry['confidence'])}"
    if entry["holds"]:
        yield "holds", f"yes: {attack}, finds no other class; a stronger attack may"
    elif entry["adversarial"] is None:
        yield "holds", f"no: {attack}, finds another class, but not on the levels of an 8-bit picture"
    else:
        yield "holds", f"no: {attack}, finds another class"
        wrong = entry["adversarial"]
        yield "adversarial", f"{wrong['picture']}: {wrong['class']}, confidence {percent(wrong['confidence'])}"
