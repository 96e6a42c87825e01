"""Contract tests for authors of components: one line checks everything that the core relies on.

    from genkit.testing import check_quantizer

    def test_fsq() -> None:
        check_quantizer("fsq", channels=4, bins=5)

A failure is an `AssertionError` that states the violated contract.
"""

from genkit.testing.attention import check_attention
from genkit.testing.dataset import check_dataset
from genkit.testing.decoder import check_decoder
from genkit.testing.discriminator import check_discriminator
from genkit.testing.encoder import check_encoder
from genkit.testing.features import check_features
from genkit.testing.fusion import check_fusion
from genkit.testing.importer import check_importer
from genkit.testing.metric import check_metric
from genkit.testing.optimizer import check_optimizer, check_schedule
from genkit.testing.perceptual import check_loss, check_perceptual
from genkit.testing.prior import check_prior
from genkit.testing.quantizer import check_quantizer

__all__ = [
    "check_attention",
    "check_dataset",
    "check_decoder",
    "check_discriminator",
    "check_encoder",
    "check_features",
    "check_fusion",
    "check_importer",
    "check_optimizer",
    "check_loss",
    "check_metric",
    "check_perceptual",
    "check_prior",
    "check_quantizer",
    "check_schedule",
]
