"""Write scenes of the embedded world's validation split as picture files: for `lvlm-guard calibrate`.

python docs/world_pictures.py FOLDER 200
"""

import sys
from pathlib import Path

from PIL import Image

from lvlm_guard.embedded.world import scenes

if __name__ == "__main__":
    folder, count = Path(sys.argv[1]), int(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    for number, pixels in enumerate(scenes("val", count).image):
        Image.fromarray(pixels).save(folder / f"{number:04d}.png")
