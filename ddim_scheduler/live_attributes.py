# Copyright 2026 The ddim-scheduler authors
# SPDX-License-Identifier: Apache-2.0
"""What people write into a scheduler's public attributes and its config reaches the next step, or is refused."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from operator import attrgetter
from typing import Any

import numpy as np
import torch
from diffusers.configuration_utils import FrozenDict

_version = attrgetter("_version")  # torch's count of the writes in place


class LiveConfig(FrozenDict):
    """A scheduler's config: what is written into one of its attributes is also the entry of that name."""

    def __init__(self, *args: Any, **kwargs: Any):
        self.__dict__["num_writes"] = 0
        super().__init__(*args, **kwargs)

    def __setattr__(self, name: str, value: Any):
        super().__setattr__(name, value)
        if name in self and self[name] is not value:
            self.put(name, value)
            self.__dict__["num_writes"] += 1

    def __setitem__(self, name: str, value: Any):
        if name in self:
            setattr(self, name, value)
        else:
            super().__setitem__(name, value)

    def put(self, name: str, value: Any):
        """Sets an entry, which is then no default any more that `from_config` may replace by another."""
        super().__setitem__(name, value)
        self.__dict__[name] = value
        if name in (defaults := self.get("_use_default_values", [])):
            self.put("_use_default_values", [key for key in defaults if key != name])


class LiveAttributes:
    """
    Follows what is written into an object's public attributes, by assignment or in place, and into its config.

    A subclass names its public tensors and numbers, sets the tensors by `_publish`, takes over by `_take_over` what
    others write, and calls `_follow` before it uses what it made of them; who reads one of them has it called. Writes
    in place are known by torch's version counter, which `tensor.data` and `tensor.numpy()` go around; a compiled graph
    does not look for them.
    """

    _internal_dict: LiveConfig = LiveConfig()
    _published: dict[str, np.ndarray]  # the values that have taken effect
    _watched: Sequence[torch.Tensor] = ()
    _versions: int = -1
    _live_tensors: tuple[str, ...] = ()
    _live_numbers: tuple[str, ...] = ()

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        for name in (*cls._live_tensors, *cls._live_numbers):
            if "_live_tensors" in vars(cls):
                setattr(cls, name, _live(name))
            elif hasattr(vars(cls).get(name), "__get__"):
                raise TypeError(
                    f"`{name}` of {cls.__name__} would change no step, which reads a table: write the attribute "
                    "instead of making it a property."
                )

    def _take_over(self, name: str, value: Any):
        """Makes a written attribute, or what changed in `"config"`, take effect, or raises and changes nothing."""
        raise NotImplementedError

    def _publish(self, tensors: dict[str, torch.Tensor], values: dict[str, np.ndarray]):
        """Sets public tensors to what has taken effect: these values, float64 or int64."""
        state = self.__dict__
        state.update(tensors)
        state["_published"] = {**state.get("_published", {}), **values}
        self._note_versions()

    def _note_versions(self):
        state = self.__dict__
        state["_watched"] = [state[name] for name in self._published]
        state["_versions"] = sum(map(_version, self._watched)) + self._internal_dict.num_writes

    def __setattr__(self, name: str, value: Any):
        state = self.__dict__
        if name == "_internal_dict":  # by `register_to_config`, and by pipelines that correct a config
            self._set_config(value)
        elif name in self._live_tensors and "_published" in state:
            tensor = counted(self._as_live(name, value))
            self._follow()
            if self._is_written(name, tensor):
                self._take_over(name, tensor)
            else:
                self._publish({name: tensor}, {})  # the same, maybe on another device
        elif name in self._live_numbers and "_published" in state:
            self._follow()
            self._take_over(name, value)
        else:
            super().__setattr__(name, value)

    def _as_live(self, name: str, value: Any) -> torch.Tensor:
        """What is written into a public tensor, as a tensor."""
        try:
            return torch.as_tensor(value)
        except (TypeError, ValueError, RuntimeError):
            raise TypeError(f"`{name}` must be a tensor, but is {value!r}.") from None

    def _set_config(self, config: Mapping[str, Any]):
        state, new = self.__dict__, LiveConfig(config)
        former, state["_internal_dict"] = state.get("_internal_dict", {}), new
        if "_published" not in state:  # in the constructor
            return
        for key, value in new.items():
            if key in former and not _are_equal(value, former[key]):
                new.put(key, value)
        try:
            self._take_over("config", new)
        except (TypeError, ValueError):
            state["_internal_dict"] = former
            raise
        self._note_versions()

    def _is_written(self, name: str, tensor: torch.Tensor) -> bool:
        """Whether a tensor says something new."""
        values, published = values_of(tensor), self._published[name]
        return values.dtype != published.dtype or not np.array_equal(values, published)

    def _follow(self):
        """Takes over what was written in place, or into the config, since the last look."""
        if torch.compiler.is_compiling():
            return
        if sum(map(_version, self._watched)) + self._internal_dict.num_writes == self._versions:
            return
        if "_published" not in self.__dict__:  # so that there is nothing to follow
            names = " or ".join(f"`{name}`" for name in self._live_tensors)
            raise RuntimeError(
                f"`{type(self).__name__}.__init__` must call `super().__init__`: give that its arguments, or write "
                f"{names} after it."
            )
        tensors = {name: self.__dict__[name] for name in self._live_tensors}
        written = {name: tensor for name, tensor in tensors.items() if self._is_written(name, tensor)}
        self._take_over("config", self._internal_dict)  # first, since it may make all tensors anew
        for name, tensor in written.items():
            self._take_over(name, tensor)
        self._note_versions()

    def to_json_string(self) -> str:
        """The config as JSON, with numbers of numpy and tensors that were written into it as plain ones."""
        with suppress(TypeError, ValueError, RuntimeError):  # as above
            self._follow()
        return super().to_json_string()  # type: ignore[misc]

    def save_config(self, *args: Any, **kwargs: Any):
        """Saves the config, after a check of what was written into it."""
        self._follow()
        super().save_config(*args, **kwargs)  # type: ignore[misc]


def _live(name: str) -> property:
    """A public attribute, stored under its name. What follows from something written elsewhere is read as it is now."""

    def read(self: LiveAttributes) -> Any:
        if name not in self.__dict__:
            raise AttributeError(name)
        if "_published" in self.__dict__:
            with suppress(TypeError, ValueError):  # read as it was written, to be mended; a use raises
                self._follow()
        return self.__dict__[name]

    def write(self: LiveAttributes, value: Any):  # in the constructor
        self.__dict__[name] = value

    return property(read, write)


def _are_equal(a: Any, b: Any) -> bool:
    return np.shape(a) == np.shape(b) and bool(np.all(a == b))


def values_of(tensor: torch.Tensor) -> np.ndarray:
    """The values in a form in which equal ones are equal, whatever the device and the precision."""
    kind = torch.float64 if tensor.is_floating_point() else torch.int64
    return tensor.detach().to("cpu", kind, copy=True).numpy()


def counted(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor that counts what is written into it, as one made in inference mode does not."""
    if not tensor.is_inference():
        return tensor
    with torch.inference_mode(False):
        return tensor.clone()
