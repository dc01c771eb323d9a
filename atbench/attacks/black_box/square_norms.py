"""Square Attack's starts and proposals in each norm (Andriushchenko et al. 2020, arXiv 1912.00049, sec. 3).

A proposal changes one window of every image, or two (L2, L1), and computes nothing outside them. Every example has its
own windows, and they reach the last row and column.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

#: Radii are aimed at from below by this share, so that rounding leaves the answer in the ball as it stands.
INSIDE = 1 - 1e-5
TINY = 1e-12


def random_offset(u: Tensor, room: int) -> Tensor:
    """A whole number from 0 to `room`, both included, for each `u` from U(-1, 1)."""
    return ((u + 1) * ((room + 1) / 2)).long().clamp_(0, room)


def pyramid(side: int, power: int, p: float) -> Tensor:
    """(side, side): two pyramids of equal p-norm side by side, one up and one down, together of p-norm 1.

    Each is Σ_{k=d}^{n} 1/(k+1)^power at Chebyshev distance d from its middle, n = ⌊side/2⌋ (eq. 3 of the paper for
    power 2; AutoAttack's L1 version takes 4). Equal norms are the authors' code's.
    """
    n, half = side // 2, side // 2
    heights = (1 / torch.arange(1, n + 2, dtype=torch.float64) ** power).flip(0).cumsum(0).flip(0)

    def rectangle(rows: int) -> Tensor:
        down = (torch.arange(rows) - rows // 2).abs()
        across = (torch.arange(side) - side // 2).abs()
        values = heights[torch.maximum(down[:, None], across[None, :])]
        return values / values.norm(p=p)

    both = torch.cat([rectangle(half), -rectangle(side - half)])
    return both / both.norm(p=p)


class Windows(ABC):
    """The current images of a batch and the open proposal.

    numbers: U(-1, 1) that one proposal takes per example, without those per channel.
    image: (B, C, H, W), the current images, or while a proposal is open the proposed ones.
    """

    numbers: int

    def __init__(self, x: Tensor, eps: float) -> None:
        self.x, self.eps = x.contiguous(), eps  # windows are addressed in the flattened images
        self.image = self.x.clone()
        self._offsets: dict[int, Tensor] = {}

    @abstractmethod
    def tiles(self) -> int:
        """Number of U(-1, 1) per example that `start` takes."""

    @abstractmethod
    def start(self, u: Tensor) -> None:
        """Set the first images from `u` (B, tiles())."""

    @abstractmethod
    def side(self, p: float) -> int:
        """Side of a window that covers the share `p` of an image."""

    @abstractmethod
    def propose(self, u: Tensor, side: int) -> None:
        """Write a proposal into `image`, from `u` (B, numbers + C)."""

    @abstractmethod
    def settle(self, keep: Tensor) -> None:
        """Accept the open proposal where `keep` (B,) is true, and reject it elsewhere."""

    def take(self, rows: Tensor) -> None:
        """Cut to the examples `rows` (a mask)."""
        self.x, self.image = self.x[rows], self.image[rows]

    def area(self, p: float) -> int:
        """√(p·H·W), rounded."""
        height, width = self.x.shape[2:]
        return round((p * height * width) ** 0.5)

    def index(self, u: Tensor, side: int) -> Tensor:
        """(B, C·side²): indices of a window in the flattened images, its corner drawn from `u` (B, 2)."""
        channels, height, width = self.x.shape[1:]
        if side not in self._offsets:
            grid = torch.arange(channels * height * width, device=self.x.device).view(channels, height, width)
            self._offsets[side] = grid[:, :side, :side].flatten()
        corner = random_offset(u[:, 0], height - side) * width + random_offset(u[:, 1], width - side)
        return corner[:, None] + self._offsets[side]


class LinfWindows(Windows):
    """±ε in vertical stripes, then ±ε in a square, one sign per channel (sec. 3.3, Algorithm 2)."""

    numbers = 2

    def tiles(self) -> int:
        return self.x.shape[1] * self.x.shape[3]

    def start(self, u: Tensor) -> None:
        stripes = u.sign().view(len(u), self.x.shape[1], 1, self.x.shape[3])
        self.image = (self.x + self.eps * stripes).clamp_(0, 1)

    def side(self, p: float) -> int:
        return min(max(self.area(p), 1), *self.x.shape[2:])

    def propose(self, u: Tensor, side: int) -> None:
        # Adding ±2ε and clipping to the ball is going to its corner: the old window does not matter.
        self._index = self.index(u, side)
        flat = self.image.view(len(u), -1)
        self._old = flat.gather(1, self._index)
        shift = (self.eps * u[:, 2:].sign()).repeat_interleave(side * side, dim=1)
        self._new = (self.x.view(len(u), -1).gather(1, self._index) + shift).clamp_(0, 1)
        flat.scatter_(1, self._index, self._new)

    def settle(self, keep: Tensor) -> None:
        values = torch.where(keep[:, None], self._new, self._old)
        self.image.view(len(keep), -1).scatter_(1, self._index, values)


class PyramidWindows(Windows):
    """What L2 and L1 share: tiles of pyramids at the start, and a window that receives what another one gives up.

    With δ = x' − x, windows W1 and W2 and channel i (Algorithm 3): ν = ±η/‖η‖ + δ_{W1,i}/‖δ_{W1,i}‖; δ_{W2} ← 0;
    δ_{W1,i} ← avail_i · ν/‖ν‖, where avail_i is what the norm of δ leaves to the channel once both windows are empty.
    """

    numbers = 5
    power: int
    p: float

    def __init__(self, x: Tensor, eps: float) -> None:
        super().__init__(x, eps * INSIDE)
        self._shapes: dict[int, Tensor] = {}

    def grid(self) -> tuple[int, int, int]:
        """Side of a tile, and how many lie along each axis: 5 along the shorter one."""
        height, width = self.x.shape[2:]
        side = max(min(height, width) // 5, 1)
        return side, height // side, width // side

    def tiles(self) -> int:
        _, down, across = self.grid()
        return down * across * (1 + self.x.shape[1])

    def eta(self, u: Tensor, side: int) -> Tensor:
        """(B, 1 + C numbers) → (B, C, side²): the pyramids of p-norm 1, lying or standing, with a sign per channel."""
        if side not in self._shapes:
            shape = pyramid(side, self.power, self.p)
            self._shapes[side] = torch.stack([shape, shape.T]).flatten(1).to(self.x)
        return self._shapes[side][(u[:, 0] > 0).long()][:, None] * u[:, 1:, None].sign()

    def tiled(self, u: Tensor) -> Tensor:
        """(B, C, H, W): a pyramid in every tile."""
        side, down, across = self.grid()
        batch, channels, height, width = self.x.shape
        eta = self.eta(u.reshape(batch * down * across, 1 + channels), side)
        eta = eta.view(batch, down, across, channels, side, side).permute(0, 3, 1, 4, 2, 5)
        top, left = (height - down * side) // 2, (width - across * side) // 2
        delta = torch.zeros_like(self.x)
        delta[:, :, top : top + down * side, left : left + across * side] = eta.reshape(
            batch, channels, down * side, across * side
        )
        return delta

    def side(self, p: float) -> int:
        return min(max(self.area(p), 3) | 1, *self.x.shape[2:])

    def mass(self, delta: Tensor) -> Tensor:
        """Σ |δ|^p over the last axis, kept."""
        return (delta.abs() if self.p == 1 else delta.square()).sum(dim=-1, keepdim=True)

    def moved(self, u: Tensor, side: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Empty both windows of `image` and compute what may fill the first.

        Returns the index of W1 (B, C·side²), its pixels of `x` (B, C, side²), ν/‖ν‖ (B, C, side²) and the masses
        Σ|δ|^p of W1 ∪ W2 per channel (B, C, 1). Their old content is kept for `settle`.
        """
        channels = self.x.shape[1]
        x, image = self.x.view(len(u), -1), self.image.view(len(u), -1)
        first, second = self.index(u, side), self.index(u[:, 2:], side)
        x_first, x_second = x.gather(1, first), x.gather(1, second)
        old_first = image.gather(1, first)
        image.scatter_(1, first, x_first)
        # W1 is empty by now: where the windows overlap, what W2 gives up is nothing, and nothing is counted twice.
        old_second = image.gather(1, second)
        image.scatter_(1, second, x_second)
        self._windows = (first, old_first, second, old_second, x_second)

        shape = (len(u), channels, side * side)
        delta = (old_first - x_first).view(shape)
        mass = self.mass(delta)
        direction = self.eta(u[:, 4:], side) + delta / (mass ** (1 / self.p) + TINY)
        direction /= self.mass(direction) ** (1 / self.p) + TINY
        return first, x_first.view(shape), direction, mass + self.mass((old_second - x_second).view(shape))


class L2Windows(PyramidWindows):
    """avail_i = √( ‖δ_{W1∪W2, i}‖² + (ε² − ‖δ‖²)/C ): a proposal spends the whole budget, then the box cuts it."""

    power, p = 2, 2.0

    def start(self, u: Tensor) -> None:
        delta = self.tiled(u)
        norm = self.mass(delta.flatten(1)).sqrt().view(-1, 1, 1, 1)
        self.image = (self.x + self.eps * delta / (norm + TINY)).clamp_(0, 1)

    def propose(self, u: Tensor, side: int) -> None:
        spare = (self.eps**2 - self.mass((self.image - self.x).flatten(1))).clamp_(min=0)
        first, x, direction, mass = self.moved(u, side)
        avail = (mass + spare[:, None] / x.shape[1]).sqrt_()
        self._new = (x + avail * direction).clamp_(0, 1).view(len(u), -1)
        self.image.view(len(u), -1).scatter_(1, first, self._new)

    def settle(self, keep: Tensor) -> None:
        first, old_first, second, old_second, x_second = self._windows
        image, wide = self.image.view(len(keep), -1), keep[:, None]
        # W1 last, as in the proposal: where the windows overlap its pixels count, the new and the old ones.
        image.scatter_(1, second, torch.where(wide, x_second, old_second))
        image.scatter_(1, first, torch.where(wide, self._new, old_first))


class L1Windows(PyramidWindows):
    """avail_i = C·( ‖δ_{W1∪W2, i}‖₁ + (ε − ‖δ‖₁)/C ), more than there is: the projection on ball and box cuts it.

    It cuts all pixels, so that small ones go to zero (Croce & Hein 2021, "Mind the box", arXiv 2103.01208;
    fra31/auto-attack, square.py).
    """

    power, p = 4, 1.0
    #: Newton's rounds at most, and how much of ε may be left over: far less than a query decides.
    ROUNDS, SLACK = 12, 1e-5

    def start(self, u: Tensor) -> None:
        self.image = self.project(self.x + self.tiled(u))

    def project(self, image: Tensor) -> Tensor:
        """The nearest image in ball and box: |x' − x| = clip(a − λ, 0, room) with a = |image − x|, and the least λ ≥ 0
        that leaves Σ|x' − x| ≤ ε, to SLACK.

        It runs at every query, and the sorting of `project_l1_box` would take several times as long as a small
        network. The sum falls with λ and is linear between its kinks: Newton's steps land on its zero once they are on
        the right piece, a bracket catches those that go astray, and its upper end is in the ball after any round.
        """
        shift = (image - self.x).flatten(1)
        x, size = self.x.flatten(1), shift.abs()
        room = torch.where(shift > 0, 1 - x, x)
        lam = low = torch.zeros_like(size[:, :1])
        high = size.amax(dim=1, keepdim=True)
        for _ in range(self.ROUNDS):
            moved = (size - lam).clamp_(min=0)
            torch.minimum(moved, room, out=moved)
            excess = moved.sum(dim=1, keepdim=True) - self.eps
            low, high = torch.where(excess > 0, lam, low), torch.where(excess > 0, high, lam)
            # Rows that are done stand still, so that they do not depend on how long the others take.
            done = (excess <= 0) & ((excess >= -self.SLACK * self.eps) | (lam == 0))
            if bool(done.all()):
                break
            # How many pixels are between 0 and their room; comparisons and sums of booleans take twice as long.
            slope = (room - moved).sign_().mul_(moved.sign_()).sum(dim=1, keepdim=True).clamp_(min=1)
            # A tenth of the slack too far: the last step then ends inside the ball.
            ahead = lam + (excess + 0.1 * self.SLACK * self.eps) / slope
            ahead = torch.where((ahead > low) & (ahead < high), ahead, (low + high) / 2)
            lam = torch.where(done, lam, ahead)
        moved = torch.minimum((size - high).clamp_(min=0), room)
        return (x + shift.sign_().mul_(moved)).view_as(image)

    def propose(self, u: Tensor, side: int) -> None:
        self._before = self.image.clone()
        spare = (self.eps - self.mass((self.image - self.x).flatten(1))).clamp_(min=0)
        first, x, direction, mass = self.moved(u, side)
        avail = mass * x.shape[1] + spare[:, None]
        self.image.view(len(u), -1).scatter_(1, first, (x + avail * direction).view(len(u), -1))
        self.image = self.project(self.image)

    def settle(self, keep: Tensor) -> None:
        self.image = torch.where(keep.view(-1, 1, 1, 1), self.image, self._before)


WINDOWS: dict[str, type[Windows]] = {"linf": LinfWindows, "l2": L2Windows, "l1": L1Windows}
