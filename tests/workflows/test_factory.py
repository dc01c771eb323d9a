"""Assembling a run: the further networks that a method may ask for."""

from __future__ import annotations

import torch

from atbench.data.digits import digits
from atbench.workflows.factory import make_model, network_maker
from tests.support.contract import configuration


def test_a_further_network_is_the_runs_with_changes() -> None:
    cfg, source = configuration("standard"), digits()
    network = network_maker(cfg, source)
    same, wider = network({}), network({"width": 8})
    ours, shapes = make_model(cfg, source).state_dict(), [value.shape for value in same.state_dict().values()]
    assert shapes == [value.shape for value in ours.values()]
    assert not torch.equal(same.state_dict()["head.weight"], ours["head.weight"]), "it starts elsewhere"
    assert torch.equal(network({}).state_dict()["head.weight"], same.state_dict()["head.weight"])
    assert wider.state_dict()["head.weight"].shape != ours["head.weight"].shape
    other = network({"_target_": "atbench.models.cnn.CNN", "width": 4})
    assert cfg.model.norm == "none" and "stages.1.0.running_mean" in other.state_dict(), "nothing of the run's node"
