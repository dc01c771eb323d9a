"""Attack a plain PyTorch network: `python examples/attack.py`."""

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

x, y = test.floats(), test.y  # float in [0, 1], int64
x_adv = atbench.attack(model, x, y, "pgd", norm="linf", eps=0.1)

for name, images in {"clean": x, "PGD-10": x_adv}.items():
    print(f"{name}: {(model(images).argmax(dim=1) == y).float().mean():.1%}")
