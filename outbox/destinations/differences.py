"""Pure: how an index differs from the mappings and settings that are registered for it.

Compared is what is registered: fields and settings that an index has beside them are its own (of dynamic mapping, of
templates). Elasticsearch answers with defaults left out, booleans as text, lists of one as the one, and fields with
dots in their names nested; none of that is a difference.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from typing import Any, Final, NamedTuple

from outbox.destinations.base import IndexDefinition

_MISSING: Final = object()

_STRUCTURE: Final = frozenset({"type", "properties", "fields"})

_UPDATABLE: Final = frozenset(
    {"coerce", "copy_to", "depth_limit", "dynamic", "eager_global_ordinals", "fielddata", "fielddata_frequency_filter"}
    | {"ignore_above", "ignore_malformed", "ignore_z_value", "max_input_length", "meta", "path", "search_analyzer"}
    | {"search_quote_analyzer", "split_queries_on_whitespace"}
)
"""Parameters of a field that `PUT _mapping` changes."""

_UPDATABLE_AT_THE_TOP: Final = frozenset(
    {"dynamic", "date_detection", "numeric_detection", "dynamic_date_formats", "dynamic_templates", "_meta", "runtime"}
)

_DEFAULTS_AT_THE_TOP: Final[Mapping[str, Any]] = {
    "dynamic": True,
    "date_detection": True,
    "numeric_detection": False,
    "dynamic_date_formats": ["strict_date_optional_time", "yyyy/MM/dd HH:mm:ss Z||yyyy/MM/dd Z"],
    "dynamic_templates": [],
    "_meta": {},
    "runtime": {},
    "enabled": True,
    "subobjects": True,
    "_routing": {"required": False},
    "_source": {"enabled": True, "includes": [], "excludes": []},
}

_ANY_FIELD: Final[Mapping[str, Any]] = {"copy_to": [], "meta": None, "store": False, "index": True, "null_value": None}
_NUMBER: Final = {**_ANY_FIELD, "doc_values": True, "coerce": True, "ignore_malformed": False}
_TERMS: Final = {**_ANY_FIELD, "doc_values": True, "ignore_malformed": False}
_DEFAULTS: Final[Mapping[str, Mapping[str, Any]]] = {
    **dict.fromkeys(
        ("long", "integer", "short", "byte", "double", "float", "half_float", "scaled_float", "unsigned_long"), _NUMBER
    ),
    **dict.fromkeys(("boolean", "ip"), _TERMS),
    "date": {**_TERMS, "format": "strict_date_optional_time||epoch_millis"},
    "date_nanos": {**_TERMS, "format": "strict_date_optional_time_nanos||epoch_millis"},
    "keyword": {
        **_ANY_FIELD,
        "doc_values": True,
        "ignore_above": 2147483647,
        "normalizer": None,
        "norms": False,
        "index_options": "docs",
        "similarity": "BM25",
        "eager_global_ordinals": False,
        "split_queries_on_whitespace": False,
    },
    "text": {
        **_ANY_FIELD,
        "analyzer": "standard",
        "search_analyzer": "standard",
        "search_quote_analyzer": "standard",
        "norms": True,
        "index_options": "positions",
        "similarity": "BM25",
        "term_vector": "no",
        "position_increment_gap": 100,
        "fielddata": False,
        "index_phrases": False,
        "index_prefixes": None,
        "eager_global_ordinals": False,
    },
    "object": {"enabled": True},
    "nested": {"include_in_parent": False, "include_in_root": False},
}
"""What a field has where its mapping says nothing, of the types that add nothing to it by themselves."""

_UNSAID: Final[Mapping[str, Any]] = {"copy_to": [], "meta": None}
"""Parameters that are left out where there are none, even of an answer with all defaults."""

_OF_AN_OBJECT: Final[Mapping[str, Any]] = {
    "enabled": True,
    "subobjects": True,
    "include_in_parent": False,
    "include_in_root": False,
}
_NOT_COMPARED: Final = frozenset({"boost", "locale", "orientation", "script"})
"""Parameters that are answered in another form than they were given in, or not at all."""

_AS_GIVEN: Final = frozenset({"boolean", "keyword", *(each for each in _DEFAULTS if _DEFAULTS[each] is _NUMBER)})
"""Types that keep `null_value` in the form in which it was given."""

_STATIC: Final = (
    *("index.analysis.", "index.codec", "index.load_fixed_bitset_filters_eagerly", "index.mapping.coerce"),
    *("index.mapping.ignore_malformed", "index.mapping.source.mode", "index.mode", "index.number_of_routing_shards"),
    *(
        "index.number_of_shards",
        "index.routing_partition_size",
        "index.routing_path",
        "index.shard.",
        "index.similarity.",
    ),
    *("index.soft_deletes.", "index.sort.", "index.store.", "index.time_series."),
)
"""Settings that an open index does not change, by what their names begin with."""

_OWN: Final = frozenset({"index.gc_deletes"})  # OUTBOX_GC_DELETES decides it


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that is registered, and that the index has otherwise or not at all.

    `mappings` and `settings` make the index as it is registered, without a rebuild; both are empty where only a rebuild
    does. `held` is None for a field that is missing.
    """

    what: str  # a field by its full path, the name of a setting, or of an entry at the top of the mappings
    parameter: str | None  # of the field
    registered: str
    held: str | None
    mappings: Mapping[str, Any] = field(default_factory=dict, hash=False)
    settings: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @property
    def additive(self) -> bool:
        """Whether the index can be made as registered without a rebuild."""
        return bool(self.mappings or self.settings)

    def __str__(self) -> str:
        if self.held is None:
            return f"{self.what} ({self.registered}) is missing"
        name = self.what if self.parameter is None else f"{self.what}.{self.parameter}"
        return f"{name} is {self.held}, registered as {self.registered}"


