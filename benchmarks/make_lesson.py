"""Make the lesson's images, 100 printed characters, from the free typefaces that Debian ships.

    python benchmarks/make_lesson.py select FOLDER  # which faces: benchmarks/glyphs_faces.csv
    python benchmarks/make_lesson.py render FOLDER  # their pictures: kdkit/assets/glyphs.npz

FOLDER keeps the packages; what is missing there `apt-get download` fetches (400 MB for select, of
all packages fonts-* below 25 MB; 200 MB for render, of those in the list). `render --check`
compares with what is there and writes nothing.

Rendering from the list gives the same pictures to the byte with the Pillow release that the list
names, which brings its own FreeType. Selecting again may differ in faces at the border of a rule,
as the reader's arithmetic differs between processors; it prints which.

The arrays of glyphs.npz, y being a character's place in `characters`:
  x (10000, 20, 20) uint8, y: training images, dealt out class by class, so that every hundredth
    prefix is balanced; each class has its own order of the faces;
  x_val, y_val and x_test, y_test: for one face after another all 100 characters;
  face, face_val, face_test: where in `faces`, the names of glyphs_faces.csv, their typefaces stand.
"""

import argparse
import csv
import hashlib
import io
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import PIL
from fontTools.ttLib import TTFont, TTLibError
from PIL import Image, ImageDraw, ImageFont

ROOT = Path(__file__).resolve().parents[1]
FACES, IMAGES = ROOT / "benchmarks/glyphs_faces.csv", ROOT / "kdkit/assets/glyphs.npz"
LICENCES = IMAGES.with_name("LICENSE-glyphs")
COLUMNS = ("face", "family", "package", "version", "file", "sha256", "licence", "group", "split")

PILLOW = "13.0.0"  # the release that the committed images were drawn with
CHARACTERS = (
    "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
    "!?&@#$%*+=àáâäãåçèéêëìíïñòóôöõøùúûüßæœ"
)
SIZE, FINER = 20, 4  # pixels of an image; it is drawn that many times as large and averaged
N_TRAIN, N_VAL, N_TEST = 100, 60, 100  # images a class, and faces
LARGEST_PACKAGE = 25_000_000  # bytes; above it are collections of Chinese and Japanese faces
ALIKE = 0.1  # faces nearer than that belong to one group
SAME = {"train": 0.03, "val": ALIKE, "test": ALIKE}  # of faces nearer than that one is kept
FACES_A_FAMILY = {"train": 4, "val": 1, "test": 1}
LARGE_GROUP = 12  # families; larger groups are for training

# What a face's own licence text or its package's copyright file says -> its name, in this order.
PERMISSIVE = {
    r"open font licen[cs]e|scripts\.sil\.org/ofl|openfontlicense|\bOFL\b": "OFL-1.1",
    r"ubuntu[- ]font": "Ubuntu-font-1.0",
    r"apache": "Apache-2.0",
    r"bitstream[- ]vera|\(c\) bitstream|copyright \(c\) 2003 by bitstream": "Bitstream-Vera",
    r"gust font licen[cs]e|GUST-FONT|\bGFL\b": "GUST-Font-License",
    r"\bCC0\b|cc-0|creative commons zero": "CC0-1.0",
    r"\b[Ee]xpat\b|\bMIT\b": "MIT",
    r"\bBSD\b": "BSD",
    r"public[- ]domain": "public-domain",
}
NOT_PERMISSIVE = r"\bGPL|General Public|ShareAlike|BY-SA"
# Left out by name: what the rules cannot see.
LEFT_OUT = {
    "fonts-aenigma": "its licence is an e-mail, and most of its faces are decorations",
    "fonts-oradano-mincho-gsrr": "its licence is a text of its own",
    "fonts-triod-postnaja": "letters of old church prints, many of them as small capitals",
}
SAYS_CAPITALS = r"\b(SC|Caps|Small ?caps)\b"  # in the name of a face


