"""cffi's setuptools hook is a keyword of setup(): pyproject.toml has no spelling for it."""

from setuptools import setup

setup(cffi_modules=["uringfs/ring/_build.py:ffibuilder"])
