"""The command line: what is accepted, what is refused and how, and what is left behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from atbench.cli.main import main
from atbench.errors import ConfigError, DataError, Interrupted
from tests.support.stub import Stub

REPOSITORY = Path(__file__).resolve().parents[2]


def program(*words: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """The program in a process of its own."""
    settings = {**os.environ, "PYTHONPATH": str(REPOSITORY), **environment}
    command = [sys.executable, "-m", "atbench", *words]
    return subprocess.run(command, cwd=cwd, env=settings, capture_output=True, text=True, timeout=60)


def everything_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_what_was_typed_and_composed_reaches_the_run(stub: Stub, here: Path) -> None:
    assert main(["train", "seed=3", "-m", "attack.eps=8/255"]) == 0
    assert stub.verbs == ["train"]
    assert stub.configs[0].seed == 3 and stub.configs[0].method._target_.endswith(".Trades")
    assert stub.typed == [["train", "seed=3", "-m", "attack.eps=8/255"]]


def test_a_run_makes_hydra_leave_nothing(stub: Stub, here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "seed=1"]) == 0
    assert everything_below(here) == []
    assert capfd.readouterr() == ("", "")


def test_the_process_is_as_before(stub: Stub, here: Path) -> None:
    before = (list(sys.argv), list(sys.path), dict(os.environ))
    stub.act = lambda cfg: os.environ.update(LEFT="1") or 0.0
    for words in (["train"], ["train", "method=tradse"], ["eval", "x"]):
        main(words)
        assert (sys.argv, sys.path, dict(os.environ)) == before


def test_a_method_sets_its_attack_and_the_line_wins(stub: Stub) -> None:
    for words in (["method=trades"], ["method=pgd_at"], ["method=trades", "attack.start=zero"]):
        assert main(["train", *words]) == 0
    assert [cfg.attack.start for cfg in stub.configs] == ["gaussian", "uniform", "zero"]


def test_several_extras_at_once(stub: Stub) -> None:
    assert main(["train", "plus=[awp,ema]", "plus.ema.decay=0.9"]) == 0
    assert set(stub.configs[0].plus) == {"awp", "ema"} and stub.configs[0].plus.ema.decay == 0.9


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["trian"], ["trian", "'train'"]),
        (["train", "method=tradse"], ["method", "tradse", "'trades'"]),
        (["train", "metod=trades"], ["metod", "'method'"]),
        (["train", "attack.setps=3"], ["attack.setps: 3", "'steps'"]),
        (["train", "method.bata=3"], ["method.bata: 3", "'beta'"]),
        (["train", "trian.epochs=3"], ["trian", "'train'"]),
        (["train", "plus=[awpp]"], ["awpp", "'awp'"]),
        (["train", "trades"], ["method=trades"]),
        (["train", "lr=0.1"], ["lr: 0.1", "write train.optimizer.lr=0.1"]),
        (["train", "+lr=0.1"], ["+lr: 0.1", "write train.optimizer.lr=0.1"]),
        (["train", "eps=8/255"], ["write attack.eps=8/255 (or eval.eps"]),
        (["train", "beta=3", "method=trades"], ["write method.beta=3"]),
        (["train", "train.lr=0.1"], ["train.lr: 0.1 — train has no 'lr'", "write train.optimizer.lr=0.1"]),
        (["train", "optimizer.lr=0.1"], ["optimizer.lr: 0.1", "write train.optimizer.lr=0.1"]),
        (["train", "--epochs", "3", "method=trades"], ["--epochs 3", "write train.epochs=3"]),
        (["train", "-m", "seed=0,1", "--batch-size=3,4"], ["write train.batch_size=3,4 (or eval.batch_size)"]),
        (["train", "--method", "trades"], ["write method=trades"]),
        (["train", "--beta", "method=trades"], ["write method.beta=..."]),
        (["eval", "run", "limit=3"], ["write eval.limit=3"]),
        (["train", "train.epochs=abc"], ["train.epochs: abc"]),
        (["train", "train.epochs=3.5"], ["train.epochs: 3.5"]),
        (["train", "seed=1,2"], ["seed: 1,2", "-m"]),
        (["train", "method=3"], ["method=3"]),
        (["train", "attack.eps=("], ["attack.eps: ("]),
        (["train", "~attack.foo"], ["attack.foo"]),
        (["train", "+seed=1"], ["seed=1"]),
        (["train", "--multirn"], ["--multirn", "'--multirun'"]),
        (["train", "--cfg", "jobs"], ["jobs", "'job'"]),
        (["train", "--cfg"], ["--cfg", "value"]),
        (["train", "-m", "--cfg", "job"], ["--multirun", "--cfg"]),
        (["train", "--config-dir", "nowhere"], ["nowhere"]),
        (["train", "--config-name", "trian"], ["trian", "'train'"]),
        (["train", "hydra/launcher=jobliib"], ["jobliib"]),
        (["train", "-m", "method=pgd_at,tradse"], ["tradse", "'trades'"]),
        (["train", "-m", "seed=0,1", "attack.setps=3"], ["attack.setps", "'steps'"]),
        (["train", "-m", "seed=0,x"], ["seed: 0,x"]),
        (["eval", "run", "eval=standrad"], ["standrad", "'standard'"]),
        (["eval", "run", "eval.limt=3"], ["eval.limt", "'limit'"]),
        (["list", "methodes"], ["methodes", "'methods'"]),
        (["list", "methods", "--jsn"], ["--jsn"]),
        (["report"], ["RUN"]),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(
    words: list[str], said: list[str], stub: Stub, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and " — " in lines[0]
    assert all(text in lines[0] for text in said), lines[0]
    assert out == "" and stub.configs == [] and everything_below(here) == []


def test_the_sweep_is_recorded_and_runs_every_combination(stub: Stub, here: Path) -> None:
    assert main(["train", "-m", "method=pgd_at,trades", "seed=0,1"]) == 0
    pairs = [(cfg.method.about.name, cfg.seed) for cfg in stub.configs]
    assert pairs == [("pgd_at", 0), ("pgd_at", 1), ("trades", 0), ("trades", 1)]
    made = everything_below(here)
    assert made[:2] == ["runs", "runs/sweeps"] and made[-1].endswith("/multirun.yaml") and len(made) == 4


def test_a_refused_sweep_spares_what_was_there(stub: Stub, here: Path) -> None:
    (here / "runs").mkdir()
    assert main(["train", "-m", "method=pgd_at,tradse"]) == 2
    assert everything_below(here) == ["runs"]


def test_a_sweep_whose_jobs_are_all_refused_leaves_nothing(stub: Stub, here: Path) -> None:
    def act(cfg: Any) -> float:
        raise ConfigError("attack.eps", 8, "is too large", "did you mean 8/255?")

    stub.act = act
    assert main(["train", "-m", "seed=0,1"]) == 2
    assert len(stub.configs) == 2 and everything_below(here) == []


def test_a_failed_job_does_not_stop_the_others(stub: Stub, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def act(cfg: Any) -> float:
        if cfg.seed == 0:
            raise DataError("dataset", "digits", "is damaged", "fetch it again")
        return 0.0

    stub.act = act
    assert main(["train", "-m", "seed=0,1,2"]) == 3
    err = capsys.readouterr().err
    assert len(stub.configs) == 3
    assert err.count("is damaged") == 2, "when it failed, and at the end"
    failed, last = err.splitlines()[-2:]
    assert failed.startswith("failed: job 1/3  seed=0: dataset: digits") and last == "error: 1 of 3 jobs failed"
    assert (here / "runs" / "sweeps").is_dir()


def test_a_signal_stops_the_sweep(stub: Stub) -> None:
    def act(cfg: Any) -> float:
        raise Interrupted(143, "run", "x", "stopped by SIGTERM", "go on with resume=x")

    stub.act = act
    assert main(["train", "-m", "seed=0,1,2"]) == 143
    assert len(stub.configs) == 1


def test_expected_failures_are_one_line_and_the_rest_a_traceback(
    stub: Stub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stub.act = lambda cfg: (_ for _ in ()).throw(DataError("last.pt", "x", "is damaged", "use best.pt"))
    assert main(["train"]) == 3
    assert capsys.readouterr().err == "error: last.pt: x — is damaged; use best.pt\n"
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    assert main(["train"]) == 3
    err = capsys.readouterr().err
    assert "Traceback" in err and err.endswith("error: last.pt: x — is damaged; use best.pt\n")
    monkeypatch.delenv("HYDRA_FULL_ERROR")
    stub.act = lambda cfg: 1 / 0
    assert main(["train"]) == 1
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_a_hydra_error_inside_a_job_is_a_fault_of_ours(stub: Stub, capsys: pytest.CaptureFixture[str]) -> None:
    stub.act = lambda cfg: cfg.no_such_key
    assert main(["train"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_ctrl_c(stub: Stub, capsys: pytest.CaptureFixture[str]) -> None:
    stub.act = lambda cfg: (_ for _ in ()).throw(KeyboardInterrupt)
    assert main(["train"]) == 130
    assert "Traceback" not in capsys.readouterr().err


def test_only_the_first_rank_speaks_of_a_bad_config(
    stub: Stub, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "1")
    assert main(["train", "method=tradse"]) == 2
    assert capsys.readouterr().err == ""
    stub.act = lambda cfg: (_ for _ in ()).throw(DataError("last.pt", "x", "is damaged", "use best.pt"))
    assert main(["train"]) == 3
    assert capsys.readouterr().err.startswith("error (rank 1): last.pt")
    monkeypatch.setenv("RANK", "0")
    assert main(["train", "-m", "seed=0,1"]) == 2
    assert "torchrun" in capsys.readouterr().err and everything_below(here) == []


@pytest.mark.parametrize(
    ("words", "target"),
    [
        (["runs/a b,c"], "runs/a b,c"),
        (["eval.checkpoints=[best]", "it's (1)"], "it's (1)"),
        (["--config-dir", ".", "runs/x"], "runs/x"),
        (["target=runs/x"], "runs/x"),
        (["back\\'slash\\"], "back\\'slash\\"),
    ],
)
def test_eval_takes_the_run_first(words: list[str], target: str, stub: Stub) -> None:
    assert main(["eval", *words]) == 0
    assert stub.verbs == ["evaluate"] and stub.configs[0].target == target


def test_eval_looks_at_the_checkpoints_of_its_protocol(stub: Stub) -> None:
    assert main(["eval", "x"]) == main(["eval", "x", "eval.checkpoints=[best]"]) == 0
    assert [list(cfg.eval.checkpoints) for cfg in stub.configs] == [["best", "last"], ["best"]]


def test_help_and_cfg_answer_without_running(stub: Stub, capsys: pytest.CaptureFixture[str]) -> None:
    for words, text in (
        (["train", "--help"], "recipe: adam, ccat, common"),
        (["eval", "--help"], "atbench eval RUN"),
        (["train", "--cfg", "job", "seed=7"], "seed: 7"),
        (["eval", "runs/x", "--cfg", "job", "--resolve"], "target: runs/x"),
        (["report", "--help"], "--out DIR"),
        (["--help"], "atbench doctor"),
    ):
        assert main(words) == 0
        assert text in capsys.readouterr().out
    assert stub.configs == []
    assert main([]) == 2


def test_a_method_of_ones_own(stub: Stub, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = here / "mine" / "myconf"
    (folder / "method").mkdir(parents=True)
    (folder / "method" / "ours.yaml").write_text(
        "# @package _global_\nmethod: {_target_: ours_module.Ours, about: {name: ours}}\n"
    )
    (folder / "mytrain.yaml").write_text("defaults: [train, {override method: ours}, _self_]\nseed: 9\n")
    (here / "mine" / "ours_module.py").write_text(
        "from torch import nn\nfrom atbench.methods import Method\nclass Ours(Method):\n"
        "    def __init__(self, gain: float = 1.0):\n        nn.Module.__init__(self)\n        self.gain = gain\n"
    )

    def act(cfg: Any) -> float:
        from atbench.config.instantiate import build
        from atbench.config.values import resolve

        return float(build(resolve(cfg).method, "method").gain)

    stub.act = act
    assert main(["train", "--config-dir", str(folder), "method=ours", "+method.gain=1/2"]) == 0
    assert main(["train", "--config-dir", str(folder), "--config-name", "mytrain"]) == 0
    assert stub.configs[1].seed == 9 and "Ours" in stub.configs[1].method._target_
    assert main(["train", "--config-dir", str(folder), "method=ours", "+method.gian=2"]) == 2
    assert "did you mean 'gain'?" in capsys.readouterr().err
    assert main(["list", "methods", "--config-dir", str(folder)]) == 0
    assert "ours" in capsys.readouterr().out


def test_bad_yaml_names_the_file(stub: Stub, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "myconf" / "method").mkdir(parents=True)
    (here / "myconf" / "method" / "broken.yaml").write_text("method: [unclosed\n")
    assert main(["train", "--config-dir", "myconf", "method=broken"]) == 2
    err = capsys.readouterr().err
    assert "broken.yaml" in err and len(err.splitlines()) == 1


def test_the_program_as_a_process(here: Path) -> None:
    done = program("train", "method=tradse", cwd=here)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)
    assert program("list", "methods", cwd=here).returncode == 0
    assert everything_below(here) == []
