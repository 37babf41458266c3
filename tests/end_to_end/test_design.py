"""docs/DESIGN.md has a line for every file of the package, and for no other."""

import re

from tests.helpers.commands import ROOT


def test_the_tables_are_of_the_files_that_there_are():
    text = (ROOT / "docs" / "DESIGN.md").read_text(encoding="utf-8")
    parts = re.split(r"^### `([\w/]+)/`$", text.partition("\n## Laws of the core\n")[0], flags=re.M)[1:]
    tables = {
        folder: re.findall(r"^\| `(\w+\.py)` \|", table, re.M)
        for folder, table in zip(parts[::2], parts[1::2], strict=True)
    }
    package = ROOT / "nanogpt_jax"
    assert tables == {
        folder.relative_to(package).as_posix(): sorted(
            file.name for file in folder.glob("*.py") if not file.name.startswith("__")
        )
        for folder in package.rglob("*")
        if (folder / "__init__.py").exists()
    }
    assert all(f"`{file.name}`" in text for file in package.glob("[a-z]*.py"))
