"""Mappings and settings of every kind that a core node of Elasticsearch takes, and changes of them."""

from __future__ import annotations

from typing import Any, Final

KEYWORD: Final = {"type": "keyword"}
BROAD: Final[dict[str, dict[str, Any]]] = {
    "nothing": {},
    "text with keyword": {
        "properties": {"f": {"type": "text", "fields": {"keyword": {"type": "keyword", "ignore_above": 256}}}}
    },
    "defaults said aloud": {
        "dynamic": True,
        "date_detection": True,
        "numeric_detection": "false",
        "dynamic_templates": [],
        "_source": {"enabled": True, "excludes": []},
        "_routing": {"required": "false"},
        "_meta": {},
        "properties": {
            "k": {
                "type": "keyword",
                "index": True,
                "doc_values": "true",
                "store": False,
                "norms": False,
                "copy_to": [],
            },
            "t": {"type": "text", "analyzer": "standard", "norms": True, "similarity": "BM25", "fielddata": "false"},
            "a": {"type": "text", "analyzer": "default", "search_analyzer": "default", "index_options": "positions"},
            "n": {"type": "long", "coerce": "true", "ignore_malformed": False, "null_value": None},
            "d": {"type": "date", "format": "strict_date_optional_time||epoch_millis", "meta": {}},
            "o": {"type": "object", "enabled": "true", "dynamic": True, "properties": {"x": KEYWORD}},
            "p": {"type": "nested", "include_in_parent": False, "properties": {"x": KEYWORD}},
            "b": {"type": "boolean", "null_value": None},
        },
    },
    "nothing is the default": {
        "dynamic": "strict",
        "date_detection": False,
        "numeric_detection": True,
        "dynamic_date_formats": ["yyyy-MM-dd", "yyyy"],
        "_source": {"excludes": ["t.*"], "includes": ["k", "t"]},
        "_routing": {"required": True},
        "_meta": {"made": {"by": "us", "at": [1, 2]}},
        "properties": {
            "k": {"type": "keyword", "index": False, "doc_values": False, "store": True, "copy_to": "t"},
            "k2": {"type": "keyword", "null_value": "NULL", "ignore_above": "99", "normalizer": "lowercase"},
            "k3": {"type": "keyword", "norms": True, "index_options": "freqs", "split_queries_on_whitespace": True},
            "k4": {"type": "keyword", "copy_to": ["t", "t2"], "meta": {"unit": "m"}, "similarity": "boolean"},
            "t": {"type": "text", "analyzer": "simple", "search_analyzer": "whitespace", "store": "true"},
            "t2": {"type": "text", "search_quote_analyzer": "keyword", "norms": False, "index_options": "offsets"},
            "t3": {"type": "text", "fielddata": True, "fielddata_frequency_filter": {"min": 0.01, "max": 0.1}},
            "t4": {"type": "text", "index_prefixes": {}, "index_phrases": True, "position_increment_gap": 5},
            "t5": {"type": "text", "term_vector": "with_positions_offsets", "similarity": "boolean", "index": True},
            "t6": {"type": "text", "analyzer": "simple", "search_analyzer": "simple"},
            "n": {"type": "integer", "coerce": False, "ignore_malformed": "true", "null_value": 7, "store": True},
            "n2": {"type": "double", "null_value": "1.50", "doc_values": False},
            "d": {"type": "date", "format": "yyyy-MM-dd||epoch_second", "null_value": "2020-01-01", "locale": "de-DE"},
            "b": {"type": "boolean", "null_value": "true", "index": "false"},
            "o": {"type": "object", "enabled": False},
            "o2": {"dynamic": False, "properties": {"x": {"dynamic": "true", "properties": {"y": KEYWORD}}}},
            "p": {"type": "nested", "include_in_root": True, "dynamic": "strict", "properties": {"x": KEYWORD}},
        },
    },
    "names with dots": {
        "properties": {"a.b.c": KEYWORD, "a": {"properties": {"d": {"type": "long"}}}, "e.f": {"enabled": False}}
    },
    "fields that keep their dots": {"subobjects": False, "properties": {"a.b": KEYWORD, "a": {"type": "long"}}},
    "objects without a type": {
        "properties": {"a": {"properties": {"b": {"properties": {"c": KEYWORD}}}}, "e": {"type": "object"}}
    },
    "other types": {
        "properties": {
            "ip": {"type": "ip", "null_value": "::0001"},
            "g": {"type": "geo_point", "null_value": "1,2", "ignore_malformed": True, "ignore_z_value": False},
            "bi": {"type": "binary", "doc_values": True, "store": True},
            "r": {"type": "integer_range", "coerce": False},
            "dr": {"type": "date_range", "format": "yyyy-MM-dd"},
            "dn": {"type": "date_nanos"},
            "c": {"type": "completion", "analyzer": "standard", "max_input_length": 10, "preserve_separators": False},
            "fl": {"type": "flattened", "depth_limit": 5, "ignore_above": 100, "split_queries_on_whitespace": True},
            "v": {"type": "dense_vector", "dims": 3},
            "v2": {"type": "dense_vector", "dims": 3, "similarity": "dot_product", "index_options": {"type": "hnsw"}},
            "v3": {"type": "dense_vector", "index": False},
            "al": {"type": "alias", "path": "ip"},
            "h": {"type": "half_float"},
            "s": {"type": "sparse_vector"},
        }
    },
    "templates": {
        "dynamic": "runtime",
        "dynamic_templates": [
            {"texts": {"match_mapping_type": "string", "match": "t_*", "mapping": {"type": "text"}}},
            {"all": {"match": ["a*", "b*"], "unmatch": "ab*", "mapping": {"type": "keyword", "ignore_above": 5}}},
            {"rest": {"match_mapping_type": "*", "path_match": "x.*", "mapping": {"index": False}}},
        ],
        "runtime": {"r": {"type": "keyword"}},
    },
}
SETTINGS: Final[dict[str, dict[str, Any]]] = {
    "nothing": {},
    "flat": {
        "index.number_of_shards": 2,
        "number_of_replicas": "0",
        "index.refresh_interval": "7s",
        "codec": "best_compression",
    },
    "nested": {
        "index": {
            "number_of_shards": 1,
            "max_result_window": 20000,
            "auto_expand_replicas": "0-1",
            "number_of_replicas": 1,
        },
        "analysis": {
            "analyzer": {"en": {"type": "custom", "tokenizer": "standard", "filter": ["lowercase", "short"]}},
            "filter": {"short": {"type": "stop", "stopwords": ["a", "the"], "ignore_case": True}},
            "normalizer": {"low": {"type": "custom", "filter": "lowercase"}},
        },
        "similarity": {"mine": {"type": "BM25", "b": 0.5, "k1": 1}},
    },
    "sorted": {"sort.field": ["k"], "sort.order": "desc", "hidden": True, "refresh_interval": None, "gc_deletes": "5s"},
}

