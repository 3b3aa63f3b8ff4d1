"""A factory for model variants: AutoML that delivers versioned, gated, served models."""
