"""Motion: rotations, skeletons, files of all kinds, one canonical skeleton."""
