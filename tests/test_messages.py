"""What messages tell a user to write exists: every option, and every setting of a recipe."""

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
