# Copyright 2026 The ddim-scheduler authors
# SPDX-License-Identifier: Apache-2.0
"""Saving and loading of schedulers and pipelines, in folders and on the Hub."""

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from diffusers import ConfigMixin
from diffusers.utils import logging
from huggingface_hub import CommitInfo, create_repo, file_exists, model_info, upload_folder

from .model_cards import scheduler_card
from .travelling import PATTERN, remove_code, write_code

logger = logging.get_logger(__name__)

SCHEDULER_ENTRY = "ddim_scheduler.py"


def check_links(folder: Path, paths: Iterable[Path]):
    """Refuses paths that a link leads out of the folder. Files in the Hub's cache are links to its `blobs`."""
    roots = [folder.resolve()]
    for parent in folder.resolve().parents:
        if parent.name == "snapshots":  # the repository's blobs, some of which are links to those of the whole cache
            roots += [parent.parent / "blobs", parent.parent.parent / "blobs"]
    for path in paths:
        target = path.resolve()
        if not any(target.is_relative_to(root) for root in roots):
            raise ValueError(f"{path} leads out of its folder by a link, to {target}: put the file itself there.")


def open_repository(folder: Path, repo_id: str | None, private: bool | None, token: str | None) -> str:
    """The name of the repository for a folder, which is made if it is not there: the checks that come before a push."""
    check_links(folder, folder.rglob("*"))
    repo_id = create_repo(repo_id or folder.resolve().name, private=private, token=token, exist_ok=True).repo_id
    if private and not model_info(repo_id, token=token).private:
        raise ValueError(f"`private` is True, but the repository {repo_id} is there already, and is public.")
    return repo_id


class Shared(ConfigMixin):
    """What a scheduler and a pipeline do alike. It stands before the class of diffusers whose methods it extends."""

    _code: dict[str, bytes] | None = None  # of `travelling_code`; that of a user's subclass is elsewhere

    def push_to_hub(self, repo_id: str, commit_message: str | None = None, **kwargs: Any) -> CommitInfo | None:
        """
        Uploads the scheduler or the pipeline, its code and a model card to the Hub.

        Args:
            repo_id (`str`): The repository, `"user/name"`; it is made if it is not there.
            commit_message (`str`, *optional*): `"Upload"` and the name of the class if not given.
            kwargs: The other arguments of `save_pretrained`: `private`, `token`, `license`...

        Returns:
            `CommitInfo`: the commit.

        Raises:
            ValueError: If `repo_id` is no name, or if `private` is `True` and the repository is a public one.
        """
        if not isinstance(repo_id, str) or not repo_id:
            raise ValueError(f"`repo_id` must be the name of a repository, but is {repo_id!r}.")
        with tempfile.TemporaryDirectory() as folder:
            return self.save_pretrained(
                folder, push_to_hub=True, repo_id=repo_id, commit_message=commit_message, **kwargs
            )


class SharedScheduler(Shared):
    """Saving and loading of a scheduler."""

    @classmethod
    def load_config(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any):
        """
        Reads a `scheduler_config.json`; `from_pretrained` calls it with its own arguments.

        Raises:
            ValueError: If the file is a link out of its folder.
        """
        folder = Path(pretrained_model_name_or_path)
        if folder.is_dir():
            check_links(folder, [folder / (kwargs.get("subfolder") or "") / cls.config_name])
        return super().load_config(pretrained_model_name_or_path, **kwargs)

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        push_to_hub: bool = False,
        *,
        repo_id: str | None = None,
        commit_message: str | None = None,
        private: bool | None = None,
        token: str | None = None,
        create_pr: bool = False,
        subfolder: str | None = None,
        license: str | None = None,
    ) -> CommitInfo | None:
        """
        Saves the config, and beside it the code for those who do not have the package and load a pipeline with this
        scheduler by `trust_remote_code=True`: `ddim_scheduler.py` and the files that it names.

        Args:
            save_directory (`str` or `os.PathLike`): The folder; it is made if it is not there.
            push_to_hub (`bool`, defaults to `False`):
                Whether to upload the folder to the Hub, with a short model card if neither it nor the repository has
                one. The arguments below are for that.
            repo_id (`str`, *optional*):
                The repository; it is made if it is not there. In your namespace with the folder's name if not given.
            commit_message (`str`, *optional*): `"Upload EtaDDIMScheduler"` if not given.
            private (`bool`, *optional*): Whether to make the repository private; your account's default if not given.
            token (`str`, *optional*): The token to use instead of the stored one.
            create_pr (`bool`, defaults to `False`): Whether to open a pull request instead of committing.
            subfolder (`str`, *optional*): Where in the repository, `"scheduler"` in that of a pipeline; without a card.
            license (`str`, *optional*): The licence for the card. None is named if not given.

        Returns:
            `CommitInfo` or `None`: the commit of a push.

        Raises:
            FileExistsError: If `save_directory` is a file.
            ValueError: For a push, before anything is written, if `private` is `True` and the repository is a public
                one, or if the folder holds a link that leads out of it.
        """
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        if push_to_hub:
            repo_id = open_repository(folder, repo_id, private, token)

        remove_code(folder, [SCHEDULER_ENTRY])
        write_code(folder, vars(type(self)).get("_code"))
        super().save_pretrained(str(folder))
        if repo_id is None or not push_to_hub:
            return None

        card = folder / "README.md"
        if subfolder is None and not card.exists() and not file_exists(repo_id, "README.md", token=token):
            card.write_text(scheduler_card(self, repo_id, license), encoding="utf-8")
        elif license is not None:
            logger.warning(f"No card is written to {repo_id}: `license` is not used.")
        return upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            path_in_repo=subfolder,
            ignore_patterns=[".*", "*/.*"],
            delete_patterns=[SCHEDULER_ENTRY, PATTERN],
            token=token,
            commit_message=commit_message or f"Upload {type(self).__name__}",
            create_pr=create_pr,
        )
