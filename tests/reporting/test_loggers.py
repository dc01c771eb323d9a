"""What each logger is given of a run: W&B's axis, summary, tags and later evaluations; CSV; TensorBoard."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from atbench.reporting import MetricsLog, wandb_logger
from tests.support.wandb_stub import WANDB, Run, fake_wandb, row


@pytest.fixture(autouse=True)
def unbroken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wandb_logger, "_broken", False)
    monkeypatch.delenv("WANDB_MODE", raising=False)


def test_the_epoch_is_the_axis_and_the_summary_is_of_the_best(tmp_path: Path, monkeypatch) -> None:
    run = Run()
    fake_wandb(monkeypatch, run, logged_in=True)
    tracker = MetricsLog(tmp_path, WANDB, {}, "n", None)
    tracker.log(row(1, best=True, lr={"model": 0.1}, seconds=3.0, fraction=0.5, epochs=2))
    tracker.log({**row(2, best=False), "val": {"clean": 0.9, "pgd": 0.1, "n": 150}})
    tracker.log({"event": "watch", "epoch": 2, "step": 30, "pgd": 0.2, "fgsm": 0.7, "k": 10, "n": 128})
    tracker.close()
    assert run.metrics["*"] == {"step_metric": "epoch"} and run.metrics["val/*"]["summary"] == "none"
    assert run.summary == {"best/epoch": 1, "val/clean": 0.9, "val/pgd": 0.5}
    assert run.logged[0] == (10, {"epoch": 1, "lr/model": 0.1, "val/clean": 0.9, "val/pgd": 0.5})
    assert run.logged[2] == (30, {"epoch": 2, "watch/pgd": 0.2, "watch/fgsm": 0.7})


def test_job_type_tags_and_group(tmp_path: Path, monkeypatch) -> None:
    given = fake_wandb(monkeypatch, Run(), logged_in=True)
    config = {part: {"about": {"name": part[:3]}} for part in ("dataset", "model", "method")}
    MetricsLog(tmp_path, {**WANDB, "tags": ["mine", "dat"]}, config, "n", "sweep").close()
    assert (given["job_type"], given["tags"], given["group"]) == ("train", ["mine", "dat", "mod", "met"], "sweep")
    MetricsLog(tmp_path, {**WANDB, "group": "g", "job_type": "ablation"}, config, "n", "sweep").close()
    assert (given["job_type"], given["group"]) == ("ablation", "g")


def test_id_and_group_of_a_sweeps_agent_are_kept(tmp_path: Path, monkeypatch) -> None:
    given = fake_wandb(monkeypatch, Run(), logged_in=True)
    for name in "ab":
        (tmp_path / name).mkdir()
    monkeypatch.setenv("WANDB_RUN_ID", "agents")
    MetricsLog(tmp_path / "a", WANDB, {}, "n", None).close()
    assert given["id"] != "agents", "without an agent several runs of a process would be one"
    monkeypatch.setenv("WANDB_SWEEP_ID", "s")
    monkeypatch.setenv("WANDB_RUN_GROUP", "agents group")
    MetricsLog(tmp_path / "b", WANDB, {}, "n", "sweep").close()
    assert (given["id"], given["group"]) == ("agents", "agents group")


def test_a_later_evaluation_goes_to_the_run_of_the_training(tmp_path: Path, monkeypatch, make_run) -> None:
    run, folder = Run(), make_run()
    given = fake_wandb(monkeypatch, run, logged_in=True)
    record = json.loads((folder / "evaluation" / "best.json").read_text())
    wandb_logger.log_evaluation(folder, WANDB, {}, [record])
    assert not given, "training opened no W&B run"
    (folder / "wandb").mkdir()
    (folder / "wandb" / "id").write_text("trained")
    (folder / "checkpoints").mkdir(exist_ok=True)
    (folder / "checkpoints" / "best.pt").touch()
    wandb_logger.log_evaluation(folder, {"about": {"name": "none"}}, {}, [record])
    assert not given, "logger=none"
    wandb_logger.log_evaluation(folder, {**WANDB, "artifact": True}, {}, [{**record, "name": "auto"}])
    assert given["id"] == "trained" and run.finished == [0] and run.artifacts == [(["best.pt"], ["best"])]
    assert run.summary["auto/best/robust"] == record["robust"]["accuracy"] and "best/robust" not in run.summary
    assert run.summary["best/headline"] == record["robust"]["accuracy"]
    (_, logged) = run.logged[-1]
    assert logged["auto/accuracy against k"]["xs"][0] == [entry["k"] for entry in record["steps"]]
    assert "auto/evaluation" in logged


def test_csv_has_a_column_for_every_measurement(tmp_path: Path) -> None:
    tracker = MetricsLog(tmp_path, {"csv": True}, {}, "n", None)
    tracker.log({"event": "epoch", "epoch": 1, "step": 10, "train": {"loss": 2.5}, "best": True})
    tracker.log({"event": "watch", "epoch": 2, "step": 15, "pgd": 0.2})
    tracker.log(row(2))
    tracker.summary([])
    tracker.close(0)
    lines = (tmp_path / "metrics.csv").read_text().splitlines()
    assert lines == ["epoch,train/loss,val/clean,val/pgd", "1,2.5,,", "2,,0.9,0.5"]


def test_tensorboard_has_the_epochs_that_count(tmp_path: Path, make_run) -> None:
    pytest.importorskip("tensorboard", reason="atbench[tensorboard] is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    record = json.loads((make_run() / "evaluation" / "best.json").read_text())
    for epochs in ((1, 2), (2, 3)):  # a resumed run does epoch 2 again
        tracker = MetricsLog(tmp_path, {"tensorboard": True}, {}, "n", None)
        for epoch in epochs:
            tracker.log({**row(epoch), "val": {"pgd": epoch / 10, "n": 5}})
        tracker.summary([record])
        tracker.close(0)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert "val/n" not in events.Tags()["scalars"]
    assert [event.step for event in events.Scalars("val/pgd")] == [1, 2, 3]
    assert events.Scalars("best/robust")[-1].value == pytest.approx(record["robust"]["accuracy"])
