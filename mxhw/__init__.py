"""From PyTorch language models to microscaling (MX) hardware."""

__version__ = "0.1.0"
