"""AutoAttack on a plain PyTorch network: `python examples/robust_accuracy.py`."""

import torch
from torch import nn

import atbench
from atbench.data.digits import digits

train, test = digits().train, digits().test()
torch.manual_seed(0)
model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
for _ in range(100):
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(train.floats()), train.y).backward()
    optimizer.step()

x, y = test.floats()[:100], test.y[:100]
result = atbench.robust_accuracy(model, x, y, "autoattack", norm="linf", eps=0.2)
print(result)
print("robust examples:", result.mask.nonzero().flatten().tolist())
