"""The reference of all settings, made from `Config`: python -m tests.settings > docs/settings.md"""

from weir.config import FIELDS, SECTIONS
from weir.fields import describe
from weir.options import flags, start

REFERENCE = """\
Flags of `weir serve`, and of every command that makes an engine. Each is an environment variable
too (such as `WEIR_BLOCK_SIZE`) and a key of the YAML file of `--config`; a flag wins over the
environment, the environment over the file. Other engines' names for a setting work as well.
Switches are turned off by `--no-` and their name. Lists are words (then put the model before
them), repeated flags, or one word with commas."""


def reference() -> str:
    """docs/settings.md: every setting in Markdown tables of flag, default and meaning."""
    lines = ["# Settings", "", REFERENCE]
    for name, info in FIELDS.items():
        if name in SECTIONS:
            lines += ["", f"## {SECTIONS[name].capitalize()}", ""]
            lines += ["| flag | default | meaning |", "|---|---|---|"]
        spelled = ", ".join(f"`{spelling}`" for spelling in flags(name))
        known = f"`{start(name)}`" if start(name) else ""
        lines.append(f"| {spelled} | {known} | {describe(info)} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    print(reference(), end="")
