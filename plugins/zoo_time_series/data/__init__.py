"""Data sets of series: every source becomes a `windows.Panel`, and every panel is windowed by one `WindowDataset`."""
