"""The built-in report formats, one module each.

A format has ``NAME``, ``SUFFIX`` (None where it is for the screen only) and ``render(result, **options) -> str``;
options it does not know are ignored. Modules whose name starts with ``_`` are shared helpers.
"""
