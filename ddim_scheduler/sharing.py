# Copyright 2026 The ddim-scheduler authors
# SPDX-License-Identifier: Apache-2.0
"""Saving and loading of schedulers and pipelines, in folders and on the Hub."""

import inspect
import io
import json
import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import PIL.Image
from diffusers import ConfigMixin
from diffusers.utils import logging
from huggingface_hub import (
    CommitInfo,
    ModelCard,
    create_repo,
    file_exists,
    hf_hub_download,
    model_info,
    upload_folder,
)

from .model_cards import is_signed, pipeline_card, scheduler_card, signed
from .travelling import NAMES

logger = logging.get_logger(__name__)

PIPELINE_ENTRY = "pipeline.py"
SCHEDULER_ENTRY = "ddim_scheduler.py"
# patterns of the code that an earlier save or push left, of any version
SCHEDULER_CODE = [SCHEDULER_ENTRY, NAMES]
PIPELINE_CODE = [PIPELINE_ENTRY, NAMES, *(f"scheduler/{name}" for name in SCHEDULER_CODE)]
NOT_UPLOADED = ["checkpoint-*/*", "unfinished-*/*", "logs/*", ".*", "*/.*"]  # a training's own files, hidden ones
CONFIG_NAMES = ("model_index.json", "config.json", "scheduler_config.json")


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

    _code: dict[str, bytes]  # from `travelling_code`

    def _write_code(self, folder: Path):
        for name, content in vars(type(self)).get("_code", {}).items():  # that of a user's subclass is elsewhere
            (folder / name).write_bytes(content)

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

    def to_json_string(self) -> str:
        """The config as it is saved: without a `solver_order` of 1, which other solvers would take for theirs."""
        config = json.loads(super().to_json_string())
        if config.get("solver_order") == 1:
            del config["solver_order"]
        return json.dumps(config, indent=2, sort_keys=True) + "\n"

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

        _remove(folder, SCHEDULER_CODE)
        self._write_code(folder)
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
            delete_patterns=SCHEDULER_CODE,
            token=token,
            commit_message=commit_message or f"Upload {type(self).__name__}",
            create_pr=create_pr,
        )


