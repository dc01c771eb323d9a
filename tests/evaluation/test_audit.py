"""The audit's parts on networks that are known in closed form, and its comparison of recorded attacks."""

from __future__ import annotations

import cProfile
from collections.abc import Callable
from dataclasses import replace
from types import CodeType

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import grad as imported_grad

from atbench.data import Images, stratified_subset
from atbench.errors import NumericalError
from atbench.evaluation import EvalModel, PGDConfig
from atbench.evaluation.attack_result import AttackResult
from atbench.evaluation.audit.attack_checks import NAMES, RADII
from atbench.evaluation.audit.attack_probes import STEPS, AttackProbes
from atbench.evaluation.audit.audit import run_audit
from atbench.evaluation.audit.outputs import (
    count_backward_calls,
    gradient_magnitudes,
    measure_outputs,
    state_checksums,
)
from atbench.evaluation.audit.verdicts import Check, allowed_share, audit_verdict, threshold_check

SIDE, N = 5, 120
THREAT = PGDConfig("linf", 0.04, 0.01, 20)


class Linear(nn.Module):
    """z = a·(W x + b), two classes, in double precision: FGSM and PGD are exact, and no attack beats them."""

    def __init__(self, scale: float = 1.0, classes: int = 2) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.scale = nn.Linear(SIDE * SIDE, classes).double(), scale

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.layer(x.flatten(1))


