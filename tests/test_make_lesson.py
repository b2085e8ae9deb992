"""How the lesson's characters were chosen and drawn: each rule on faces that are made up here."""

import csv
import subprocess
from pathlib import Path

import matplotlib
import numpy as np
import PIL
import pytest
from PIL import ImageFont
from test_data import make_lesson

from kdkit.study import files

script = make_lesson()
FONTS = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
OFL = "This Font Software is licensed under the SIL Open Font License, Version 1.1."
GPL = "License: GNU General Public License, version 2 or later"
DEP5 = """Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/

Files: *
Copyright: 2010 Somebody
License: GPL-3+

Files: fonts/free/*.ttf
 fonts/either.otf
Copyright: 2011 Another
License: OFL-1.1 or GPL-2+

Files: fonts/free/not-this.ttf
Copyright: 2012 A third
License: CC-BY-SA-3.0
"""


def drawn(name="DejaVuSans"):
    """Pictures (100, 20, 20) of a face that matplotlib brings."""
    return script.draw_face((FONTS / f"{name}.ttf").read_bytes())


def face(family="Sans", style="Regular", pictures=None, **more):
    """A face with a SHA-256 of its own name."""
    made = dict(package="fonts-made-up", version="1.0", file=f"{family}-{style}.ttf")
    made |= dict(sha256=f"{family} {style}", licence="OFL-1.1") | more
    pictures = np.zeros((100, 20, 20), np.uint8) if pictures is None else pictures
    return script.Face(family=family, style=style, pictures=pictures, **made)


def noise(seed=0):
    return np.random.default_rng(seed).integers(1, 256, (100, 20, 20)).astype(np.uint8)


def replaced(pictures, **characters):
    """With other pictures in some characters' places: e="a" puts the picture of a there."""
    pictures = pictures.copy()
    for character, other in characters.items():
        pictures[script.CHARACTERS.index(character)] = pictures[script.CHARACTERS.index(other)]
    return pictures


# licences


@pytest.mark.parametrize(
    ("text", "copyright_file", "licence"),
    [
        (OFL, "", "OFL-1.1"),
        (OFL, GPL, "OFL-1.1"),  # the face's own word counts more than its package's
        ("http://scripts.sil.org/OFL", GPL, "OFL-1.1"),
        ("Licensed under the Apache License, Version 2.0", "", "Apache-2.0"),
        (GPL, "", ""),
        (GPL, OFL, ""),
        (f"{OFL} Or, if you like: {GPL}", "", "OFL-1.1"),  # whoever takes it chooses
        ("Creative Commons BY-SA 3.0", OFL, ""),
        ("Copyright 2001 Somebody", OFL, "OFL-1.1"),
        ("", f"{OFL}\nThe packaging: {GPL}", ""),  # which is of which cannot be told
        ("", "All rights reserved.", ""),
        ("", "", ""),
        ("", "It is in the public domain.", "public-domain"),
        ("", "Permission is limited.", ""),  # no MIT in it
    ],
)
def test_a_licence_is_read_from_the_face_then_from_its_package(text, copyright_file, licence):
    assert script.licence_of(text, "usr/share/fonts/a.ttf", copyright_file) == licence


@pytest.mark.parametrize(
    ("file", "licence"),
    [
        ("usr/share/fonts/free/a.ttf", "OFL-1.1"),
        ("usr/share/fonts/either.otf", "OFL-1.1"),
        ("usr/share/fonts/other.ttf", ""),  # the first paragraph alone: GPL
        ("usr/share/fonts/free/a.otf", ""),
        ("usr/share/fonts/free/not-this.ttf", ""),  # of two that fit, the last counts
    ],
)
def test_the_paragraph_about_the_file_counts(file, licence):
    assert script.licence_of("", file, DEP5) == licence
    assert script.licence_of("Copyright 2001 Somebody", file, DEP5) == licence


# pictures


