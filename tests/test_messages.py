"""What messages tell a user to write exists: every option, and every setting of a recipe."""

import ast
import re
from pathlib import Path

import typer

from metamixer.cli.app import app
from metamixer.config.settings_table import settings
from tests.test_wording import texts

SOURCES = sorted((Path(__file__).parents[1] / "src" / "metamixer").rglob("*.py"))
OPTIONS = {
    name
    for command in typer.main.get_command(app).commands.values()
    for parameter in command.params
    for name in (*parameter.opts, *parameter.secondary_opts)
} | {"--help", "--version"}
OTHERS = {"--standalone", "--nproc-per-node", "--nnodes"}  # of torchrun
OTHERS |= {"--nodes", "--ntasks-per-node", "--shm-size"}  # of SLURM and Docker
SETTINGS = {re.sub(r"^peers\.N\.", "peers.", row.key) for row in settings()}
SECTIONS = r"(?:data|optim|train|loss|mixer|peers(?:\.(?:\d+|N|\{\w+\}))?)"
# Settings of networks and of code of the user's own that are examples in messages.
EXAMPLES = {"peers.options"}


def messages():
    for file in SOURCES:
        for line, text in texts(file):
            if " " in text:  # a sentence, and no key
                yield f"{file.name}:{line}", text


def sentences():
    """All that messages can say, by file: f-strings with … for what is filled in."""
    for file in SOURCES:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                yield "".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def test_every_message_of_the_troubleshooting_page_exists():
    page = (Path(__file__).parents[1] / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    known = [*sentences(), "operator torchvision::nms does not exist"]
    shown = [line for block in re.findall(r"^\*\*(.*?)\*\*", page, re.M) for line in re.findall(r"`([^`]*)`", block)]
    assert len(shown) > 20
    patterns = {message: ".*".join(re.escape(part.strip()) for part in message.split("…")) for message in shown}
    missing = [
        message for message, pattern in patterns.items() if not any(re.search(pattern, text, re.S) for text in known)
    ]
    assert not missing
    assert all(len(message.replace("…", "").strip()) >= 8 for message in shown)  # or it is found anywhere


def test_every_option_that_a_message_names_exists():
    named = {
        (where, option)
        for where, text in messages()
        for option in re.findall(r"(?<![\w-])--[a-z][a-z-]*[a-z]", text)
        if option not in OTHERS
    }
    assert len(named) > 20
    assert not {each for each in named if each[1] not in OPTIONS}


def test_every_setting_that_a_message_names_exists():
    named = {
        (where, re.sub(r"^peers\.(\d+|N|\{\w+\})\.", "peers.", key))
        for where, text in messages()
        for key in re.findall(rf"(?<![\w./-]){SECTIONS}\.[a-z_]+(?==)", text)
    }
    assert len(named) > 5
    assert not {each for each in named if each[1] not in SETTINGS | EXAMPLES}
