"""A gripper that is a point, and a thing to carry: a world of a few lines, for tests and for a first look anywhere.

The state is laid out as Meta-World's (39 numbers: hand, gripper, thing, the same a step before, goal), and so are the
four actions (a way in space, a hundredth of which is gone, and the gripper). Phases: reach above the thing, descend,
grasp, transport; the second task has to come down into a hole, which is ``insert``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from zoo_robotics.sim.world import Advice, Pixels

Floats = NDArray[np.float64]

TASKS = ("carry", "plug")
STEP, NEAR, HOLD = 0.04, 0.03, 0.5
ABOVE = np.array([0.0, 0.0, 0.12])


class Point:
    """See the module. ``task`` is ``carry`` or ``plug``."""

    state, actions, fps, limit = 39, 4, 20, 80

    def __init__(self, task: str) -> None:
        self.task = task
        self.reset(0)

    def reset(self, seed: int) -> Floats:
        rng = np.random.default_rng(seed)
        self.hand_3 = np.array([0.0, 0.5, 0.2]) + rng.uniform(-0.05, 0.05, 3)
        self.thing_3 = np.array([*rng.uniform([-0.2, 0.5], [0.2, 0.7]), 0.0])
        self.goal_3 = np.array([*rng.uniform([-0.3, 0.7], [0.3, 0.9]), 0.0 if self.task == "plug" else 0.15])
        self.gripper, self.held = 1.0, False
        self.before_18 = self._now()
        return self._observe()

    def step(self, action_A: Floats) -> tuple[Floats, bool]:
        action_A = np.clip(action_A, -1.0, 1.0)
        self.hand_3 = self.hand_3 + STEP * action_A[:3]
        self.hand_3[2] = max(self.hand_3[2], 0.0)
        self.gripper += 0.5 * (np.clip(-action_A[3], 0.0, 1.0) - self.gripper)
        near = np.linalg.norm(self.hand_3 - self.thing_3) < NEAR
        self.held = bool(self.gripper < HOLD and (self.held or near))
        if self.held:
            self.thing_3 = self.hand_3.copy()
        elif self.thing_3[2] > 0:
            self.thing_3 = self.thing_3 - [0.0, 0.0, min(STEP, self.thing_3[2])]
        observation_S = self._observe()
        return observation_S, bool(np.linalg.norm(self.thing_3 - self.goal_3) < NEAR)

    def advise(self, observation_S: Floats) -> Advice:
        """The script: above the thing, down, close, above the goal where that is a hole, and there."""
        from zoo_robotics.sim.world import PHASES, Advice

        hand, gripper, thing, goal = observation_S[:3], observation_S[3], observation_S[4:7], observation_S[-3:]
        close = 1.0
        if gripper < HOLD and np.linalg.norm(hand - thing) < NEAR:
            over = np.linalg.norm(hand[:2] - goal[:2]) > NEAR / 2
            phase = "transport" if over or self.task == "carry" else "insert"
            target = goal + ABOVE if self.task == "plug" and over else goal
        elif np.linalg.norm(hand[:2] - thing[:2]) > NEAR / 2:
            phase, target, close = "reach", thing + ABOVE, -1.0
        elif hand[2] - thing[2] > NEAR / 2:
            phase, target, close = "descend", thing, -1.0
        else:
            phase, target = "grasp", hand
        way = np.clip((target - hand) / STEP, -1.0, 1.0)
        return Advice(np.append(way, close), PHASES.index(phase))

    def picture(self, size: int) -> Pixels | None:
        """Seen from above: goal green, thing red, hand dark (light while open); the higher, the larger."""
        from PIL import Image, ImageDraw

        image = Image.new("RGB", (size, size), "#f4f1ea")
        pen = ImageDraw.Draw(image)
        for place, colour in ((self.goal_3, "#2e8b57"), (self.thing_3, "#c0392b"), (self.hand_3, "#333333")):
            x, y = size * (0.5 + place[0]), size * (1.15 - place[1])
            radius = size * (0.02 + 0.08 * place[2])
            filled = colour if place is not self.hand_3 or self.held else None
            pen.ellipse([x - radius, y - radius, x + radius, y + radius], fill=filled, outline=colour, width=2)
        return np.array(image)

    def _now(self) -> Floats:
        now_18 = np.zeros(18)
        now_18[:3], now_18[3], now_18[4:7] = self.hand_3, self.gripper, self.thing_3
        return now_18

    def _observe(self) -> Floats:
        now_18 = self._now()
        observation_S = np.concatenate([now_18, self.before_18, self.goal_3])
        self.before_18 = now_18
        return observation_S
