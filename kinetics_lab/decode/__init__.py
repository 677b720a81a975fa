"""A model decoded under a policy: caches, Hugging Face models, sampling, grading."""

from importlib import metadata


def version_of(distribution: str) -> str | None:
    """The version of what is installed under this name, or None."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
