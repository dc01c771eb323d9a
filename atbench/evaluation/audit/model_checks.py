"""Checks that look at a network's outputs, gradients and state, before any attack."""

from __future__ import annotations

from collections.abc import Iterator
from math import isnan

from torch import Tensor

from atbench.evaluation.audit.outputs import Outputs
from atbench.evaluation.audit.verdicts import Check, judge, not_run, percent, tolerance


def of_outputs(outputs: Outputs) -> Iterator[Check]:
    yield randomness(outputs)
    yield company(outputs)
    yield optimising(outputs)
    yield softmax(outputs)
    yield logit_scale(outputs)


def randomness(outputs: Outputs) -> Check:
    """Five passes must agree bitwise, or up to what adding in another order does (64 units of rounding of max |z|)."""
    same = "are bitwise equal" if outputs.spread == 0 else f"differ by up to {outputs.spread:.2g}"
    found = f"Five forward passes {same} and change {outputs.changed} of {len(outputs.labels)} predictions"
    meaning = "the outputs are random, and an attack must average over passes (EOT) and be repeated"
    return judge("randomness", outputs.spread, outputs.rounding, found, meaning)


def company(outputs: Outputs) -> Check:
    """Logits alone and in a batch may differ by 1 % of max |z|: TF32 and bfloat16 keep two to three digits, and kernels
    are chosen by batch size; statistics of the batch move them by tens of percent.
    """
    if isnan(outputs.company) or outputs.random:
        why = "logits differ from pass to pass" if outputs.random else "a single image has no company"
        return not_run("batch", f"Whether logits depend on the rest of the batch cannot be said: {why}.")
    value = outputs.company / max(outputs.scale, 1e-12)
    found = f"An image's logits differ by {percent(value)} of the largest logit with what else is in its batch"
    meaning = "examples see each other (BatchNorm in train mode?), so that accuracy depends on how they are batched"
    return judge("batch", value, 0.01, found, meaning)


def optimising(outputs: Outputs) -> Check:
    """No call of autograd within a pass (fra31/auto-attack, checks.py: dynamic defences)."""
    found = f"A forward pass calls autograd {outputs.backward} times"
    meaning = "the network optimises something at test time, and an attack must go through or around that"
    return judge("test-time gradients", outputs.backward, 0, found, meaning)


def softmax(outputs: Outputs) -> Check:
    """The outputs must not be probabilities: value 1 if every row is a distribution, up to 1e-5."""
    says = "are probabilities" if outputs.probabilities else f"are no probabilities (largest {outputs.scale:.3g})"
    meaning = "the loss takes a softmax of them again, which flattens its gradients; return logits"
    return judge("softmax", float(outputs.probabilities), 0, f"The outputs {says}", meaning)


def logit_scale(outputs: Outputs) -> Check:
    """The share of examples whose softmax saturates altogether, so that every wrong class's probability underflows and
    the cross-entropy's gradient is exactly zero whatever the network; at most 1 %.
    """
    gaps, n = outputs.gaps, len(outputs.labels)
    value = float((gaps > outputs.saturation).double().mean())
    typical, largest = float(gaps.median()), float(gaps.max())
    lead = f"The right logit leads by {typical:.3g} in the median and {largest:.3g} at most"
    found = f"{lead}, and by more than {outputs.saturation:.3g} on {percent(value)} of {n} images"
    meaning = "softmax has no gradient at such a scale of the logits; attack with the margin, or divide them"
    return judge("logit scale", value, tolerance(0.01, n), found, meaning)


def gradients(slope: Tensor | None) -> Check:
    """The share of examples without any cross-entropy gradient at the image; at most 1 % (Carlini et al. 2019).
    Small gradients do not count: those of confident honest networks are small, and the steepest step has no scale.
    """
    if slope is None:
        sentence = "The outputs carry no gradient to the image: every gradient attack is blind to this network."
        return Check("zero gradients", 1.0, 0.01, "flag", sentence)
    value = float((slope == 0).double().mean())
    mean = float(slope.double().mean())
    found = f"{percent(value)} of {len(slope)} images have a gradient of exactly zero (mean |gradient| {mean:.2g})"
    meaning = "gradient attacks stand still there, because the network rounds, thresholds or saturates"
    return judge("zero gradients", value, tolerance(0.01, len(slope)), found, meaning)


def state(outputs: Outputs, before: dict[str, str], after: dict[str, str]) -> Check:
    """Parameters, buffers and modes must be after the audit what they were before, and in eval mode in between."""
    changed = [name for name in after if after[name] != before.get(name)] + [
        f"train mode of {m}" for m in outputs.training
    ]
    shown = ", ".join(changed[:3]) + (", ..." if len(changed) > 3 else "")
    found = f"Forward passes changed {len(changed)} parameters, buffers or modes" + (f" ({shown})" if changed else "")
    meaning = "what is attacked is not what was attacked before; accuracy depends on the order of the evaluation"
    return judge("state", len(changed), 0, found, meaning)
