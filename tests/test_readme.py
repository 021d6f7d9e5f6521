"""The README's table of keys is the schema's; `python tests/test_readme.py` writes it anew."""

from pathlib import Path
from pkgutil import iter_modules

from jaxft import schema, tasks

README = Path(__file__).parent.parent / "README.md"
START, END = "<!-- keys -->\n", "<!-- /keys -->"


def table() -> str:
    rows = ["| key | default | what | allowed |", "|---|---|---|---|"]
    shared = schema.keys(tasks.options(schema.DEFAULT_TASK))
    known = {key.name for key in shared}
    names = [module.name for module in iter_modules(tasks.__path__)]
    for name in sorted(names, key=lambda name: (name != schema.DEFAULT_TASK, name)):
        own = [key for key in schema.keys(tasks.options(name)) if key.name.startswith("task.")]
        wanted = shared if name == schema.DEFAULT_TASK else [k for k in own if k.name not in known]
        for key in wanted:
            of = f"{name}: " if key in own and key.name != "task.name" else ""
            cells = (f"`{key.name}`", f"`{key.default}`", of + key.help, key.allowed)
            rows.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(rows) + "\n"


def written() -> str:
    head, _, rest = README.read_text().partition(START)
    return head + START + table() + END + rest.partition(END)[2]


def test_readme_lists_every_config_key_as_the_schema_has_it():
    assert README.read_text() == written(), "run: python tests/test_readme.py"


if __name__ == "__main__":
    README.write_text(written())
