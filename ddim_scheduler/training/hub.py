# Copyright 2026 The ddim-scheduler authors
# SPDX-License-Identifier: Apache-2.0
"""The repository on the Hub that a run will upload to, made before the training."""

from huggingface_hub import create_repo, model_info


def create_hub_repo(name: str, private: bool = False, token: str | None = None) -> str:
    """
    Makes the repository: a wrong token or name is an error before the training and not after it.

    Args:
        name: `"user/name"`, or `"name"` for one of the user's own.
        private: Make a private one, and refuse one that is there and public.
        token: Instead of the stored one.

    Returns:
        Its full id.

    Raises:
        ValueError: If it cannot be made or used, or is public.
    """
    try:
        repo_id = create_repo(name, private=True if private else None, token=token, exist_ok=True).repo_id
        is_private = model_info(repo_id, token=token).private
    except Exception as error:
        raise ValueError(f"`push_to_hub`: the repository {name} cannot be used: {error}") from error
    if private and not is_private:
        raise ValueError(f"`hub_private_repo` is given, but the repository {repo_id} is there already, and is public.")
    return repo_id
