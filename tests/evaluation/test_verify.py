"""Whatever is edited in a record, its arrays or its kept images is found, or stands in the list of what is free."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from atbench.attacks.gradient.max_confidence import MaxConfidence
from atbench.data import Images
from atbench.evaluation import EvalModel, EvalResults, PGDConfig, Plan, evaluate_model, summarize
from atbench.evaluation.field_checks import FREE, FieldCheck, field_checks
from atbench.evaluation.recompute import recompute_results
from atbench.evaluation.rejection import RejectionPlan
from atbench.evaluation.verify import compare_records, verify_record
from tests.support.targets import make

CLASSES, SIDE, EPS = 3, 8, 0.03
NAMES = ("a", "b", "c")


class Small(nn.Module):
    """Linear, with a network's own noise of some size."""

    def __init__(self, noise: float = 0.0, numpy: bool = False) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.linear, self.noise, self.numpy = nn.Linear(SIDE * SIDE, CLASSES), noise, numpy

    def forward(self, x: Tensor) -> Tensor:
        logits = self.linear(x.flatten(1))
        if self.numpy:
            return logits + self.noise * torch.from_numpy(np.random.randn(*logits.shape)).to(logits)
        return logits + self.noise * torch.randn_like(logits) if self.noise else logits


def images(n: int = 60) -> Images:
    x = torch.randint(60, 195, (n, 1, SIDE, SIDE), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    with torch.no_grad():
        y = Small()(x.float() / 255).argmax(dim=1)
    y[::9] = (y[::9] + 1) % CLASSES
    return Images(x, y)


def plan(**changes: Any) -> Plan:
    threat = PGDConfig("linf", EPS, EPS / 4, 6)
    given: dict[str, Any] = {
        "attacks": {
            "square": (make("square", "linf", EPS, small=True), {"steps": 24}),
            "cw_linf": (make("cw_linf", "linf", EPS), {"steps": 10}),
            "fmn": (make("fmn", "linf", EPS), {"steps": 10}),
        },
        "sequential": True,
        "audit": 12,
        "limit": 50,
        "norms": {"l2": PGDConfig("l2", 0.2, 0.05, 5)},
        "corruptions": [2],
        "reject": RejectionPlan(0.9, images(40), MaxConfidence("linf", EPS, 10, 1, 0.25), {"steps": 10, "restarts": 1}),
    }
    return Plan(threat, [1, 6], [0, 0.5, 1, 2], 4, **{**given, **changes})


def parts(found: EvalResults) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    content = json.loads(json.dumps(summarize(found, NAMES)))
    return content, found.outcomes, found.examples


@cache
def whole(corruptions: bool = True) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any], EvalResults]:
    """An evaluation of all kinds at once, and what it is made of again."""
    eval_model, chosen = EvalModel(Small(), 16), plan(**({} if corruptions else {"corruptions": []}))
    content, arrays, kept = parts(evaluate_model(eval_model, images(), chosen))
    again = recompute_results(EvalModel(Small(), 16), images(), chosen, content, arrays, kept)
    return content, arrays, kept, again


def wrong(numbers: list[FieldCheck]) -> list[str]:
    return [number.name for number in numbers if not number.agrees]


def test_an_honest_record_is_made_again_whole_by_judging_alone() -> None:
    content, arrays, kept, again = whole()
    numbers = compare_records(content, arrays, kept, again, NAMES)
    assert wrong(numbers) == [] and len(numbers) > 400
    assert content["attacks"][2]["distance"]["n"] and content["audit"]["checks"] and content["corruptions"]
    assert all(sum(kept[f"{name}.rows"].size for name in kept_of(kept, prefix)) for prefix in ("pgd.", "pgd_l2."))
    eval_model = EvalModel(Small(), 7)
    assert wrong(verify_record(eval_model, images(), plan(), content, arrays, kept, NAMES)) == [], "other batches"
    assert eval_model.gradients == 0, "nothing is searched"


def kept_of(kept: dict[str, Any], prefix: str) -> list[str]:
    return [key.removesuffix(".rows") for key in kept if key.startswith(prefix) and key.endswith(".rows")]


