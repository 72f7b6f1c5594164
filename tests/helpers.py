"""Small parts for tests: images, energies and canonicalisers that need no trained weights."""

import torch

from monai_diffeo.canonicalize import Canonicalizer
from monai_diffeo.energies import DeformationRegularizer, Energy, WeightedEnergy
from monai_diffeo.families import ControlGrid


def blob(batch=1, size=(32, 32), shift=0.0, width=0.25):
    """A smooth bright ellipse, ``shift`` (share of half the frame, a number or one an image) off the centre along axis 0."""
    axes = torch.meshgrid(*[torch.linspace(-1, 1, n) for n in size], indexing="ij")
    shift = torch.as_tensor(shift, dtype=torch.float32).expand(batch)
    squared = sum(
        ((axis - (shift.view(-1, *[1] * len(size)) if d == 0 else 0)) / (width * (1 + 0.5 * d))) ** 2
        for d, axis in enumerate(axes)
    )
    return torch.exp(-squared / 2).expand(batch, *size)[:, None].clone()


class FromTemplate(Energy):
    """Mean squared difference from one image, times 1000."""

    def __init__(self, template):
        super().__init__()
        self.register_buffer("template", template)

    def forward(self, image):
        return 1000 * (image - self.template).square().flatten(1).mean(1)


class Brightness(Energy):
    def forward(self, image):
        return image.flatten(1).mean(1)


class Turned(torch.nn.Module):
    """Sees every image rotated by 90 degrees."""

    def probabilities(self, image):
        return torch.tensor([[0.0, 1.0, 0.0, 0.0]]).expand(len(image), -1), torch.zeros(len(image))


class FixedTheta(torch.nn.Module):
    """A predictor that answers the same whatever it sees."""

    def __init__(self, theta):
        super().__init__()
        self.register_buffer("theta", theta)

    def forward(self, image):
        return self.theta.to(image.device).expand(image.shape[0], -1)


def some_theta(family, scale=0.1, seed=0, batch=1):
    return torch.randn(batch, family.num_parameters, generator=torch.Generator().manual_seed(seed)) * scale


def tiny_canonicalizer(spatial_dims=2, **settings):
    """One pass of a predictor that always gives the same deformation; nothing is rejected."""
    family = ControlGrid(spatial_dims, controls=4)
    settings = {"max_energy_increase": None, **settings}
    return Canonicalizer(Brightness(), family, DeformationRegularizer(), FixedTheta(some_theta(family, 0.04)), **settings)


def template_canonicalizer(size=(32, 32), **settings):
    """Optimisation towards a centred blob."""
    settings = {"steps": 40, "learning_rate": 0.02, **settings}
    return Canonicalizer(
        WeightedEnergy({"template": FromTemplate(blob(1, size))}),
        ControlGrid(len(size), controls=3),
        DeformationRegularizer(smooth=0.1),
        **settings,
    )


def canonicalizer_folder(folder, size=32):
    """A folder for ``load_canonicalizer`` with small random networks, and its statistics on random images."""
    import json

    from monai_diffeo.canonicalize import fit_statistics
    from monai_diffeo.networks import DeformationPredictor, EnergyCritic, EnergyVAE

    torch.manual_seed(0)
    predictor = DeformationPredictor(ControlGrid(2, 4).num_parameters, image_size=(size, size), channels=(8, 8))
    torch.nn.init.normal_(predictor.head[-1].weight, std=0.05)
    networks = {
        "predictor": predictor,
        "vae": EnergyVAE(image_size=(size, size), channels=(4, 4), latent=4),
        "critic": EnergyCritic(channels=4, layers=2),
    }
    predicted = {"family": "@families::control_grid", "predictor": "@networks::predictor", "max_energy_increase": None}
    settings = {
        "default_mode": "single_pass",
        "families": {
            "control_grid": {"_target_": "monai_diffeo.families.ControlGrid", "spatial_dims": 2, "controls": 4},
            "siren": {"_target_": "monai_diffeo.families.Siren", "hidden": 16, "layers": 2},
        },
        "networks": {
            "predictor": {
                "_target_": "monai_diffeo.networks.DeformationPredictor",
                "num_parameters": ControlGrid(2, 4).num_parameters,
                "image_size": [size, size],
                "channels": [8, 8],
            },
            "vae": {
                "_target_": "monai_diffeo.networks.EnergyVAE",
                "image_size": [size, size],
                "channels": [4, 4],
                "latent": 4,
            },
            "critic": {"_target_": "monai_diffeo.networks.EnergyCritic", "channels": 4, "layers": 2},
        },
        "weights": {name: f"{name}.pt" for name in networks},
        "energies": {
            "vae": {"_target_": "monai_diffeo.energies.VAEEnergy", "vae": "@networks::vae"},
            "critic": {"_target_": "monai_diffeo.energies.CriticEnergy", "critic": "@networks::critic"},
            "motion": {
                "_target_": "monai_diffeo.energies.ResidualDeformationEnergy",
                "predictor": "@networks::predictor",
                "family": "@families::control_grid",
            },
        },
        "modes": {
            "single_pass": {**predicted, "iterations": 2, "steps": 0, "energies": {"vae": 1.0, "motion": 1.0}},
            "refine": {**predicted, "iterations": 1, "steps": 3, "level": 0.0, "energies": {"vae": 1.0, "critic": 0.5}},
            "faithful": {
                "family": "@families::siren",
                "steps": 3,
                "standardize": False,
                "energies": {"vae": 0.01, "critic": 0.001},
                "patience": None,
                "max_energy_increase": None,
            },
        },
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "canonicalizer.json").write_text(json.dumps(settings))
    for name, network in networks.items():
        torch.save(network.state_dict(), folder / f"{name}.pt")
    fit_statistics(folder, [torch.rand(8, 1, size, size), torch.rand(8, 1, size, size)])
    return folder
