"""Settings of the documentation: ``./run docs`` builds it with Sphinx."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from mxhw import __version__

project = "mxhw"
author = "the mxhw developers"
release = version = __version__
html_title = "mxhw"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["examples"]

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3

html_theme = "furo"
html_static_path = ["static"]
html_css_files = ["mxhw.css"]
html_show_sphinx = False
html_copy_source = False
# No fonts or scripts of others: the pages can be read without a network.
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#2158c4", "color-brand-content": "#2158c4"},
    "dark_css_variables": {"color-brand-primary": "#7fa9f7", "color-brand-content": "#7fa9f7"},
}

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "show-inheritance": False}
napoleon_google_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
napoleon_custom_sections = [("Members", "params_style"), "Timing", "Cost", "Contract"]
# Names of a docstring's types are for people: "sequence of int", "In(stream of BlockBeat)".
napoleon_preprocess_types = False
# Types in docstrings are words, and two modules may have a class of one name.
suppress_warnings = ["ref.python"]