def test_a_character_stands_on_its_line_in_the_middle():
    pictures = drawn()
    rows = {c: np.flatnonzero(pictures[script.CHARACTERS.index(c)].max(1)) for c in "HgbE"}
    assert rows["H"][-1] == rows["E"][-1] == 14 and rows["g"][-1] > 16  # 15 rows above the line
    assert rows["b"][0] <= rows["H"][0] < 5
    assert pictures.shape == (100, 20, 20) and pictures.dtype == np.uint8
    for picture in pictures[[script.CHARACTERS.index(c) for c in "HIlo0+"]]:
        columns = np.flatnonzero(picture.max(0))
        assert abs(columns[0] - (19 - columns[-1])) <= 1
        assert picture.max() > 150 and (picture == 0).any()  # ink is light on black


def test_the_package_holds_what_is_drawn_from_the_font():
    """matplotlib's DejaVu Sans Bold is Debian's; another Pillow draws it almost the same."""
    pictures = drawn("DejaVuSans-Bold").astype(int)
    with np.load(files.GLYPHS) as z:
        mine = z["faces"][z["face"]] == "DejaVu Sans Bold"
        kept, y = z["x"][mine].astype(int), z["y"][mine]
    assert len(y) > 20
    assert np.abs(kept - pictures[y]).mean() < 2
    assert (kept == pictures[y]).all() or script.PILLOW != PIL.__version__


# rules


def kept_by(rule, *faces):
    """Of each face whether the rule keeps it."""
    return [bool(stays) for stays in rule(list(faces))]


def test_faces_without_a_licence_go():
    assert kept_by(script.is_free, face(), face(licence="")) == [True, False]


def test_faces_with_blank_or_equal_characters_go():
    whole = noise()
    blank, twice, close = whole.copy(), replaced(whole, e="a"), replaced(whole, e="a")
    blank[99] = 0
    close[script.CHARACTERS.index("e"), 0, 0] ^= 1  # one pixel differs
    faces = (face(pictures=p) for p in (whole, blank, twice, close))
    assert kept_by(script.is_drawn, *faces) == [True, False, False, True]


def test_accents_on_other_letters_go():
    latin, accented = drawn(), "àáâäãåçèéêëìíïñòóôöõøùúûü"
    wrong = replaced(latin, **dict(zip(accented, "DKMPRVWXYZBFGHLDKMPRVWXYZ", strict=True)))
    few = replaced(latin, à="D", é="K")  # most of them decide
    faces = (face(pictures=p) for p in (latin, wrong, few))
    assert kept_by(script.is_latin, *faces) == [True, False, True]


def test_small_capitals_go():
    usual = drawn()
    capitals, font = usual.copy(), ImageFont.truetype(FONTS / "DejaVuSans.ttf", 48)
    for letter in "abcdefghijklmnopqrstuvwxyz":
        small = script.draw_character(font, letter.upper())
        capitals[script.CHARACTERS.index(letter)] = small
    faces = [face(pictures=usual), face(pictures=capitals)]
    faces += [face(family, pictures=usual) for family in ("Sans SC", "Sans Caps", "Scapital")]
    assert kept_by(script.has_lower_case, *faces) == [True, False, False, False, True]


def test_a_character_that_no_other_family_has_goes():
    a, b = drawn(), drawn("DejaVuSans-Oblique")
    odd = a.copy()
    odd[script.CHARACTERS.index("œ")] = (
        np.random.default_rng(0)
        .permutation(a[script.CHARACTERS.index("œ")].ravel())
        .reshape(20, 20)
    )
    one, two = face("One", pictures=a), face("Two", pictures=b)
    assert kept_by(script.has_company, one, two, face("Three", pictures=odd)) == [True, True, False]
    # A sister of the same family is no company.
    sister = face("Three", "Bold", pictures=odd)
    third = face("Three", pictures=odd)
    assert kept_by(script.has_company, one, two, third, sister) == [True, True, False, False]


