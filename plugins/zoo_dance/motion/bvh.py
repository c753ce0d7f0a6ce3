"""BVH files: a hierarchy of joints, then a line of channels for every frame.

Shapes: T frames, J joints.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from zoo.spec import ZooError
from zoo_dance.motion import rotations
from zoo_dance.motion.skeleton import Motion, Skeleton

CHANNELS = {f"{axis}{kind}": (kind, n) for kind in ("position", "rotation") for n, axis in enumerate("XYZ")}
MOST_JOINTS = 1000
MOVES = 1e-2
"""A joint whose distance to its parent changes by more than this share of it moves."""


def read_bvh(path: Path) -> Motion:
    """A motion in the file's own units and axes.

    A root that only carries the hips, which move in it, is joined with them. Of other joints that move in their
    parents the first place counts; the notes say so.

    Raises:
        ZooError: naming the line, for what is no BVH.
    """
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise ZooError(f"'{path}' cannot be read: {error.strerror}; check the path") from error
    try:
        return _read(lines)
    except _Fault as fault:
        raise ZooError(f"'{path}' cannot be read as BVH: {fault}; export it again") from None


class _Fault(Exception):
    pass


def _read(lines: list[str]) -> Motion:
    tokens = _Tokens(lines)
    tokens.want("HIERARCHY")
    names: list[str] = []
    parents: list[int] = []
    offsets: list[list[float]] = []
    channels: list[list[str]] = []
    open_joints: list[int] = []
    in_site = False
    while True:
        word = tokens.next()
        if word in ("ROOT", "JOINT"):
            if word == "ROOT" and names:
                raise tokens.fault("a second ROOT")
            if len(names) >= MOST_JOINTS:
                raise tokens.fault(f"more than {MOST_JOINTS} joints")
            names.append(tokens.next())
            parents.append(open_joints[-1] if open_joints else -1)
            offsets.append([0.0, 0.0, 0.0])
            channels.append([])
            tokens.want("{")
            open_joints.append(len(names) - 1)
        elif word == "End":
            tokens.want("Site")
            tokens.want("{")
            in_site = True
        elif word == "OFFSET":
            values = [tokens.number() for _ in range(3)]
            if not in_site and open_joints:
                offsets[open_joints[-1]] = values
        elif word == "CHANNELS" and open_joints:
            chosen = [tokens.next() for _ in range(tokens.count())]
            if unknown := [name for name in chosen if name not in CHANNELS]:
                raise tokens.fault(f"no channel '{unknown[0]}'")
            channels[open_joints[-1]] = chosen
        elif word == "}":
            if in_site:
                in_site = False
            elif open_joints:
                open_joints.pop()
            else:
                raise tokens.fault("a } too many")
        elif word == "MOTION" and names and not open_joints:
            break
        else:
            raise tokens.fault(f"'{word}' is not expected there")
    tokens.want("Frames:")
    frames = tokens.count()
    tokens.want("Frame")
    tokens.want("Time:")
    seconds = tokens.number()
    if not seconds > 0:
        raise tokens.fault(f"a frame time of {seconds:g} s")
    values_TC = _numbers(lines, tokens.line, frames, sum(map(len, channels)))
    return _motion(names, parents, offsets, channels, values_TC, 1 / seconds)


class _Tokens:
    """Words one after the other, and the line that the last one was on."""

    def __init__(self, lines: list[str]) -> None:
        self.line = 0
        self._words: Iterator[tuple[int, str]] = (
            (number, word) for number, text in enumerate(lines, 1) for word in text.replace("\ufeff", "").split()
        )

    def next(self) -> str:
        try:
            self.line, word = next(self._words)
        except StopIteration:
            raise _Fault("it ends early") from None
        return word

    def want(self, word: str) -> None:
        if (found := self.next()) != word:
            raise self.fault(f"'{found}' where '{word}' belongs")

    def number(self) -> float:
        word = self.next()
        try:
            return float(word)
        except ValueError:
            raise self.fault(f"'{word}' is no number") from None

    def count(self) -> int:
        value = self.number()
        if value < 0 or value != int(value):
            raise self.fault(f"{value:g} is no count")
        return int(value)

    def fault(self, what: str) -> _Fault:
        return _Fault(f"line {self.line}: {what}")


def _numbers(lines: list[str], after: int, frames: int, width: int) -> np.ndarray:
    rows = [(number, text) for number, text in enumerate(lines[after:], after + 1) if text.strip()]
    if len(rows) < frames:
        raise _Fault(f"it announces {frames:,} frames and holds {len(rows):,}")
    if frames == 0:
        raise _Fault("it has 0 frames")
    values_TC = np.empty((frames, width))
    for row, (number, text) in zip(values_TC, rows[:frames], strict=True):
        words = text.split()
        if len(words) != width:
            raise _Fault(f"line {number}: {len(words)} numbers where {width} belong")
        try:
            row[:] = words
        except ValueError:
            raise _Fault(f"line {number}: not all of it is numbers") from None
    if not np.isfinite(values_TC).all():
        bad = int(np.flatnonzero(~np.isfinite(values_TC).all(1))[0])
        raise _Fault(f"line {rows[bad][0]}: a number that is not finite")
    return values_TC


def _motion(
    names: list[str],
    parents: list[int],
    offsets: list[list[float]],
    channels: list[list[str]],
    values_TC: np.ndarray,
    fps: float,
) -> Motion:
    values = torch.from_numpy(values_TC)
    frames, count, column = len(values), len(names), 0
    place_TJ3 = torch.tensor(offsets, dtype=torch.float64).expand(frames, count, 3).clone()
    turn_TJ33 = torch.eye(3, dtype=torch.float64).expand(frames, count, 3, 3).clone()
    for joint, chosen in enumerate(channels):
        for name in chosen:
            kind, axis = CHANNELS[name]
            if kind == "position":
                place_TJ3[:, joint, axis] = values[:, column]
            else:
                turn_TJ33[:, joint] = turn_TJ33[:, joint] @ rotations.about(axis, values[:, column].deg2rad())
            column += 1
    root_T3 = place_TJ3[:, 0]
    notes: list[str] = []
    kept = list(range(count))
    while parents.count(kept[0]) == 1:  # a root that only carries another one
        child = parents.index(kept[0])
        if not _moves(place_TJ3[:, child]):
            break
        root_T3 = root_T3 + (turn_TJ33[:, kept[0]] @ place_TJ3[:, child, :, None])[..., 0]
        turn_TJ33[:, child] = turn_TJ33[:, kept[0]] @ turn_TJ33[:, child]
        kept.pop(0)
    loose = [names[joint] for joint in kept[1:] if _moves(place_TJ3[:, joint])]
    if loose:
        notes.append(f"joints that move in their parents are held still: {', '.join(loose[:4])}")
    new = {old: place for place, old in enumerate(kept)}
    skeleton = Skeleton(
        tuple(names[joint] for joint in kept),
        tuple(new.get(parents[joint], -1) for joint in kept),
        place_TJ3[0, kept],
    )
    return Motion(skeleton, root_T3, turn_TJ33[:, kept], fps, tuple(notes))


def _moves(place_T3: Tensor) -> bool:
    spread = (place_T3 - place_T3[:1]).norm(dim=-1).max()
    return bool(spread > MOVES * place_T3[0].norm().clamp(min=1e-3))


def write_bvh(motion: Motion, path: Path, scale: float = 100.0) -> Path:
    """Write a motion; lengths times ``scale`` (BVH is mostly in centimetres). Angles in the order ZXY."""
    order, s = "ZXY", motion.skeleton
    text: list[str] = ["HIERARCHY"]

    def joint(index: int, depth: int) -> None:
        tab = "\t" * depth
        text.append(f"{tab}{'ROOT' if depth == 0 else 'JOINT'} {s.names[index].replace(' ', '_')}")
        text.append(f"{tab}{{")
        offset = s.offset_J3[index] * scale
        text.append(f"{tab}\tOFFSET " + " ".join(f"{float(v):.8f}" for v in offset))
        turns = " ".join(f"{axis}rotation" for axis in order)
        more = "6 Xposition Yposition Zposition" if depth == 0 else "3"
        text.append(f"{tab}\tCHANNELS {more} {turns}")
        children = [child for child, parent in enumerate(s.parents) if parent == index]
        for child in children:
            joint(child, depth + 1)
        if not children:
            end = " ".join(f"{float(v) / 2:.8f}" for v in offset)
            text.extend([f"{tab}\tEnd Site", f"{tab}\t{{", f"{tab}\t\tOFFSET {end}", f"{tab}\t}}"])
        text.append(f"{tab}}}")

    joint(0, 0)
    depth_first = _depth_first(s)
    angles = rotations.to_euler(motion.rotation_TJ33.double(), order).rad2deg()[:, depth_first].flatten(1)
    values_TC = torch.cat([motion.root_T3.double() * scale, angles], -1)
    text.extend(["MOTION", f"Frames: {len(motion)}", f"Frame Time: {1 / motion.fps:.10f}"])
    text.extend(" ".join(f"{v:.7f}" for v in row) for row in values_TC.tolist())
    path.write_text("\n".join(text) + "\n", encoding="utf-8")
    return path


def _depth_first(skeleton: Skeleton, index: int = 0) -> list[int]:
    children = [child for child, parent in enumerate(skeleton.parents) if parent == index]
    return [index, *(joint for child in children for joint in _depth_first(skeleton, child))]
