"""Cats vs dogs, 12,500 photos of each, for which torchvision has no loader: one made like its own.

Part of Asirra, by Microsoft Research with Petfinder.com; its licence, CDLA-Permissive-2.0, lies in
the archive.
"""

import hashlib
from pathlib import Path
from typing import Any

from torchvision.datasets import ImageFolder
from torchvision.datasets.utils import download_url, extract_archive

URL = (
    "https://download.microsoft.com/download/3/E/1/3E1C3F21-ECDB-4869-8368-6DEBA77B919F/"
    "kagglecatsanddogs_5340.zip"
)
SHA256 = "b7974bd00a84a99921f36ee4403f089853777b5ae8d151c76a86e64900334af9"
CLASSES = ["Cat", "Dog"]


def cats_vs_dogs(root: Path, download: bool = False, **how: Any) -> ImageFolder:
    """The photos in `root`/cats-vs-dogs/PetImages, asked for as of torchvision's own sets; files
    that are none by their names (Thumbs.db is there) are passed over.

    Raises RuntimeError where `root` has no cats-vs-dogs or what is downloaded is another archive,
    OSError where the download fails or a class is missing.
    """
    folder = root / "cats-vs-dogs"
    if download:
        _download(folder)
    if not folder.is_dir():
        raise RuntimeError(f"{folder} is not there")
    loaded = ImageFolder(folder / "PetImages", **how)
    if loaded.classes != CLASSES:
        raise FileNotFoundError(f"{loaded.root} has {loaded.classes}, expected {CLASSES}")
    return loaded


def _download(folder: Path) -> None:
    download_url(URL, folder)
    archive = folder / URL.rpartition("/")[2]
    with archive.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != SHA256:  # download_url can check only an MD5
        raise RuntimeError(f"{archive.name} has the SHA-256 {digest}, expected {SHA256}")
    extract_archive(archive, folder, remove_finished=True)