def test_a_face_that_a_reader_of_others_cannot_read_goes():
    kinds = ("Sans", "Sans-Bold", "Sans-Oblique", "SansMono", "SansMono-Bold", "Serif")
    faces = [face(kind, pictures=drawn(f"DejaVu{kind}")) for kind in kinds]
    moved = np.roll(drawn(), 1, axis=0)  # each picture in its neighbour's place
    assert kept_by(script.is_readable, *faces, face("Moved", pictures=moved)) == [True] * 6 + [
        False
    ]


# groups and sets


def matrix(n, near=0.01, **pairs):
    """Distances of n faces: far, but for the pairs a_b=True."""
    apart = np.ones((n, n)) - np.eye(n)
    for pair in pairs:
        a, b = map(int, pair.removeprefix("of_").split("_"))
        apart[a, b] = apart[b, a] = near
    return apart


def test_distances():
    a, b, c = noise(0), noise(1), np.full((100, 20, 20), 7, np.uint8)
    apart = script.distances([face(pictures=p) for p in (a, b, c, a)])
    assert apart.shape == (4, 4) and apart == pytest.approx(apart.T, abs=1e-5)
    assert apart[0, 3] == pytest.approx(0, abs=1e-5) and apart[1, 1] == pytest.approx(0, abs=1e-5)
    a, b = a / 255, b / 255
    by_hand = ((a - b) ** 2).sum() / (((a**2).sum() + (b**2).sum()) / 2)
    assert apart[0, 1] == pytest.approx(by_hand, rel=1e-4)


def test_groups_join_by_family_and_by_likeness_through_others():
    faces = [face(f, str(i)) for i, f in enumerate(["A", "B", "B", "C", "D", "E", "F"])]
    script.set_groups(faces, matrix(7, of_0_1=True, of_2_3=True, of_4_6=True))
    groups = [f.group for f in faces]
    assert groups == [1, 1, 1, 1, 2, 3, 2]  # A looks like B, whose sister looks like C
    script.set_groups(faces, matrix(7, near=script.ALIKE))  # just not alike: families alone
    assert [f.group for f in faces] == [1, 2, 2, 3, 4, 5, 6]


def test_groups_do_not_depend_on_the_order_of_faces():
    rng = np.random.default_rng(3)
    families, apart = rng.integers(0, 25, 40), rng.uniform(0.05, 4, (40, 40))
    apart = np.minimum(apart, apart.T)
    order = rng.permutation(40)

    def partition(order):
        faces = [face(str(families[i]), str(i)) for i in order]
        script.set_groups(faces, apart[np.ix_(order, order)])
        return {frozenset(f.style for f in faces if f.group == g) for g in {f.group for f in faces}}

    assert partition(order) == partition(range(40)) and 1 < len(partition(order)) < 25


@pytest.fixture
def dealt(monkeypatch):
    """60 groups of up to three families of up to five faces and a large one, dealt out."""
    monkeypatch.setattr(script, "N_TEST", 20)
    monkeypatch.setattr(script, "N_VAL", 12)
    faces = []
    for group in range(60):
        for family in range(20 if group == 7 else 1 + group % 3):
            for style in range(1 + (group + family) % 5):
                faces.append(face(f"{group}-{family}", str(style), group=group))
    apart = np.ones((len(faces), len(faces)))
    same = [i for i, f in enumerate(faces) if f.group == 7][:30]
    apart[np.ix_(same, same)] = 0  # of these one may stay
    script.set_splits(faces, apart)
    return faces, same


def test_no_group_is_split(dealt):
    faces, _ = dealt
    used = {s: [f for f in faces if f.split == s] for s in ("train", "val", "test", "")}
    groups = {s: {f.group for f in used[s]} for s in ("train", "val", "test")}
    assert groups["train"].isdisjoint(groups["val"] | groups["test"])
    assert groups["val"].isdisjoint(groups["test"])
    assert (len(used["test"]), len(used["val"])) == (20, 12) and len(used["train"]) > 30
    for split, most in script.FACES_A_FAMILY.items():
        families = [f.family for f in used[split]]
        assert max(map(families.count, families)) == most
    assert (most, used[""] != []) == (1, True)


