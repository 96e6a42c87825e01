"""An encoder as a genkit plugin. This file imports no torch."""

from dataclasses import dataclass

from genkit import Component, hookimpl, option


@dataclass(frozen=True)
class TemplateNameOptions:
    levels: int = option(2, "levels, each at half the resolution of the previous one", minimum=1)
    width: int = option(64, "channels of the convolutions", minimum=1)
    latent_channels: int = option(64, "latent channels per level", minimum=1)


@hookimpl
def genkit_components() -> list[Component]:
    return [
        Component(
            "encoder",
            "template-name",
            "genkit_template_name.encoder:TemplateName",
            TemplateNameOptions,
            "strided convolutions",
        )
    ]
