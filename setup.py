"""The packages of the wheel; all else is in setup.cfg. The bundles of the clone become a folder of the package."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["monai_diffeo*"]), "monai_diffeo._bundles"],
    package_dir={"monai_diffeo._bundles": "bundles"},
)