@dataclass
class Face:
    """One typeface of one package; `pictures` (100, 20, 20) uint8 in the order of CHARACTERS."""

    package: str
    version: str
    file: str  # within the package
    family: str
    style: str
    sha256: str
    licence: str
    pictures: np.ndarray = field(repr=False)
    group: int = 0
    split: str = ""

    @property
    def name(self) -> str:
        return f"{self.family} {self.style}".strip()


# Packages and their faces


def apt(*arguments: str) -> str:
    """What an apt command prints."""
    return subprocess.run(arguments, check=True, capture_output=True, text=True).stdout


def font_packages() -> list[str]:
    """Debian's font packages that are not too large, by name."""
    names = apt("apt-cache", "pkgnames", "fonts-").split()
    found = {}
    for block in apt("apt-cache", "show", "--no-all-versions", *names).split("\n\n"):
        entry = dict(re.findall(r"^(Package|Size): (.*)", block, re.M))
        if entry:
            found[entry["Package"]] = int(entry["Size"])
    return sorted(n for n, size in found.items() if size < LARGEST_PACKAGE and n not in LEFT_OUT)


def unpacked(folder: Path, package: str, version: str = "") -> tuple[str, Path]:
    """(version, where its files are) of a package, fetched and unpacked where it is not yet.

    ValueError, in one line, where Debian does not have it (any more).
    """
    escaped = version.replace(":", "%3a") or "*"
    archives = sorted(folder.glob(f"{package}_{escaped}_*.deb"))
    if not archives:
        wanted = f"{package}={version}" if version else package
        try:
            subprocess.run(
                ["apt-get", "download", wanted], cwd=folder, check=True, capture_output=True
            )
        except subprocess.CalledProcessError as e:
            why = e.stderr.decode().strip().splitlines()[-1]
            raise ValueError(f"{wanted} cannot be had: {why}") from e
        archives = sorted(folder.glob(f"{package}_{escaped}_*.deb"))
    place = folder / archives[-1].stem
    if not place.exists():
        part = place.with_name(f"{place.name}.part")
        subprocess.run(["dpkg-deb", "-x", archives[-1], part], check=True)
        part.rename(place)
    return archives[-1].stem.split("_")[1].replace("%3a", ":"), place


def licence_of(text: str, file: str, copyright_file: str) -> str:
    """The permissive licence of a face, "" if none is found.

    text: what the face itself says. Else the paragraph of its package's copyright file that is
    about the file counts, and where that is not in Debian's machine-readable form all of it, unless
    it speaks of the GPL.
    """
    stanzas = re.findall(
        r"^Files:((?:.|\n)+?)^License:[ \t]*(.*(?:\n[ \t]+.*)*)", copyright_file, re.M
    )
    about = [
        licence
        for names, licence in stanzas
        for pattern in re.split(r"^Copyright:", names, flags=re.M)[0].split()
        if fnmatch(file, f"*{pattern.removeprefix('./')}") or pattern == "*"
    ]
    free_text = "" if stanzas or re.search(NOT_PERMISSIVE, copyright_file) else copyright_file
    for source in (text, about[-1] if about else free_text):
        for pattern, name in PERMISSIVE.items():
            if re.search(pattern, source, 0 if name == "MIT" else re.I):
                return name
        if re.search(NOT_PERMISSIVE, source):
            return ""
    return ""


def read_faces(folder: Path) -> Iterator[Face]:
    """Every face of every package that has all characters, drawn; without pictures' rules."""
    for package in font_packages():
        version, place = unpacked(folder, package)
        document = place / "usr/share/doc" / package / "copyright"
        copyright_file = document.read_text(errors="replace") if document.exists() else ""
        for path in sorted(place.rglob("*")):
            if path.suffix.lower() not in (".ttf", ".otf") or path.is_symlink():
                continue
            try:
                font = TTFont(path, lazy=True)
                known = font.getBestCmap() or {}
                if not all(ord(c) in known for c in CHARACTERS):
                    continue
                names = font["name"]
                family = names.getBestFamilyName() or ""
                if not re.search("[A-Za-z]", family):
                    family = path.stem
                style = names.getBestSubFamilyName() or ""
                says = " ".join(filter(None, (names.getDebugName(n) for n in (13, 14))))
                if not says:  # some say it with the copyright
                    says = names.getDebugName(0) or ""
                content, file = path.read_bytes(), str(path.relative_to(place))
                pictures = draw_face(content)
            except (TTLibError, OSError, KeyError, AssertionError, AttributeError):
                continue  # not a face that can be read
            yield Face(
                package,
                version,
                file,
                " ".join(family.split()),
                " ".join(style.split()),
                hashlib.sha256(content).hexdigest(),
                licence_of(says, file, copyright_file),
                pictures,
            )