def test_a_large_group_is_for_training_and_of_equal_faces_one_stays(dealt):
    faces, same = dealt
    assert {f.split for f in faces if f.group == 7} == {"train", ""}
    assert [faces[i].split for i in same].count("train") == 1


# the two steps


@pytest.fixture
def places(tmp_path, monkeypatch):
    """A list, a file of images and one of licences of this test's own."""
    for name in ("FACES", "IMAGES", "LICENCES"):
        monkeypatch.setattr(script, name, tmp_path / name.lower())
    return tmp_path


@pytest.fixture
def debs(tmp_path):
    """A folder of packages that are there already: matplotlib's faces and what is none."""
    folder = tmp_path / "deb"
    fonts = folder / "fonts-made-up_1.0_all" / "usr" / "share" / "fonts"
    fonts.mkdir(parents=True)
    (folder / "fonts-made-up_1.0_all.deb").touch()
    for name in ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSansMono", "DejaVuSerif", "cmr10"):
        (fonts / f"{name}.ttf").write_bytes((FONTS / f"{name}.ttf").read_bytes())
    (fonts / "broken.ttf").write_bytes(b"\0\1\0\0 no font")
    (fonts / "readme.txt").write_text("no font")
    (fonts / "link.ttf").symlink_to(fonts / "DejaVuSans.ttf")
    document = folder / "fonts-made-up_1.0_all/usr/share/doc/fonts-made-up/copyright"
    document.parent.mkdir(parents=True)
    document.write_text(DEP5.replace("fonts/free/*.ttf", "*Mono.ttf"))
    return folder


def found(debs, monkeypatch):
    monkeypatch.setattr(script, "font_packages", lambda: ["fonts-made-up"])
    return list(script.read_faces(debs))


def test_faces_are_read_from_packages(debs, monkeypatch):
    faces = found(debs, monkeypatch)  # cmr10 has no é
    assert [f.name for f in faces] == [
        "DejaVu Sans Bold",
        "DejaVu Sans Book",
        "DejaVu Sans Mono Book",
        "DejaVu Serif Book",
    ]
    first = faces[0]
    assert (first.package, first.version) == ("fonts-made-up", "1.0")
    assert first.file == "usr/share/fonts/DejaVuSans-Bold.ttf" and len(first.sha256) == 64
    assert (first.pictures == drawn("DejaVuSans-Bold")).all()
    assert {f.licence for f in faces} == {"Bitstream-Vera"}  # they say it themselves


def with_sets(faces):
    for f, split in zip(faces, ("train", "train", "val", "test"), strict=True):
        f.split, f.group = split, 1 + (split == "val") + 2 * (split == "test")
    return faces


def test_render_draws_the_list(places, debs, monkeypatch, capsys):
    faces = with_sets(found(debs, monkeypatch))
    script.write_faces(faces)
    rows = script.read_list()
    assert [r["face"] for r in rows] == [
        "DejaVu Serif Book",
        "DejaVu Sans Bold",
        "DejaVu Sans Book",
        "DejaVu Sans Mono Book",
    ]  # by set, package and file
    arrays = script.render(debs)
    assert {k: v.shape for k, v in arrays.items() if k.startswith("x")} == {
        "x": (200, 20, 20),
        "x_val": (100, 20, 20),
        "x_test": (100, 20, 20),
    }
    assert arrays["faces"].tolist() == [r["face"] for r in rows]
    assert (arrays["x_test"] == drawn("DejaVuSerif")).all()
    assert (arrays["face_test"] == 0).all() and (arrays["face_val"] == 3).all()
    assert arrays["y"].tolist() == list(range(100)) * 2
    order = arrays["face"].reshape(2, 100)
    assert (order.sum(0) == 3).all() and 20 < (order[0] == 1).sum() < 80  # each class its own
    pictures = {1: drawn("DejaVuSans-Bold"), 2: drawn("DejaVuSans")}
    for x, y, number in zip(arrays["x"], arrays["y"], arrays["face"], strict=True):
        assert (x == pictures[number][y]).all()
    assert script.main(["render", str(debs)]) == 0
    written = script.IMAGES.read_bytes()
    assert script.main(["render", str(debs), "--check"]) == 0
    assert "differing: nothing" in capsys.readouterr().out
    with np.load(script.IMAGES, allow_pickle=False) as z:
        assert {k: z[k].tobytes() for k in z.files} == {k: v.tobytes() for k, v in arrays.items()}
    rows[1]["split"] = "val"
    with script.FACES.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, script.COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    assert script.main(["render", str(debs), "--check"]) == 1
    assert "differing: face, face_val, x, x_val, y, y_val" in capsys.readouterr().out
    assert script.IMAGES.read_bytes() == written  # a check writes nothing


