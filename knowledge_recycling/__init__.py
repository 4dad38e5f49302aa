"""Train image classifiers on synthetic data from a private set, and measure what they give away."""

__version__ = "0.1.0"
