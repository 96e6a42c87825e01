"""A quantizer as a genkit plugin. This file imports no torch."""

from dataclasses import dataclass

from genkit import Component, hookimpl, option


@dataclass(frozen=True)
class TemplateNameOptions:
    codebook_size: int = option(512, "number of codes", minimum=2)
    commitment_weight: float = option(0.25, "weight of the commitment loss", minimum=0)


@hookimpl
def genkit_components() -> list[Component]:
    return [
        Component(
            "quantizer",
            "template-name",
            "genkit_template_name.quantizer:TemplateName",
            TemplateNameOptions,
            "nearest direction in a learned codebook",
        )
    ]
