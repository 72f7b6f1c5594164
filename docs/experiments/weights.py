"""The lung bundle's weights: which training config makes which file, and how to make those that are missing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

__all__ = ["TRAINED_BY", "train_missing"]

TRAINED_BY = {
    "models/model.pt": None,
    "models/baselines/augmented.pt": "train_augmented.json",
    "models/energy/predictor.pt": "train_predictor.json",
    "models/energy/orientation.pt": "train_orientation.json",
    "models/energy/vae.pt": "train_vae.json",
    "models/energy/critic.pt": "train_critic.json",
    "models/energy/published_vae.pt": "train_published_vae.json",
    "models/energy/published_critic.pt": "train_published_critic.json",
    "models/energy/statistics.json": "train_statistics.json",
}

STATISTICS = "models/energy/statistics.json"  # of the energies' networks: measured anew when one of them was


def train_missing(bundle: str | Path, dataset_dir: str | Path, **settings: Any) -> list[str]:
    """Train what the lung bundle lacks, each by its own config, in the order in which one needs the other.

    Args:
        bundle: folder of the bundle.
        dataset_dir: folder with manifest.csv.
        settings: of the configs, such as ``epochs``; theirs by default.

    Returns:
        The files that were made.
    """
    from monai.bundle import run

    bundle, made = Path(bundle), []
    for file, config in TRAINED_BY.items():
        if not (bundle / file).is_file() or (file == STATISTICS and any(f.startswith("models/energy/") for f in made)):
            configs = [str(bundle / "configs" / name) for name in ("train.json", config) if name]
            run(config_file=configs, bundle_root=str(bundle), dataset_dir=str(dataset_dir), **settings)
            made.append(file)
    return made
