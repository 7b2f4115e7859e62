"""What an exported folder says of itself, in `export.json`: the format, what it was made of, and by which versions."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import get_args

from stages.errors import UserError
from stages.files import read_json, write_json
from stages.params.export import Format

FILE = "export.json"
FORMATS: tuple[str, ...] = get_args(Format)


@dataclass(frozen=True)
class Description:
    """Of an exported generator."""

    format: str
    """One of `FORMATS`."""
    source: str
    """The level, or the name of the folder, that was exported."""
    model_type: str
    """As in the config of `transformers`."""
    graphs: dict[str, str]
    """Files of ONNX graphs by what they compute: `decoder`, and `encoder` if there is one."""
    versions: dict[str, str]
    """Of the packages that made it."""

    @property
    def has_graphs(self) -> bool:
        """Whether it names the files that a format of graphs has."""
        if not isinstance(self.graphs, dict) or not all(isinstance(file, str) for file in self.graphs.values()):
            return False
        return "decoder" in self.graphs or not self.format.startswith("onnx")

    def save(self, folder: Path) -> None:
        """Write it into the folder it describes."""
        write_json(folder / FILE, asdict(self))

    @classmethod
    def load(cls, folder: Path) -> Description:
        """Read it from a folder.

        Raises:
            UserError: it is missing or is not one.
        """
        values = read_json(folder / FILE)
        try:
            found = cls(**values)
        except TypeError:
            found = None
        if found is None or found.format not in FORMATS or not found.has_graphs:
            raise UserError(f"{folder / FILE} describes no export that this version reads: run stages.export again")
        return found


def is_exported(folder: Path) -> bool:
    """Whether a folder holds what `stages.export` wrote."""
    return (folder / FILE).is_file()


def versions(*packages: str) -> dict[str, str]:
    """Installed versions of packages."""
    return {package: version(package) for package in packages}
