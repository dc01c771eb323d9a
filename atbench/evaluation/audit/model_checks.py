"""Audit checks of a network's outputs, gradients and state."""

from __future__ import annotations

from collections.abc import Iterator
from math import isnan

from torch import Tensor

from atbench.evaluation.audit.outputs import Outputs
from atbench.evaluation.audit.verdicts import Check, allowed_share, as_percent, not_run, threshold_check


def output_checks(outputs: Outputs) -> Iterator[Check]:
    for check in (randomness, batch_dependence, test_time_gradients, probability_outputs, logit_scale):
        yield check(outputs)


def randomness(outputs: Outputs) -> Check:
    """Five passes must agree bitwise, or up to what adding in another order does (64 units of rounding of max |z|)."""
    same = "are bitwise equal" if outputs.spread == 0 else f"differ by up to {outputs.spread:.2g}"
    measured = f"Five forward passes {same} and change {outputs.changed} of {len(outputs.labels)} predictions"
    meaning = "the outputs are random; attacks must average over passes (EOT) and be repeated"
    return threshold_check("randomness", outputs.spread, outputs.rounding, measured, meaning)


def batch_dependence(outputs: Outputs) -> Check:
    """Logits alone and in a batch may differ by 1 % of max |z|: TF32 and bfloat16 keep two to three digits, and kernels
    are chosen by batch size; statistics of the batch move them by tens of percent.
    """
    if isnan(outputs.batch_dependence) or outputs.random:
        reason = "logits differ from pass to pass" if outputs.random else "there is only one image"
        return not_run("batch", f"Dependence of logits on the rest of the batch cannot be measured: {reason}.")
    value = outputs.batch_dependence / max(outputs.scale, 1e-12)
    measured = f"An image's logits differ by {as_percent(value)} of the largest logit between batches"
    meaning = "examples of a batch influence each other (BatchNorm in train mode?), so accuracy depends on batching"
    return threshold_check("batch", value, 0.01, measured, meaning)


def test_time_gradients(outputs: Outputs) -> Check:
    """No call of autograd within a pass (fra31/auto-attack, checks.py: dynamic defences)."""
    measured = f"A forward pass calls autograd {outputs.backward} times"
    meaning = "the network optimises at test time; attacks must differentiate through that or approximate it (BPDA)"
    return threshold_check("test-time gradients", outputs.backward, 0, measured, meaning)


def probability_outputs(outputs: Outputs) -> Check:
    """The outputs must not be probabilities: value 1 if every row is a distribution, up to 1e-5."""
    kind = "are probabilities" if outputs.probabilities else f"are not probabilities (largest {outputs.scale:.3g})"
    meaning = "the loss applies softmax to them again, which flattens its gradients; return logits"
    return threshold_check("softmax", float(outputs.probabilities), 0, f"The outputs {kind}", meaning)


def logit_scale(outputs: Outputs) -> Check:
    """The share of examples whose softmax saturates altogether, so that every wrong class's probability underflows and
    the cross-entropy's gradient is exactly zero whatever the network; at most 1 %.
    """
    gaps, n = outputs.gaps, len(outputs.labels)
    value = float((gaps > outputs.saturation).double().mean())
    typical, largest = float(gaps.median()), float(gaps.max())
    lead = f"The margin of the right logit is {typical:.3g} in the median and {largest:.3g} at most"
    measured = f"{lead}, and more than {outputs.saturation:.3g} on {as_percent(value)} of {n} images"
    meaning = "softmax has no gradient at this logit scale; attack with objective=margin, or divide the logits"
    return threshold_check("logit scale", value, allowed_share(0.01, n), measured, meaning)


def zero_gradients(magnitudes: Tensor | None) -> Check:
    """The share of examples without any cross-entropy gradient at the image; at most 1 % (Carlini et al. 2019).
    Small gradients do not count: those of confident honest networks are small, and the steepest step has no scale.
    """
    if magnitudes is None:
        sentence = (
            "The outputs have no gradient with respect to the image: gradient attacks do not work on this network."
        )
        return Check("zero gradients", 1.0, 0.01, "flag", sentence)
    value = float((magnitudes == 0).double().mean())
    mean = f"mean |gradient| {float(magnitudes.double().mean()):.2g}"
    measured = f"{as_percent(value)} of {len(magnitudes)} images have a gradient of exactly zero ({mean})"
    meaning = "gradient attacks do not move there, because the network rounds, thresholds or saturates"
    return threshold_check("zero gradients", value, allowed_share(0.01, len(magnitudes)), measured, meaning)


def state_change(outputs: Outputs, before: dict[str, str], after: dict[str, str]) -> Check:
    """Parameters, buffers and modes must be after the audit what they were before, and in eval mode in between."""
    changed = [name for name in after if after[name] != before.get(name)]
    changed += [f"train mode of {name}" for name in outputs.training]
    shown = f" ({', '.join(changed[:3])}{', ...' if len(changed) > 3 else ''})" if changed else ""
    measured = f"Forward passes changed {len(changed)} parameters, buffers or modes{shown}"
    meaning = "the network changes while it is evaluated, so accuracy depends on the order of the evaluation"
    return threshold_check("state", len(changed), 0, measured, meaning)
