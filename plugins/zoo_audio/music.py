"""Symbolic music as frames of several channels: piano rolls, MIDI files, and how they sound.

A frame is the set of keys that sound in it. Channel c holds the c-th highest of them, ``REST`` where there are fewer:
every set has exactly one such frame, so the probability that a model gives the frame is one of the set.

Shapes: T frames, C channels, H = 88 keys (from A0), N samples.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from zoo.spec import ZooError

KEYS, LOWEST = 88, 21  # MIDI number of key 0
REST = KEYS
RATE = 16_000


def frames_of(roll_TH: Tensor, channels: int) -> tuple[Tensor, int]:
    """Codes (T, C) of a piano roll, and from how many frames keys were dropped: the lowest beyond ``channels``."""
    count_T = roll_TH.bool().sum(1)
    height_TH = torch.where(roll_TH.bool(), torch.arange(KEYS), -1)
    top_TC = height_TH.sort(1, descending=True).values[:, :channels]
    return torch.where(top_TC < 0, REST, top_TC), int((count_T > channels).sum())


def roll_of(codes_TC: Tensor) -> Tensor:
    """(T, H) bool: the keys that the codes of each frame name; all other codes are rests."""
    roll = torch.zeros(len(codes_TC), KEYS + 1, dtype=torch.bool)
    roll.scatter_(1, codes_TC.clamp(0, KEYS), True)
    return roll[:, :KEYS]


def transposed(codes_TC: Tensor, steps: int) -> Tensor:
    """Codes some semitones higher; unchanged where a key would leave the keyboard."""
    sounding = codes_TC < REST
    moved = codes_TC + steps
    if bool(((moved < 0) | (moved >= KEYS))[sounding].any()):
        return codes_TC
    return torch.where(sounding, moved, codes_TC)


def read_midi(path: Path, per_beat: float) -> tuple[Tensor, list[str]]:
    """(T, H) bool: the piano roll of a MIDI file, ``per_beat`` frames to a quarter note. Starts and ends of notes
    are rounded to frames, a note has one at least; percussion is left out.

    Raises:
        ZooError: the file is missing, empty, damaged, without notes or of type 2, or its clock is not in beats.
    """
    import mido

    if not path.is_file():
        raise ZooError(f"MIDI file '{path}' does not exist; check the path")
    try:
        file = mido.MidiFile(path, clip=True)
    except (OSError, EOFError, ValueError, KeyError, IndexError, TypeError) as error:
        cause = str(error) or type(error).__name__
        raise ZooError(f"'{path}' cannot be read as MIDI ({cause}); give a standard MIDI file (.mid)") from error
    if file.type == 2:
        raise ZooError(f"'{path}' is MIDI of type 2, whose tracks are pieces of their own; export it as type 0 or 1")
    if file.ticks_per_beat <= 0 or file.ticks_per_beat >= 1 << 15:
        raise ZooError(f"'{path}' counts in seconds (SMPTE), not in beats; export it with a beat clock")
    notes = []
    for track in file.tracks:
        now = 0
        open_: dict[tuple[int, int], int] = {}
        for message in track:
            now += message.time
            if message.type not in ("note_on", "note_off"):
                continue
            key = (message.channel, message.note)
            if key in open_:
                notes.append((open_.pop(key), now, message.note - LOWEST, message.channel))
            if message.type == "note_on" and message.velocity > 0:
                open_[key] = now
        notes += [(start, now, note - LOWEST, channel) for (channel, note), start in open_.items()]
    played = [(a, b, k) for a, b, k, channel in notes if channel != 9 and 0 <= k < KEYS]
    left_out = len(notes) - len(played)
    if not played:
        raise ZooError(f"'{path}' has no notes of the piano's range; give a file with some")
    scale = per_beat / file.ticks_per_beat
    spans = [(round(a * scale), max(round(a * scale) + 1, round(b * scale)), k) for a, b, k in played]
    begin, end = min(a for a, _, _ in spans), max(b for _, b, _ in spans)
    if end - begin > 1_000_000:
        raise ZooError(f"'{path}' lasts {end - begin:,} frames at {per_beat} a beat; give a shorter piece")
    roll = torch.zeros(end - begin, KEYS, dtype=torch.bool)
    for a, b, k in spans:
        roll[a - begin : b - begin, k] = True
    remarks = [f"{path.name}: {left_out} notes of percussion or beyond the piano left out"] if left_out else []
    if begin:
        remarks.append(f"{path.name}: starts with its first note, {begin} frames in")
    return roll, remarks


def write_midi(path: Path, roll_TH: Tensor, per_beat: float, bpm: float = 90.0) -> Path:
    """A MIDI file of a piano roll; a key that sounds in neighbouring frames is one note."""
    import mido

    ticks = 480
    track = mido.MidiTrack([mido.MetaMessage("set_tempo", tempo=mido.bpm2tempo(bpm))])
    padded = torch.nn.functional.pad(roll_TH.int(), (0, 0, 1, 1)).diff(dim=0)
    last = 0
    for frame, change_H in enumerate(padded):
        at = round(frame * ticks / per_beat)
        for sign, kind, velocity in ((-1, "note_off", 0), (1, "note_on", 80)):
            for key in (change_H == sign).nonzero().flatten().tolist():
                track.append(mido.Message(kind, note=key + LOWEST, velocity=velocity, time=at - last))
                last = at
    file = mido.MidiFile(ticks_per_beat=ticks)
    file.tracks.append(track)
    file.save(path)
    return path


def played(roll_TH: Tensor, per_beat: float, bpm: float = 90.0, rate: int = RATE) -> Tensor:
    """(N,): a piano roll as a plucked string of four partials would play it, peak 0.7."""
    frame = round(rate * 60 / bpm / per_beat)
    wave = torch.zeros((len(roll_TH) + 2) * frame)
    padded = torch.nn.functional.pad(roll_TH.int(), (0, 0, 1, 1)).diff(dim=0)
    for key in roll_TH.any(0).nonzero().flatten().tolist():
        starts, ends = ((padded[:, key] == sign).nonzero().flatten().tolist() for sign in (1, -1))
        pitch = 440.0 * 2 ** ((key + LOWEST - 69) / 12)
        for start, end in zip(starts, ends, strict=True):
            time = torch.arange((end - start) * frame + frame // 2) / rate
            tone = sum(0.6**h * torch.sin(2 * torch.pi * (h + 1) * pitch * time) for h in range(4))
            fade = ((time[-1] - time) * 20).clamp(max=1) * (time * 200).clamp(max=1)
            wave[start * frame : start * frame + len(time)] += tone * (-1.5 * time).exp() * fade
    return 0.7 * wave / wave.abs().max().clamp(min=1e-6)
