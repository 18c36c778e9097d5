"""Drawn faces with CelebA's forty attributes: some are visible, the rest are noise in the labels."""

import numpy as np

_WORDS = """
5_o_Clock_Shadow Arched_Eyebrows Attractive Bags_Under_Eyes Bald Bangs Big_Lips Big_Nose Black_Hair Blond_Hair
Blurry Brown_Hair Bushy_Eyebrows Chubby Double_Chin Eyeglasses Goatee Gray_Hair Heavy_Makeup High_Cheekbones Male
Mouth_Slightly_Open Mustache Narrow_Eyes No_Beard Oval_Face Pale_Skin Pointy_Nose Receding_Hairline Rosy_Cheeks
Sideburns Smiling Straight_Hair Wavy_Hair Wearing_Earrings Wearing_Hat Wearing_Lipstick Wearing_Necklace Wearing_Necktie
Young
"""
NAMES = tuple(_WORDS.split())
HAIR = {
    "Black_Hair": (0.1, 0.1, 0.1),
    "Blond_Hair": (0.9, 0.8, 0.4),
    "Brown_Hair": (0.45, 0.28, 0.15),
    "Gray_Hair": (0.6, 0.6, 0.6),
}
# Five people, each with the attributes most of their pictures show.
PEOPLE = {
    "Ada": ("Blond_Hair", "Smiling", "Wearing_Lipstick"),
    "Ben": ("Black_Hair", "Eyeglasses", "Male"),
    "Cleo": ("Black_Hair", "Smiling", "Pale_Skin"),
    "Dan": ("Gray_Hair", "Wearing_Hat", "Male"),
    "Eve": ("Brown_Hair", "Eyeglasses", "Wearing_Lipstick"),
}


def draw_faces(count: int, *, size: int = 32, seed: int = 0):
    """(N, size, size, 3) images in [0, 1], (N, 40) labels of the attributes and (N,) persons."""
    rng = np.random.default_rng(seed)
    persons = rng.integers(len(PEOPLE), size=count)
    labels = rng.random((count, len(NAMES))) < 0.1
    for row, person in enumerate(persons):
        typical = PEOPLE[list(PEOPLE)[person]]
        labels[row, [NAMES.index(name) for name in HAIR]] = False
        labels[row, [NAMES.index(name) for name in typical]] = True
    y, x = np.mgrid[0:size, 0:size] / size
    face = ((x - 0.5) / 0.3) ** 2 + ((y - 0.55) / 0.38) ** 2 < 1
    images = np.empty((count, size, size, 3), np.float32)
    for row in range(count):
        has = dict(zip(NAMES, labels[row], strict=True))
        picture = np.full((size, size, 3), rng.uniform(0.3, 0.5))
        picture[face] = (0.95, 0.85, 0.8) if has["Pale_Skin"] else (0.8, 0.6, 0.45)
        colour = next((HAIR[name] for name in HAIR if has[name]), (0.3, 0.2, 0.2))
        picture[face & (y < 0.35)] = (0.2, 0.3, 0.7) if has["Wearing_Hat"] else colour
        eyes = (abs(y - 0.48) < 0.03) & (abs(abs(x - 0.5) - 0.12) < 0.04)
        picture[eyes] = 0.05
        if has["Eyeglasses"]:
            rim = (abs(y - 0.48) < 0.07) & (abs(abs(x - 0.5) - 0.12) < 0.09) & ~eyes
            picture[rim] = picture[rim] * 0.4
        mouth = (abs(y - (0.74 - (0.3 * (x - 0.5) ** 2 * 4 if has["Smiling"] else 0))) < 0.025) & (abs(x - 0.5) < 0.14)
        picture[mouth] = (0.85, 0.05, 0.15) if has["Wearing_Lipstick"] else (0.5, 0.25, 0.2)
        images[row] = picture + rng.normal(scale=0.02, size=picture.shape)
    return np.clip(images, 0, 1), labels, persons
