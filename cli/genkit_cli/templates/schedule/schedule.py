"""Linear decay of the learning rate."""

from genkit_template_name import TemplateNameOptions


class TemplateName:
    """Falls from 1 after the warm-up to `final` at the last step."""

    def __init__(self, options: TemplateNameOptions, steps: int, warmup: int) -> None:
        self.final, self.steps, self.warmup = options.final, steps, warmup

    def __call__(self, step: int) -> float:
        """The share of the peak learning rate at a step, from 0 to 1."""
        passed = max(0, step - self.warmup) / max(1, self.steps - self.warmup)
        return 1.0 - (1.0 - self.final) * min(1.0, passed)