_BY_TYPE: Final[dict[str, tuple[dict[str, Any], dict[str, Any]]]] = {
    "text": (
        {
            "search_analyzer": "simple",
            "search_quote_analyzer": "simple",
            "norms": False,
            "fielddata": True,
            "eager_global_ordinals": True,
            "meta": {"unit": "m"},
            "copy_to": "z",
            "fields": {"k": KEYWORD},
        },
        {
            "analyzer": "simple",
            "index": False,
            "store": True,
            "index_options": "docs",
            "similarity": "boolean",
            "term_vector": "yes",
            "position_increment_gap": 5,
            "index_prefixes": {"min_chars": 2},
            "index_phrases": True,
        },
    ),
    "keyword": (
        {
            "ignore_above": 10,
            "eager_global_ordinals": True,
            "split_queries_on_whitespace": True,
            "copy_to": ["z", "y"],
            "meta": {"unit": "m"},
        },
        {
            "index": False,
            "doc_values": False,
            "store": True,
            "null_value": "x",
            "index_options": "freqs",
            "norms": True,
            "similarity": "boolean",
            "normalizer": "lowercase",
        },
    ),
    "long": (
        {"coerce": False, "ignore_malformed": True},
        {"index": False, "doc_values": False, "store": True, "null_value": 4},
    ),
    "date": ({"ignore_malformed": True}, {"format": "yyyy", "index": False, "doc_values": False, "store": True}),
    "boolean": ({"meta": {"unit": "m"}}, {"index": False, "doc_values": False, "null_value": True, "store": True}),
    "object": ({"dynamic": "strict", "properties": {"q": KEYWORD}}, {"enabled": False, "subobjects": False}),
    "nested": (
        {"dynamic": "strict", "properties": {"q": KEYWORD}},
        {"include_in_parent": True, "include_in_root": True},
    ),
}
"""By type of field: what is added in place, and what is not."""