def differences(mappings: Mapping[str, Any], settings: Mapping[str, Any], held: IndexDefinition) -> list[Difference]:
    """What differs, fields first. `mappings` and `settings`: the registered ones."""
    return [*_at_the_top(mappings, held.mappings), *_of_fields(mappings, held), *_of_settings(settings, held.settings)]


def left_open(mappings: Mapping[str, Any], held: Mapping[str, Any]) -> list[str]:
    """The fields, by full path, of which a registered parameter is not in the mappings that an index answers with."""
    found = _by_path(held)
    return [
        each.path
        for each in _fields(mappings.get("properties") or {})
        if each.path in found and not _is_object(each.rule) and each.rule.keys() - found[each.path].keys() - _STRUCTURE
    ]


def merged(rule: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """What `PUT _mapping` makes of mappings, or of a field's: an object keeps what is not said of it, and any field its
    subfields."""
    within = {
        part: {
            **rule.get(part, {}),
            **{name: merged(rule.get(part, {}).get(name, {}), its) for name, its in more.get(part, {}).items()},
        }
        for part in ("properties", "fields")
        if part in rule or part in more
    }
    return {**(rule if _is_object(rule) else {}), **more, **within}


def flat_settings(settings: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Settings of an index by their full names: they may come nested, and without `index.`."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        path = f"{above}{name}"
        found |= flat_settings(value, f"{path}.") if isinstance(value, Mapping) else {path: value}
    return found if above else {name if name.startswith("index.") else f"index.{name}": v for name, v in found.items()}


# -- fields -----------------------------------------------------------------------------------------------------------


class _Field(NamedTuple):
    """A field or a subfield of the registered mappings."""

    path: str
    rule: Mapping[str, Any]
    chain: tuple[tuple[str, Mapping[str, Any]], ...]  # the objects that it is in and the field, of a subfield its field
    top: str  # the full path of that field


def _fields(properties: Mapping[str, Any], above: tuple[tuple[str, Any], ...] = (), path: str = "") -> Iterator[_Field]:
    for name, rule in properties.items():
        here, chain = f"{path}{name}", (*above, (name, rule))
        yield _Field(here, rule, chain, here)
        for sub, its in (rule.get("fields") or {}).items():
            yield _Field(f"{here}.{sub}", its, chain, here)
        yield from _fields(rule.get("properties") or {}, chain, f"{here}.")


def _by_path(mappings: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    return {each.path: each.rule for each in _fields(mappings.get("properties") or {})}


def _of_fields(mappings: Mapping[str, Any], held: IndexDefinition) -> Iterator[Difference]:
    found = _by_path(held.mappings)
    settled: set[str] = set()  # what is said of them goes for all that is in them
    by_top: dict[str, list[Difference]] = {}
    for each in _fields(mappings.get("properties") or {}):
        of_it = by_top.setdefault(each.top, [])
        if any(each.path.startswith(f"{path}.") for path in settled):
            continue
        if each.path in found:
            known = {"dynamic": _inherited(each.path, found, held.mappings), **held.defaults.get(each.path, {})}
            of_it += _of_rule(each, found[each.path], known)
            if any(one.parameter in (None, "enabled") for one in of_it):
                settled.add(each.path)
        elif not _is_implied(each.rule):
            settled.add(each.path)
            of_it.append(Difference(each.path, None, _kind(each.rule), None, _update(each)))
    for of_it in by_top.values():
        # A field is sent as a whole: one parameter that cannot be changed keeps the others back.
        whole = all(each.additive for each in of_it)
        yield from (
            each if whole else Difference(each.what, each.parameter, each.registered, each.held) for each in of_it
        )


def _inherited(path: str, found: Mapping[str, Mapping[str, Any]], mappings: Mapping[str, Any]) -> Any:
    """What `dynamic` is for an object that says nothing of it."""
    while path:
        path = path.rpartition(".")[0]
        if "dynamic" in found.get(path, {}):
            return found[path]["dynamic"]
    return mappings.get("dynamic", True)


def _is_implied(rule: Mapping[str, Any]) -> bool:
    """Whether it is an object that is nothing but the fields in it, which are compared by themselves."""
    return rule.keys() <= {"type", "properties"} and _kind(rule) == "object" and bool(rule.get("properties"))


def _of_rule(each: _Field, held: Mapping[str, Any], known: Mapping[str, Any]) -> Iterator[Difference]:
    """`known`: of parameters that the index does not answer with."""
    kind, found = _kind(each.rule), _kind(held)
    if kind != found:
        yield Difference(each.path, None, kind, found)
        return
    known = {**_UNSAID, **(_OF_AN_OBJECT if _is_object(held) else {}), **known, **held}
    for name, value in _compared(each.rule, kind):
        if name in known and not _same_parameter(name, value, known[name]):
            yield _parameter(each, name, value, known[name])
    for name, default in _DEFAULTS.get(kind, {}).items():
        if name.startswith("search_"):
            default = each.rule.get("analyzer", default)
        if name in held and name not in each.rule and not _same_parameter(name, default, held[name]):
            yield _parameter(each, name, default, held[name])


def _compared(rule: Mapping[str, Any], kind: str) -> Iterator[tuple[str, Any]]:
    for name, value in rule.items():
        if name not in _STRUCTURE | _NOT_COMPARED and (name != "null_value" or kind in _AS_GIVEN):
            yield name, value


def _parameter(each: _Field, name: str, registered: Any, held: Any) -> Difference:
    possible = name in _UPDATABLE or (name == "norms" and _plain(registered) == "false")
    return Difference(each.path, name, _text(registered), _text(held), _update(each, only=name) if possible else {})


def _update(each: _Field, only: str | None = None) -> dict[str, Any]:
    """What `PUT _mapping` has to be sent: the field, in the objects that it is in, of which only the kind is said."""
    *above, (name, rule) = each.chain
    if only and _is_object(rule):
        rule = {key: rule[key] for key in ("type", only) if key in rule}
    update: dict[str, Any] = {"properties": {name: dict(rule)}}
    for outer, its in reversed(above):
        update = {"properties": {outer: {**({"type": its["type"]} if "type" in its else {}), **update}}}
    return update


def _kind(rule: Mapping[str, Any]) -> str:
    return str(rule.get("type") or "object")


def _is_object(rule: Mapping[str, Any]) -> bool:
    return _kind(rule) in ("object", "nested")


# -- the rest ---------------------------------------------------------------------------------------------------------


def _at_the_top(mappings: Mapping[str, Any], held: Mapping[str, Any]) -> Iterator[Difference]:
    for name, value in mappings.items():
        if name == "properties" or name not in {**_DEFAULTS_AT_THE_TOP, **held}:
            continue
        default = _DEFAULTS_AT_THE_TOP.get(name)
        has = held.get(name, default)
        if isinstance(value, Mapping) and isinstance(default, Mapping) and default:
            has = {**default, **has}
            value = {key: its for key, its in {**default, **value}.items() if key in has}  # what is known of both
        if not _same(value, has) or (name == "_meta" and not _same(has, value)):
            update = {name: value} if name in _UPDATABLE_AT_THE_TOP else {}
            yield Difference(name, None, _text(value), _text(has), update)


def _of_settings(settings: Mapping[str, Any], held: Mapping[str, Any] | None) -> Iterator[Difference]:
    if held is None:
        return
    expands = _plain(held.get("index.auto_expand_replicas", False)) != "false"
    for name, value in flat_settings(settings).items():
        if value is None or name in _OWN or (expands and name == "index.number_of_replicas"):
            continue
        if not _same(value, held.get(name)):
            update = {} if name.startswith(_STATIC) else {name: value}
            yield Difference(name, None, _text(value), _text(held.get(name)), settings=update)


# -- values -----------------------------------------------------------------------------------------------------------


def _same_parameter(name: str, registered: Any, held: Any) -> bool:
    same_as = {"default": "standard"} if name.endswith("analyzer") else {"BM25": None} if name == "similarity" else {}
    return _same(*(same_as.get(each, each) if isinstance(each, str) else each for each in (registered, held)))


def _same(registered: Any, held: Any) -> bool:
    """Whether what is registered is what the index has; of objects, as far as it is registered."""
    if isinstance(registered, Mapping) and isinstance(held, Mapping):
        return all(_same(value, held.get(key)) for key, value in registered.items())
    mine, its = _plain(registered), _plain(held)
    if isinstance(its, dict) and isinstance(mine, str) and "source" in its:  # a script
        return bool(its["source"] == mine)
    if isinstance(mine, list) and isinstance(its, list):
        return len(mine) == len(its) and all(map(_same, mine, its))
    return bool(mine == its)


def _plain(value: Any) -> Any:
    """The same for all forms of a value: true and "true", 1, "1" and 1.0, ["a"] and "a", nothing and an empty list."""
    if isinstance(value, Mapping):
        return {str(key): _plain(its) for key, its in value.items()} or None
    if isinstance(value, Iterable) and not isinstance(value, str):
        plain: Sequence[Any] = [_plain(each) for each in value]
        return (plain[0] if len(plain) == 1 else plain) or None
    if value is None or isinstance(value, bool):
        return None if value is None else str(value).lower()
    text = str(value)
    if text.lstrip("-")[:1].isdigit():  # not NaN, which differs from itself
        with suppress(InvalidOperation):
            return Decimal(text).normalize()
    return text


def _text(value: Any) -> str:
    plain = _plain(value)
    if isinstance(plain, Decimal):
        return f"{plain:f}"
    return "none" if plain is None else plain if isinstance(plain, str) else json.dumps(value)