def given(network: Linear) -> Images:
    x = torch.randint(90, 165, (N, 1, SIDE, SIDE), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    with torch.no_grad():
        y = network(x.double() / 255).argmax(dim=1)
    y[::6] = (y[::6] + 1) % network.layer.out_features
    return Images(x, y)


def run(network: nn.Module, threat: PGDConfig = THREAT, n: int = N, **results: AttackResult) -> dict[str, Check]:
    images, eval_model = given(Linear()), EvalModel(network, 128)
    clean = eval_model.correct(images)
    return {check.name: check for check in run_audit(eval_model, images, clean, threat, results, n)}


def outcome(name: str, access: str, broken: Callable[[Tensor], Tensor], tried: Tensor | None = None) -> AttackResult:
    clean = EvalModel(Linear(), 128).correct(given(Linear()))
    tried = clean if tried is None else tried
    return AttackResult(name, access, tried, tried & broken(torch.arange(N)))


def survivors() -> tuple[AttackProbes, Tensor]:
    """Searches of the linear network, and the right examples that PGD leaves right."""
    images, eval_model = given(Linear()), EvalModel(Linear(), 128)
    probes = AttackProbes(eval_model, images, THREAT, eval_model.correct(images))
    return probes, probes.mask & ~probes.strong_pgd(probes.mask)


def test_a_linear_network_passes_everything_that_can_be_run() -> None:
    checks = run(Linear())
    assert {name for name, check in checks.items() if check.verdict == "not run"} == {"queries", "transfer"}
    assert audit_verdict(list(checks.values()))["flags"] == []
    assert set(NAMES) < set(checks), "what is not run has the names of what is"
    assert [name for name in checks if name in NAMES] == list(NAMES)


def test_tolerance() -> None:
    assert allowed_share(0.05, 1000) == allowed_share(0.05, 10_000) == 0.05
    # 1.96 · √(0.05 · 0.95) · (1/10 − 1/√1000) = 0.0292
    assert allowed_share(0.05, 100) == pytest.approx(0.0792, abs=5e-5)
    assert allowed_share(0.0, 20) == 1 / 20, "one example never decides"
    assert [allowed_share(0.005, n) for n in (10, 100, 500, 1000)] == sorted(
        (allowed_share(0.005, n) for n in (10, 100, 500, 1000)), reverse=True
    )


def test_a_flag_is_above_its_threshold_and_says_what_it_means() -> None:
    assert threshold_check("a", 0.1, 0.1, "Found", "meaning").verdict == "pass"
    assert threshold_check("a", 0.2, 0.1, "Found", "meaning", also=False).sentence == "Found."
    assert threshold_check("a", 0.2, 0.1, "Found", "meaning").sentence == "Found: meaning."


def test_verdict() -> None:
    said = audit_verdict(
        [Check("a", 1, 0, "flag", "A."), Check("b", 0, 0, "pass", "B."), Check("c", None, None, "not run", "C.")]
    )
    assert said == {"trusted": False, "flags": ["a"], "sentence": "1 of 2 audit checks flagged: a. Not run: c."}
    assert audit_verdict([Check("b", 0, 0, "pass", "B.")])["trusted"]
    assert not audit_verdict([Check("c", None, None, "not run", "C.")])["trusted"], "nothing was checked"


def test_nothing_to_probe_and_nothing_to_compare() -> None:
    assert [check.verdict for check in run(Linear(), n=0).values()] == ["not run"]
    for threat in (replace(THREAT, eps=0.0), replace(THREAT, steps=0)):
        checks = run(Linear(), threat)
        assert all(checks[name].verdict == "not run" for name in NAMES)
        assert checks["randomness"].verdict == "pass"


def test_weights_that_are_no_numbers_get_no_verdict() -> None:
    network = Linear()
    clean = torch.ones(N, dtype=torch.bool)
    with torch.no_grad():
        network.layer.weight[0, 0] = torch.nan
    with pytest.raises(NumericalError, match="logits"):
        run_audit(EvalModel(network, 128), given(Linear()), clean, THREAT, {}, 10)


def test_outputs_and_slopes_in_closed_form() -> None:
    network = Linear()
    images, eval_model = given(network), EvalModel(network, 7)
    rows = torch.arange(20)
    outputs, slope = measure_outputs(eval_model, images, rows), gradient_magnitudes(eval_model, images, rows)
    x = images.floats(rows, torch.float64)
    z = network(x).detach()
    assert torch.allclose(outputs.logits, z, atol=1e-12) and torch.equal(outputs.labels, images.y[:20])
    assert (outputs.spread, outputs.changed, outputs.backward, outputs.training) == (0, 0, 0, [])
    assert outputs.batch_dependence < 1e-12
    p = z.softmax(dim=1) - nn.functional.one_hot(images.y[:20], 2)
    assert slope is not None
    assert torch.allclose(slope, (p @ network.layer.weight.detach()).abs().mean(dim=1), atol=1e-12)


@pytest.mark.parametrize(
    "passes",
    [
        lambda x: imported_grad(x.square().sum(), x),
        lambda x: torch.autograd.backward(x.square().sum()),
        lambda x: x.square().sum().backward(),
        lambda x: torch.func.grad(lambda x: x.square().sum())(x),
    ],
)
def test_backward_passes_are_counted_whatever_name_they_go_by(passes: Callable[[Tensor], object]) -> None:
    with count_backward_calls() as calls:
        assert calls() == 0
        for _ in range(3):
            passes(torch.ones(2, requires_grad=True))
    passes(torch.ones(2, requires_grad=True))
    assert calls() == 3, "those of the block, and none after it"


def test_an_audit_may_be_profiled() -> None:
    """A profiler stays at work, and sees what the audit does."""
    network = Linear()
    images, eval_model = given(network), EvalModel(network, 7)
    with cProfile.Profile() as profile:
        outputs = measure_outputs(eval_model, images, torch.arange(20))
        stratified_subset(images.y, 4)
    called = {entry.code.co_qualname for entry in profile.getstats() if isinstance(entry.code, CodeType)}
    assert outputs.backward == 0 and {"measure_outputs", "Linear.forward", "stratified_subset"} <= called


@pytest.mark.parametrize(("scale", "verdict_"), [(1.0, "pass"), (100.0, "pass"), (1e6, "flag")])
def test_only_a_scale_without_gradients_is_flagged(scale: float, verdict_: str) -> None:
    """In float64 the softmax of a wrong class underflows 708 below; a tenth of that is loud, and no fault."""
    checks = run(Linear(scale))
    assert checks["logit scale"].verdict == checks["zero gradients"].verdict == verdict_


def test_fingerprints_see_values_buffers_and_modes() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    network.register_buffer("hidden", torch.zeros(3), persistent=False)
    before = state_checksums(network)
    assert state_checksums(network) == before
    network.hidden[1] = 1
    network[1].running_mean[0] = 0.5
    network[0].eval()
    after = state_checksums(network)
    assert {name for name in after if after[name] != before[name]} == {"hidden", "1.running_mean", "the mode of 0"}


def test_the_network_is_left_as_it_was() -> None:
    network = Linear().train()
    images, before = given(network), state_checksums(network)
    clean = EvalModel(network, 128).correct(images)
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    run_audit(EvalModel(network, 128), images, clean, THREAT, {}, 20)
    assert torch.equal(torch.rand(2), expected), "the global random state"
    assert state_checksums(network) == before and all(p.requires_grad for p in network.parameters())


@pytest.mark.slow
def test_the_audit_does_not_depend_on_the_batch_size() -> None:
    images, network = given(Linear()), Linear()
    clean = EvalModel(network, 128).correct(images)
    answers = [run_audit(EvalModel(network, size), images, clean, THREAT, {}, 15) for size in (1, 7, 15)]
    for one, other, last in zip(*answers, strict=True):
        assert one.verdict == other.verdict == last.verdict
        if one.name != "batch" and one.value is not None:
            assert one.value == pytest.approx(other.value, abs=1e-9) == pytest.approx(last.value, abs=1e-9)


@pytest.mark.parametrize(("access", "check"), [("queries", "queries"), ("transfer", "transfer"), ("noise", "noise")])
def test_what_gradients_cannot_reach_is_masking(access: str, check: str) -> None:
    _, stand = survivors()
    sure = outcome("claimed", access, lambda rows: stand & (stand.cumsum(0) <= 10))
    found = run(Linear(), claimed=sure)[check]
    assert found.verdict == "flag" and found.value == pytest.approx(10 / int(sure.tried.sum()))


@pytest.mark.parametrize("access", ["queries", "transfer", "noise"])
def test_what_a_weak_white_box_missed_is_no_masking(access: str) -> None:
    """A recorded PGD that broke nothing, and another attack that broke what gradients can break."""
    probes, stand = survivors()
    weak = outcome("pgd-20", "gradient", lambda rows: rows < 0)
    strong = outcome("claimed", access, lambda rows: probes.mask & ~stand)
    found = run(Linear(), n=10, **{"pgd-20": weak, "claimed": strong})[access]
    assert int(strong.broken.sum()) > 20 and found.verdict == "pass" and found.value == 0


def test_an_attack_on_survivors_counts_for_all_that_were_attacked() -> None:
    """Square broke 3 of the survivors: that is 3 of all examples that gradients tried, and not of the survivors."""
    probes, stand = survivors()
    white = outcome("apgd_ce", "gradient", lambda rows: probes.mask & ~stand)
    square = outcome("square", "queries", lambda rows: stand & (stand.cumsum(0) <= 3), tried=stand)
    found = run(Linear(), apgd_ce=white, square=square)["queries"]
    assert found.verdict == "flag" and found.value == pytest.approx(3 / int(white.tried.sum()))


@pytest.mark.slow
def test_recorded_attacks_are_compared_where_they_tried_everything() -> None:
    _, stand = survivors()
    some = outcome("pgd-20", "gradient", lambda rows: rows < 0)
    many = outcome("fgsm", "gradient", lambda rows: rows % 2 == 0)
    flagged = run(Linear(), **{"pgd-20": some, "fgsm": many})["iteration"]
    assert flagged.verdict == "flag"
    assert flagged.value == pytest.approx(int(many.broken.sum()) / int(many.tried.sum()))
    only = replace(many, tried=stand, broken=many.broken & stand)
    assert run(Linear(), **{"pgd-20": some, "fgsm": only})["iteration"].value != flagged.value, "survivors are harder"


def test_convergence_counts_what_nothing_recorded_has_broken() -> None:
    slow = replace(THREAT, steps=2, start="zero")  # two steps of a quarter of ε reach half of it
    checks = run(Linear(), slow)
    assert checks["steps"].verdict == "flag"
    everything = outcome("apgd_ce", "gradient", lambda rows: rows >= 0)
    assert run(Linear(), slow, apgd_ce=everything)["steps"].value == 0


def test_searches_are_the_attacks_that_they_are_called() -> None:
    """With two classes, FGSM and PGD break exactly where the margin is below ε·‖w_y − w_k‖₁, at every radius."""
    network = Linear()
    images, eval_model = given(network), EvalModel(network, 128)
    probes = AttackProbes(eval_model, images, THREAT, eval_model.correct(images))
    with torch.no_grad():
        z, w = network(images.floats(dtype=torch.float64)), network.layer.weight
    distance = (z[:, 0] - z[:, 1]).abs() / (w[0] - w[1]).abs().sum()
    for multiple in RADII:
        expected = probes.mask & (distance < multiple * THREAT.eps)
        assert torch.equal(probes.radius(multiple), expected)
        assert torch.equal(probes.fgsm(multiple), expected)
    assert 10 < int(probes.radius(1).sum()) < int(probes.mask.sum()) - 10
    assert torch.equal(probes.range(1.0), probes.mask)
    assert not (probes.noise() & ~probes.radius(1)).any()
    assert torch.equal(probes.broken, probes.radius(1)), "larger radii are not within the threat"


def test_losses_are_those_of_pgd_from_the_image() -> None:
    probes, _ = survivors()
    losses = probes.losses()
    rows = probes.mask.nonzero().flatten()
    x, y = probes.images.floats(rows, torch.float64), probes.images.y[rows]
    with torch.no_grad():
        first = nn.functional.cross_entropy(Linear()(x), y)
    assert len(losses) == STEPS + 1 and losses[0] == pytest.approx(float(first), abs=1e-12)
    assert (losses.diff() >= -1e-9).all(), "on a linear network every step gains"
