from genkit.testing import check_quantizer


def test_fsq() -> None:
    check_quantizer("fsq", channels=4, bins=5)
