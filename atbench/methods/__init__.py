"""Methods of adversarial training: one file each, all of them `Method`s."""

from atbench.methods.base import Clock, Decision, Keep, Loss, Method, Report, Restore, Round, Stop
from atbench.methods.stage import Stage
