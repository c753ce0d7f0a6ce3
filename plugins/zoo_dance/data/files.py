"""Archives under ``ZOO_DATA``. Plain data, read by the manifest without torch."""

from zoo.spec import DataFile

DEEPMIMIC = DataFile(
    "dance/deepmimic/humanoid3d_clips.tar.xz",
    sha256="575061c5b36305f8fa7a8d4b571fa45e2b7f3de0e0472ddf56eb1727a60b6d05",
)
"""github xbpeng/DeepMimic data/motions/ @ 1f915c52fcd4; MIT."""
AMP = DataFile(
    "dance/amp_cmu/amp_motions.tar.xz",
    sha256="385e5c4f5c951091313525f58ab00e68afd121225ada6ca17dfc0395a4ce3b61",
)
"""github NVIDIA-Omniverse/IsaacGymEnvs assets/amp/motions/ @ aeed298638a1; BSD-3-Clause, from CMU's motion capture."""
BANDAI_NAMCO_1 = DataFile(
    "dance/bandai_namco_1/bandai_namco_1.tar.xz",
    sha256="969b88d74a7361703187620ec5aee7cea5074967297840f66374bfce406b5257",
)
"""github BandaiNamcoResearchInc/Bandai-Namco-Research-Motiondataset dataset 1 @ 74ead3ba1ae4; CC BY-NC 4.0."""
