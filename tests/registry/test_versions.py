"""What a registry takes, and what pages say of data."""

from __future__ import annotations

import pytest

from stages.errors import UserError
from stages.registry.metadata import is_card, licence
from stages.registry.versions import LONGEST, check, shortened


def test_long_descriptions_end_with_a_whole_section():
    short = "# Title\n\nA line.\n\n## One\n\n" + "a" * 100
    assert shortened(short) == short
    long = short + "\n\n## Two\n\n" + "b" * LONGEST
    assert shortened(long) == short + "\n\nMore in README.md of the checkpoint."
    again = "\n\n## Reproduce\n\ndvc repro"
    assert shortened(long + again) == short + again + "\n\nMore in README.md of the checkpoint."
    assert shortened("x" * LONGEST) == "x" * LONGEST
    assert len(shortened(short + "\n\n## Two\n\n" + "b" * (LONGEST - len(short) - 10))) <= LONGEST


@pytest.mark.parametrize("name", ["", " ", "a/b", "a:b", "it's"])
def test_names_that_no_registry_takes(name):
    with pytest.raises(UserError, match="--name"):
        check(name, None)


@pytest.mark.parametrize("alias", ["", "v1", "V12", "latest", "a b", "@champion"])
def test_aliases_that_no_registry_takes(alias):
    with pytest.raises(UserError, match="--alias"):
        check("espalier", alias)


def test_names_and_aliases_as_people_choose_them():
    check("customer service", None)
    check("espalier", "champion-2")


def test_the_licence_is_what_the_page_beside_the_data_states(tmp_path):
    (tmp_path / "raw/folder").mkdir(parents=True)
    assert licence(tmp_path, tmp_path / "raw/a.csv").startswith("not stated")
    (tmp_path / "raw/README.md").write_text("# Data\n\nlicense: mit\n")
    assert licence(tmp_path, tmp_path / "raw/a.csv").startswith("not stated")
    (tmp_path / "raw/README.md").write_text("---\nlicense: [\n---\n")
    assert licence(tmp_path, tmp_path / "raw/a.csv").startswith("not stated")
    (tmp_path / "raw/README.md").write_text("---\nlicense: cc-by-4.0\n---\n\n# Data\n")
    assert licence(tmp_path, tmp_path / "raw/a.csv").startswith("cc-by-4.0, see ")
    (tmp_path / "raw/folder/README.md").write_text("---\nlicense: mit\n---\n")
    assert licence(tmp_path, tmp_path / "raw/folder").startswith("mit, see ")


def test_the_projects_own_readme_is_no_card(tmp_path):
    (tmp_path / "README.md").write_text("# A project\n")
    assert not is_card(tmp_path / "README.md")
    (tmp_path / "README.md").write_text("---\ntags: [espalier, pruning]\n---\n\n# A card\n")
    assert is_card(tmp_path / "README.md")