def leaves(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a record; of long lists of equal entries (bins, corruptions) the first two."""
    few = node[:2] if isinstance(node, list) and len(node) > 12 else node
    inner = node.items() if isinstance(node, dict) else enumerate(few) if isinstance(node, list) else ()
    if not inner or not node:
        yield path
    for key, value in inner if node else ():
        yield from leaves(value, (*path, key))


def edited(value: Any) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value + 1 if isinstance(value, int) else value + 0.01
    return {"str": str(value) + "x", "list": [1], "dict": {"a": 1}, "NoneType": 0.5}[type(value).__name__]


def test_every_edited_field_is_found_or_free() -> None:
    content, arrays, _, results = whole()
    logits = {name: arrays[name] for name in ("logits_clean", "logits_adversarial")}  # as `compare_records` does
    recorded = EvalResults(results.facts, {**results.outcomes, **logits}, results.examples)
    again = json.loads(json.dumps(summarize(recorded, NAMES)))
    seen = 0
    for path in leaves(content):
        lied = copy.deepcopy(content)
        node = lied
        for key in path[:-1]:
            node = node[key]
        node[path[-1]] = edited(node[path[-1]])
        found = wrong(list(field_checks(lied, again)))
        if FREE.isdisjoint(map(str, path)):
            assert found, f"{path} was edited, and nobody noticed"
            seen += 1
        else:
            assert not found, path
    assert seen > 250
    for key in content.keys() - FREE:
        without = {k: v for k, v in content.items() if k != key}
        assert wrong(list(field_checks(without, again))), f"without {key}"
    assert wrong(list(field_checks({**content, "more": 1}, again))) == ["more"]


def changed(array: Any) -> Iterator[tuple[str, Any]]:
    """An array edited in several ways; only those that make it another one."""
    numbers = array.dtype.kind == "f"
    if array.size and not (numbers and np.isnan(array).all()):
        one, flat = array.copy(), array.reshape(-1)
        place = int(np.argmax(np.isfinite(flat))) if numbers else array.size // 2
        value = flat[place]
        more = value.replace('"threshold": ', '"threshold": 1') if array.dtype.kind == "U" else value + 1
        one.reshape(-1)[place] = ~value if array.dtype.kind == "b" else more
        yield "one value", one
        if numbers:
            one = array.copy()
            one.reshape(-1)[place] = np.nan
            yield "a NaN", one
    rolled = np.roll(array, 1, axis=0)
    if array.dtype.kind in "bU" and not np.array_equal(array, rolled):
        yield "in another order", rolled


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.slow
def test_every_edited_array_is_found(which: int) -> None:
    content, arrays, kept, _ = whole(corruptions=False)
    eval_model, chosen = EvalModel(Small(), 64), plan(audit=0, corruptions=[])
    for name, array in (arrays, kept)[which].items():
        if name.startswith("shown"):
            continue  # below: they have no part in anything else
        for how, other in changed(array):
            files = [dict(arrays), dict(kept)]
            files[which][name] = other
            assert wrong(verify_record(eval_model, images(), chosen, content, *files, NAMES)), f"{name}: {how}"
        files = [dict(arrays), dict(kept)]
        del files[which][name]
        assert wrong(verify_record(eval_model, images(), chosen, content, *files, NAMES)), f"without {name}"


def test_pictures_and_corruptions_are_compared_too() -> None:
    content, arrays, kept, again = whole()
    for name in [name for name in arrays if name == "corrupted" or name.startswith("shown")]:
        for how, other in changed(arrays[name]):
            assert wrong(compare_records(content, {**arrays, name: other}, kept, again, NAMES)) == [name], (
                f"{name}: {how}"
            )


def test_a_claim_and_its_copy_edited_alike_are_found_where_images_speak() -> None:
    """Masks and figures that agree with each other, and not with the kept images."""
    content, arrays, kept, _ = whole()
    lied, masks = copy.deepcopy(content), {key: value.copy() for key, value in arrays.items()}
    row = int(np.flatnonzero(arrays["clean"] & ~arrays["robust"])[0])
    masks["robust"][row] = True
    lied["robust"]["accuracy"] += 1 / 50
    found = wrong(verify_record(EvalModel(Small(), 64), images(), plan(), lied, masks, kept, NAMES))
    assert {"robust", "robust.accuracy"} <= set(found)


@pytest.mark.parametrize(("key", "value"), [("eps", 2 * EPS), ("norm", "l2"), ("steps", 7)])
def test_a_threat_that_was_relabelled_everywhere_in_the_record(key: str, value: Any) -> None:
    """What was configured says otherwise."""
    content, arrays, kept, again = whole()
    lied = json.loads(json.dumps(content))
    for node in (lied["threat"], lied["plan"]["threat"], lied["attack"]):
        if key in node:
            node[key] = value
    assert any(key in name for name in wrong(compare_records(lied, arrays, kept, again, NAMES)))


def few(**changes: Any) -> Plan:
    return plan(**{"audit": 0, "corruptions": [], "norms": {}, "attacks": {}, "limit": 40, **changes})


def test_a_network_that_answers_at_random_is_verified_all_the_same() -> None:
    """Noise of the size of the margins: which examples hold is a matter of the draw, and the draw is repeated."""
    chosen = few(attacks={"square": (make("square", "linf", EPS), {"steps": 24})})
    content, arrays, kept = parts(evaluate_model(EvalModel(Small(noise=0.1), 16), images(), chosen))
    assert content["random"] == "torch"
    torch.manual_seed(9)
    numbers = verify_record(EvalModel(Small(noise=0.1), 60), images(), chosen, content, arrays, kept, NAMES)
    assert wrong(numbers) == []
    lied = {**kept, "pgd.2.x_adv": kept["pgd.2.x_adv"][::-1]}
    assert wrong(verify_record(EvalModel(Small(noise=0.1), 60), images(), chosen, content, arrays, lied))


def test_numbers_drawn_elsewhere_are_known_as_such() -> None:
    np.random.seed(0)
    for network, known in ((Small(noise=0.1, numpy=True), "other"), (Small(), None)):
        assert evaluate_model(EvalModel(network, 16), images(), few(reject=None)).facts["random"] == known
