"""The parts of the build that pyproject.toml cannot say: cffi's hook, and options of commands."""

from setuptools import setup

setup(
    cffi_modules=["uringfs/ring/_build.py:ffibuilder"],
    options={
        # cffi builds against the stable ABI: one wheel serves every Python from 3.11 on.
        "bdist_wheel": {"py_limited_api": "cp311"},
        # Flags come from the environment (URINGFS_SANITIZE), which time stamps do not see: without
        # this a build could silently reuse what a sanitized one left.
        "build_ext": {"force": True},
    },
)
