"""Sphinx's settings: `make docs` writes the site to build/docs, and every warning is an error."""

import sys
from pathlib import Path

import metamixer
from metamixer.core.torchvision_compat import make_importable

sys.path.insert(0, str(Path(__file__).parent))
make_importable()  # before autodoc imports every module

project = "metamixer"
author = "The metamixer developers"
project_copyright = author
version = release = metamixer.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "metamixer_docs",
    "api_pages",
]
exclude_patterns = ["_static"]

myst_heading_anchors = 3  # guide.md#exit-codes, as on a code host

napoleon_numpy_docstring = False
autodoc_member_order = "bysource"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
# Annotations name what is only imported for type checkers; a name that two modules have is ambiguous there.
suppress_warnings = ["ref.python"]

highlight_language = "none"  # of blocks that name no language
html_theme = "furo"
html_title = f"metamixer {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
copybutton_prompt_text = r"\$ |>>> |\.\.\. "
copybutton_prompt_is_regexp = True