class SharedPipeline(Shared):
    """Saving and loading of a pipeline."""

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str | None = None,
        push_to_hub: bool = False,
        *,
        repo_id: str | None = None,
        commit_message: str | None = None,
        private: bool | None = None,
        token: str | None = None,
        create_pr: bool = False,
        license: str | None = None,
        sample_image: PIL.Image.Image | None = None,
        training_settings: dict[str, Any] | None = None,
    ) -> CommitInfo | None:
        """
        Saves the pipeline, with the code that loads it where the package ddim-scheduler is not installed: `pipeline.py`
        and the files that it names, and the scheduler's in the scheduler's folder.

        `EtaDDIMPipeline.from_pretrained` and, after `import ddim_scheduler`, `DiffusionPipeline.from_pretrained` use
        the package and never run that code; `DiffusionPipeline.from_pretrained(..., custom_pipeline="pipeline",
        trust_remote_code=True)` runs it.

        Args:
            save_directory (`str` or `os.PathLike`):
                The folder; it is made if it is not there.
            safe_serialization (`bool`, defaults to `True`):
                Whether to write safetensors or pickles.
            variant (`str`, *optional*):
                Goes into the names of the weight files: `diffusion_pytorch_model.<variant>.safetensors`.
            max_shard_size (`int` or `str`, *optional*):
                Largest size of a weight file, in bytes or as `"5GB"`.
            push_to_hub (`bool`, defaults to `False`):
                Whether to upload the folder to the Hub, with all that is in it but a training's checkpoints and logs.
                The arguments below are for that, and a model card `README.md` is written with it: how to load the
                model, with the number of steps that were set last, and the scheduler's settings. It takes the place of
                a card that an earlier push wrote; one that a person wrote or changed, in the folder or in the
                repository, is kept. Hidden files are not uploaded.
            repo_id (`str`, *optional*):
                The repository; it is made if it is not there. In your namespace with the folder's name if not given.
            commit_message (`str`, *optional*):
                `"Upload EtaDDIMPipeline"` if not given.
            private (`bool`, *optional*):
                Whether to make the repository private. Your account's default if not given.
            token (`str`, *optional*):
                The token to use instead of the stored one.
            create_pr (`bool`, defaults to `False`):
                Whether to open a pull request instead of committing.
            license (`str`, *optional*):
                The licence of the weights for the card, `"apache-2.0"` for instance. If not given, that of the card of
                an earlier push, or none.
            sample_image (`PIL.Image.Image`, *optional*):
                A picture for the card, saved as `sample.png`. If not given, a `sample.png` that is in the folder. That
                of an earlier push goes with its card.
            training_settings (`dict`, *optional*):
                How the model was trained, for the card. If not given, a `training_args.json` that is in the folder, as
                the training script writes it.

        Returns:
            `CommitInfo` or `None`: the commit of a push.

        Raises:
            FileExistsError: If `save_directory` is a file.
            TypeError: If a component cannot be saved, such as a UNet in DDP, if `sample_image` is no picture that PNG
                can hold, or if `training_settings` are not JSON-able.
            ValueError: For a push, before anything is written, if `private` is `True` and the repository is a public
                one, or if the folder holds a link that leads out of it.
        """
        for name, component in self.components.items():
            if component is not None and not hasattr(component, "save_pretrained"):
                raise TypeError(
                    f"`{name}` is a {type(component).__name__}, which has no `save_pretrained`: put what is in it in "
                    f"its place first, `pipe.{name}.module` for DDP."
                )
        picture = None if sample_image is None else _as_png(sample_image)
        folder = Path(save_directory)
        record = folder / "training_args.json"
        if push_to_hub and training_settings is None and record.is_file():
            try:
                training_settings = json.loads(record.read_bytes())
            except ValueError as error:
                raise ValueError(f"{record} is no JSON: {error}") from None
        try:
            json.dumps(training_settings, default=str)
        except TypeError as error:
            raise TypeError(
                f"`training_settings` must be JSON-able, but are {training_settings!r:.80}: {error}"
            ) from None
        folder.mkdir(parents=True, exist_ok=True)
        if push_to_hub:
            repo_id = open_repository(folder, repo_id, private, token)

        # Written aside, so that a save that fails leaves an older one as it was. Then the index of that one goes first
        # and the new one comes last: half a save cannot be loaded.
        with tempfile.TemporaryDirectory(dir=folder, prefix=".unfinished-") as aside:
            super().save_pretrained(
                aside, safe_serialization=safe_serialization, variant=variant, max_shard_size=max_shard_size
            )
            self._write_code(Path(aside))
            replaced = [*PIPELINE_CODE, *_weight_files(variant)]
            _remove(folder, ["model_index.json", *replaced])
            files = [path for path in Path(aside).rglob("*") if path.is_file()]
            for path in sorted(files, key=lambda path: path.name == "model_index.json"):
                target = folder / path.relative_to(aside)
                target.parent.mkdir(exist_ok=True)
                path.replace(target)
        if repo_id is None or not push_to_hub:
            return None

        if picture is not None:
            (folder / "sample.png").write_bytes(picture)
        card = folder / "README.md"
        if (not card.exists() or is_signed(card)) and file_exists(repo_id, "README.md", token=token):
            shutil.copyfile(hf_hub_download(repo_id, "README.md", token=token), card)
        if not card.exists() or is_signed(card):
            if license is None and card.exists():
                license = ModelCard.load(card).data.get("license")
            text = pipeline_card(self, folder, repo_id, variant, license, training_settings)
            card.write_text(signed(text), encoding="utf-8")
            replaced.append("sample.png")  # of the former model
        elif license is not None or training_settings is not None:
            logger.warning(f"{repo_id} has a README.md, which is kept: `license` and `training_settings` are not used.")
        return upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            ignore_patterns=NOT_UPLOADED,
            delete_patterns=replaced,
            token=token,
            commit_message=commit_message or f"Upload {type(self).__name__}",
            create_pr=create_pr,
        )

    @classmethod
    def _dict_from_json_file(cls, json_file: str | os.PathLike, **kwargs: Any) -> dict[str, Any]:
        """
        Reads the model_index.json of `from_pretrained`, which calls this before it loads anything.

        Raises:
            ValueError: If it has a component that this pipeline would leave out (the VAE of latent diffusion), if a
                file or name leads out of the folder, or if a config is no dictionary: diffusers would take a string for
                the name of another repository.
        """
        if any(kwargs.values()):  # in older diffusers, the entries of an archive instead of a folder
            return super()._dict_from_json_file(json_file, **kwargs)
        folder, components = Path(json_file).parent, [*inspect.signature(cls).parameters]
        paths = [path for path in folder.iterdir() if path.is_file()]
        check_links(folder, [*paths, *(path for name in components for path in (folder / name).glob("*"))])
        for path in (folder / part / name for part in ("", *components) for name in CONFIG_NAMES):
            _check_config_file(path)

        config = super()._dict_from_json_file(json_file)
        for name, value in config.items():
            is_module = name == "_class_name" or not name.startswith("_")
            if not is_module or not isinstance(value, list) or not any(value):  # [null, null] is one that is left out
                continue
            if any(isinstance(part, str) and Path(part).name != part for part in (name, *value)):
                raise ValueError(f"{json_file} leads out of its folder by {name!r}: {value}.")
            if name not in (*components, "_class_name"):
                raise ValueError(
                    f"{json_file} has a component {name!r}, which {cls.__name__} does not use: load it by its own "
                    f"class, {config.get('_class_name')}, and set the scheduler of that to an EtaDDIMScheduler."
                )
        return config


def _remove(folder: Path, patterns: Iterable[str]):
    for path in [path for pattern in patterns for path in folder.glob(pattern)]:
        path.unlink(missing_ok=True)


def _weight_files(variant: str | None) -> list[str]:
    """Patterns of the UNet's weight files in every format, whole and in shards, of one variant."""
    stem, part = "unet/diffusion_pytorch_model", "" if variant is None else f".{variant}"
    formats = ("safetensors", "bin")
    return [
        *(f"{stem}{part}.{suffix}" for suffix in formats),
        *(f"{stem}{part}-?????-of-?????.{suffix}" for suffix in formats),
        *(f"{stem}.{suffix}.index{part}.json" for suffix in formats),
    ]


def _check_config_file(path: Path):
    """Refuses a file of JSON that is no dictionary. One that is not there, or is no JSON, diffusers names itself."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a dictionary, but holds {content!r:.80}.")


def _as_png(image: Any) -> bytes:
    buffer = io.BytesIO()
    try:
        image.save(buffer, "PNG")
    except (AttributeError, OSError):  # no picture, or of a mode that PNG does not know
        raise TypeError(f"`sample_image` must be a PIL image that PNG can hold, but is {image!r:.80}.") from None
    return buffer.getvalue()