# Pictures


def draw_character(font: ImageFont.FreeTypeFont, character: str) -> np.ndarray:
    """One character (20, 20) uint8, ink 255: its baseline at three quarters, centred across."""
    large = SIZE * FINER
    canvas = Image.new("L", (4 * large, 4 * large), 0)
    ImageDraw.Draw(canvas).text(
        (1.5 * large, 2 * large), character, fill=255, font=font, anchor="ls"
    )
    ink = np.asarray(canvas)
    columns = np.flatnonzero(ink.max(0))
    if not len(columns):
        return np.zeros((SIZE, SIZE), np.uint8)
    left = round((columns[0] + columns[-1]) / 2 - large / 2)
    top = 2 * large - 3 * large // 4
    cut = ink[top : top + large, max(left, 0) : max(left, 0) + large].astype(np.uint32)
    total = cut.reshape(SIZE, FINER, SIZE, FINER).sum((1, 3))
    return ((2 * total + FINER**2) // (2 * FINER**2)).astype(np.uint8)  # rounded


def draw_face(content: bytes) -> np.ndarray:
    """All characters of a face (100, 20, 20), from its file's content."""
    size = round(0.72 * SIZE * FINER)
    font = ImageFont.truetype(io.BytesIO(content), size, layout_engine=ImageFont.Layout.BASIC)
    return np.stack([draw_character(font, c) for c in CHARACTERS])


# Rules: each takes faces and returns which of them stay


def places(characters: str) -> list[int]:
    return [CHARACTERS.index(c) for c in characters]


def is_free(faces: list[Face]) -> Iterable[bool]:
    return (bool(face.licence) for face in faces)


def is_drawn(faces: list[Face]) -> Iterable[bool]:
    """No character is blank, no two are alike to the pixel."""
    for face in faces:
        rows = face.pictures.reshape(100, -1)
        yield bool(rows.any(1).all()) and len(np.unique(rows, axis=0)) == 100


ACCENTED = dict(zip("àáâäãåçèéêëìíïñòóôöõøùúûü", "aaaaaaceeeeiiinoooooouuuu", strict=True))


def is_latin(faces: list[Face]) -> Iterable[bool]:
    """Accented letters look like their letters: some faces have Cyrillic ones in these places."""
    with_accent, without = places("".join(ACCENTED)), places("".join(ACCENTED.values()))
    below = slice(8, None)  # without the accents above the letters
    for face in faces:
        a, b = (face.pictures[i, below].astype(float) for i in (with_accent, without))
        overlap = np.minimum(a, b).sum((1, 2)) / np.maximum(
            1, np.minimum(a.sum((1, 2)), b.sum((1, 2)))
        )
        yield float(np.median(overlap)) >= 0.5


def has_lower_case(faces: list[Face]) -> Iterable[bool]:
    """Lower-case letters are more than small capitals, by the face's name and by its pictures: cut
    to their ink and stretched to one size they differ from those of the capitals."""

    def stretched(picture: np.ndarray) -> np.ndarray:
        rows, columns = np.flatnonzero(picture.max(1)), np.flatnonzero(picture.max(0))
        cut = picture[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        return np.asarray(Image.fromarray(cut).resize((24, 24), Image.Resampling.BILINEAR), float)

    letters = "abdeghmnqrt"
    for face in faces:
        differences = []
        for small, capital in zip(places(letters), places(letters.upper()), strict=True):
            a, b = stretched(face.pictures[small]), stretched(face.pictures[capital])
            differences.append(np.abs(a - b).sum() / ((a.sum() + b.sum()) / 2))
        says_so = re.search(SAYS_CAPITALS, face.name)
        yield not says_so and float(np.median(differences)) >= 0.38


def blurred(faces: list[Face]) -> np.ndarray:
    """Pictures (F, 100, 400), 0 to 1, each pixel the mean of three by three."""
    pictures = np.stack([face.pictures for face in faces]) / np.float32(255)  # (F, 100, 20, 20)
    padded = np.pad(pictures, ((0, 0), (0, 0), (1, 1), (1, 1)))
    shifted = [padded[..., i : i + SIZE, j : j + SIZE] for i in range(3) for j in range(3)]
    return (sum(shifted) / 9).reshape(len(faces), 100, -1)


def has_company(faces: list[Face]) -> Iterable[bool]:
    """Each character looks like that of some other family: cosine of blurred pictures above .78.

    It finds other letters in the places of œ or ê, accents that are misplaced, and ornaments.
    """
    rows = blurred(faces)
    rows /= np.linalg.norm(rows, axis=2, keepdims=True) + 1e-6
    family = np.unique([face.family for face in faces], return_inverse=True)[1]
    nearest = np.ones(len(faces))
    for number in range(100):
        alike = rows[:, number] @ rows[:, number].T  # (F, F)
        alike[family[:, None] == family] = -1
        nearest = np.minimum(nearest, alike.max(1))
    return nearest > 0.78


def is_readable(faces: list[Face]) -> Iterable[bool]:
    """A simple reader, which learned from other families, names at least half of the characters.

    It is ridge regression on 1,500 random cosines of blurred pictures, in three folds of families.
    """
    rng = np.random.default_rng(0)
    directions, phases = rng.normal(0, 0.35, (SIZE**2, 1500)), rng.uniform(0, 2 * np.pi, 1500)
    pictures = blurred(faces)
    families = sorted({face.family for face in faces})
    folds = dict(zip(families, rng.permutation(len(families)) % 3, strict=True))
    fold = np.array([folds[face.family] for face in faces])
    count, teaches = Counter(), []
    for face in faces:  # at most three faces a family teach
        count[face.family] += 1
        teaches.append(count[face.family] <= 3)
    read = np.zeros(len(faces))
    for left_out in range(3):
        learn = pictures[(fold != left_out) & np.array(teaches)].reshape(-1, SIZE**2)
        features = np.cos(learn @ directions.astype(np.float32) + phases.astype(np.float32))
        targets = np.tile(np.eye(100, dtype=np.float32), (len(learn) // 100, 1))
        ridge = features.T @ features + 3 * np.eye(1500, dtype=np.float32)
        weights = np.linalg.solve(ridge.astype(float), (features.T @ targets).astype(float))
        for number in np.flatnonzero(fold == left_out):
            answer = np.cos(pictures[number] @ directions + phases) @ weights  # (100, 100)
            read[number] = (answer.argmax(1) == np.arange(100)).mean()
    return read >= 0.5


RULES: dict[str, Callable[[list[Face]], Iterable[bool]]] = {
    "licence lets pictures be passed on": is_free,
    "no character blank, no two alike to the pixel": is_drawn,
    "accented letters look like their letters": is_latin,
    "no small capitals": has_lower_case,
    "a simple reader reads half of the characters": is_readable,
    "each character looks like that of another family": has_company,
}


# Groups of faces that look alike, and the three sets


def distances(faces: list[Face]) -> np.ndarray:
    """(F, F): squared distance of all pictures over the mean of their squares; 0 is the same."""
    rows = np.stack([face.pictures for face in faces]).reshape(len(faces), -1) / np.float32(255)
    squares = (rows * rows).sum(1)
    mean = (squares[:, None] + squares) / 2
    return (2 * mean - 2 * rows @ rows.T) / mean


def set_groups(faces: list[Face], apart: np.ndarray) -> None:
    """Number the groups: faces of one family, of one whose name begins with the other's, or alike,
    directly or through others, share one."""
    leader = list(range(len(faces)))

    def find(i: int) -> int:
        while leader[i] != i:
            i = leader[i]
        return i

    first: dict[str, int] = {}
    for i, face in enumerate(faces):
        first.setdefault(face.family, i)
    alike = [(first[face.family], i) for i, face in enumerate(faces)]
    alike += [(first[a], first[b]) for a in first for b in first if b.startswith(f"{a} ")]
    for i, j in [*alike, *np.argwhere(apart < ALIKE)]:
        a, b = sorted((find(i), find(j)))
        leader[b] = a
    number: dict[int, int] = {}
    for i, face in enumerate(faces):
        face.group = number.setdefault(find(i), len(number) + 1)


def set_splits(faces: list[Face], apart: np.ndarray) -> None:
    """Deal groups out to test, validation and training, and choose faces in each; the rest keep
    the split ""."""
    rng = np.random.default_rng(7)
    members: dict[int, list[int]] = {}
    for i in rng.permutation(len(faces)):
        members.setdefault(faces[i].group, []).append(i)

    def chosen(group: int, split: str) -> list[int]:
        """The faces of a group that a split takes."""
        kept: list[int] = []
        families = Counter()
        for i in members[group]:
            few = families[faces[i].family] < FACES_A_FAMILY[split]
            if few and (not kept or apart[i, kept].min() >= SAME[split]):
                kept.append(i)
                families[faces[i].family] += 1
        return kept

    size = {g: len({faces[i].family for i in ids}) for g, ids in members.items()}
    order = rng.permutation([g for g in sorted(members) if size[g] <= LARGE_GROUP]).tolist()
    for split, wanted in (("test", N_TEST), ("val", N_VAL)):
        taken: list[int] = []
        while len(taken) < wanted and order:
            taken += chosen(order.pop(), split)
        for i in taken[:wanted]:
            faces[i].split = split
    for group in [*order, *(g for g in members if size[g] > LARGE_GROUP)]:
        for i in chosen(group, "train"):
            faces[i].split = "train"


# The two steps


def select(folder: Path) -> list[Face]:
    """The faces that pass every rule, with group and split; tells how many each rule leaves."""

    def count(what: str) -> None:
        families, packages = {f.family for f in faces}, {f.package for f in faces}
        print(f"{what}: {len(faces)} faces, {len(families)} families, {len(packages)} packages")

    faces = list(read_faces(folder))
    count("all characters are there")
    for what, rule in RULES.items():
        faces = [face for face, stays in zip(faces, rule(faces), strict=True) if stays]
        count(what)
    apart = distances(faces)
    set_groups(faces, apart)
    set_splits(faces, apart)
    print(f"{len({face.group for face in faces})} groups of look-alike faces")
    for split in FACES_A_FAMILY:
        taken = [face for face in faces if face.split == split]
        families, groups = {face.family for face in taken}, {face.group for face in taken}
        print(f"{split}: {len(taken)} faces, {len(families)} families, {len(groups)} groups")
    return [face for face in faces if face.split]


def write_faces(faces: list[Face]) -> None:
    """Write the list and the licences; say what changed of the list."""
    before = {row["sha256"]: row for row in read_list()} if FACES.exists() else {}
    rows = [
        {**{c: getattr(f, c) for c in COLUMNS if c != "face"}, "face": f.name}
        for f in sorted(faces, key=lambda f: (f.split, f.package, f.file))
    ]
    now = {row["sha256"]: row for row in rows}
    for row in [r for k, r in before.items() if k not in now or now[k]["split"] != r["split"]]:
        is_now = now.get(row["sha256"], {}).get("split", "out")
        print(f"was {row['split']}, is {is_now}: {row['face']}")
    for row in [r for k, r in now.items() if before and k not in before]:
        print(f"is new in {row['split']}: {row['face']}")
    with FACES.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    families = sorted({(f.licence, f.package, f.version, f.family) for f in faces})
    lines = [
        "The images of glyphs.npz are pictures of characters of these typefaces, as Debian ships",
        "them. Each typeface is its authors' and under its own licence, whose whole text stands in",
        "/usr/share/doc/PACKAGE/copyright of the package. Licence, package, version, family:",
        "",
        *("  ".join(family) for family in families),
    ]
    LICENCES.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{FACES}, {LICENCES}")


def read_list() -> list[dict[str, str]]:
    """The rows of glyphs_faces.csv."""
    with FACES.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def render(folder: Path) -> dict[str, np.ndarray]:
    """The arrays of glyphs.npz, from the list. ValueError: a file is not what the list says."""
    rows, drawn = read_list(), []
    for row in rows:
        _, place = unpacked(folder, row["package"], row["version"])
        content = (place / row["file"]).read_bytes()
        if (seen := hashlib.sha256(content).hexdigest()) != row["sha256"]:
            raise ValueError(f"{place / row['file']}: SHA-256 {seen}, the list has {row['sha256']}")
        drawn.append(draw_face(content))
    pictures = np.stack(drawn)  # (F, 100, 20, 20)
    names = np.array([row["face"] for row in rows])
    arrays = {"characters": np.array(list(CHARACTERS)), "faces": names}
    for split, end in {"train": "", "val": "_val", "test": "_test"}.items():
        numbers = [i for i, row in enumerate(rows) if row["split"] == split]
        numbers = _shuffled(numbers, rows, "")  # so that the first are of many kinds
        if split == "train":  # each class has its own order of the faces
            order = np.array([_shuffled(numbers, rows, c)[:N_TRAIN] for c in CHARACTERS]).T
        else:
            order = np.repeat(np.array(numbers)[:, None], len(CHARACTERS), 1)  # (faces, 100)
        y = np.tile(np.arange(len(CHARACTERS), dtype=np.uint8), len(order))
        arrays |= {
            f"x{end}": pictures[order.ravel(), y],
            f"y{end}": y,
            f"face{end}": order.ravel().astype(np.int16),
        }
    return arrays


def _shuffled(numbers: list[int], rows: list[dict], character: str) -> list[int]:
    """The faces in an order of the character's own, the same everywhere."""

    def key(number: int) -> bytes:
        return hashlib.sha256(f"{character} {rows[number]['sha256']}".encode()).digest()

    return sorted(numbers, key=key)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("step", choices=("select", "render"))
    parser.add_argument("folder", type=Path, help="keeps the packages")
    parser.add_argument("--check", action="store_true", help="compare, and write nothing")
    args = parser.parse_args(argv)
    args.folder.mkdir(parents=True, exist_ok=True)
    if args.step == "select":
        write_faces(select(args.folder))
        return 0
    if PIL.__version__ != PILLOW:
        print(f"Pillow {PIL.__version__}: the committed images are {PILLOW}'s", file=sys.stderr)
    arrays = render(args.folder)
    if args.check:
        with np.load(IMAGES, allow_pickle=False) as there:
            differing = [
                name
                for name in arrays.keys() | set(there.files)
                if name not in there.files
                or name not in arrays
                or not np.array_equal(arrays[name], there[name])
            ]
        print(f"differing: {', '.join(sorted(differing)) or 'nothing'}")
        return bool(differing)
    part = IMAGES.with_name(f"{IMAGES.name}.part")
    with part.open("wb") as file:  # a handle, or numpy would add .npz to the name
        np.savez_compressed(file, **arrays)
    part.replace(IMAGES)
    print(f"{IMAGES}: {IMAGES.stat().st_size:,} bytes")
    return 0


if __name__ == "__main__":
    import logging

    logging.getLogger("fontTools").setLevel(logging.ERROR)  # of tables that are not needed here
    try:
        sys.exit(main())
    except ValueError as e:
        sys.exit(f"make_lesson: {e}")