def test_render_refuses_another_file(places, debs, monkeypatch):
    script.write_faces(with_sets(found(debs, monkeypatch)))
    path = debs / "fonts-made-up_1.0_all/usr/share/fonts/DejaVuSans.ttf"
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(ValueError, match="DejaVuSans.ttf: SHA-256 .*, the list has ") as e:
        script.render(debs)
    assert "\n" not in str(e.value) and not script.IMAGES.exists()


def test_the_list_says_which_faces_changed(places, capsys):
    one, two, three = face("One"), face("Two"), face("Three")
    one.split, two.split, three.split = "test", "train", "val"
    script.write_faces([one, two])
    first = capsys.readouterr().out
    assert "was" not in first and "is new" not in first  # there was none before
    script.write_faces([one, two])
    assert capsys.readouterr().out == first
    one.split = "train"
    script.write_faces([one, three])
    said = capsys.readouterr().out.splitlines()[:-1]
    assert sorted(said) == [
        "is new in val: Three Regular",
        "was test, is train: One Regular",
        "was train, is out: Two Regular",
    ]
    assert [(r["face"], r["split"]) for r in script.read_list()] == [
        ("One Regular", "train"),
        ("Three Regular", "val"),
    ]
    text = script.LICENCES.read_text()
    assert text.endswith("OFL-1.1  fonts-made-up  1.0  One\nOFL-1.1  fonts-made-up  1.0  Three\n")


def test_select_applies_every_rule_and_counts(debs, monkeypatch, capsys):
    monkeypatch.setattr(script, "font_packages", lambda: ["fonts-made-up"])
    asked = []

    def but_the_last(faces):
        asked.append(len(faces))
        return [f is not faces[-1] for f in faces]

    monkeypatch.setattr(script, "RULES", {"not the last": but_the_last, "once more": but_the_last})
    monkeypatch.setattr(script, "N_TEST", 1)
    monkeypatch.setattr(script, "N_VAL", 0)
    faces = script.select(debs)
    said = capsys.readouterr().out
    assert asked == [4, 3]
    assert "all characters are there: 4 faces, 3 families, 1 packages" in said
    assert "once more: 2 faces, 1 families, 1 packages" in said
    assert [f.split for f in faces] == ["test"]  # one of a family of two
    assert "test: 1 faces, 1 families, 1 groups" in said


def test_a_package_that_cannot_be_had_is_one_line(tmp_path, monkeypatch):
    def failing(command, **_):
        raise subprocess.CalledProcessError(100, command, stderr=b"W: slow\nE: Can't find it\n")

    monkeypatch.setattr(script.subprocess, "run", failing)
    with pytest.raises(ValueError, match="^fonts-x=2:1 cannot be had: E: Can't find it$"):
        script.unpacked(tmp_path, "fonts-x", "2:1")


def test_a_package_that_is_there_is_not_fetched(debs, monkeypatch):
    monkeypatch.setattr(script.subprocess, "run", None)
    for version in ("", "1.0"):
        assert script.unpacked(debs, "fonts-made-up", version) == (
            "1.0",
            debs / "fonts-made-up_1.0_all",
        )