ADDED: Final[dict[str, tuple[dict[str, Any], dict[str, Any]]]] = {
    **{
        f"{kind}_{name}": ({"type": kind}, {"type": kind, name: value})
        for kind, (added, _) in _BY_TYPE.items()
        for name, value in added.items()
    },
    **{
        f"{kind}_{name}_no_more": ({"type": kind, name: value}, {"type": kind})
        for kind, name, value in (
            ("keyword", "ignore_above", 10),
            ("keyword", "copy_to", "z"),
            ("long", "coerce", False),
            ("date", "ignore_malformed", True),
            ("text", "search_analyzer", "simple"),
        )
    },
    "new_within": (
        {"properties": {"b": KEYWORD}},
        {"properties": {"b": KEYWORD, "c.d": KEYWORD, "e": {"type": "object", "enabled": False}}},
    ),
    "new_nested": (
        {"properties": {"b": KEYWORD}},
        {"properties": {"n": {"type": "nested", "properties": {"x": KEYWORD}}}},
    ),
    "within_nested": (
        {"type": "nested", "properties": {"x": KEYWORD}},
        {"type": "nested", "properties": {"x": KEYWORD, "y": {"type": "text", "fields": {"k": KEYWORD}}}},
    ),
}
"""Fields of an index, and what is registered now: the difference is added."""

REBUILT: Final[dict[str, tuple[dict[str, Any], dict[str, Any]]]] = {
    **{
        f"{kind}_{name}": ({"type": kind}, {"type": kind, name: value})
        for kind, (_, refused) in _BY_TYPE.items()
        for name, value in refused.items()
    },
    "type": ({"type": "text"}, KEYWORD),
    "to_object": (KEYWORD, {"properties": {"x": KEYWORD}}),
    "from_object": ({"properties": {"x": KEYWORD}}, KEYWORD),
    "to_nested": ({"properties": {"x": KEYWORD}}, {"type": "nested", "properties": {"x": KEYWORD}}),
    "subfield": ({"type": "text", "fields": {"k": KEYWORD}}, {"type": "text", "fields": {"k": {"type": "long"}}}),
    "analyzer_no_more": ({"type": "text", "analyzer": "simple"}, {"type": "text"}),
    "norms_again": ({"type": "text", "norms": False}, {"type": "text"}),
    "indexed_again": ({"type": "keyword", "index": False}, KEYWORD),
}
"""The same, where it takes a rebuild."""

ADDED_AT_THE_TOP: Final[list[tuple[dict[str, Any], dict[str, Any]]]] = [
    ({"dynamic": "strict", "_meta": {"a": 1}}, {"dynamic": True, "_meta": {"b": 1}}),
    (
        {},
        {
            "dynamic": "strict",
            "date_detection": False,
            "numeric_detection": True,
            "dynamic_date_formats": ["yyyy"],
            "dynamic_templates": [{"a": {"match": "x*", "mapping": KEYWORD}}],
        },
    ),
]
REBUILT_AT_THE_TOP: Final[list[tuple[dict[str, Any], dict[str, Any]]]] = [
    ({"_source": {"excludes": ["a"]}}, {"_source": {"excludes": ["a", "b"]}}),
    ({}, {"_routing": {"required": True}}),
]


def before_and_after(changes: dict[str, tuple[dict[str, Any], dict[str, Any]]]) -> list[dict[str, Any]]:
    """The mappings of one index with all of those fields."""
    return [{"properties": {name: each[at] for name, each in changes.items()}} for at in (0, 1)]
