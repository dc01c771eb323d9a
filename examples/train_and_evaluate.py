"""Train adversarially, load the best checkpoint, evaluate it: `python examples/train_and_evaluate.py`."""

import atbench
from atbench.data.digits import digits

run = atbench.train(["method=pgd_at", "model.width=8", "train.epochs=2", "eval=smoke", "logger=none"])
model = atbench.load(run)

test = digits().test()
result = atbench.robust_accuracy(model, test.floats(), test.y, "pgd_ce", norm="linf", eps=0.2, restarts=2)
print(run.name, result, sep="\n")
