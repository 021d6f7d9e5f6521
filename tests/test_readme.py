"""The README's table of keys is the schema's; `python tests/test_readme.py` writes it anew."""

from pathlib import Path

from jaxft import schema, tasks

README = Path(__file__).parent.parent / "README.md"
START, END = "<!-- keys -->\n", "<!-- /keys -->"


def table() -> str:
    rows = ["| key | default | what | allowed |", "|---|---|---|---|"]
    for key in schema.keys(tasks.options(schema.DEFAULT_TASK)):
        cells = (f"`{key.name}`", f"`{key.default}`", key.help, key.allowed)
        rows.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(rows) + "\n"


def written() -> str:
    head, _, rest = README.read_text().partition(START)
    return head + START + table() + END + rest.partition(END)[2]


def test_readme_lists_every_config_key_as_the_schema_has_it():
    assert README.read_text() == written(), "run: python tests/test_readme.py"


if __name__ == "__main__":
    README.write_text(written())
