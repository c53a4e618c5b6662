"""An architecture: a name for a dictionary with a code, or with a choice of codes, and its checked configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from lexray.storage.config_file import checked_config, nearest
from lexray.storage.errors import UserError
from lexray.training.codes.base import Code, CodeConfig
from lexray.training.dictionaries.base import Dictionary, DictionaryConfig, Kind
from lexray.training.identity.versions import BEFORE_VERSIONS, NEWEST, changed_dictionary_defaults


@dataclass(frozen=True)
class Architecture:
    """A row of the table."""

    name: str
    dictionary: type[Dictionary]
    codes: tuple[type[Code], ...] = ()
    """Codes that it may have, the default first; none for dictionaries whose code is solved for."""

    @property
    def kind(self) -> Kind:
        return self.dictionary.kind

    @property
    def Config(self) -> type[DictionaryConfig]:
        return self.dictionary.Config

    @property
    def described_by(self) -> type[Code] | type[Dictionary]:
        """The class whose docstring is the equations: of an autoencoder, its code."""
        return self.dictionary if "paper" in vars(self.dictionary) or not self.codes else self.codes[0]

    @property
    def paper(self) -> str:
        return self.described_by.paper

    @property
    def works_at_other_k(self) -> bool:
        """Whether a trained dictionary is evaluated at further numbers of active latents."""
        return any(code.eval_ks is not Code.eval_ks for code in self.codes)

    @property
    def kinds(self) -> list[str]:
        """Kinds of its codes."""
        return [code.kind for code in self.codes]

    def code(self, kind: str | None = None) -> type[Code] | None:
        """Return its code of a kind, by default the first. Raises UserError."""
        if kind is None:
            return self.codes[0] if self.codes else None
        for code in self.codes:
            if code.kind == kind:
                return code
        raise UserError(f"code: {self.name} has no code {kind!r}{nearest(str(kind), self.kinds)}")

    def option_names(self, kind: str | None = None) -> frozenset[str]:
        """Return the options that it has with a code, by default the first one."""
        code = self.code(kind)
        own = {f.name for f in fields(self.Config)} - {"architecture", "code"}
        of_code = {f.name for f in fields(code.Config)} - {"kind"} if code else set()
        return frozenset(own | of_code | ({"code"} if len(self.codes) > 1 else set()))

    @property
    def all_option_names(self) -> frozenset[str]:
        """Options that it has with some code."""
        names = [self.option_names(kind) for kind in self.kinds] or [self.option_names()]
        return frozenset[str]().union(*names)

    # Configurations --------------------------------------------------------------------------------------------

    def config(self, options: Mapping[str, Any], defaults: int = NEWEST) -> DictionaryConfig:
        """Return the checked configuration of options; `code` is a kind, or `{kind: ..., OPTION: ...}`.

        What is not given has the defaults of version `defaults`.

        Raises UserError naming the first option that is wrong, or that another code has.
        """
        options, kind = _with_code_apart(options)
        for name in options:
            self._check_name(name, kind)
        code = self.code(kind)
        options = {**changed_dictionary_defaults(defaults, self.name, code.kind if code else None), **options}
        if code is None:
            return checked_config(self.Config, {"architecture": self.name, **options})
        of_code = {f.name for f in fields(code.Config)}
        chosen = {name: options.pop(name) for name in list(options) if name in of_code}
        code_config: CodeConfig = checked_config(code.Config, {"kind": code.kind, **chosen})
        return checked_config(self.Config, {"architecture": self.name, "code": code_config, **options})

    def recorded_config(self, options: Mapping[str, Any]) -> DictionaryConfig:
        """The same of options that lexray wrote: earlier versions wrote those of all codes, which did nothing."""
        options, kind = _with_code_apart(options)
        others = self.all_option_names - self.option_names(kind)
        kept = {name: value for name, value in options.items() if name not in others}
        return self.config(kept | ({} if kind is None else {"code": kind}), BEFORE_VERSIONS)

    def _check_name(self, name: str, kind: str | None) -> None:
        known = self.option_names(kind)
        if name in known:
            return
        having = [other for other in self.kinds if name in self.option_names(other)]
        if having:
            raise UserError(
                f"{name}: {self.name} has no such option with code {kind or self.kinds[0]}, only with "
                f"{' and '.join(having)}"
            )
        raise UserError(f"{name}: unknown option of {self.name}{nearest(name, sorted(known))}")


def _with_code_apart(options: Mapping[str, Any]) -> tuple[dict[str, Any], str | None]:
    """Return the options without `code`, and its kind."""
    rest = {name: value for name, value in options.items() if name not in ("architecture", "code")}
    code = options.get("code")
    if not isinstance(code, Mapping):
        return rest, code
    inside = {name: value for name, value in code.items() if name != "kind"}
    for name in inside:
        if name in rest:
            raise UserError(f"code.{name}: stands there and as {name}; give it once")
    return {**rest, **inside}, code.get("kind")
